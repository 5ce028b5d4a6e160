"""What the forward kernels may cost, counted on what nvcc made of them (route P, bfloat16) and read from the binary.

Clocks are modelled with an A100's datasheet rates, not measured: an m16n8k16 product takes 8 clocks of a sub-partition,
shared memory moves 128 bytes, the second-level cache 47.4 and memory 10.2 bytes a clock and multiprocessor. Tests keep
the network's channels, joints, windows and strides; clips have a few tiles of windows.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import emulator
import forward_kernels as forward
import pytest
import torch
from emulator.build import Tree, ptx_of
from forward_shapes import Shape
from kernel_resources import resources

pytestmark = pytest.mark.skipif(emulator.find_nvcc() is None, reason="route P needs nvcc")

L2_BYTES, MEMORY_BYTES = 47.4, 10.2
LAYERS = [
    Shape(f"{V}_joints_{C}_channels_{window}_{stride}", 1, C, 48, V, 13 if window == 1 else 6, C, (window, stride, 1))
    for V in (17, 25)
    for C in (96, 192)
    for window, stride in ((1, 1), (3, 1), (5, 1), (3, 2), (5, 2))
]
DILATED = Shape("dilated", 1, 96, 48, 25, 6, 96, (3, 1, 2))
COLLAPSED = [
    Shape(f"collapsed_{V}_{window}_{stride}", 1, 96, 32 * stride, V, 6, 96, (window, stride, 1), out=192)
    for V in (17, 25)
    for window, stride in ((3, 2), (5, 2))
]
COLLAPSED_192 = [
    Shape(f"collapsed_192_{V}_{window}", 1, 192, 64, V, 6, 192, (window, 2, 1), out=384)
    for V in (17, 25)
    for window in (3, 5)
]
COLLAPSED_FIRST = [
    Shape(f"collapsed_first_{V}_{window}", 1, 3, 60, V, 6, 96, (window, 1, 1), out=96)
    for V in (17, 25)
    for window in (3, 5)
]
FIRST = [
    Shape(f"first_{V}_{window}", 1, 3, 48, V, 13 if window == 1 else 6, 96, (window, 1, 1))
    for V in (17, 25)
    for window in (1, 3, 5)
]


@dataclass(frozen=True)
class Costs:
    """Ratios to the time of the products, or to sizes."""

    mma: float  # products issued over those needed
    shared: float
    intervals: float  # sum over barrier intervals of the busier of products and shared memory
    conflicts: float
    x_read: float
    y_written: float
    both: float
    level2: float
    shared_to_memory: float  # shared memory's time over that of x and y to and from memory


@cache
def kernels_of(kernel: str, tile: int, arch: str = "80") -> emulator.Kernels:
    """Compiled without all other kernels and tiles."""
    one = f"{kernel}(_collapse)?_kernel.*bf16" + ("" if kernel == "few_channels" else f"ELi{tile}E")
    return emulator.build(*forward.SOURCES, forward.LAUNCHERS, arch=arch, entries=f"pack_kernel.*bf16|{one}")


def costs(shape: Shape) -> Costs:
    """Of a run whose values are right, too."""
    inputs = shape.inputs(torch.bfloat16)
    plan = forward.plan(emulator.build(*forward.SOURCES, forward.LAUNCHERS), shape)
    kernels = kernels_of(forward.KERNELS[plan["kernel"]], plan["tile"])
    run = forward.run(kernels, shape, inputs, route="ptx", count=True, checks=False)
    forward.assert_exact_enough(run, shape, inputs, relu=False)
    main = run.counters[1]
    clocks = sum(main["mma_clocks"]) / 4
    wavefronts = sum(access["wavefronts"] for access in main["shared"].values())
    least = sum(access["least"] for access in main["shared"].values())
    read, written = main["global"]["x"]["read"] * 32, main["global"]["y"]["written"] * 32
    x_bytes, y_bytes = 2 * inputs["x"].numel(), 2 * run.y.numel()
    all_bytes = 32 * sum(buffer["read"] + buffer["written"] for buffer in main["global"].values())
    return Costs(
        clocks / (shape.macs() / 1024),
        wavefronts / clocks,
        main["interval_a100"] / clocks,
        wavefronts / least - 1,
        read / x_bytes,
        written / y_bytes,
        (read + written) / (x_bytes + y_bytes),
        all_bytes / L2_BYTES / clocks,
        wavefronts / ((x_bytes + y_bytes) / MEMORY_BYTES),
    )


# Compiling what nvcc made of every tile takes a minute: the default suite has a layer of MS-GCN and one of MS-G3D.
CORE = {
    "17_joints_96_channels_1_1",
    "25_joints_96_channels_1_1",
    "17_joints_96_channels_3_1",
    "25_joints_96_channels_3_1",
}
JUDGED = [pytest.param(shape, marks=[] if shape.name in CORE else [pytest.mark.slow]) for shape in LAYERS]


@pytest.mark.parametrize("shape", JUDGED, ids=lambda shape: shape.name)
def test_layers_keep_to_their_budgets(shape: Shape) -> None:
    found, frames = costs(shape), shape.window[0] == 1
    assert found.y_written == 1
    assert found.mma <= (1.25 if frames else 1.31 if shape.C == 96 else 1.36)
    assert found.shared <= 1
    assert found.intervals <= (1.05 if frames else 1.25)
    assert found.conflicts <= 0.02
    assert found.level2 <= 0.5
    assert found.both <= (1.0 if frames else 1.2)
    if frames:
        assert found.x_read == 1


@pytest.mark.slow
def test_dilation_costs_few_conflicts() -> None:
    found = costs(DILATED)
    assert found.conflicts <= 0.05
    assert found.both <= 1.2
    assert found.shared <= 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", COLLAPSED, ids=lambda shape: shape.name)
def test_collapse(shape: Shape) -> None:
    found = costs(shape)
    assert found.y_written == 1
    assert found.both <= (1.3 if shape.window[0] == 3 else 1.55)
    assert found.mma <= 1.31
    assert found.shared <= 1
    assert found.intervals <= 1.25
    assert found.conflicts <= 0.02
    assert found.level2 <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("shape", COLLAPSED_192, ids=lambda shape: shape.name)
def test_collapse_of_192_channels(shape: Shape) -> None:
    found = costs(shape)
    assert found.y_written == 1
    assert found.both <= 1.55
    assert found.mma <= (1.36 if shape.V == 25 else 1.38)  # two times 17 joints pad to 40 rows
    assert found.shared <= 1
    assert found.intervals <= 1.25
    assert found.conflicts <= 0.02
    assert found.level2 <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("shape", COLLAPSED_FIRST, ids=lambda shape: shape.name)
def test_collapse_of_the_first_stage(shape: Shape) -> None:
    """Products bind it: the collapse makes many of them."""
    found = costs(shape)
    assert found.y_written == 1
    assert found.both <= 1.2
    assert found.shared <= 1
    assert found.intervals <= 1.25
    assert found.level2 <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("shape", FIRST, ids=lambda shape: shape.name)
def test_the_first_stage_is_bound_by_memory(shape: Shape) -> None:
    found = costs(shape)
    assert found.y_written == 1
    assert found.both <= 1.05
    assert found.shared_to_memory <= 1


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "86", "90", "100", "120"])
@pytest.mark.parametrize("source", forward.SOURCES, ids=lambda source: Path(source).stem)
def test_no_kernel_spills(source: str, arch: str, tmp_path: Path) -> None:
    """255 registers for 8 warps leave one block a multiprocessor; the kernel for few channels promises two."""
    found = resources(source, arch, tmp_path / "kernel.cubin")
    assert len(found) >= 2
    for name, needs in found.items():
        assert (needs.stack, needs.spilt) == (0, 0), name
        assert needs.registers <= (128 if "few_channels_kernel" in name else 255), name


@pytest.mark.parametrize("source", forward.SOURCES[1:-1], ids=lambda source: Path(source).stem)
def test_tensor_cores_and_wide_copies(source: str) -> None:
    """What ptxas turns into HMMA and 128-bit LDGSTS, in every kernel of the file."""
    ptx = ptx_of(Tree(), emulator.ROOT / source, "80")
    bodies = re.split(r"^\.visible \.entry ", ptx.read_text(), flags=re.MULTILINE)[1:]
    assert bodies
    for body in bodies:
        tf32 = "tf32E" in body.partition("(")[0]
        assert f"mma.sync.aligned.{'m16n8k8.row.col.f32.tf32' if tf32 else 'm16n8k16'}" in body
        assert re.search(r"cp\.async\.cg\.shared\.global \[[^\]]+\], \[[^\]]+\], 16", body)
