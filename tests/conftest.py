"""What every test gets: a fixed seed, and fresh memory filled with NaN, so that an unwritten element cannot pass.

And fixtures that several files ask for.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# Processes share the cores: where each has a thread for every core, threads that wait keep those that work from them,
# and the tests take six times as long.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import emulated  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from tiny import write_clips  # noqa: E402

from msg3d_fast import ops  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded_and_poisoned() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # also fills what torch.empty and C++ allocations return
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def emulated_backend() -> Iterator[None]:
    """Build the backend, and leave it as it was found: an A100 that takes the tiles modelled fastest."""
    emulated.build()
    ops.operators("emulated")
    yield
    emulated.raw.set_device(*emulated.DEVICES["A100"])
    emulated.raw.ms_g3d_set_cuda_plan("auto")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ragged .npz of `tiny`'s clips."""
    return write_clips(tmp_path_factory.mktemp("data") / "clips.npz")
