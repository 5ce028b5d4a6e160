"""The CPU kernels without torch: under sanitizers, and cross-compiled for aarch64 and run by an emulator.

What the programs in tests/native compute is compared there, with plain loops or with what the library computed.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import build, clips

from msg3d_fast import _library
from msg3d_fast.inference import fuse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _library.available(), reason="the native library gives the numbers to compare with"),
]
ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "kernels"
CASES = [
    (dtype, arguments, T)
    for dtype in (torch.float32, torch.float64)
    for arguments, T in (
        ({"layout": "coco"}, 21),
        ({"layout": "nturgb+d", "base_channels": 20, "num_person": 3}, 1),
        ({"layout": "hand21", "base_channels": 7, "in_channels": 5}, 10),
        ({"layout": "coco", "num_gcn_scales": 1, "num_g3d_scales": 1}, 70),
    )
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of networks, clips and the features that the library in use computes from them."""
    path = tmp_path_factory.mktemp("folded") / "cases"
    with path.open("wb") as file:
        file.write(np.int64(len(CASES)).tobytes())
        for dtype, arguments, T in CASES:
            model = build(**arguments).to(dtype)
            fused, x = fuse(model), clips(model, 2, T).to(dtype)
            packed, classifier = (fused.sizes, fused.weights), (fused.fc_weight, fused.fc_bias)
            _, features, _ = torch.ops.msg3d_fast.folded_network(x, *packed, *classifier, False)
            header = [x.element_size(), *map(len, packed), len(features), T]
            for part in (np.array(header), *packed, x, features):
                file.write(np.ascontiguousarray(part).tobytes())
    return path


# Each program, and the folders of kernels that it takes beside gemm's.
PROGRAMS = {"folded": ["folded"], "sweep": ["ms_g3d/cpu"], "sweep_blocks": ["mstcn", "collapse", "batch_norm"]}


def compile_program(name: str, target: Path, compiler: str, *flags: str) -> Path:
    wide = {"avx2.cpp", "avx512.cpp"} if "-mavx2" not in flags else set()
    sources = [source for folder in ("gemm", *PROGRAMS[name]) for source in (KERNELS / folder).glob("*.cpp")]
    sources = [source for source in sources if source.name not in wide] + [ROOT / "tests" / "native" / f"{name}.cpp"]
    command = [compiler, "-std=c++17", *flags, f"-I{ROOT / 'csrc'}", "-pthread", *map(str, sources), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def assert_runs(command: list[str | Path], count: int) -> None:
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stdout == f"ok {count}\n", ran.stdout + ran.stderr


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_under_sanitizers(sanitizers: str, name: str, cases: Path, tmp_path: Path) -> None:
    """The registers that the tiles pin are left to the compiler."""
    flags = ["-O1", "-g", "-mavx2", "-mfma", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    flags += ["-DMSG3D_KEEP_IN_REGISTER(v)=", "-Wno-psabi"]
    program = compile_program(name, tmp_path / name, os.environ.get("CXX", "c++"), *flags)
    argument, count = (cases, len(CASES)) if name == "folded" else ("100", 100)
    assert_runs([program, argument], count)


EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


@pytest.mark.skipif(
    not (EMULATOR and shutil.which("aarch64-linux-gnu-g++")),
    reason="needs a cross compiler and an emulator: apt install g++-aarch64-linux-gnu qemu-user-static",
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_on_emulated_aarch64(name: str, cases: Path, tmp_path: Path) -> None:
    program = compile_program(name, tmp_path / name, "aarch64-linux-gnu-g++", "-O3", "-static")
    argument, count = (cases, len(CASES)) if name == "folded" else ("20", 20)
    assert_runs([EMULATOR, program, argument], count)
