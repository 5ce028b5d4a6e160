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
        "whole blocks fused on the CPU, memory fast or low (model.memory); absent persons computed once for each slot "
        "and batch (model.skip_absent)"
    )


def _cuda() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "no device" if built else "no device; this torch was built without CUDA"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)}, CUDA {torch.version.cuda}; no CUDA kernels yet, so the reference backend runs there"
