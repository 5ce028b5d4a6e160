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


def deviation(statistics: Tensor, y: Tensor) -> float:
    """Of statistics (2, channels) from mean and variance of y (N, channels, T, V) in float64: means in standard
    deviations, variances relative."""
    mean, variance = y.double().mean((0, 2, 3)), y.double().var((0, 2, 3), correction=0)
    of_means = (statistics[0] - mean).abs() / (variance.sqrt() + mean.abs())
    return torch.cat([of_means, (statistics[1] - variance).abs() / variance]).max().item()


def assert_as_good_as_eager(actual: float, eager: float, what: str = "") -> None:
    """The rule itself, on two errors that `error` measured against the same exact numbers."""
    assert actual <= 2 * eager + FLOOR, f"{what}: error {actual:.2e}, eager's own {eager:.2e}"
