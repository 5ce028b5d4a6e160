"""Bugs seeded into what the forward kernels do in tf32 alone, each by name, and the check that catches it.

What they share with 16-bit types has its bugs in test_cuda_forward_bugs.py.
"""

import pytest
from forward_bugs import AGGREGATION, COLLAPSE, FRAMES, HEADER, PACKING, WHOLE, WINDOWS, Bug, assert_caught, bug

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
    bug("Z not rounded", WINDOWS, r"Bits64\{to_tf32\(d\[0\]\),", "Bits64{float_bits(d[0]),", "windows_17_3", "values"),
    bug("swapped operands", WINDOWS, r"mma_m16n8k8_tf32\(y\[w\]\[i\]\[n\], a\[w\]\[i\], b\.x, b\.y\);\n\s+mma",
        "mma_m16n8k8_tf32(y[w][i][n], a[w][i], b.y, b.x); mma", "windows_17_3", "values"),
    bug("wrong clamp of nodes", WINDOWS, r"node \+ 4 < nodes \? node \+ 4 : nodes - 1", "node + 4", "windows_25_3",
        "any"),
    bug("wrong swizzle", WINDOWS, r"offset\(first_row\[w\] \+ moved0, chunk \+ 4 \* i\)",
        "offset(first_row[w] + moved0, (chunk + 4 * i) ^ 2)", "windows_17_3", "values"),
    bug("other half of a chunk", WINDOWS, r"byte = lane / 4 % 2 \* 8", "byte = lane / 4 % 2 * 0", "windows_17_3",
        "values"),
    bug("two lanes at one place", WINDOWS, r"offset\(r, chunk\) \+ lane % 2 \* 8", "offset(r, chunk)", "windows_17_3",
        "race"),
    bug("x rounded before it is there", HEADER, r"simt::cp_async_wait<1>\(\);", "", "windows_17_3",
        "copy not waited for"),
    bug("x of others rounded before it is there", HEADER, r"simt::cp_async_wait<1>\(\);\n\s+simt::block_barrier\(\);",
        "simt::cp_async_wait<1>();", "windows_17_3", "any"),
    bug("x not rounded to its end", HEADER, r"i < bytes; i \+= threads \* 16\) \{\n\s+unsigned",
        "i < bytes - 4096; i += threads * 16) { unsigned", "windows_17_3", "values"),
    bug("wrong place of a node", HEADER, r"simt::store_vector\(y \+ O,", "simt::store_vector(y + O + 2,",
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
        "collapse_25_3", "values"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_seeded_bug_is_caught(bug: Bug) -> None:
    assert_caught(bug, tf32=True)


def test_the_table_fits_the_kernels() -> None:
    assert len(BUGS) >= 12
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    for seeded in BUGS:
        assert seeded.mutation.apply()
