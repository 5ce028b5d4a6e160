"""Builds the native library msg3d_fast/_C.abi3.so; everything else stands in pyproject.toml.

One stable-ABI binary for CPython 3.10 and torch 2.13 and later: host code with flags per instruction set, and
CUDA code by an nvcc step that needs neither a GPU nor a CUDA build of torch. torch is looked at, never imported.

    MSG3D_CUDA=auto|0|1   auto: CUDA code if nvcc is found; 0: never; 1: a missing nvcc is an error
    MSG3D_CUDA_ARCHS      "80;90": compute capabilities; default: all from 7.5 on that nvcc knows, and PTX of the newest
    CXX, MAX_JOBS         the compiler, and how many of them at once

`python setup.py build_emulated` makes the backend "emulated" in msg3d_fast/: the CUDA kernels, run on the CPU.
"""

import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
OBJECTS, EMULATED_OBJECTS = ROOT / "build" / "native", ROOT / "build" / "emulated"
OLDEST_TORCH, OLDEST_TORCH_FLAG = "2.13", "-DTORCH_TARGET_VERSION=0x020d000000000000"
OLDEST_PYTHON, OLDEST_PYTHON_FLAG = "cp310", "-DPy_LIMITED_API=0x030a0000"
HOST_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-DNDEBUG"]
# Files that use an instruction set which x86-64 does not promise; they are called only where it is there.
ISA_FLAGS = {"avx2.cpp": ["-mavx2", "-mfma"], "avx512.cpp": ["-mavx512f"]}
GPU_BINDINGS = ("ms_g3d_cuda.cpp", "mstcn_cuda.cpp")
NO_NVCC = (
    "MSG3D_CUDA=1 but nvcc was not found (CUDA_HOME, PATH, /usr/local/cuda): install the CUDA toolkit, or pip install"
    " nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"
)

Step = tuple[Path, Path, list[str]]  # source, object, the command but for -c and -o


class BuildError(SystemExit):
    """A build that must not go on, said in one line. setuptools would turn an Exception into a warning."""


def find_torch() -> Path | None:
    """The folder of torch: importable here or, in an isolated build, installed where the package will go."""
    spec = importlib.util.find_spec("torch")
    if spec is None:
        installed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        spec = importlib.machinery.PathFinder.find_spec("torch", installed)
    return Path(spec.origin).parent if spec and spec.origin else None


def torch_version(torch: Path) -> str:
    return re.search(r"__version__ = ['\"]([^'\"]+)", (torch / "version.py").read_text())[1]


def find_compiler() -> list[str] | None:
    """CXX with its arguments if it is set, else the first compiler on PATH."""
    for candidate in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]:
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    return None


def no_compiler() -> str:
    wanted = os.environ.get("CXX")
    sought = f"the compiler CXX={wanted} was not found" if wanted else "no C++ compiler was found (c++, g++, clang++)"
    return (
        f"{sought}: install one (apt install g++, or conda install -c conda-forge cxx-compiler) and install msg3d_fast"
        " again"
    )


