"""The operator on a GPU, beside eager, torch.compile and CUDA graphs of both; skipped without one.

Times are CUDA events' around one call, after a warm-up and with the second-level cache overwritten before each, as in a
network. Eager is the authors' sequence of operations. One clip of two persons, 100 frames.
"""

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from msg3d_fast.modules import STMSGCN

from .harness import keep_equal, record
from .test_ops import forward, inputs
from .workload import LAYOUTS, block_names

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
