"""What is installed, built and found: the first thing to read, and to paste into an issue."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from . import _library, ops
from .errors import UserError


def report() -> str:
    """Versions, the native library, threads, devices and environment variables, one a line."""
    lines = [f"msg3d_fast   {_version('msg3d_fast')}   Python {platform.python_version()}   {platform.platform()}"]
    packages = ("torch", "numpy", "matplotlib", "rich", "PyYAML")
    lines.append("packages     " + ", ".join(f"{name} {_version(name)}" for name in packages))
    lines.append(f"native       {_native()}")
    lines.append(f"backend      {ops.resolve_backend(None)}")
    lines.append(
        f"CPU          {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads of {os.cpu_count()}"
    )
    lines.append(f"CUDA         {_cuda()}")
    variables = [
        f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(("MSG3D_", "OMP_", "CUDA_"))
    ]
    lines.append("environment  " + (" ".join(variables) or "no MSG3D_, OMP_ or CUDA_ variables"))
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
    return ", ".join(f"{key} {value}" for key, value in _library.info().items())


def _cuda() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "no device" if built else "no device; this torch was built without CUDA"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)}, CUDA {torch.version.cuda}; no CUDA kernels yet, so the reference backend runs there"
