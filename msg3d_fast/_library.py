"""Finds the native library, or says in one line why it is not there; what was built, and what runs on this machine.

MSG3D_ISA     avx512, avx2, portable: the instruction set of the CPU kernels (default: the fastest that the machine has)
MSG3D_ORDER   project_first, aggregate_first: the order of evaluation of ms_g3d (default: the one with fewer operations)
MSG3D_CUDA_PLAN   plain, or a part of a tile's name as `msg3d-fast doctor --plan` prints it: the kernel of ms_g3d on
              a GPU, where a layer has such a tile (default: the one that is modelled fastest)
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .errors import UserError

_BUILD_INFO = Path(__file__).with_name("_build_info.json")
ORDERS = ("auto", "project_first", "aggregate_first")


class LibraryUnavailable(UserError, RuntimeError):
    """The native library cannot be used here; the message says why and what to do."""


def _build_info() -> dict[str, object]:
    """What setup.py wrote down when it built, or failed to find a compiler."""
    try:
        return json.loads(_BUILD_INFO.read_text())
    except (OSError, ValueError):
        return {}


def set_isa(name: str) -> None:
    """Choose the instruction set of the CPU kernels: `auto`, or one of `info()["supported_isas"]`.

    Raises:
        UserError: this binary or this machine has no such instruction set.
    """
    if not torch.ops.msg3d_fast.set_isa(name):
        supported = json.loads(torch.ops.msg3d_fast.info())["supported_isas"]
        raise UserError(f"instruction set is {name!r}; expected auto or one that this machine has: {supported}")


def set_order(name: str) -> None:
    """Choose the order of evaluation of ms_g3d: `auto`, `project_first` or `aggregate_first`.

    Raises:
        UserError: there is no such order.
    """
    if not torch.ops.msg3d_fast.ms_g3d_set_order(name):
        raise UserError(f"order of evaluation is {name!r}; expected one of {', '.join(ORDERS)}")


def set_cuda_plan(name: str) -> None:
    """Choose the kernels of ms_g3d on a GPU: `auto`, `plain`, or a part of the name of a tile.

    A layer without a tile of that name that fits is planned as usual; `cuda_plan` says where the choice was `forced`.
    """
    torch.ops.msg3d_fast.ms_g3d_set_cuda_plan(name)


def _load() -> str | None:
    """Load the library and apply the environment; the reason if that is not possible."""
    try:
        import_module(f"{__package__}._C")
    except ImportError as error:
        if not Path(__file__).with_name("_C.abi3.so").exists():
            reason = _build_info().get("reason", "it was never built: pip install . in the source folder")
            return f"the native library of msg3d_fast is missing: {reason}; or use backend='reference'"
        return (
            f"the native library of msg3d_fast does not load into torch {torch.__version__}: "
            f"{str(error).splitlines()[0]}; install msg3d_fast again, or use backend='reference'"
        )
    try:
        set_isa(os.environ.get("MSG3D_ISA") or "auto")
        set_order(os.environ.get("MSG3D_ORDER") or "auto")
        set_cuda_plan(os.environ.get("MSG3D_CUDA_PLAN") or "auto")
    except UserError as error:
        return f"MSG3D_ISA or MSG3D_ORDER in the environment is wrong: {error}"
    except AttributeError as error:  # an operator that is called here and not there
        return (
            f"the native library of msg3d_fast was built from other sources than the Python files ({error}): install "
            "msg3d_fast again, or use backend='reference'"
        )
    return None


_reason = _load()
_NOT_EMULATED = (
    "backend 'emulated' (the CUDA kernels, run on the CPU) is not built: run 'python setup.py build_emulated' in the "
    "source folder, which needs a C++ compiler; or use 'native' or 'reference'"
)


def available() -> bool:
    """Return whether the native backend can be used."""
    return _reason is None


def require() -> None:
    """Do nothing where the native library is loaded.

    Raises:
        LibraryUnavailable: it is not; one line says what is missing and how to get it.
    """
    if _reason is not None:
        raise LibraryUnavailable(_reason)


def require_emulated() -> None:
    """Load the backend `emulated`, whose operators are those of `torch.ops.msg3d_fast_emulated`.

    Raises:
        LibraryUnavailable: it was not built, or does not load; one line says how to build it.
    """
    if f"{__package__}._emulated" in sys.modules:
        return
    try:
        import_module(f"{__package__}._emulated")
        torch.ops.msg3d_fast_emulated.ms_g3d_set_cuda_plan(os.environ.get("MSG3D_CUDA_PLAN") or "auto")
    except ImportError as error:
        if not Path(__file__).with_name("_emulated.abi3.so").exists():
            raise LibraryUnavailable(_NOT_EMULATED) from None
        first = str(error).splitlines()[0]
        raise LibraryUnavailable(f"backend 'emulated' does not load: {first}; build it again") from None


def has_cuda() -> bool:
    """Return whether the native library can be used and holds CUDA kernels."""
    return available() and bool(_build_info().get("cuda_archs"))


def require_cuda() -> None:
    """Do nothing where the native library holds CUDA kernels.

    Raises:
        LibraryUnavailable: there is no native library, or it was built without nvcc.
    """
    require()
    if not has_cuda():
        raise LibraryUnavailable(
            f"this build of msg3d_fast has {_build_info().get('cuda', 'no CUDA')}: install it where nvcc is found, "
            "move the model and its input with .cpu(), or use backend='reference'"
        )


def info() -> dict[str, object]:
    """Return what was built and what runs here.

    Returns:
        `available` and, if not, `reason`; from the build `torch`, `isas`, `cuda` (in words), `cuda_archs`; from the
        binary `isa` in use, `wide_isa` in products of many columns, `supported_isas`, `compiler` and `cuda_runtime`:
        null without CUDA code, else versions, CUDA's error code (35 or 100 without a GPU) and the devices with whether
        the binary holds code for each.
    """
    facts: dict[str, object] = {"available": available(), "reason": _reason, **_build_info()}
    if available():
        binary = json.loads(torch.ops.msg3d_fast.info())
        facts |= {name: binary[name] for name in ("isa", "wide_isa")} | {
            "supported_isas": binary["supported_isas"].split()
        }
        facts |= {"compiler": binary["compiler"], "cuda_runtime": binary["cuda"]}
    return facts


class Sizes(NamedTuple):
    """Sizes of a call of ms_g3d, which plans are made for: x (N, C, T, V), K, O, tau, s and d."""

    x_shape: tuple[int, int, int, int]
    num_scales: int
    out_channels: int
    window_size: int = 1
    window_stride: int = 1
    window_dilation: int = 1


def plan(
    sizes: Sizes,
    *,
    direction: str = "forward",
    float64: bool = False,
) -> dict[str, object]:
    """Return how ms_g3d would evaluate a problem on this machine: order, steps, workspace, and the count that decided.

    Args:
        sizes: of the call.
        direction: `forward`, `backward_input` or `backward_parameters`.
        float64: for double instead of float32.

    Returns:
        `order` and whether it was `forced`; `project_first_macs` and `aggregate_first_macs` of the forward pass, the
        smaller of which decides; `isa`, `panel_width`, `tasks`, steps; `shared_bytes` and, per thread, `worker_bytes`.

    Raises:
        LibraryUnavailable: without the native library.
        RuntimeError: the sizes describe no problem.
    """
    require()
    return json.loads(torch.ops.msg3d_fast.ms_g3d_plan(direction, *sizes.x_shape, *sizes[1:], float64))


def _of(backend: str) -> Any:
    """The namespace of the registered operators of `native` or `emulated`."""
    if backend == "emulated":
        require_emulated()
        return torch.ops.msg3d_fast_emulated
    require()
    return torch.ops.msg3d_fast


def device_limits(index: int = 0, backend: str = "native") -> dict[str, int]:
    """Return what plans must know of a CUDA device, or of the one that the emulator stands for.

    Returns:
        `arch` (compute capability times ten), `multiprocessors`, `shared_bytes` that one block may have.

    Raises:
        LibraryUnavailable: without CUDA code.
        RuntimeError: CUDA has no such device.
    """
    if backend == "native":
        require_cuda()
    return json.loads(_of(backend).device_limits(index))


def cuda_plan(
    sizes: Sizes,
    *,
    dtype: torch.dtype,
    limits: dict[str, int],
    tf32: bool = False,
    collapse: int = 0,
    backend: str = "native",
) -> dict[str, Any]:
    """Return how ms_g3d would run on a CUDA device, which need not be there.

    Args:
        sizes: of the call.
        dtype: of x.
        limits: the device's, as of `device_limits`.
        tf32: of float32, while torch allows tf32 for matrix products.
        collapse: output channels of the convolution that folds a window behind it, as in a fused network; 0: none.
        backend: whose plan code, "native" or "emulated"; it is the same, each with what was forced on it.

    Returns:
        `kernel` ("plain" by multiply-adds, else on tensor cores), `tile` or why it was `refused`, `forced`; `blocks`,
        `warps` of a block, `waves`, `shared_bytes`, `workspace_bytes`, `modelled_clocks` (not measured); `rejected`, a
        list of {tile, why}; `backward`: why tensor cores are refused (`input_refused`, `parameters_refused`), or "".

    Raises:
        LibraryUnavailable: without the library.
        RuntimeError: the sizes describe no problem, or the limits no device.
    """
    device = limits["arch"], limits["multiprocessors"], limits["shared_bytes"]
    name = "tf32" if tf32 and dtype == torch.float32 else str(dtype).removeprefix("torch.")
    return json.loads(_of(backend).ms_g3d_cuda_plan(name, *sizes.x_shape, *sizes[1:], collapse, *device))
