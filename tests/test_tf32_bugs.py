"""Bugs seeded into what the kernels do in tf32 alone, each by name, and the check that catches it.

What they share with 16-bit types has its bugs in test_cuda_forward_bugs.py and test_backward_mutations.py.
"""

from dataclasses import replace

import emulator
import pytest
import test_backward_mutations as mutations
from forward_bugs import (
    AGGREGATION,
    COLLAPSE,
    FRAMES,
    HEADER,
    PACKING,
    PROJECTION,
    WHOLE,
    WINDOWS,
    Bug,
    assert_caught,
    bug,
)

BUGS = [
    bug("x not rounded", FRAMES, r"round_in_place<T>\(.*\);", "cp_async_wait<0>();", "frames_17", "values"),
    bug("swapped operands", FRAMES, r"fragment\[i\], a\.x, a\.y\);\n\s+mma", "fragment[i], a.y, a.x); mma", "frames_17",
        "values"),
    bug("columns of Z in another order", FRAMES, r"fragment\[i\]\[1\] = first \? to_tf32\(from\[2\]\)",
        "fragment[i][1] = first ? to_tf32(from[1])", "frames_17", "values"),
    bug("no mask", FRAMES, r"const bool first = whole \|\|.*", "const bool first = true;", "frames_17", "leak"),
    bug("wrong mask", FRAMES, r"at \+ 1 < \(f \+ 1\) \* V\);", "at < (f + 1) * V);", "frames_17", "leak"),
    bug("Z not rounded", FRAMES, r"first \? to_tf32\(from\[0\]\)", "first ? float_bits(from[0])", "frames_17",
        "values"),
    bug("no mask of every second joint", FRAMES, r"const bool second = whole \|\|.*", "const bool second = true;",
        "frames_17", "leak"),
    bug("x not rounded", WINDOWS, r"round_in_place<T>\(.*\);", "cp_async_wait<0>();", "windows_17_3", "values"),
    bug("Z not rounded", PROJECTION, r"Bits64\{to_tf32\(d\[0\]\),", "Bits64{float_bits(d[0]),", "windows_17_3",
        "values"),
    bug("swapped operands", WINDOWS, r"multiply_step<T>\(y\[w\]\[i\]\[n\], a\[w\]\[i\], b\.x, b\.y\);\n\s+mul",
        "multiply_step<T>(y[w][i][n], a[w][i], b.y, b.x); mul", "windows_17_3", "values"),
    bug("wrong clamp of nodes", WINDOWS, r"node \+ 4 < nodes \? node \+ 4 : nodes - 1", "node + 4", "windows_25_3",
        "any"),
    bug("wrong swizzle", WINDOWS, r"offset\(first_row\[w\] \+ moved0, chunk \+ 4 \* i\)",
        "offset(first_row[w] + moved0, (chunk + 4 * i) ^ 2)", "windows_17_3", "values"),
    bug("other half of a chunk", WINDOWS, r"byte = lane / 4 % 2 \* 8", "byte = lane / 4 % 2 * 0", "windows_17_3",
        "values"),
    bug("two lanes at one place", PROJECTION, r"offset\(r, chunk\) \+ lane % 2 \* 8", "offset(r, chunk)",
        "windows_17_3", "race"),
    bug("x rounded before it is there", HEADER, r"simt::cp_async_wait<1>\(\);", "", "windows_17_3",
        "copy not waited for"),
    bug("x of others rounded before it is there", HEADER, r"simt::cp_async_wait<1>\(\);\n\s+simt::block_barrier\(\);",
        "simt::cp_async_wait<1>();", "windows_17_3", "any"),
    bug("x not rounded to its end", HEADER, r"i < bytes; i \+= threads \* 16\) \{\n\s+unsigned",
        "i < bytes - 4096; i += threads * 16) { unsigned", "windows_17_3", "values"),
    bug("wrong place of a node", HEADER, r"store_pair\(y \+ O,", "store_pair(y + O + 2,",
        "windows_17_3", "any"),
    bug("channels in the order of 16-bit types", PACKING, r"per == 2 \? place", "true ? place", "windows_17_3",
        "values"),
    bug("nodes in the order of frames", PACKING, r"source \* 8 \+ lane % 4 \+ upper \* 4",
        "source * 8 + lane % 4 * 2 + upper", "windows_17_3", "values"),
    bug("weights not rounded", PACKING, r"return to_tf32\(value\(column\)\);", "return float_bits(value(column));",
        "frames_17", "values"),
    bug("x not rounded", AGGREGATION, r"value = from_float<T>\(to_float\(value\)\);", "", "few_windows_17", "values"),
    bug("too few steps", AGGREGATION, r"kStepBytes / sizeof\(T\);\n  const int steps",
        "2 * kStepBytes / sizeof(T);\n  const int steps", "few_windows_17", "any"),
    bug("y not rounded", WHOLE, r"y\[n\]\[m\]\[0\] = to_tf32\(low0\)", "y[n][m][0] = float_bits(low0)", "collapse_few",
        "values"),
    bug("columns of y in another order", WHOLE, r"to_tf32\(high0\);", "to_tf32(low1);", "collapse_few", "values"),
    bug("wrong place of two channels", WHOLE, r"store_vector\(to, Bits64", "store_vector(to + 2, Bits64",
        "collapse_few_17", "any"),
    bug("weights of the collapse in the order of 16-bit types", PACKING,
        r"step \* 8 \+ lane % 4 \* 2 \+ part % 2, slot",
        "step * 8 + lane % 4 + part % 2 * 4, slot", "collapse_few", "values"),
    bug("y not rounded", COLLAPSE, r"Bits64\{simt::to_tf32\(v00\)", "Bits64{simt::float_bits(v00)", "collapse_48",
        "values"),
    bug("a step too few", COLLAPSE, r"kGroup \* sizeof\(T\) / kStepBytes", "kGroup * 2 / kStepBytes", "collapse_48",
        "any"),
    bug("stale sum", COLLAPSE, r"sum0 \+= simt::bits_float\(pair\.x\), sum1", "sum0 = simt::bits_float(pair.x), sum1",
        "collapse_in_turn", "values"),
]  # fmt: skip
RAGGED, RING = (replace(shape, tf32=True) for shape in (mutations.RAGGED, mutations.RING))


