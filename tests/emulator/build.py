"""Compiles the runtime and sets of kernels into build/emulator, once for every content.

A library of kernels holds the .cu files as the host compiler sees them (route S: kernels and launchers) and, if asked
for, what nvcc's PTX was transpiled to (route P). Its undefined symbols are the runtime's, which is loaded first.
"""

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

from . import transpile
from .ptx import entry_names, only_entry

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "emulator"
RUNTIME = ("scheduler", "collectives", "memory", "counters", "instrumented")
SANITIZE = os.environ.get("MSG3D_EMULATOR_SANITIZE", "")  # "address,undefined": needs libasan preloaded
FLAGS = ["-std=c++17", "-DMSG3D_EMULATED", "-fPIC", "-fno-gnu-unique", "-fno-strict-aliasing", "-ffp-contract=off"]
LINK = ["-shared", "-Wl,-Bsymbolic"]
if os.environ.get("MSG3D_EMULATOR_UCONTEXT"):  # fibers as machines other than x86-64 have them
    FLAGS += ["-DMSG3D_EMULATOR_UCONTEXT"]
if SANITIZE:
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-g1"]
    LINK += [f"-fsanitize={SANITIZE}"]
# Every load and store of a kernel calls the runtime's hooks (instrumented.cpp).
INSTRUMENT = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
CXX = shlex.split(os.environ.get("CXX") or "g++")


class BuildFailed(RuntimeError):
    """A compiler refused; its message is in the text."""


