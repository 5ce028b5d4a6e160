"""The native backend on a GPU: parity, CUDA graphs, streams, and no wait for the device. `pytest -m gpu`."""

import pytest
import torch
from problems import PROBLEMS, Problem, reference_answer
from test_emulated import TENSOR_CORES, TYPES
from tolerance import FLOOR, error

from msg3d_fast import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NETWORK = [
    Problem("coco_frames", N=4, C=96, O=96, K=13, V=17, T=100),
    Problem("ntu_frames_192", N=2, C=192, O=192, K=13, V=25, T=50),
    Problem("ntu_windows", N=2, C=96, O=96, K=6, V=25, T=100, window_size=5, window_stride=2),
    Problem("coco_windows_192", N=2, C=192, O=192, K=6, V=17, T=50, window_size=3, window_stride=2),
]


def on_gpu(problem: Problem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cuda().requires_grad_() for name, tensor in problem.inputs(dtype).items()}


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("problem", [*PROBLEMS, *TENSOR_CORES, *NETWORK], ids=lambda problem: problem.name)
def test_values_and_gradients(problem: Problem, dtype: torch.dtype) -> None:
    inputs = on_gpu(problem, dtype)
    y = ops.ms_g3d(*inputs.values(), *problem.window)
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).cuda()
    gy = gy.contiguous(memory_format=torch.channels_last)
    found = [y.detach(), *torch.autograd.grad(y, list(inputs.values()), gy)]
    eager, exact = reference_answer(problem, dtype), reference_answer(problem, torch.float64)
    floor = 2.0**-42 if dtype == torch.float64 else FLOOR
    for name, tensor in zip(eager, found, strict=True):
        ours, theirs = error(tensor.cpu(), exact[name]), error(eager[name], exact[name])
        assert ours <= 2 * theirs + floor, f"{name}: error {ours:.2e}, eager's own {theirs:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("problem", NETWORK, ids=lambda problem: problem.name)
def test_a_graph_captures_a_step(problem: Problem, dtype: torch.dtype) -> None:
    inputs = on_gpu(problem, dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = torch.autograd.grad(ops.ms_g3d(*inputs.values(), *problem.window).sum(), list(inputs.values()))
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = torch.autograd.grad(ops.ms_g3d(*inputs.values(), *problem.window).sum(), list(inputs.values()))
        graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_every_device_and_stream() -> None:
    problem = TENSOR_CORES[0]
    expected = ops.ms_g3d(*(t.detach() for t in on_gpu(problem, torch.bfloat16).values()), *problem.window).cpu()
    for index in range(torch.cuda.device_count()):
        inputs = [t.detach().to(f"cuda:{index}") for t in problem.inputs(torch.bfloat16).values()]
        with torch.cuda.device(0), torch.cuda.stream(torch.cuda.Stream(index)):
            y = ops.ms_g3d(*inputs, *problem.window)
        torch.cuda.synchronize(index)
        assert torch.equal(y.cpu(), expected)
