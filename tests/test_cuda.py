"""The native backend on a GPU: parity, CUDA graphs, streams, and no wait for the device. `pytest -m gpu`."""

import copy

import pytest
import torch
from networks import build, clips
from problems import PROBLEMS, Problem, reference_answer
from test_emulated import TENSOR_CORES, TYPES
from test_fused_gpu import SHORT
from test_gpu_blocks import GATHERED, layer_of
from test_tf32 import PROBLEMS as TF32
from test_tf32 import UNIT
from tolerance import FLOOR, deviation, error

from msg3d_fast import Recognizer, fuse, gpu_blocks, ops

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


@pytest.mark.parametrize("problem", [*TF32, *NETWORK], ids=lambda problem: problem.name)
def test_tf32_where_torch_allows_it(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    inputs, exact = on_gpu(problem, torch.float32), reference_answer(problem, torch.float64)
    y = ops.ms_g3d(*inputs.values(), *problem.window)
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    found = [y.detach(), *torch.autograd.grad(y, list(inputs.values()), gy)]
    for name, tensor in zip(exact, found, strict=True):
        assert error(tensor.cpu(), exact[name]) <= 3 * UNIT, name


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


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("problem", [*GATHERED, *NETWORK], ids=lambda problem: problem.name)
def test_statistics(problem: Problem, dtype: torch.dtype) -> None:
    inputs = [tensor.detach() for tensor in on_gpu(problem, dtype).values()]
    y, statistics = torch.ops.msg3d_fast.ms_g3d_statistics(*inputs, *problem.window)
    assert deviation(statistics, y) <= (1e-12 if dtype == torch.float64 else 2e-6)
    assert torch.equal(statistics, torch.ops.msg3d_fast.ms_g3d_statistics(*inputs, *problem.window)[1])


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_a_step_is_that_of_the_layers(autocast: torch.dtype | None) -> None:
    """With the statistics that the kernels gather, captured in a graph."""
    layer, x = layer_of().cuda(), torch.randn(2, 16, 6, 17, device="cuda")
    layer.backend = "native"
    assert gpu_blocks.takes(layer, x)
    twin, expected = copy.deepcopy(layer), []
    twin.mlp.layers[1].register_forward_hook(lambda *_: None)  # layer by layer
    graph = torch.cuda.CUDAGraph()
    with torch.autocast("cuda", autocast, enabled=autocast is not None):
        for _ in range(2):
            expected = [twin(x), twin.mlp.layers[1].running_var]
        warm = copy.deepcopy(layer)
        warm(x)
        layer(x)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            y = layer(x)
    graph.replay()
    torch.testing.assert_close(y.float(), expected[0].float(), atol=3e-2 if autocast else 1e-5, rtol=0)
    torch.testing.assert_close(layer.mlp.layers[1].running_var, expected[1], rtol=1e-2 if autocast else 1e-5, atol=0)


def test_every_device_and_stream() -> None:
    problem = TENSOR_CORES[0]
    expected = ops.ms_g3d(*(t.detach() for t in on_gpu(problem, torch.bfloat16).values()), *problem.window).cpu()
    for index in range(torch.cuda.device_count()):
        inputs = [t.detach().to(f"cuda:{index}") for t in problem.inputs(torch.bfloat16).values()]
        with torch.cuda.device(0), torch.cuda.stream(torch.cuda.Stream(index)):
            y = ops.ms_g3d(*inputs, *problem.window)
        torch.cuda.synchronize(index)
        assert torch.equal(y.cpu(), expected)


# ---- networks

NETWORKS = {
    "coco": {"base_channels": 96, "num_gcn_scales": 13, "num_g3d_scales": 6},
    "ntu": {"layout": "nturgb+d", "base_channels": 96, "num_gcn_scales": 13, "num_g3d_scales": 6},
    "narrow": {"layout": "kinect20", "base_channels": 20, "flavour": "pyskl"},
}


def with_cuda(model: Recognizer) -> Recognizer:
    twin = copy.deepcopy(model).cuda()
    twin.backend = "native"
    return twin


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_fused_network(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = build(**NETWORKS[name])
    x = clips(model, 3, 50).to(dtype)
    exact, model = copy.deepcopy(model).double()(x.double()), model.to(dtype)
    on_device, given = with_cuda(model), x.cuda()
    fused = fuse(on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = fused(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ours, theirs = error(y.cpu(), exact), error(model(x), exact)
    assert ours <= (1e-12 if dtype == torch.float64 else 2 * theirs + SHORT.get(dtype, FLOOR))
    assert torch.equal(fused(given), y)
    given[:, 1] = 0
    assert error(fuse(on_device, skip_absent=True)(given), fused(given)) <= 4 * SHORT.get(dtype, FLOOR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_graph_captures_a_fused_network(dtype: torch.dtype) -> None:
    model = with_cuda(build(**NETWORKS["coco"]).to(dtype))
    fused, x = fuse(model), clips(model, 2, 50).to(dtype).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = fused(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = fused(x)
    graph.replay()
    assert torch.equal(found, expected)


def test_launches_of_a_fused_network() -> None:
    """What the emulated backend counts, seen by the profiler: at most 60 kernels and copies."""
    model = with_cuda(build(**NETWORKS["coco"]).bfloat16())
    fused, x = fuse(model), clips(model, 2, 50).bfloat16().cuda()
    fused(x)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        fused(x)
        torch.cuda.synchronize()
    launched = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 40 <= len(launched) <= 60, launched


def test_a_network_trains() -> None:
    """Gradients of a step on the device against the CPU's in float64."""
    model = build(**NETWORKS["narrow"]).train()
    x, labels = clips(model, 4, 20), torch.arange(4)
    exact, ours = copy.deepcopy(model).double(), with_cuda(model)
    for network, given in ((model, x), (exact, x.double()), (ours, x.cuda())):
        torch.nn.functional.cross_entropy(network(given), labels.to(given.device)).backward()
    right, eager, found = (
        torch.cat([p.grad.double().cpu().flatten() for p in network.parameters()]) for network in (exact, model, ours)
    )
    assert (found - right).norm() <= 4 * (eager - right).norm() + 1e-3 * right.norm()  # cuDNN may use tf32
