"""A training step: forward, cross entropy, backward, SGD. Time beside plain PyTorch, memory of each way to run it.

"NTU's mix" has two persons in one clip of five, the others one, as NTU RGB+D roughly has.
"""

import pytest
import torch
from torch._dynamo import reset

from .fresh import measure
from .harness import assert_parity, compare, failure, record
from .workload import LAYOUTS, Trainer, clips, flops, labels, saved_bytes

ALL_PRESENT, NTU_MIX = (2,), (2, 1, 1, 1, 1)
STEPS = {"all present": (4, ALL_PRESENT), "NTU's mix": (16, NTU_MIX)}  # clips, persons in turn


def check(layout: str, present: tuple[int, ...]) -> None:
    """Assert parity of all gradients with float64 on three clips."""
    x, y = clips(layout, 3, 100, present), labels(3)
    plain = Trainer("eager", layout)
    eager = plain.gradients(x, y)
    plain.model.double()
    exact = plain.gradients(x.double(), y)
    for contender in ("fast", "low"):
        assert_parity(Trainer(contender, layout).gradients(x, y), eager, exact)


@pytest.mark.parametrize("persons", STEPS)
@pytest.mark.parametrize(
    "skeleton", [name if name == "coco-17" else pytest.param(name, marks=pytest.mark.full) for name in LAYOUTS]
)
def test_step(benchmark, request, skeleton: str, persons: str) -> None:
    layout, (N, present) = LAYOUTS[skeleton], STEPS[persons]
    check(layout, present)
    x, y = clips(layout, N, 100, present), labels(N)
    trainers = {name: Trainer(name, layout) for name in Trainer.CONTENDERS}
    missing = {"torch.compile": "takes minutes to compile: --compile-training"}
    if request.config.getoption("--compile-training") and persons == "all present":
        reset()
        compiled = Trainer("eager", layout)
        compiled.forward = torch.compile(compiled.model, dynamic=False)
        try:
            compiled.step(x, y)
            trainers["torch.compile"] = compiled
            missing = {}
        except Exception as problem:  # a rival's failure is a finding about the rival
            missing = {"torch.compile": failure(problem)}
    ours = trainers.pop("fast")
    compare(
        benchmark,
        lambda: ours.step(x, y),
        {name: lambda trainer=trainer: trainer.step(x, y) for name, trainer in trainers.items()},
        seconds=40 if N > 4 else 25,
        not_measured=missing,
        kind="training",
        case={"skeleton": skeleton, "clips": N, "frames": 100, "persons": persons},
        flops_upstream=3 * flops(ours.model, N, 100, "upstream"),
    )


@pytest.mark.full
def test_step_threads(benchmark) -> None:
    """One thread beside two."""
    trainer, x, y = Trainer("fast"), clips("coco", 4, 100), labels(4)
    compare(
        benchmark,
        lambda: trainer.step(x, y),
        {"1 thread": lambda: trainer.step(x, y)},
        threads={"1 thread": 1, "ours": 2},
        kind="threads",
        case={"skeleton": "coco-17", "clips": 4, "frames": 100, "persons": "training"},
    )


@pytest.mark.parametrize("skeleton", LAYOUTS)
@pytest.mark.parametrize("contender", Trainer.CONTENDERS)
def test_saved_for_backward(benchmark, skeleton: str, contender: str) -> None:
    layout, N = LAYOUTS[skeleton], 4
    trainer, x, y = Trainer(contender, layout), clips(layout, N, 100), labels(N)
    record(
        benchmark,
        lambda: {"bytes_per_clip": saved_bytes(lambda: trainer.loss(x, y), trainer.model) / N},
        kind="saved for backward",
        case={"skeleton": skeleton, "clips": N, "frames": 100, "contender": contender},
    )


@pytest.mark.parametrize("frames", [100, 200, 300])
@pytest.mark.parametrize("contender", Trainer.CONTENDERS)
def test_peak_memory(benchmark, contender: str, frames: int) -> None:
    """How far a step of two clips raises the resident memory of a process of its own."""
    N = 2
    record(
        benchmark,
        lambda: {"bytes_per_clip": measure("peak", contender, N, frames) / N},
        kind="peak memory",
        case={"skeleton": "coco-17", "clips": N, "frames": frames, "contender": contender},
    )