def run(command: Iterable[object]) -> str:
    words = [str(word) for word in command]
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # nvcc dies with a sanitizer
    done = subprocess.run(words, capture_output=True, text=True, env=clean)
    if done.returncode:
        raise BuildFailed(f"{shlex.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


@cache
def find_nvcc() -> Path | None:
    """As setup.py looks for it: CUDA_HOME, PATH, /usr/local/cuda, the Python packages."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    candidates += [Path(found) for found in [shutil.which("nvcc")] if found]
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for folder in sys.path:
        candidates += sorted(Path(folder).glob("nvidia/*/bin/nvcc"), reverse=True)
    return next((path for path in candidates if path.is_file()), None)


@cache
def newest_arch() -> str:
    """The newest compute capability that nvcc knows."""
    listing = run([find_nvcc(), "--list-gpu-arch"])
    return max(re.findall(r"compute_(\d+)\b", listing), key=int)


@cache
def _machine_flags() -> tuple[str, ...]:
    """The runtime's mma is a loop over vectors: let it use this processor's."""
    flags = Path("/proc/cpuinfo")
    known = set(flags.read_text().split()) if flags.exists() else set()
    return ("-march=x86-64-v3",) if {"avx2", "fma", "bmi2", "f16c"} <= known else ()


class Tree:
    """Source files by path, some of them with replaced text."""

    def __init__(self, replaced: Mapping[Path, str] | None = None) -> None:
        self.replaced = dict(replaced or {})

    def text(self, path: Path) -> str:
        return self.replaced.get(path) or path.read_text(encoding="utf-8")

    def closure(self, source: Path) -> list[Path]:
        """The file and all that it includes by quotes."""
        found, todo = {}, [source]
        while todo:
            path = todo.pop()
            if path in found:
                continue
            found[path] = None
            for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', self.text(path), re.MULTILINE):
                included = (path.parent / name).resolve()
                if included.is_file():
                    todo.append(included)
        return sorted(found)

    def digest(self, sources: Iterable[Path]) -> str:
        sha = hashlib.sha256()
        for path in sorted({path for source in sources for path in self.closure(source)}):
            sha.update(f"{path.relative_to(ROOT)}\0{self.text(path)}\0".encode())
        return sha.hexdigest()

    def place(self, source: Path) -> Path:
        """Where a compiler finds the file: as it stands, or in a copy of all that belongs to it."""
        files = self.closure(source)
        if not set(files) & set(self.replaced):
            return source
        copy = BUILD / "trees" / self.digest([source])[:24]
        for path in files:
            _write(copy / path.relative_to(ROOT), self.text(path))
        return copy / source.relative_to(ROOT)


def _once(target: Path, make: Callable[[Path], object]) -> None:
    """Let `make` write the target where it is not there: one thread of one process at a time, all others wait."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_name(f"partial.{target.name}")
            make(partial)
            partial.replace(target)


def _write(target: Path, text: str) -> None:
    _once(target, lambda partial: partial.write_text(text, encoding="utf-8"))


def _made(key: str, suffix: str, command: list[object]) -> Path:
    """The file that a command writes to the path given last, kept under a hash of the command and `key`."""
    name = hashlib.sha256("\0".join([key, *map(str, command)]).encode()).hexdigest()[:32]
    target = BUILD / "objects" / f"{name}{suffix}"
    _once(target, lambda partial: run([*command, partial]))
    return target


def _precompiled(header: Path, flags: Iterable[str]) -> list[object]:
    """Flags of a compiler that reads the header's compiled form first: a third of the time of a small file."""
    compiled = _made(Tree().digest([header]), ".h.gch", [*CXX, *flags, "-x", "c++-header", header, "-o"])
    name = compiled.with_suffix("")
    _write(name, f'#include "{header}"\n')
    return ["-include", name]


def _source_object(tree: Tree, source: Path, instrument: bool) -> Path:
    flags = [*FLAGS, *(INSTRUMENT if instrument and not SANITIZE else []), "-Og", "-w"]
    standard = _precompiled(HERE / "standard.h", flags)
    return _made(tree.digest([source]), ".o", [*CXX, *flags, *standard, "-x", "c++", "-c", tree.place(source), "-o"])


def ptx_of(tree: Tree, source: Path, arch: str) -> Path:
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildFailed("route P needs nvcc: install the CUDA toolkit, or pip install nvidia-cuda-nvcc")
    command = [nvcc, "-std=c++17", "-O3", "-lineinfo", "-ptx", f"-arch=compute_{arch}", tree.place(source), "-o"]
    return _made(tree.digest([source]), ".ptx", command)


def _translated(ptx: str, symbols: bool = False) -> Path:
    """The object of what a text of PTX is as C++."""
    flags = [*FLAGS, *_machine_flags(), "-Og", "-w"]
    support = _precompiled(HERE / "ptx_support.h", flags)
    translator = "".join((HERE / f"{name}.py").read_text() for name in ("ptx", "opcodes", "transpile"))
    key = hashlib.sha256(f"{translator}{ptx}{symbols}".encode()).hexdigest()[:32]
    translated = BUILD / "objects" / f"{key}.cpp"
    _once(translated, lambda partial: partial.write_text(transpile.translate(ptx, symbols), encoding="utf-8"))
    return _made(Tree().digest([HERE / "ptx_support.h"]), ".o", [*CXX, *flags, *support, "-c", translated, "-o"])


def library(sources: Iterable[Path], arch: str | None, entries: str, instrument: bool, tree: Tree) -> Path:
    """A shared library of the sources; `arch` also transpiles what nvcc makes of them for that compute capability."""
    with ThreadPoolExecutor(2) as pool:
        texts = [pool.submit(ptx_of, tree, source, arch) for source in sources if arch and source.suffix == ".cu"]
        objects = [pool.submit(_source_object, tree, source, instrument) for source in sources]
        for ptx in [text.result().read_text() for text in texts]:
            chosen = [name for name in entry_names(ptx) if re.search(entries, name)]
            objects += [pool.submit(_translated, only_entry(ptx, name)) for name in chosen]
        return _made("", ".so", [*CXX, *LINK, *(made.result() for made in objects), "-o"])


def library_of_ptx(ptx: str) -> Path:
    """A shared library of PTX that somebody else made: its kernels can be launched by name."""
    return _made("", ".so", [*CXX, *LINK, _translated(ptx, symbols=True), "-o"])


@cache
def runtime() -> ModuleType:
    """The runtime as a Python module whose symbols every library of kernels finds."""
    import pybind11

    include = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    command = [*CXX, *FLAGS, "-O2", *_machine_flags(), "-ffp-contract=fast", *include]
    sources = [HERE / f"{name}.cpp" for name in (*RUNTIME, "bind")]
    with ThreadPoolExecutor(2) as pool:
        objects = list(
            pool.map(lambda source: _made(Tree().digest([source]), ".o", [*command, "-c", source, "-o"]), sources)
        )
    path = _made(
        "", ".so", [*CXX, "-shared", *([f"-fsanitize={SANITIZE}"] if SANITIZE else []), *objects, "-ldl", "-o"]
    )
    loader = importlib.machinery.ExtensionFileLoader("emulator_runtime", str(path))
    spec = importlib.util.spec_from_file_location("emulator_runtime", path, loader=loader)
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.setdlopenflags(before)
    return module
