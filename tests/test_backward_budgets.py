"""What the backward kernels may cost: registers and instructions of the binary, counts of what nvcc made of them."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import backward_kernels
import emulator
import pytest
import torch
from backward_kernels import FOLDER, LAUNCHERS, SOURCES, Shape
from kernel_resources import resources

L2_BYTES_PER_CLOCK = 47.4  # of an A100, for each multiprocessor


def layer(C: int, V: int, window: tuple[int, int, int]) -> Shape:
    name = f"{C}-{V}-tau{window[0]}-stride{window[1]}"
    return Shape(name, 1, C, 24 * window[1], V, 13 if window[0] == 1 else 6, C, window, multiprocessors=1)


LAYERS = [
    layer(C, V, window)
    for C, V, window in (
        (96, 25, (3, 1, 1)),
        (192, 17, (3, 1, 1)),
        (96, 17, (3, 2, 1)),
        (96, 17, (5, 1, 1)),
        (96, 25, (5, 1, 1)),
        (96, 25, (5, 2, 1)),
        (192, 17, (5, 1, 1)),
        (192, 25, (3, 1, 1)),
        (192, 25, (5, 1, 1)),
        (96, 17, (1, 1, 1)),  # without windows grad_x is a forward pass
        (96, 25, (1, 1, 1)),
        (192, 17, (1, 1, 1)),
        (192, 25, (1, 1, 1)),
    )
]
needs_nvcc = pytest.mark.skipif(emulator.find_nvcc() is None, reason="needs nvcc")


@needs_nvcc
@pytest.mark.parametrize(
    "arch", ["80", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("86", "90", "100", "120"))]
)
@pytest.mark.parametrize("name", ["grad_x", "grad_weight", "grad_A"])
def test_the_binary(name: str, arch: str, tmp_path: Path) -> None:
    """No spills, at most 255 registers for eight warps, tensor cores, asynchronous copies of 16 bytes."""
    cubin = tmp_path / "kernel.cubin"
    found = resources(f"{FOLDER}/{name}.cu", arch, cubin)
    assert len(found) == 9  # three tiles of three types
    for kernel, needs in found.items():
        assert needs.registers <= 255, kernel
        assert (needs.stack, needs.spilt) == (0, 0), kernel
    cuobjdump = shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump"
    if Path(cuobjdump).exists():
        sass = subprocess.run([cuobjdump, "-sass", cubin], capture_output=True, text=True, check=True).stdout
        assert "HMMA" in sass
        assert "LDGSTS.E.BYPASS.128" in sass
        assert not re.search(r"\b(LDL|STL)\b", sass)


@cache
def kernels(with_forward: bool) -> emulator.Kernels:
    """For bfloat16; grad_x without windows is a forward pass, whose kernels take as long to compile as all others."""
    entries = "sum_parts|bf16" if with_forward else "sum_parts|(pack|Grad).*bf16"
    return emulator.build(*SOURCES, LAUNCHERS, arch="80", entries=entries)


JUDGED = [
    pytest.param(
        layer,
        gradient,
        id=f"{layer.name}-grad_{gradient}",
        marks=[pytest.mark.slow] if layer is not LAYERS[0] else [],
    )
    for layer in LAYERS
    for gradient in ("x", "A")
]


@needs_nvcc
@pytest.mark.parametrize(("layer", "gradient"), JUDGED)
def test_counts_on_the_networks_layers(layer: Shape, gradient: str) -> None:
    """Shared-memory time, barrier intervals and second-level cache against the tensor cores' time (A100, modelled)."""
    inputs = layer.inputs(torch.bfloat16)
    options = {"route": "ptx", "landing": "late", "count": True, "checks": False}
    found = backward_kernels.run(kernels(layer.window[0] == 1), layer, inputs, wanted=(gradient,), **options)
    backward_kernels.assert_exact_enough(found, layer, inputs)
    (main,) = (launch for launch in found.counters if launch["mma"])
    mma = sum(main["mma_clocks"]) / 4
    assert sum(kind["wavefronts"] for kind in main["shared"].values()) <= (1.0 if gradient == "x" else 1.1) * mma
    if gradient == "x":
        sectors = sum(buffer["read"] + buffer["written"] for buffer in main["global"].values())
        assert main["interval_a100"] <= 1.3 * mma
        assert sectors * 32 / L2_BYTES_PER_CLOCK <= 0.6 * mma
        assert main["global"]["grad_x"]["written"] * 32 == 2 * layer.N * layer.T * layer.V * layer.C
