"""The whole network in eval mode: `fuse(model)` beside its rivals, a clip at a time and in batches.

One person means a clip whose second slot is empty, in a model of two slots, as most clips of NTU are.
"""

import statistics
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from msg3d_fast import fuse

from .fresh import measure
from .harness import SGEMM, SGEMM_FLOPS, assert_parity, compare, keep_equal, record, sgemm
from .rivals import RIVALS, build
from .workload import LAYOUTS, clips, flops, network

LONG = [(1, 300), (8, 100), (8, 300), (32, 100), (32, 300)]  # clips, frames


@lru_cache(maxsize=1)  # rivals take up to minutes to build and serve clips with one person and with two
def contenders(layout: str, N: int, T: int, compiled: bool) -> tuple[Callable[[Tensor], Tensor], dict, dict]:
    """Return (ours, rivals, {rival: why it is not measured}) for N clips of T frames."""
    names = [name for name in RIVALS if compiled or name != "torch.compile"]
    rivals, missing = build(names, network(layout, "reference").eval(), clips(layout, N, T))
    if not compiled:
        missing["torch.compile"] = "takes a minute to compile: single clips of 100 frames only, ntu-25 with --full"
    return fuse(network(layout).eval()), rivals, missing


def check(ours: Callable[[Tensor], Tensor], layout: str, x: Tensor) -> None:
    """Assert parity with the float64 reference on the first clips, which do not depend on the others in eval mode."""
    x = x[:2]
    model = network(layout, "reference").eval()
    with torch.inference_mode():
        found, eager = ours(x), model(x)
        assert_parity(found, eager, model.double()(x.double()))


@pytest.mark.parametrize("persons", [2, 1], ids=["two-persons", "one-person"])
@pytest.mark.parametrize(
    ("N", "T"), [(1, 100), *[pytest.param(*size, marks=pytest.mark.full) for size in LONG]], ids=lambda size: str(size)
)
@pytest.mark.parametrize("skeleton", LAYOUTS)
def test_eval(benchmark, request, skeleton: str, N: int, T: int, persons: int) -> None:
    layout, full = LAYOUTS[skeleton], request.config.getoption("--full")
    ours, rivals, missing = contenders(layout, N, T, compiled=N * T == 100 and (full or skeleton == "coco-17"))
    x = clips(layout, N, T, [persons])
    check(ours, layout, x)
    calls = {name: lambda call=call: call(x) for name, call in rivals.items()}
    calls, unequal = keep_equal(calls, rivals["eager"](x))
    calls[SGEMM] = sgemm()
    model = network(layout)
    compare(
        benchmark,
        lambda: ours(x),
        calls,
        seconds=30 if full else 12,
        not_measured=missing | unequal,
        kind="eval",
        case={"skeleton": skeleton, "clips": N, "frames": T, "persons": persons},
        flops=flops(model, N, T) * persons // 2,
        flops_upstream=flops(model, N, T, "upstream"),
        sgemm_flops=SGEMM_FLOPS,
    )


@pytest.mark.parametrize("persons", [2, 1], ids=["two-persons", "one-person"])
@pytest.mark.parametrize("skeleton", LAYOUTS)
def test_threads(benchmark, skeleton: str, persons: int) -> None:
    """One thread beside two, and torch.mm likewise."""
    layout = LAYOUTS[skeleton]
    ours, x, product = fuse(network(layout).eval()), clips(layout, 1, 100, [persons]), sgemm()
    check(ours, layout, x)
    compare(
        benchmark,
        lambda: ours(x),
        {"1 thread": lambda: ours(x), f"{SGEMM}, 1 thread": product, SGEMM: product},
        threads={"1 thread": 1, f"{SGEMM}, 1 thread": 1, SGEMM: 2, "ours": 2},
        kind="threads",
        case={"skeleton": skeleton, "clips": 1, "frames": 100, "persons": persons},
        flops=flops(network(layout), 1, 100) * persons // 2,
        sgemm_flops=SGEMM_FLOPS,
    )


@pytest.mark.parametrize("skeleton", LAYOUTS)
def test_first_result(benchmark, skeleton: str) -> None:
    """From a model in memory to its first logits, each time in a new process: folding, packing, one clip."""
    layout = LAYOUTS[skeleton]
    record(
        benchmark,
        lambda: {"seconds": statistics.median(measure("first", "fused", 1, 100, layout) for _ in range(3))},
        kind="first result",
        case={"skeleton": skeleton, "clips": 1, "frames": 100, "persons": 1},
    )
