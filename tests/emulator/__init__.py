"""Runs the CUDA kernels on the CPU: `build` compiles kernels and launchers, `Kernels.call` runs a launcher.

    kernels = emulator.build("tests/emulator/examples.cu", arch="80")
    a, out = emulator.upload("a", array), emulator.empty("out", (n,), np.float32)
    counters = kernels.call("examples_add", a, a, out, n, route="ptx", landing="late", count=True)
    out.numpy()

Route "source" runs the kernels as the host compiler reads them, route "ptx" what nvcc made of them. A fault (race,
deadlock, ...) is raised as `Fault` with its kind. A launcher is an `extern "C"` function of pointers, int64_t and
double that returns the status of its launches.
"""

import ctypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import build as _build
from .build import ROOT, BuildFailed, find_nvcc, newest_arch

__all__ = [
    "LANDINGS",
    "ROOT",
    "BuildFailed",
    "DeviceArray",
    "Fault",
    "Kernels",
    "Mutation",
    "build",
    "build_ptx",
    "empty",
    "find_nvcc",
    "from_bf16",
    "newest_arch",
    "to_bf16",
    "upload",
]

LANDINGS = ("late", "early", "random")
Counters = dict[str, Any]


class Fault(AssertionError):
    """What the emulator caught. `kind`: race, block race, uninitialised read, copy not waited for, out of bounds,
    misaligned, divergence, deadlock or launch."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.kind = text.partition(":")[0]


class DeviceArray:
    """Global memory of the emulated device: 256-byte aligned, between guards, under a name."""

    def __init__(self, name: str, shape: Sequence[int], dtype: object, initialised: bool) -> None:
        self.name, self.shape, self.dtype = name, tuple(shape), np.dtype(dtype)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._runtime = _build.runtime()
        self.address = self._runtime.allocate(name, self.nbytes, initialised)

    def numpy(self) -> np.ndarray:
        """A copy of the content."""
        memory = (ctypes.c_char * self.nbytes).from_address(self.address)
        return np.frombuffer(memory, self.dtype).reshape(self.shape).copy()

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._runtime.release(self.address)


def empty(name: str, shape: Sequence[int], dtype: object) -> DeviceArray:
    """Memory full of NaN; a kernel that reads an element before any kernel has written it is at fault."""
    return DeviceArray(name, shape, dtype, initialised=False)


def upload(name: str, array: np.ndarray) -> DeviceArray:
    array = np.ascontiguousarray(array)
    device = DeviceArray(name, array.shape, array.dtype, initialised=True)
    ctypes.memmove(device.address, array.ctypes.data, array.nbytes)
    return device


def to_bf16(array: np.ndarray) -> np.ndarray:
    """The bits (uint16) of float32 values rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FFF, rounded).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class Mutation:
    """A bug to seed: `pattern`, a regular expression, becomes `replacement` in `file`, `count` times.

    It must fit exactly that often, or the mutation no longer says what it says."""

    name: str
    file: str
    pattern: str
    replacement: str
    count: int = 1

    def apply(self) -> dict[Path, str]:
        path = ROOT / self.file
        text, found = re.subn(self.pattern, self.replacement, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if found != self.count:
            raise AssertionError(f"mutation {self.name!r}: {self.pattern!r} fits {found} times in {self.file}")
        return {path: text}


class Kernels:
    """A library of kernels and launchers, loaded."""

    def __init__(self, path: Path, arch: str | None) -> None:
        self.path, self.arch, self._runtime = path, arch, _build.runtime()
        self._runtime.load(str(path))
        self._library = ctypes.CDLL(str(path))

    def call(self, launcher: str, *arguments: object, **options: object) -> list[Counters]:
        """Run a launcher; arguments are DeviceArrays, None, int, bool and float. Options as of `launch`."""
        values: list[object] = []
        for argument in arguments:
            if isinstance(argument, DeviceArray):
                values.append(ctypes.c_void_p(argument.address))
            elif isinstance(argument, float):
                values.append(ctypes.c_double(argument))
            else:
                values.append(ctypes.c_void_p(None) if argument is None else ctypes.c_int64(argument))
        self._configure(**options)
        function = getattr(self._library, launcher)
        function.restype = ctypes.c_int
        return self._result(launcher, function(*values))

    def launch(
        self, kernel: str, grid: Sequence[int], threads: int, shared_bytes: int, *arguments: object, **options: object
    ) -> list[Counters]:
        """Launch one kernel by its mangled name on route P. Arguments: DeviceArrays or bytes as the device sees them.

        Options: route, seed, landing ("late", "early", "random"), checks, count; with count the counters of every
        launch are returned, in order."""
        values = [int(a.address).to_bytes(8, "little") if isinstance(a, DeviceArray) else bytes(a) for a in arguments]
        self._configure(**{"route": "ptx", **options})
        grid3 = (*grid, 1, 1)[:3]
        return self._result(kernel, self._runtime.launch(str(self.path), kernel, grid3, threads, shared_bytes, values))

    def _configure(
        self,
        route: str = "source",
        seed: int = 0,
        landing: str = "random",
        checks: bool = True,
        count: bool = False,
    ) -> None:
        if route not in ("source", "ptx") or landing not in LANDINGS:
            raise ValueError(f"route {route!r}, landing {landing!r}")
        self._runtime.clear_counters()
        self._runtime.clear_fault()
        checks = checks and (route == "ptx" or not _build.SANITIZE)  # a sanitizer's kernels do not tell what they store
        self._runtime.configure(seed, landing, checks, count, route == "ptx", True)

    def _result(self, what: str, status: int) -> list[Counters]:
        fault = self._runtime.fault()
        if fault:
            raise Fault(fault)
        if status:
            raise Fault(f"launch: {what} returned {status}, {self._runtime.error_text(status)}")
        return self._runtime.counters()


def build(
    *sources: str,
    arch: str | None = None,
    entries: str = "",
    instrument: bool = True,
    mutations: Iterable[Mutation] = (),
) -> Kernels:
    """Compile .cu (and .cpp) files, given relative to the project's root.

    arch: also for route P, from what nvcc makes of them for this compute capability ("80", newest_arch(), ...).
    entries: a regular expression; of route P only the kernels whose mangled names it finds, to save compile time.
    instrument: route S sees plain loads and stores; without it that route is faster and checks what cp.async and
    ldmatrix touch only.
    """
    replaced: dict[Path, str] = {}
    for mutation in mutations:
        replaced.update(mutation.apply())
    paths = [(ROOT / source).resolve() for source in sources]
    return Kernels(_build.library(paths, arch, entries, instrument, _build.Tree(replaced)), arch)


def build_ptx(ptx: str) -> Kernels:
    """Kernels from PTX text, for `Kernels.launch`."""
    return Kernels(_build.library_of_ptx(ptx), None)
