"""Options of `python -m pytest benchmarks`, the number of threads, and what the results say about the machine."""

import os
import platform

import pytest
import torch

from msg3d_fast.doctor import cpu_name

from .workload import LAYOUTS


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("msg3d_fast")
    group.addoption("--full", action="store_true", help="also the cases that together take an hour")
    group.addoption("--compile-training", action="store_true", help="torch.compile the training step too: minutes")
    group.addoption("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of every contender (2)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: takes minutes; runs with --full")
    torch.set_num_threads(config.getoption("--threads"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["msg3d_fast"] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": config.getoption("--threads"),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    """A skeleton of the tables, under its registered name."""
    return LAYOUTS[request.param]
