"""The one rule for "equal up to rounding": error against float64 at most twice eager's own, plus a tiny floor."""

import torch
from torch import Tensor

FLOOR = 2.0**-21  # four units of float32 rounding


def error(actual: Tensor, exact: Tensor, scale: float | None = None) -> float:
    """Largest deviation relative to `scale`, by default the largest exact magnitude; infinite where not finite."""
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    if not exact.numel():
        return 0.0
    exact = exact.double()
    scale = exact.abs().max().item() if scale is None else scale
    deviation = (actual.detach().double() - exact).abs().max().item() / max(scale, torch.finfo(torch.float64).tiny)
    return deviation if deviation == deviation else float("inf")


def assert_as_good_as_eager(actual: float, eager: float, what: str = "") -> None:
    """The rule itself, on two errors that `error` measured against the same exact numbers."""
    assert actual <= 2 * eager + FLOOR, f"{what}: error {actual:.2e}, eager's own {eager:.2e}"
