"""setup.py: what it compiles and with which flags, and what is left where a tool is missing."""

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import setuptools

from msg3d_fast import _library

ROOT = Path(__file__).resolve().parents[1]
SECOND_PYTHON = os.environ.get("MSG3D_SECOND_PYTHON")
PARITY = """
import torch
from msg3d_fast import _library, ops, reference
assert _library.available(), _library.info()["reason"]
torch.manual_seed(0)
for C, O, window in ((3, 24, (5, 1, 1)), (20, 24, (3, 2, 1)), (20, 24, (1, 1, 1))):
    nodes = 7 * window[0]
    shapes = (2, C, 30, 7), (4, nodes, nodes), (O, 4, C), (O,)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    answers = []
    for backend in ("native", "reference"):
        y = ops.ms_g3d(*inputs, *window, backend=backend)
        answers.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for found, expected in zip(*answers):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())
print("parity", torch.__version__)
"""


def load_setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("msg3d_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("MSG3D_CUDA", "MSG3D_CUDA_ARCHS", "CXX", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    return load_setup(monkeypatch)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources in a folder of their own, without anything built."""
    ignore = shutil.ignore_patterns("*.so*", "_build_info.json", "__pycache__", "embedded")
    for folder in ("msg3d_fast", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def run_setup(copy: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=copy, env={**os.environ, **environment}, capture_output=True, text=True)


def run_python(code: str, folder: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run code that imports the package from `folder`, whatever an editable install here would add to it."""
    code = f"import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment.pop("MSG3D_BACKEND", None)
    return subprocess.run([python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def commands(build: ModuleType, **options: object) -> dict[str, list[str]]:
    """The compiler's words for every file of csrc."""
    arguments = {
        "torch": Path("/torch"),
        "cxx": ["c++"],
        "nvcc": Path("/cuda/bin/nvcc"),
        "archs": ["80", "90"],
        **options,
    }
    return {source.name: command for source, _, command in build.compile_steps(**arguments)}


def test_no_flag_that_breaks_numbers_or_other_machines(build: ModuleType) -> None:
    for name, command in commands(build).items():
        assert "-O3" in command
        assert not {"-march=native", "-ffast-math", "-Ofast", "--use_fast_math", "-use_fast_math"} & set(command)
        assert ("-mavx2" in command) == (name == "avx2.cpp")
        assert ("-mavx512f" in command) == (name == "avx512.cpp")


def test_only_files_that_need_it_see_torch(build: ModuleType) -> None:
    for source, _, command in build.compile_steps(Path("/torch"), ["c++"], None, []):
        assert any("torch/include" in word for word in command) == ("kernels" not in source.parts)


def test_aarch64_builds_the_portable_path(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    found = commands(build)
    assert "portable.cpp" in found
    assert not {"avx2.cpp", "avx512.cpp"} & set(found)
    assert not any(word.startswith("-mavx") for command in found.values() for word in command)


def test_cuda_targets(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    words = commands(build)["device.cu"]
    assert [word for word in words if word.startswith("-gencode")] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert "device.cu" not in commands(build, nvcc=None, archs=[])
    monkeypatch.setenv("MSG3D_CUDA_ARCHS", "8.0; 90a")
    assert build.cuda_archs(Path("nvcc")) == ["80", "90a"]
    monkeypatch.setenv("MSG3D_CUDA_ARCHS", "ampere")
    with pytest.raises(SystemExit, match="MSG3D_CUDA_ARCHS is 'ampere'; expected capabilities like '80;90'"):
        build.cuda_archs(Path("nvcc"))


def test_default_cuda_targets_are_what_nvcc_knows(build: ModuleType, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nprintf 'sm_75\\nsm_80\\nsm_100\\nsm_90\\n'\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    assert build.cuda_archs(nvcc) == ["75", "80", "90", "100"]


def test_each_kernel_is_compiled_for_what_can_run_it(build: ModuleType) -> None:
    found = commands(build, archs=["75", "80", "86", "90"])
    codes = {
        name: [w.rpartition("code=")[2] for w in words if w.startswith("-gencode")] for name, words in found.items()
    }
    assert codes["device.cu"] == ["sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]
    assert codes["windows.cu"] == ["sm_80", "sm_86", "sm_90", "compute_90"]
    assert codes["gather.cu"] == ["sm_75", "sm_80", "sm_90", "compute_90"]


def test_the_choice_of_cuda(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert build.wanted_nvcc() is None
    monkeypatch.setenv("MSG3D_CUDA", "1")
    with pytest.raises(SystemExit, match=r"MSG3D_CUDA=1 but nvcc was not found .*: install the CUDA toolkit, or pip"):
        build.wanted_nvcc()
    monkeypatch.setattr(build, "find_nvcc", lambda: Path("/cuda/bin/nvcc"))
    assert build.wanted_nvcc() == Path("/cuda/bin/nvcc")
    monkeypatch.setenv("MSG3D_CUDA", "0")
    assert build.wanted_nvcc() is None
    monkeypatch.setenv("MSG3D_CUDA", "yes")
    with pytest.raises(SystemExit, match="MSG3D_CUDA is 'yes'; expected auto, 0 or 1"):
        build.wanted_nvcc()


def test_nvcc_is_found_where_it_may_be(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def make(path: Path) -> Path:
        path.parent.mkdir(parents=True)
        path.touch()
        path.chmod(0o755)
        return path

    home, on_path = make(tmp_path / "home/bin/nvcc"), make(tmp_path / "path/nvcc")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build.find_nvcc() == home
    monkeypatch.delenv("CUDA_HOME")
    assert build.find_nvcc() == on_path
    in_package = make(tmp_path / "site/nvidia/cu13/bin/nvcc")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(build.sys, "path", [str(tmp_path / "site")])
    assert build.find_nvcc() in (in_package, Path("/usr/local/cuda/bin/nvcc"))


def test_without_a_compiler_the_package_says_so(copy: Path) -> None:
    built = run_setup(copy, PATH=str(copy / "nothing"), CXX="")
    assert built.returncode == 0, built.stderr
    assert "msg3d_fast without its native library: no C++ compiler was found" in built.stdout
    assert json.loads((copy / "msg3d_fast" / "_build_info.json").read_text())["built"] is False
    code = """
import torch
from msg3d_fast import _library, ops
call = torch.randn(1, 3, 4, 5), torch.randn(2, 5, 5), torch.randn(8, 2, 3)
assert ops.ms_gcn(*call, backend="reference").shape == (1, 8, 4, 5)
assert not _library.available() and ops.format_conversions() == 0
try:
    ops.ms_gcn(*call)
except _library.LibraryUnavailable as error:
    print(error)
"""
    ran = run_python(code, copy)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("the native library of msg3d_fast is missing: no C++ compiler was found")
    assert "apt install g++" in ran.stdout
    assert ran.stdout.count("\n") == 1


def test_without_the_compiler_that_was_asked_for(copy: Path) -> None:
    built = run_setup(copy, CXX="gcc-of-tomorrow -m64", MSG3D_CUDA="0")
    assert built.returncode == 0, built.stderr
    assert "the compiler CXX=gcc-of-tomorrow -m64 was not found: install one" in built.stdout


def test_cuda_that_is_required_needs_a_compiler_too(copy: Path) -> None:
    nvcc = copy / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    built = run_setup(copy, PATH=str(copy / "nothing"), CXX="", CUDA_HOME=str(copy / "cuda"), MSG3D_CUDA="1")
    assert built.returncode != 0
    assert built.stderr.splitlines()[-1].startswith("MSG3D_CUDA=1 but no C++ compiler was found")
    assert not (copy / "msg3d_fast" / "_build_info.json").exists()


def test_a_compiler_that_fails_is_a_build_error(copy: Path) -> None:
    compiler = copy / "broken-c++"
    compiler.write_text("#!/bin/sh\necho 'internal compiler error' >&2\nexit 1\n")
    compiler.chmod(0o755)
    built = run_setup(copy, CXX=str(compiler), MSG3D_CUDA="0", MAX_JOBS="1")
    assert built.returncode != 0
    assert "the native library failed to compile; the compiler's message stands above" in built.stderr
    assert not (copy / "msg3d_fast" / "_build_info.json").exists()


def test_a_library_that_was_never_built_says_how(copy: Path) -> None:
    ran = run_python("from msg3d_fast import _library; _library.require()", copy)
    assert (
        "LibraryUnavailable: the native library of msg3d_fast is missing: it was never built: pip install ."
        in ran.stderr
    )


def test_a_library_that_does_not_load_says_so(copy: Path) -> None:
    (copy / "msg3d_fast" / "_C.abi3.so").write_bytes(b"not a library")
    ran = run_python("from msg3d_fast import _library; print(_library.info()['reason'])", copy)
    assert ran.stdout.startswith("the native library of msg3d_fast does not load into torch"), ran.stderr
    assert ran.stdout.count("\n") == 1


def test_a_library_of_other_sources_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        """The operators of a library that was built before ms_g3d_set_cuda_plan was written."""

        set_isa = staticmethod(lambda name: True)
        ms_g3d_set_order = staticmethod(lambda name: True)

    monkeypatch.setattr(_library.torch, "ops", SimpleNamespace(msg3d_fast=Older))
    assert "built from other sources than the Python files" in _library._load()


@pytest.mark.slow
def test_install_and_import_from_elsewhere(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--target", str(site)]
    subprocess.run([*command, str(copy)], check=True)
    ran = run_python(PARITY, site)
    assert ran.stdout.startswith("parity"), ran.stderr


@pytest.mark.second_torch
@pytest.mark.skipif(not SECOND_PYTHON, reason="MSG3D_SECOND_PYTHON names no interpreter with another torch")
def test_this_very_binary_in_another_torch(tmp_path: Path, copy: Path) -> None:
    for file in ("_C.abi3.so", "_build_info.json"):
        shutil.copy(ROOT / "msg3d_fast" / file, copy / "msg3d_fast")
    ran = run_python(PARITY, copy, SECOND_PYTHON)
    assert ran.stdout.startswith("parity"), ran.stderr
    built_with = json.loads((ROOT / "msg3d_fast" / "_build_info.json").read_text())["torch"]
    assert ran.stdout.split()[1] != built_with, "the second interpreter has the same torch"
