"""MSTCN's temporal branches on the emulator with every check on, what ptxas makes of them, and bugs seeded by name."""

from pathlib import Path

import emulator
import pytest
import temporal_kernels as temporal
import torch
from kernel_resources import resources
from seeded_bugs import Bug, Narrowed, assert_a_dozen, assert_caught
from temporal_kernels import FOLDER, LAUNCHERS, SOURCES, TYPES, UNITS
from tolerance import error

# N, T, V, channels of a branch, of the last one, frames from one output to the next.
SIXTEEN, STRIDED, ODD = (2, 9, 5, 16, 16, 1), (2, 8, 9, 32, 36, 2), (2, 5, 9, 20, 23, 2)
WIDE = (1, 2, 3, 128, 4, 1)  # two blocks of a branch's channels
needs_nvcc = pytest.mark.skipif(emulator.find_nvcc() is None, reason="needs nvcc")


def check(kernels: emulator.Kernels, sizes: tuple[int, ...], dtype: torch.dtype, **options: object) -> None:
    given, stride = temporal.inputs(*sizes, dtype), sizes[-1]
    for relu in (True, False):
        exact, eager = (temporal.expected(given, stride, relu, type) for type in (torch.float64, dtype))
        found = temporal.run(kernels, given, stride, relu, **options)
        ours, theirs = error(found, exact), error(eager, exact)
        assert ours <= 2 * theirs + UNITS[dtype], f"error {ours:.2e}, eager's {theirs:.2e}"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sizes", [SIXTEEN, STRIDED, ODD, WIDE], ids=str)
def test_values_under_every_check(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    check(emulator.build(*SOURCES, LAUNCHERS), sizes, dtype)


@needs_nvcc
def test_what_nvcc_makes_of_them() -> None:
    entries = "tensor_core_kernelINS_4simt4bf16ELi2E|plain_kernelIfLi32E"
    kernels = emulator.build(*SOURCES, LAUNCHERS, arch="80", entries=entries)
    check(kernels, SIXTEEN, torch.bfloat16, route="ptx")
    check(kernels, ODD, torch.float32, route="ptx")


# Channels of a branch and stride in the network's layers; two of them share a kernel.
LAYERS = [(16, 1), *(pytest.param(*layer, marks=pytest.mark.slow) for layer in ((32, 1), (32, 2), (64, 1), (64, 2)))]


@needs_nvcc
@pytest.mark.parametrize("V", [17, 25])
@pytest.mark.parametrize(("width", "stride"), LAYERS)
def test_memory_binds_them(width: int, stride: int, V: int) -> None:
    """Counted on what nvcc makes of them, with an A100's rates from its data sheet, modelled and not measured.

    The least is h and out read and out written once. `out` keeps to it; a frame of h is read for each of its taps, from
    the second-level cache, whose time with that and with the weights stays under memory's. Nothing is staged.
    """
    entries = f"tensor_core_kernel.*bf16ELi{min(width // 8, 8)}E"
    kernels = emulator.build(*SOURCES, LAUNCHERS, arch="80", entries=entries)
    given = temporal.inputs(1, 32 * stride, V, width, width, stride, torch.bfloat16)
    exact, eager = (temporal.expected(given, stride, True, dtype) for dtype in (torch.float64, torch.bfloat16))
    found, counters = temporal.counted(kernels, given, stride, True, route="ptx", count=True, checks=False)
    assert error(found, exact) <= 2 * error(eager, exact) + UNITS[torch.bfloat16]
    (launch,) = counters
    sizes = {name: tensor.numel() * 2 for name, tensor in given.items()}
    read, written = ({name: 32 * of[way] for name, of in launch["global"].items()} for way in ("read", "written"))
    assert read["out"] == written["out"] == sizes["out"]
    assert read["h"] <= (3 if stride == 1 else 1.5) * sizes["h"]
    memory = (sizes["h"] + 2 * sizes["out"]) / 10.2
    assert (sum(read.values()) + sum(written.values())) / 47.4 <= 0.75 * memory
    assert sum(launch["mma_clocks"]) / 4 <= 0.3 * memory
    assert not any(access["wavefronts"] for access in launch["shared"].values())


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.rpartition("/")[2])
@pytest.mark.parametrize("arch", ["80", pytest.param("90", marks=pytest.mark.slow)])
def test_no_local_memory(source: str, arch: str, tmp_path: Path) -> None:
    for name, needs in resources(source, arch, tmp_path / "cubin").items():
        assert (needs.stack, needs.spilt) == (0, 0), name
        assert needs.registers <= 255, name


