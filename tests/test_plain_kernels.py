"""The plain path's kernels, executed by both emulators with every check on; and bugs seeded into them, by name."""

import emulator
import plain_kernels
import pytest
import torch
from plain_kernels import FOLDER, LAUNCHERS, SOURCES, TYPES
from problems import Problem, assert_parity
from seeded_bugs import Bug, Narrowed, assert_a_dozen, assert_caught

# Few channels share a tile of columns with other scales, many do not; 32 and 96 output channels, 32 and 64 rows of A.
FEW = Problem("few_channels", N=2, C=3, T=7, V=5, K=3, O=40, window_size=3, window_stride=2)
MANY = Problem("many_channels", N=1, C=37, T=4, V=17, K=2, O=34, window_size=3, window_dilation=2)
FRAMES = Problem("frames", N=2, C=18, T=5, V=9, K=2, O=20)
CLIPS = Problem("clips", N=2, C=3, T=4, V=5, K=2, O=8, window_size=3)
WIDE = Problem("second_block_of_channels", N=1, C=100, T=2, V=3, K=1, O=100)
# A tile of rows has two whole frames and a part of two more.
STRADDLING = Problem("straddling_frames", N=1, C=2, T=6, V=22, K=1, O=18, window_size=2)
SHAPES = [FEW, MANY, FRAMES, CLIPS, WIDE, STRADDLING]
needs_nvcc = pytest.mark.skipif(emulator.find_nvcc() is None, reason="route P runs what nvcc makes of the kernels")


def named(shapes: list[Problem]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("problem", shapes, ids=lambda problem: problem.name)


@pytest.fixture(scope="module")
def source() -> emulator.Kernels:
    return emulator.build(*SOURCES, LAUNCHERS)


@named(SHAPES)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).partition(".")[2])
def test_values(source: emulator.Kernels, problem: Problem, dtype: torch.dtype) -> None:
    assert_parity(plain_kernels.run(source, problem, dtype, seed=TYPES.index(dtype)), problem)


@pytest.mark.slow
@needs_nvcc
@named(SHAPES)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).partition(".")[2])
def test_what_nvcc_makes_of_them(problem: Problem, dtype: torch.dtype) -> None:
    kernels = emulator.build(*SOURCES, LAUNCHERS, arch="80")
    assert_parity(plain_kernels.run(kernels, problem, dtype, route="ptx"), problem)


@needs_nvcc
def test_what_nvcc_makes_of_float32() -> None:
    """The type that has no other kernels, at the sizes of a frame."""
    entries = "gather_kernelIfLi32ELb[01]|weight_kernelIfLi32|adjacency_kernelIfLi32|(bias|sum)_kernelIf"
    kernels = emulator.build(*SOURCES, LAUNCHERS, arch="80", entries=entries)
    assert_parity(plain_kernels.run(kernels, FRAMES, route="ptx"), FRAMES)


