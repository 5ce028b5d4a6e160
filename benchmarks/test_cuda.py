"""The operator and the network on a GPU, beside eager, torch.compile and CUDA graphs of both; skipped without one.

Times are CUDA events' around one call, after a warm-up and with the second-level cache overwritten before each, as in a
network. Eager is the authors' sequence of operations. One clip of two persons, 100 frames, if nothing else is said.
"""

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from msg3d_fast import fuse
from msg3d_fast.modules import STMSGCN

from .harness import failure, keep_equal, record, relative_error
from .test_ops import forward, inputs
from .workload import LAYOUTS, Trainer, block_names, clips, labels, network

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
FLUSH_BYTES = 256 << 20  # more than any second-level cache
ROUNDS, WARM_UP = 50, 10


def graphed(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a replay of what `call` launches, captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def with_graphs(calls: dict[str, Callable[[], Tensor]]) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Return the calls and their CUDA graphs, and why some could not be captured."""
    captured, refused = {}, {}
    for name, call in calls.items():
        try:
            captured[f"{name}, CUDA graph"] = graphed(call)
        except Exception as problem:  # a rival's failure is a finding about the rival
            refused[f"{name}, CUDA graph"] = failure(problem)
    return calls | captured, refused


def milliseconds(calls: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Return the median time of each call; they take turns."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + ROUNDS):
        for name, call in calls.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            if turn >= WARM_UP:
                taken[name].append(begin.elapsed_time(end))
    return {name: statistics.median(series) for name, series in taken.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize("name", block_names((STMSGCN,)))
@pytest.mark.parametrize("skeleton", LAYOUTS)
def test_operator_on_a_gpu(benchmark, skeleton: str, name: str, dtype: torch.dtype) -> None:
    calls, expected = {}, None
    for backend in ("native", "reference"):
        tensors, window = inputs(LAYOUTS[skeleton], name, backend, dtype)
        call = forward(backend, [tensor.detach().cuda() for tensor in tensors], window)
        calls["ours" if backend == "native" else "eager"] = call
        if backend == "reference":
            expected = call()
            calls["torch.compile"] = torch.compile(call, dynamic=False)
    calls |= {f"{contender}, CUDA graph": graphed(calls[contender]) for contender in ("ours", "eager")}
    kept, refused = keep_equal(calls, expected, tolerance=1e-4 if dtype == torch.float32 else 2e-2)
    assert "ours" in kept, refused["ours"]
    record(
        benchmark,
        lambda: {"milliseconds": milliseconds(kept)},
        kind="operator on a GPU",
        case={"skeleton": skeleton, "block": name, "dtype": str(dtype), "device": torch.cuda.get_device_name()},
        not_measured=refused,
    )


def inference(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return module(x)

    return call


@pytest.mark.parametrize("N", [1, 32], ids=["one-clip", "32-clips"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize("skeleton", LAYOUTS)
def test_network_on_a_gpu(benchmark, skeleton: str, dtype: torch.dtype, N: int) -> None:
    """Eval mode: `fuse(model)` beside its rivals."""
    layout = LAYOUTS[skeleton]
    model = network(layout, "reference").eval().cuda().to(dtype)
    x = clips(layout, N, 100).cuda().to(dtype)
    calls = {"ours": inference(fuse(model), x), "eager": inference(model, x)}
    expected = calls["eager"]()
    calls["torch.compile"] = inference(torch.compile(model, dynamic=False), x)
    kept, refused = keep_equal(calls, expected, tolerance=1e-3 if dtype == torch.float32 else 5e-2)
    assert "ours" in kept, refused["ours"]
    kept, not_captured = with_graphs(kept)
    record(
        benchmark,
        lambda: {"milliseconds": milliseconds(kept)},
        kind="network on a GPU",
        case={"skeleton": skeleton, "clips": N, "dtype": str(dtype), "device": torch.cuda.get_device_name()},
        not_measured=refused | not_captured,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["autocast-bf16", "f32"])
@pytest.mark.parametrize("skeleton", LAYOUTS)
def test_training_step_on_a_gpu(benchmark, skeleton: str, dtype: torch.dtype) -> None:
    """Forward, cross entropy, backward and SGD on 16 clips of two persons, layer by layer."""
    layout, N = LAYOUTS[skeleton], 16
    x, y = clips(layout, N, 100).cuda(), labels(N).cuda()
    contenders = {"ours": "fast", "eager": "eager", "torch.compile": "eager"}
    trainers = {name: Trainer(contender, layout) for name, contender in contenders.items()}
    autocast = torch.autocast("cuda", dtype, enabled=dtype != torch.float32)
    for trainer in trainers.values():
        trainer.model.cuda()
    with autocast:
        ours, theirs = (trainers[name].gradients(x, y) for name in ("ours", "eager"))
    assert relative_error(ours, theirs) <= (1e-2 if dtype == torch.float32 else 2e-1)
    trainers["torch.compile"].forward = torch.compile(trainers["torch.compile"].model, dynamic=False)

    def step(trainer: Trainer) -> Callable[[], None]:
        def call() -> None:
            with autocast:
                trainer.step(x, y)

        return call

    calls, refused = {}, {}
    for name, trainer in trainers.items():
        try:
            step(trainer)()
            calls[name] = step(trainer)
        except Exception as problem:  # a rival's failure is a finding about the rival
            refused[name] = failure(problem)
    assert "ours" in calls, refused["ours"]
    calls, not_captured = with_graphs(calls)
    record(
        benchmark,
        lambda: {"milliseconds": milliseconds(calls)},
        kind="training on a GPU",
        case={"skeleton": skeleton, "clips": N, "dtype": str(dtype), "device": torch.cuda.get_device_name()},
        not_measured=refused | not_captured,
    )
