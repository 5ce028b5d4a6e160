"""The bare operator against the reference's sequence of operations, on the graph convolutions of the default network.

coco-17, two clips of two persons, T = 100. The channels of each layer are those after the paths split: 3, 96, 192.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from msg3d_fast import ops

from .harness import assert_parity, compare

N, V = 4, 17
LAYERS = {  # C, T, K, O, window_size, window_stride
    "stage1 gcn": (3, 100, 13, 96, 1, 1),
    "stage1 w3": (3, 100, 6, 96, 3, 1),
    "stage1 w5": (3, 100, 6, 96, 5, 1),
    "stage2 gcn": (96, 100, 13, 96, 1, 1),
    "stage2 w3": (96, 100, 6, 96, 3, 2),
    "stage2 w5": (96, 100, 6, 96, 5, 2),
    "stage3 gcn": (192, 50, 13, 192, 1, 1),
    "stage3 w3": (192, 50, 6, 192, 3, 2),
    "stage3 w5": (192, 50, 6, 192, 5, 2),
}


def inputs(layer: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    C, T, K, O, tau, _ = LAYERS[layer]  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    shapes = (N, C, T, V), (K, tau * V, tau * V), (O, K, C), (O,)
    drawn = [torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def forward(layer: str, backend: str, tensors: list[Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return ops.ms_g3d(*tensors, *LAYERS[layer][-2:], backend=backend)

    return call


def forward_and_backward(layer: str, backend: str, tensors: list[Tensor]) -> Callable[[], Tensor]:
    gy = torch.randn(forward(layer, backend, tensors)().shape, generator=torch.Generator().manual_seed(1))
    if backend == "native":
        gy = gy.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        y = ops.ms_g3d(*tensors, *LAYERS[layer][-2:], backend=backend)
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(y, tensors, gy.to(y.dtype))])

    return call


@pytest.mark.parametrize("direction", [forward, forward_and_backward], ids=["forward", "both"])
@pytest.mark.parametrize("layer", LAYERS)
def test_graph_convolution(benchmark, layer: str, direction: Callable) -> None:
    tensors = inputs(layer)
    x, *parameters = tensors
    channels_last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    ours = direction(layer, "native", [channels_last, *parameters])
    eager = direction(layer, "reference", tensors)
    assert_parity(ours(), eager(), direction(layer, "reference", inputs(layer, torch.float64))())
    compare(benchmark, ours, {"eager": eager}, seconds=1.5, kind=f"op {direction.__name__}", case={"layer": layer})