def find_nvcc() -> Path | None:
    """nvcc from CUDA_HOME, PATH, /usr/local/cuda or the Python packages nvidia-cuda-nvcc."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    candidates += [Path(found) for found in [shutil.which("nvcc")] if found]
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for folder in [*sys.path, sysconfig.get_path("purelib")]:
        candidates += sorted(Path(folder).glob("nvidia/*/bin/nvcc"), reverse=True)
    return next((path for path in candidates if path.is_file()), None)


def wanted_nvcc() -> Path | None:
    mode = os.environ.get("MSG3D_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise BuildError(f"MSG3D_CUDA is {mode!r}; expected auto, 0 or 1")
    nvcc = find_nvcc() if mode != "0" else None
    if mode == "1" and nvcc is None:
        raise BuildError(NO_NVCC)
    return nvcc


def cuda_archs(nvcc: Path) -> list[str]:
    wanted = os.environ.get("MSG3D_CUDA_ARCHS")
    if wanted:
        archs = re.split(r"[;,\s]+", wanted.strip().replace(".", ""))
        if not all(re.fullmatch(r"\d+[af]?", arch) for arch in archs):
            raise BuildError(f"MSG3D_CUDA_ARCHS is {wanted!r}; expected capabilities like '80;90'")
        return archs
    listing = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return sorted({arch for arch in re.findall(r"sm_(\d+)\b", listing) if int(arch) >= 75}, key=int)


def targets(source: Path, archs: list[str]) -> list[str]:
    """nvcc's words for what a file is compiled for. Tensor cores are used from 8.0 on; the plain path has no use for
    more than one architecture of a generation, whose code runs on the generation's later ones."""
    number = {arch: int(arch.rstrip("af")) for arch in archs}
    if source.parent.name == "plain":
        chosen = [
            a for a in archs if not any(number[b] // 10 == number[a] // 10 and number[b] < number[a] for b in archs)
        ]
    elif source.parent.name == "simt":
        chosen = archs
    else:
        chosen = [arch for arch in archs if number[arch] >= 80] or ["80"]
    newest = max(chosen, key=lambda arch: int(arch.rstrip("af")))
    words = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in chosen]
    return [*words, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def compile_steps(torch: Path, cxx: list[str], nvcc: Path | None, archs: list[str]) -> list[Step]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    torch_flags = [OLDEST_TORCH_FLAG, OLDEST_PYTHON_FLAG, *(["-DMSG3D_WITH_CUDA"] if nvcc else [])]
    torch_flags += [f"-isystem{torch / 'include'}", f"-isystem{sysconfig.get_path('include')}"]
    steps = []
    for source in sorted((ROOT / "csrc").rglob("*.c*")):
        target = OBJECTS / source.relative_to(ROOT / "csrc").with_suffix(source.suffix + ".o")
        if source.name in GPU_BINDINGS and not nvcc:
            continue
        if source.suffix == ".cpp" and (x86 or source.name not in ISA_FLAGS):
            flags = ISA_FLAGS.get(source.name, []) if "kernels" in source.parts else torch_flags
            steps.append((source, target, [*cxx, *HOST_FLAGS, *flags]))
        elif source.suffix == ".cu" and nvcc:
            host = ["-ccbin", cxx[0], "-Xcompiler=-fPIC,-fvisibility=hidden"]
            steps.append((source, target, [str(nvcc), "-std=c++17", "-O3", *host, *targets(source, archs)]))
    return steps


def emulated_steps(torch: Path, cxx: list[str]) -> list[Step]:
    """The kernels of csrc and the emulator of tests, for the host; loads and stores are not watched."""
    sources = [source for source in (ROOT / "csrc" / "kernels").rglob("*.cu") if source.parent.name != "simt"]
    sources += [
        ROOT / "csrc" / "torch" / name for name in (*GPU_BINDINGS, "ms_g3d_cuda_plan.cpp", "ms_g3d_arguments.cpp")
    ]
    emulator = ROOT / "tests" / "emulator"
    sources += [emulator / f"{name}.cpp" for name in ("backend", "scheduler", "collectives", "memory", "counters")]
    flags = [*HOST_FLAGS, "-DMSG3D_EMULATED", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-unknown-pragmas"]
    flags += [OLDEST_TORCH_FLAG, OLDEST_PYTHON_FLAG]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and {"avx2", "fma", "bmi2", "f16c"} <= set(cpuinfo.read_text().split()):
        flags.append("-march=x86-64-v3")  # for this machine only: the emulator's matrix products are loops
    flags += [f"-isystem{torch / 'include'}", f"-isystem{sysconfig.get_path('include')}", "-x", "c++"]
    targets = [EMULATED_OBJECTS / source.relative_to(ROOT).with_suffix(source.suffix + ".o") for source in sources]
    return [(source, target, [*cxx, *flags]) for source, target in sorted(zip(sources, targets, strict=True))]


def link_command(torch: Path, cxx: list[str], nvcc: Path | None, objects: list[Path], library: Path) -> list[str]:
    command = [*cxx, "-shared", "-o", str(library), *map(str, objects), f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    if platform.system() == "Darwin":
        command += ["-undefined", "dynamic_lookup"]
    if nvcc:
        root = nvcc.resolve().parent.parent
        folders = [root / "lib64", root / "lib", *root.glob("targets/*/lib"), Path("/usr/local/cuda/lib64")]
        archive = next(filter(Path.is_file, (folder / "libcudart_static.a" for folder in folders)), None)
        if archive is None:
            raise BuildError(
                f"{nvcc} has no libcudart_static.a beside it: install nvidia-cuda-runtime, or MSG3D_CUDA=0"
            )
        command += [str(archive), "-ldl", "-lrt", "-lpthread"]
    return command


def find_ninja() -> str | None:
    if importlib.util.find_spec("ninja"):
        return str(Path(importlib.import_module("ninja").BIN_DIR) / "ninja")
    return shutil.which("ninja")


def ninja_file(steps: list[Step], link: list[str], library: Path) -> str:
    def path(name: Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(name))

    def command(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    lines = ["rule compile", "  command = $step -MD -MF $out.d -c $in -o $out", "  depfile = $out.d", "  deps = gcc"]
    lines += ["rule link", "  command = $step"]
    for source, target, words in steps:
        lines += [f"build {path(target)}: compile {path(source)}", f"  step = {command(words)}"]
    objects = " ".join(path(target) for _, target, _ in steps)
    return "\n".join([*lines, f"build {path(library)}: link {objects}", f"  step = {command(link)}", ""])


def compile_and_link(steps: list[Step], link: list[str], library: Path) -> None:
    """With ninja what changed, headers included; without it everything, in threads."""
    folder = library.parent
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    for _, target, _ in steps:
        target.parent.mkdir(parents=True, exist_ok=True)
    ninja = find_ninja()
    if ninja:
        (folder / "build.ninja").write_text(ninja_file(steps, link, library))
        failed = subprocess.run([ninja, "-C", str(folder), f"-j{jobs}", "--quiet"]).returncode
    else:
        commands = [[*words, "-c", str(source), "-o", str(target)] for source, target, words in steps]
        with ThreadPoolExecutor(jobs) as pool:
            failed = any(list(pool.map(lambda words: subprocess.run(words).returncode, commands)))
        failed = failed or subprocess.run(link).returncode
    if failed:
        raise BuildError("the native library failed to compile; the compiler's message stands above")


def build_library(torch: Path, cxx: list[str], nvcc: Path | None, library: Path) -> dict[str, object]:
    """Build the library and say what is in it."""
    archs = cuda_archs(nvcc) if nvcc else []
    steps = compile_steps(torch, cxx, nvcc, archs)
    fresh = OBJECTS / library.name
    compile_and_link(steps, link_command(torch, cxx, nvcc, [target for _, target, _ in steps], fresh), fresh)
    shutil.copyfile(fresh, library)
    isas = ["portable", *(source.stem for source, _, _ in steps if source.name in ISA_FLAGS)]
    if nvcc:
        cuda = f"CUDA for sm_{' sm_'.join(archs)} and PTX"
    else:
        cuda = "no CUDA (MSG3D_CUDA=0)" if os.environ.get("MSG3D_CUDA") == "0" else "no CUDA (nvcc not found)"
    return {"built": True, "torch": torch_version(torch), "isas": isas, "cuda": cuda, "cuda_archs": archs}


class BuildNative(build_ext):
    """Compiles csrc into _C.abi3.so, or leaves a package that says what was missing."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".abi3.so"

    def build_extension(self, ext: Extension) -> None:
        began = time.monotonic()
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        torch, cxx, nvcc = find_torch(), find_compiler(), wanted_nvcc()
        if torch is None:
            raise BuildError("torch was not found: pip install torch, then install msg3d_fast again")
        if cxx is None and os.environ.get("MSG3D_CUDA") == "1":
            raise BuildError(f"MSG3D_CUDA=1 but {no_compiler()}")
        if cxx:
            info = build_library(torch, cxx, nvcc, library)
            summary = f"native library for {' '.join(info['isas'])}; {info['cuda']}; torch {info['torch']}"
        else:
            info = {"built": False, "reason": no_compiler()}
            summary = f"without its native library: {info['reason']}"
        package = Path(self.get_finalized_command("build_py").get_package_dir("msg3d_fast"))
        for folder in {library.parent, package} if self.beside_the_source else {library.parent}:
            if not cxx:
                (folder / library.name).unlink(missing_ok=True)
            (folder / "_build_info.json").write_text(json.dumps(info, indent=1) + "\n")
        print(f"msg3d_fast {summary}; {time.monotonic() - began:.1f} s", flush=True)

    def run(self) -> None:
        self.beside_the_source = self.inplace  # setuptools resets it while it builds
        super().run()


class BuildEmulated(Command):
    """Compiles the CUDA kernels for the emulator into msg3d_fast/_emulated.abi3.so; needs the source folder whole."""

    description = "build the backend 'emulated'"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        torch, cxx = find_torch(), find_compiler()
        if torch is None or cxx is None:
            raise BuildError(no_compiler() if torch else "torch was not found: pip install torch")
        steps, library = emulated_steps(torch, cxx), EMULATED_OBJECTS / "_emulated.abi3.so"
        objects = [target for _, target, _ in steps]
        compile_and_link(steps, link_command(torch, cxx, None, objects, library), library)
        fresh = ROOT / "msg3d_fast" / f".{library.name}.{os.getpid()}"
        shutil.copyfile(library, fresh)
        os.replace(fresh, ROOT / "msg3d_fast" / library.name)  # a process that has it loaded keeps the old one


setup(
    ext_modules=[Extension("msg3d_fast._C", sources=[], py_limited_api=True, optional=True)],
    cmdclass={"build_ext": BuildNative, "build_emulated": BuildEmulated},
    options={"bdist_wheel": {"py_limited_api": OLDEST_PYTHON}},
    # An isolated build without any torch at hand must fetch one; with one at hand it must not.
    setup_requires=[] if find_torch() else [f"torch>={OLDEST_TORCH}"],
)
