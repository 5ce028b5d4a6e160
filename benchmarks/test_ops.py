"""The bare operator against the reference's sequence of operations, on the graph convolutions of the default network.

One clip of two persons, 100 frames; sizes are read off the network.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from msg3d_fast import ops
from msg3d_fast.modules import STMSGCN

from .harness import assert_parity, compare
from .test_blocks import network_blocks
from .workload import LAYOUTS, block_names

pytestmark = pytest.mark.full


def inputs(layout: str, name: str, backend: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[int]]:
    """Return random leaves (x, A, weight, bias), x in the backend's format, and the window's size, stride, dilation."""
    block = network_blocks(layout, "reference")[name]
    conv = block.module
    generator = torch.Generator().manual_seed(0)
    shapes = block.shape, conv.A.shape, (conv.out_channels, conv.num_scales, conv.in_channels), (conv.out_channels,)
    x, *parameters = [torch.randn(shape, generator=generator).to(dtype) / shape[-1] ** 0.5 for shape in shapes]
    if backend == "native":
        x = x.contiguous(memory_format=torch.channels_last)
    window = [conv.window_size, conv.window_stride, conv.window_dilation]
    return [tensor.requires_grad_() for tensor in (x, *parameters)], window


def forward(backend: str, tensors: list[Tensor], window: list[int]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return ops.ms_g3d(*tensors, *window, backend=backend)

    return call


def backward(backend: str, tensors: list[Tensor], window: list[int]) -> Callable[[], Tensor]:
    """Return a call that runs forward and backward and gives all gradients in one vector."""
    y = forward(backend, tensors, window)()
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    if backend == "native":
        seed = seed.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        y = ops.ms_g3d(*tensors, *window, backend=backend)
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(y, tensors, seed)])

    return call


@pytest.mark.parametrize("direction", [forward, backward])
@pytest.mark.parametrize("name", block_names((STMSGCN,)))
@pytest.mark.parametrize("skeleton", LAYOUTS)
def test_operator(benchmark, skeleton: str, name: str, direction: Callable) -> None:
    layout = LAYOUTS[skeleton]
    ours = direction("native", *inputs(layout, name, "native"))
    eager = direction("reference", *inputs(layout, name, "reference"))
    assert_parity(ours(), eager(), direction("reference", *inputs(layout, name, "reference", torch.float64))())
    compare(
        benchmark,
        ours,
        {"eager": eager},
        seconds=1.5,
        kind=f"operator {direction.__name__}",
        case={"skeleton": skeleton, "block": name, "module": "ops.ms_g3d"},
    )