def backward_bug(gradient: str, name: str, file: str, old: str, new: str, *caught: str) -> mutations.Bug:
    return mutations.bug(gradient, name, file, old, new, RING if gradient == "A" else RAGGED, *caught)


# fmt: off
BACKWARD_BUGS = [
    backward_bug("x", "gy not rounded", "gather.h", "round_operands<T>(a[0]);", "", "values"),
    backward_bug("x", "every other channel not rounded", "gather.h", "round_operands<T>(a[1]);", "", "values"),
    backward_bug("x", "wrong swizzle of gy", "gather.h", "((lane >> 3) & 3) + (lane & 4)", "((lane >> 2) & 7)",
        "values"),
    backward_bug("x", "missing tail guard", "gather.h", "upper * 4, row = at < end ? first_row + at : zeros",
        "upper * 4, row = first_row + at", "uninitialised read", "values"),
    backward_bug("x", "rows in another order", "gather.h", "a[0][2 * upper] = four.x, a[0][2 * upper + 1] = four.y",
        "a[0][upper] = four.x, a[0][2 + upper] = four.y", "values"),
    backward_bug("x", "A not rounded", "backward.cu", "to_tf32(value(step * 8",
        "float_bits(value(step * 8", "values"),
    backward_bug("x", "A in the order of 16-bit types", "backward.cu", "value(step * 8 + (lane & 3) + upper * 4)",
        "value(step * 8 + (lane & 3) * 2 + upper)", "values"),
    backward_bug("x", "weights not rounded", "backward.cu", "word = to_tf32(p.value", "word = float_bits(p.value",
        "values"),
    backward_bug("x", "weights in the order of memory", "backward.cu", "gathered_channel<T>(step / 2, row), k, c));",
        "step / 2 * 16 + row, k, c));", "values"),
    backward_bug("x", "H not rounded", "grad_x.cu", "first = to_tf32(from[0])", "first = float_bits(from[0])",
        "values"),
    backward_bug("x", "halves exchanged", "grad_x.cu", "b[n][0] = (low & 0xffffu) | (high << 16)",
        "b[n][0] = (high & 0xffffu) | (low << 16)", "values"),
    backward_bug("x", "half of the steps", "grad_x.cu", "kSteps = 32 / kPerStep<T>", "kSteps = 16 / kPerStep<T>",
        "values", "out of bounds", "uninitialised read"),
    backward_bug("x", "rows of H in another order", "grad_x.cu", "from = h[n][step / 2] + step % 2 * 2",
        "from = h[n][step % 2] + step / 2 * 2", "values"),
    backward_bug("weight", "x not rounded", "grad_weight.cu", "round_operands<T>(b);", "", "values"),
    backward_bug("weight", "H not rounded", "grad_weight.cu", "Bits128{to_tf32(d[0])", "Bits128{float_bits(d[0])",
        "values"),
    backward_bug("weight", "joints in another order", "grad_weight.cu", "to_tf32(d[2]), to_tf32(d[1])",
        "to_tf32(d[1]), to_tf32(d[2])", "values"),
    backward_bug("weight", "joints of another half", "grad_weight.cu", "joint + (lane & 3) * 2, chunk",
        "joint + (lane & 3), chunk", "values"),
    backward_bug("weight", "one channel of four", "grad_weight.cu", "byte = (lane >> 2 & 3) * 4",
        "byte = (lane >> 3 & 3) * 4", "values"),
    backward_bug("weight", "channels in the order of memory", "grad_weight.cu",
        "gathered_channel<T>(i / 2, (lane >> 2) + i % 2 * 8)", "i * 8 + (lane >> 2)", "values"),
    backward_bug("weight", "missing tail guard of joints", "grad_weight.cu", "row_of(u + i)",
        "frame * p.V + u + i", "values", "uninitialised read", "out of bounds"),
    backward_bug("weight", "H over its neighbour", "grad_weight.cu", "kTileBytes = 128 * sizeof(T)",
        "kTileBytes = 256", "race", "values"),
    backward_bug("A", "x not rounded", "grad_A.cu", "round_operands<T>(a);", "", "values"),
    backward_bug("A", "gy not rounded", "grad_A.cu", "round_operands<T>(b);", "", "values"),
    backward_bug("A", "Z not rounded", "grad_A.cu", "Bits64{to_tf32(d[0])", "Bits64{float_bits(d[0])", "values"),
    backward_bug("A", "channels of Z in another order", "grad_A.cu", "n + (l & 2) * 2", "n * 2 + (l & 2) / 2",
        "values"),
    backward_bug("A", "two lanes at one place", "grad_A.cu", "+ (l & 1) * 8", "", "race"),
    backward_bug("A", "half of the steps", "grad_A.cu", "k < 32 / kPerStep<T>", "k < 2", "values"),
    backward_bug("A", "weights in the order of memory", "backward.cu",
        "z_channel<T>(static_cast<int>(place % 32))", "place % 32", "values"),
    backward_bug("A", "weights not rounded", "backward.cu", "from_float<T>(p.value<T>(o, k, c))",
        "stored<T>(p.value<T>(o, k, c))", "values"),
    backward_bug("A", "rows of 16-bit types", "rows.h", "kRow32Chunks = 32 / kPerChunk<T>", "kRow32Chunks = 4",
        "values", "race", "uninitialised read", "copy not waited for"),
]
# fmt: on


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_seeded_bug_is_caught(bug: Bug) -> None:
    assert_caught(bug, tf32=True)


@pytest.mark.slow
@pytest.mark.parametrize("seeded", BACKWARD_BUGS, ids=lambda seeded: f"grad_{seeded.gradient}: {seeded.name}")
def test_a_seeded_bug_of_a_gradient_is_caught(seeded: mutations.Bug) -> None:
    assert mutations.caught_as(mutations.with_the_bug(seeded, "tf32"), seeded) in seeded.caught


def test_the_table_fits_the_kernels() -> None:
    for seeded in BACKWARD_BUGS:
        assert emulator.Mutation(seeded.name, seeded.file, seeded.pattern, seeded.replacement).apply()
    assert len(BUGS) >= 12
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    for seeded in BUGS:
        assert seeded.mutation.apply()
