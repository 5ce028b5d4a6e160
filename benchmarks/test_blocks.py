"""Every block and graph convolution of the default network on the input it meets there, forward and with backward.

Ours get channels_last memory and eager the format that upstream runs in, as in the networks.
"""

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from .harness import assert_parity, compare
from .workload import LAYOUTS, Block, block_names, blocks, network

pytestmark = pytest.mark.full
N, T = 1, 100


@lru_cache(maxsize=2)
def network_blocks(layout: str, backend: str) -> dict[str, Block]:
    """Return {name: block} of the default network."""
    return {block.name: block for block in blocks(network(layout, backend), N, T)}


def forward(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    module.eval()

    def call() -> Tensor:
        with torch.inference_mode():
            return module(x)

    return call


def backward(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return a call that gives all gradients, of the input and of the parameters, in one vector."""
    module.train()
    x = x.detach().clone().requires_grad_()
    seed = torch.ones_like(module(x))
    seed[..., ::2] = -0.5

    def call() -> Tensor:
        gradients = torch.autograd.grad(module(x), [x, *module.parameters()], seed)
        return torch.cat([gradient.flatten() for gradient in gradients])

    return call


@pytest.mark.parametrize("direction", [forward, backward], ids=["forward", "backward"])
@pytest.mark.parametrize("name", block_names())
@pytest.mark.parametrize("skeleton", LAYOUTS)
def test_block(benchmark, skeleton: str, name: str, direction: Callable) -> None:
    block, rival = (network_blocks(LAYOUTS[skeleton], backend)[name] for backend in ("native", "reference"))
    x = torch.randn(block.shape, generator=torch.Generator().manual_seed(2))
    ours = direction(block.module, x.contiguous(memory_format=torch.channels_last))
    eager = direction(rival.module, x)
    taken, given = ours(), eager()
    rival.module.double()
    exact = direction(rival.module, x.double())()
    rival.module.float()
    assert_parity(taken, given, exact)
    compare(
        benchmark,
        ours,
        {"eager": eager},
        seconds=1.5,
        kind=f"block {direction.__name__}",
        case={"skeleton": skeleton, "block": block.name, "module": type(block.module).__name__, "shape": block.shape},
    )
