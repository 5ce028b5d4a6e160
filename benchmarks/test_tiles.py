"""Every size of matrix product that the folded network makes, on one thread, beside torch.mm's rate.

The sizes are those that a run of the network asks its kernel for (tiles.cpp records them), so they follow the model.
Each runs on the instruction set that the network takes for it on this machine.
"""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from msg3d_fast import fuse

from .harness import SGEMM_FLOPS, record, sgemm, with_threads
from .workload import LAYOUTS, network

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "kernels"
ISAS = {"portable.cpp": [], "avx2.cpp": ["-mavx2", "-mfma"], "avx512.cpp": ["-mavx512f"]}  # as setup.py compiles them
ROUNDS = 5


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiles.cpp, compiled for this x86-64 processor with the flags of the library."""
    folder = tmp_path_factory.mktemp("tiles")
    compiler = [os.environ.get("CXX", "c++"), "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}"]
    sources = [
        *(KERNELS / "folded").glob("*.cpp"),
        *(KERNELS / "gemm").glob("*.cpp"),
        ROOT / "benchmarks" / "tiles.cpp",
    ]
    objects = [folder / f"{source.stem}.o" for source in sources]
    for source, target in zip(sources, objects, strict=True):
        flags = ISAS.get(source.name, [])
        subprocess.run([*compiler, *flags, "-c", str(source), "-o", str(target)], check=True)
    subprocess.run([*compiler, "-pthread", *map(str, objects), "-o", str(folder / "tiles")], check=True)
    return folder / "tiles"


def rates(program: Path, case: Path) -> dict[tuple[int, ...], tuple[int, float]]:
    """Return {(rows, groups, segments, depth, row stride, panels): (times in a clip, GFLOP/s)}."""
    isa = os.environ.get("MSG3D_ISA") or "auto"
    printed = subprocess.run([program, case, isa], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in printed.splitlines()]
    return {tuple(map(int, line[:6])): (int(line[6]), float(line[7])) for line in lines}


@pytest.mark.parametrize("skeleton", LAYOUTS)
def test_tiles(benchmark, program: Path, tmp_path: Path, skeleton: str) -> None:
    fused = fuse(network(LAYOUTS[skeleton]).eval())
    header = np.array([len(fused.sizes), len(fused.weights), 100])
    case = tmp_path / "case"
    case.write_bytes(b"".join(np.ascontiguousarray(part).tobytes() for part in (header, fused.sizes, fused.weights)))
    product = with_threads(1, sgemm())

    def measured() -> dict[str, object]:
        found, peak = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            product()
            peak.append(SGEMM_FLOPS / (time.perf_counter() - start) / 1e9)
            found.append(rates(program, case))
        tiles = [
            {"size": size, "times": times, "gflops": float(np.median([one[size][1] for one in found]))}
            for size, (times, _) in found[0].items()
        ]
        return {"tiles": tiles, "sgemm_gflops": float(np.median(peak))}

    record(benchmark, measured, kind="tiles", case={"skeleton": skeleton})
