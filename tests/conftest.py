"""What every test gets: a fixed seed, and fresh memory filled with NaN, so that an unwritten element cannot pass."""

import os
from collections.abc import Iterator

os.environ.setdefault("MPLBACKEND", "Agg")
# Processes share the cores: where each has a thread for every core, threads that wait keep those that work from them,
# and the tests take six times as long.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded_and_poisoned() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # also fills what torch.empty and C++ allocations return
    yield
    torch.use_deterministic_algorithms(False)