GATHER, PARAMETERS, TILE = (f"{FOLDER}/{name}" for name in ("gather.cu", "parameters.cu", "tile.h"))
RACE, BOUNDS, UNINITIALISED = "race|uninitialised read", "out of bounds", "uninitialised read"
# By the pass that shows them: "forward", "input" or "parameters".
# fmt: off
BUGS = [
    Bug("forward", "missing barrier before H", GATHER, r"block_barrier\(\);  // the last step.*", "", FEW, RACE),
    Bug("forward", "missing barrier behind H", GATHER, r"(= value;\n    \}\n)    block_barrier\(\);", r"\1", FEW, RACE),
    Bug("forward", "missing barrier before a step", TILE,
        r"block_barrier\(\);(\n#pragma unroll 1\n    for \(int i = tid / k)", r"\1", FEW, RACE),
    Bug("forward", "missing barrier behind a step", TILE, r"block_barrier\(\);\n    const Acc\* a =", "const Acc* a =",
        FEW, RACE),
    Bug("forward", "off by one row", GATHER, r"place\.row \+ q >= g\.rows", "place.row + q > g.rows", FEW,
        f"block race|{RACE}|{BOUNDS}"),
    Bug("forward", "missing tail guard", GATHER, r"place\.group >= 0 && o < call\.width", "place.group >= 0", FEW,
        f"block race|{RACE}|{BOUNDS}"),
    Bug("forward", "wrong mask of weights", GATHER, r"at\.real && first_o \+ o < call\.width", "at.real", FEW, BOUNDS),
    Bug("forward", "wrong mask of A", TILE, r"staged\.group >= 0 && staged_row < g\.rows", "staged.group >= 0", FEW,
        BOUNDS),
    Bug("forward", "swapped operands", GATHER, r"left\[q\] \* right\[1\]", "left[q] * right[0]", FEW, "values"),
    Bug("forward", "stale accumulator", GATHER, r"part\[q\]\[i\] = Acc\(0\)", "part[q][i] = sum[q][i]", MANY, "values"),
    Bug("forward", "overlapping blocks", GATHER, r"tile = block_x\(\);", "tile = block_x() / 2;", FEW, "block race"),
    Bug("forward", "uninitialised read", TILE, r"i < place\.groups \* count", "i < (place.groups - 1) * count", FEW,
        UNINITIALISED),
    Bug("forward", "wrong stride", TILE, r"at \* g\.stride \+", "at +", FEW, "values"),
    Bug("forward", "frames of the next clip", TILE, r"if \(frame < 0 \|\| frame >= g\.frames\) return -1;", "", FEW,
        f"values|{BOUNDS}"),
    Bug("forward", "second block over the first", GATHER, r"first_o = block_y\(\) \* kWidth", "first_o = 0", WIDE,
        "block race"),
    Bug("input", "one group too few in a step", TILE, r"\(kQuads - 2 \+ g\.quads\) / g\.quads \+ 1",
        "(kQuads - 1 + g.quads) / g.quads", STRADDLING, BOUNDS),
    Bug("input", "windows between two strides", TILE, r"ahead % g\.stride != 0 \|\|", "", FEW, "values"),
    Bug("input", "windows behind the last", TILE, r"\|\| ahead / g\.stride >= g\.frames", "", CLIPS,
        f"values|{BOUNDS}"),
    Bug("input", "A not transposed", TILE, r"column % g\.R \* g\.A_row \+ (.*) \* g\.A_column",
        r"column % g.R * g.A_column + \1 * g.A_row", FEW, "values"),
    Bug("parameters", "missing barrier before H", PARAMETERS, r"block_barrier\(\);  // the last step.*", "", FRAMES,
        RACE),
    Bug("parameters", "H of rows behind the last", PARAMETERS, r"real \? h\[q\]\[i\] : Acc\(0\)", "h[q][i] + 1", FEW,
        "values"),
    Bug("parameters", "missing barrier behind G", PARAMETERS, r"(= value;\n      \}\n)      block_barrier\(\);", r"\1",
        FRAMES, RACE),
    Bug("parameters", "missing barrier of the bias", PARAMETERS, r"(sums\[tid\] = sum;\n)  block_barrier\(\);", r"\1",
        FRAMES, RACE),
    Bug("parameters", "wrong mask of rows", PARAMETERS, r"o < call\.O && window < g\.groups && node < g\.rows",
        "o < call.O", FRAMES, BOUNDS),
    Bug("parameters", "missing tail guard", PARAMETERS, r"r < g\.rows && j < g\.rows", "r < g.rows", FRAMES,
        f"block race|race|{BOUNDS}"),
    Bug("parameters", "part over its neighbour", PARAMETERS, r"static_cast<int64_t>\(block_z\(\)\) \* call\.O",
        "int64_t{0} * call.O", FEW, "block race"),
    Bug("parameters", "last part forgotten", PARAMETERS, r"part < count; \+\+part", "part + 1 < count; ++part", FRAMES,
        "values"),
    Bug("parameters", "last windows forgotten", PARAMETERS, r"end < all \? end : all", "end < all ? end : all - 1",
        FRAMES, "values"),
    Bug("parameters", "stale accumulator", PARAMETERS, r"part\[q\]\[i\] = Acc\(0\)", "part[q][i] = sum[q][i]", MANY,
        "values"),
]
# fmt: on


ONE_TYPE = ((TILE, r"switch \(type\) \{.*?^  \}\n", "return run(float());\n"),)


@pytest.mark.parametrize("seeded", BUGS, ids=str)
def test_a_seeded_bug_is_caught(seeded: Bug) -> None:
    kernels = emulator.build(*SOURCES, LAUNCHERS, mutations=[Narrowed(seeded, ONE_TYPE)])

    def check(seed: int) -> None:
        found = plain_kernels.run(kernels, seeded.sizes, wanted=(seeded.kernel,), seed=seed)
        assert_parity(found, seeded.sizes)

    assert_caught(seeded, check)


def test_a_dozen_bugs_for_every_file() -> None:
    assert_a_dozen(BUGS, {"forward", "input"}, {"input", "parameters"})
