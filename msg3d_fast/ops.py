"""The front door of the operators: autocast, the choice of the backend, then the operator itself."""

import os

from torch import Tensor

from . import reference
from .errors import UserError

BACKENDS = ("native", "reference", "emulated")


def resolve_backend(name: str | None) -> str:
    """Return the backend that `name` stands for; None means $MSG3D_BACKEND, else native."""
    chosen = name or os.environ.get("MSG3D_BACKEND") or "native"
    if chosen not in BACKENDS:
        raise UserError(f"backend is {chosen!r}; expected one of {', '.join(BACKENDS)}")
    return chosen


def format_conversions() -> int:
    """Return how many inputs were not channels_last and had to be copied."""
    return 0


def ms_g3d(
    x: Tensor,
    A: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    window_size: int = 3,
    window_stride: int = 1,
    window_dilation: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Multi-scale graph convolution over windows of frames: x (N, C, T, V) -> (N, O, T_out, tau*V)."""
    resolve_backend(backend)
    return reference.ms_g3d(x, A, weight, bias, window_size, window_stride, window_dilation)


def ms_gcn(x: Tensor, A: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Multi-scale graph convolution frame by frame, the case tau = s = d = 1: x (N, C, T, V) -> (N, O, T, V)."""
    return ms_g3d(x, A, weight, bias, window_size=1, backend=backend)
