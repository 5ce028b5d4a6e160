"""What every test gets: a fixed seed, and fresh memory filled with NaN, so that an unwritten element cannot pass."""

import os
from collections.abc import Iterator

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded_and_poisoned() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # also fills what torch.empty and C++ allocations return
    yield
    torch.use_deterministic_algorithms(False)
