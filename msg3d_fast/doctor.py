"""What is installed, built and found: the first thing to read, and to paste into an issue."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from . import _library, ops
from .errors import UserError
from .model import Recognizer
from .modules import STMSGCN


def report() -> str:
    """Versions, the native library, threads, devices and environment variables, one a line."""
    lines = [f"msg3d_fast   {_version('msg3d_fast')}   Python {platform.python_version()}   {platform.platform()}"]
    packages = ("torch", "numpy", "matplotlib", "rich", "PyYAML")
    lines.append("packages     " + ", ".join(f"{name} {_version(name)}" for name in packages))
    lines.append(f"native       {_native()}")
    lines.append(f"backend      {ops.resolve_backend(None)}")
    lines.append(f"training     {_training()}")
    lines.append(
        f"CPU          {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads of {os.cpu_count()}"
    )
    lines.append(f"CUDA         {_cuda()}")
    variables = [
        f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(("MSG3D_", "OMP_", "CUDA_"))
    ]
    lines.append("environment  " + (" ".join(variables) or "no MSG3D_, OMP_ or CUDA_ variables"))
    return "\n".join(lines)


def plan() -> str:
    """What ms_g3d does for every graph convolution of the default network, one clip of 100 frames: a table.

    Raises:
        UserError: the native library is missing; its plans come from it.
    """
    _library.require()
    lines = ["Recognizer(), x (1, 2, 100, 17, 3), float32 on this CPU; millions of multiply-adds of either order", ""]
    lines.append(f"{'layer':24}{'x (N, C, T, V)':20}{'K':>3}{'O':>5}  tau s d  {'project':>8}{'aggregate':>10}  order")

    def note(name: str, layer: STMSGCN, x: torch.Tensor) -> None:
        window = (layer.window_size, layer.window_stride, layer.window_dilation)
        p = _library.plan(tuple(x.shape), layer.num_scales, layer.out_channels, *window)
        costs = f"{p['project_first_macs'] / 1e6:8.1f}{p['aggregate_first_macs'] / 1e6:10.1f}"
        forced = ", forced" if p["forced"] else ""
        lines.append(
            f"{name.removeprefix('backbone.'):24}{tuple(x.shape)!s:20}{layer.num_scales:3}{layer.out_channels:5}  "
            f"{window[0]:3} {window[1]} {window[2]}  {costs}  {p['order']}{forced}"
        )

    with torch.device("meta"):  # shapes without numbers
        model = Recognizer(backend="native").eval()
        for name, layer in model.named_modules():
            if isinstance(layer, STMSGCN):
                layer.register_forward_pre_hook(lambda layer, inputs, name=name: note(name, layer, inputs[0]))
        model(torch.empty(1, 2, 100, 17, 3))
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _native() -> str:
    try:
        _library.require()
    except UserError as error:
        return str(error)
    facts = _library.info()
    isas = ", ".join(facts["supported_isas"])
    return (
        f"built against torch {facts['torch']} with compiler {facts['compiler']}; {facts['isa']} in use, of {isas}; "
        f"{facts['cuda']}"
    )


def _training() -> str:
    backend = ops.resolve_backend(None)
    if backend == "reference" or not _library.available():
        return "layer by layer; absent persons are computed like the others"
    return (
        "whole blocks fused on the CPU, memory fast or low (model.memory), absent persons computed once for each slot "
        "and batch (model.skip_absent); layer by layer on a GPU"
    )


def _cuda() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "no device" if built else "no device; this torch was built without CUDA"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = f"{', '.join(names)}, CUDA {torch.version.cuda}"
    if not _library.has_cuda():
        return f"{found}; this build has no CUDA kernels, so the reference backend runs there"
    devices = _library.info()["cuda_runtime"]["devices"]
    without = [d["name"] for d in devices if not d["has_code"]]
    if without:
        return f"{found}; no code in this build for {', '.join(without)}: build with MSG3D_CUDA_ARCHS"
    return f"{found}; kernels for all of them; self-test {_self_test()}"


def _self_test() -> str:
    """Graph convolutions of the network's kinds on the first GPU against the float64 reference on the CPU."""
    torch.manual_seed(0)
    for C, O, V, window in ((3, 96, 25, (5, 1, 1)), (96, 96, 25, (1, 1, 1)), (96, 96, 17, (3, 2, 1))):  # noqa: E741
        nodes, K = window[0] * V, 4
        shapes = (2, C, 40, V), (K, nodes, nodes), (O, K, C), (O,)
        exact = [torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5 for shape in shapes]
        expected = _answer("reference", exact, window)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            inputs = [tensor.to(dtype) for tensor in exact]
            eager = _answer("reference", [tensor.double() for tensor in inputs], window)
            found = _answer("native", [tensor.cuda() for tensor in inputs], window)
            for name, ours, theirs, right in zip(
                ("y", "x", "A", "weight", "bias"), found, eager, expected, strict=True
            ):
                scale = right.abs().max()
                off, rounding = ((t.double().cpu() - right).abs().max() / scale for t in (ours, theirs))
                if not off <= 2 * rounding + 4 * torch.finfo(dtype).eps:
                    return f"FAILED: {name} of C {C}, O {O}, {window}, {dtype} is off by {off:.1e}; please report it"
    return "passed"


def _answer(backend: str, inputs: list[torch.Tensor], window: tuple[int, int, int]) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = ops.ms_g3d(*leaves, *window, backend=backend)
    return [y.detach(), *torch.autograd.grad(y.square().mean(), leaves)]
