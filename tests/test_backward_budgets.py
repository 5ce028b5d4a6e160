"""What the backward kernels may cost: registers and instructions of the binary, counts of what nvcc made of them."""

import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import backward_kernels
import emulator
import pytest
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
def kernels(with_forward: bool, element: str) -> emulator.Kernels:
    """For one type; grad_x without windows is a forward pass of frames."""
    entries = f"pack.*{element}|frames_kernel.*{element}" if with_forward else f"sum_parts|(pack|Grad).*{element}"
    return emulator.build(*SOURCES, LAUNCHERS, arch="80", entries=entries)


# Shared-memory time in products' times: what a gradient may take, and where tf32, twice as long for as many sums, takes
# more. There grad_x carries a scale less, and without windows grad_A projects fewer frames at once.
SHARED = {"x": 1.0, "A": 1.1, "weight": 1.45}
MORE_IN_TF32 = {
    ("192-17-tau3-stride1", "x"): 1.06,
    ("96-25-tau5-stride2", "x"): 1.13,
    ("192-17-tau5-stride1", "x"): 1.24,
    ("192-25-tau5-stride1", "x"): 1.22,
    ("96-17-tau1-stride1", "A"): 1.13,
    ("192-17-tau1-stride1", "A"): 1.26,
    ("192-25-tau1-stride1", "A"): 1.31,
}
JUDGED = [
    pytest.param(
        replace(layer, tf32=tf32),
        gradient,
        id=f"{layer.name}-{'tf32' if tf32 else 'bf16'}-grad_{gradient}",
        marks=[] if layer is LAYERS[0] and not tf32 and gradient != "weight" else [pytest.mark.slow],
    )
    for layer in LAYERS
    for tf32 in (False, True)
    for gradient in SHARED
]


@needs_nvcc
@pytest.mark.parametrize(("layer", "gradient"), JUDGED)
def test_counts_on_the_networks_layers(layer: Shape, gradient: str) -> None:
    """Shared-memory time, barrier intervals and second-level cache against the tensor cores' time (A100, modelled)."""
    inputs = layer.inputs(layer.dtype)
    options = {"route": "ptx", "landing": "late", "count": True, "checks": False}
    built = kernels(layer.window[0] == 1 and gradient == "x", "tf32" if layer.tf32 else "bf16")
    found = backward_kernels.run(built, layer, inputs, wanted=(gradient,), **options)
    backward_kernels.assert_exact_enough(found, layer, inputs)
    (main,) = (launch for launch in found.counters if launch["mma"])
    mma = sum(main["mma_clocks"]) / 4
    most = MORE_IN_TF32.get((layer.name, gradient), 0) if layer.tf32 else 0
    assert sum(kind["wavefronts"] for kind in main["shared"].values()) <= max(most, SHARED[gradient]) * mma
    if gradient == "x":
        sectors = sum(buffer["read"] + buffer["written"] for buffer in main["global"].values())
        assert main["interval_a100"] <= 1.3 * mma
        in_short = layer.tf32 and layer.name == "192-25-tau5-stride1"  # four frames a block, read twice as often
        assert sectors * 32 / L2_BYTES_PER_CLOCK <= (0.8 if in_short else 0.6) * mma
        written = main["global"]["grad_x"]["written"] * 32
        assert written == layer.dtype.itemsize * layer.N * layer.T * layer.V * layer.C