TENSOR, PLAIN, ROWS = SOURCES[0], SOURCES[1], f"{FOLDER}/rows.h"
RACE, BOUNDS = "race|uninitialised read", "out of bounds"
# fmt: off
BUGS = [
    Bug("tensor cores", "frames outside the clip", ROWS, r"source\.real && .*;", "source.real;", SIXTEEN,
        f"values|{BOUNDS}"),
    Bug("tensor cores", "wrong padding", TENSOR, r"tap - call\.taps / 2", "tap", SIXTEEN, "values"),
    Bug("tensor cores", "wrong dilation", ROWS, r"b == branch \?", "b + 1 == branch ?", SIXTEEN, "values"),
    Bug("tensor cores", "wrong stride", ROWS, r"% call\.windows \* call\.stride", "% call.windows", STRIDED, "values"),
    Bug("tensor cores", "missing tail guard", TENSOR, r"if \(!sources\[i\]\.real\) continue;", "", SIXTEEN, BOUNDS),
    Bug("tensor cores", "rows behind the last", ROWS, r"row < call\.rows;", "row <= call.rows;", SIXTEEN, BOUNDS),
    Bug("tensor cores", "overlapping blocks", TENSOR, r"first_row = block_x\(\) \* kRows", "first_row = block_x() * 64",
        (1, 30, 9, 16, 16, 1), "block race"),
    Bug("tensor cores", "swapped operands", TENSOR, r"sum\[1\]\[tile\], a\[1\], b\.x, b\.y",
        "sum[1][tile], a[1], b.y, b.x",
        SIXTEEN, "values"),
    Bug("tensor cores", "half a step", TENSOR, r"a\[i / 2\]\[i % 2 \+ 2\] = four\.y", "a[i / 2][i % 2 + 2] = four.x",
        SIXTEEN, "values"),
    Bug("tensor cores", "wrong channels of a tile", TENSOR, r"tile / 2 \* 16 \+ tile % 2 \* 2", "tile * 8", SIXTEEN,
        f"values|{BOUNDS}"),
    Bug("tensor cores", "one step too many", TENSOR, r"k < call\.width; k \+= 16", "k <= call.width; k += 16", SIXTEEN,
        f"values|{BOUNDS}"),
    Bug("tensor cores", "stale accumulator", TENSOR, r"sum\[2\]\[kTiles\]\[4\] = \{\};",
        "sum[2][kTiles][4]; sum[0][0][0] = 1; for (auto& m : sum) for (auto& n : m) for (auto& v : n) v = 1;", SIXTEEN,
        "values"),
    Bug("tensor cores", "the sum before is lost", TENSOR, r"pair_low<T>\(old\.x\) \+ ", "", SIXTEEN, "values"),
    Bug("tensor cores", "second block over the first", TENSOR, r"first_o = block_z\(\) \* kTiles \* 8", "first_o = 0",
        WIDE, "block race"),
    Bug("multiply-adds", "second block over the first", PLAIN, r"first_o = block_z\(\) \* kWidth", "first_o = 0", WIDE,
        "block race"),
    Bug("multiply-adds", "missing barrier before a step", PLAIN, r"block_barrier\(\);  // the step.*", "", ODD, RACE),
    Bug("multiply-adds", "missing barrier behind a step", PLAIN, r"block_barrier\(\);\n#pragma unroll 4",
        "\n#pragma unroll 4", ODD, RACE),
    Bug("multiply-adds", "missing tail guard", PLAIN, r"row >= call\.rows \|\| o >= call\.width", "o >= call.width",
        ODD, f"block race|{RACE}|{BOUNDS}"),
    Bug("multiply-adds", "off by one channel", PLAIN, r"\|\| o >= call\.width", "|| o > call.width", ODD,
        f"values|block race|{RACE}"),
    Bug("multiply-adds", "wrong padding", PLAIN, r"tap - call\.taps / 2", "tap", ODD, "values"),
    Bug("multiply-adds", "wrong mask of weights", PLAIN, r"= real && o < call\.width", "= real", ODD, BOUNDS),
    Bug("multiply-adds", "swapped operands", PLAIN, r"rows\[k \* kPitch \+ 4 \* ty \+ q\]",
        "rows[k * kPitch + 4 * tx + q]", ODD, "values"),
    Bug("multiply-adds", "overlapping rows", PLAIN, r"sources\[j\] = source_of\(call, first_row \+ ty \+ 16 \* j\)",
        "sources[j] = source_of(call, first_row + ty + 15 * j)", ODD, "values"),
    Bug("multiply-adds", "uninitialised read", PLAIN, r"columns\[tx \* kWidth \+ ty \+ 16 \* j\] =",
        "if (j + 1 < kColumns) columns[tx * kWidth + ty + 16 * j] =", ODD, "uninitialised read"),
    Bug("multiply-adds", "last tap forgotten", PLAIN, r"tap < call\.taps; \+\+tap", "tap + 1 < call.taps; ++tap", ODD,
        "values"),
    Bug("multiply-adds", "overlapping blocks", PLAIN, r"first_row = block_x\(\) \* kPlainRows",
        "first_row = block_x() * 32", (2, 9, 9, 20, 23, 2), "block race"),
    Bug("multiply-adds", "pool of the frame before", ROWS, r"from \+ shift \* frame_step", "from - frame_step",
        ODD, f"values|{BOUNDS}"),
    Bug("multiply-adds", "pool outside the clip", ROWS, r"if \(!inside\(call, source, shift\)\) continue;", "", ODD,
        f"values|{BOUNDS}"),
    Bug("multiply-adds", "pool of too many channels", ROWS, r"call\.out_bias \? call\.O - before : call\.width",
        "call.O - before + 1", ODD, f"values|block race|race|{BOUNDS}"),
]
# fmt: on


ONE_TYPE = (
    (TENSOR, r"return type == Type::kFloat16 \? .*;", "return on_tensor_cores(simt::bf16());"),
    (PLAIN, r"switch \(type\) \{.*?^  \}\n", "return run(float());\n"),
)


@pytest.mark.parametrize(
    "seeded",  # every second one by default, all of them with the slow tests
    [pytest.param(seeded, id=str(seeded), marks=[pytest.mark.slow] * (i % 2)) for i, seeded in enumerate(BUGS)],
)
def test_a_seeded_bug_is_caught(seeded: Bug) -> None:
    kernels = emulator.build(*SOURCES, LAUNCHERS, mutations=[Narrowed(seeded, ONE_TYPE)])
    dtype = torch.bfloat16 if seeded.kernel == "tensor cores" else torch.float32
    assert_caught(seeded, lambda seed: check(kernels, seeded.sizes, dtype, seed=seed))


def test_a_dozen_bugs_for_every_kernel() -> None:
    assert_a_dozen(BUGS, {"tensor cores"}, {"multiply-adds"})
