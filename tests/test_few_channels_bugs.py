"""Bugs seeded into the kernels of few input channels, with and without the collapse, and what catches each."""

import pytest
from forward_bugs import AGGREGATION, FEW, PACKING, WHOLE, Bug, assert_a_dozen, assert_caught, bug

BUGS = [
    bug("missing wait", FEW, r"cp_async_wait<0>\(\);", "", "few_windows_17", "copy not waited for"),
    bug("missing barrier after x", FEW, r"^  block_barrier\(\);$", "", "few_windows_17", "any"),
    bug("missing barrier after H", FEW, r"block_barrier\(\);  // H is complete.*", "", "few_windows_17", "race"),
    bug("H over x", AGGREGATION, r"call\.z_at, call\.z_rows, f \*", "0, call.z_rows, f *", "few_windows_17", "race"),
    bug("off by one row", FEW, r"stored && at < rows,", "stored && at <= rows,", "few_windows_17", "any"),
    bug(
        "no zeros behind K*C",
        AGGREGATION,
        r"call\.nodes \* padding;",
        "0 * padding;",
        "few_windows_17",
        "uninitialised read",
    ),
    bug(
        "swapped operands",
        AGGREGATION,
        r"h\[m\]\[n\], a\[m\], b\[0\], b\[1\]",
        "h[m][n], a[m], b[1], b[0]",
        "few_windows_17",
        "values",
    ),
    bug(
        "wrong transposition",
        AGGREGATION,
        r"f \* call\.nodes \+ r, k \* call\.C \+ c",
        "f * call.nodes + r, c * call.K + k",
        "few_windows_17",
        "values",
    ),
    bug("missing tail guard", FEW, r"stored && at \+ 1 < rows\)", "stored && at < rows)", "few_windows_17", "any"),
    bug(
        "stale fragment",
        AGGREGATION,
        r"if \(step \+ 1 < steps && tile \+ m < row_tiles\) load_fragment\(.*\);",
        "",
        "few_windows_17",
        "values",
    ),
    bug("frames of the next clip", AGGREGATION, r"&& frame >= 0 && frame < call\.T;", ";", "few_windows_17", "any"),
    bug(
        "rows left out",
        AGGREGATION,
        r"\(columns \+ call\.C - 1\) / call\.C \* call\.C",
        "(columns / call.C) * call.C",
        "few_5",
        "any",
    ),
    bug(
        "last step left out",
        FEW,
        r"chunk < h_rows\.chunks; chunk",
        "chunk + 1 < h_rows.chunks; chunk",
        "few_windows_17",
        "values",
    ),
    bug(
        "overlapping blocks",
        FEW,
        r"block_x\(\) % tiles \* call\.tile_windows",
        "block_x() % tiles * (call.tile_windows - 1)",
        "few_windows_17",
        "block race",
    ),
    bug(
        "W of the first slice",
        FEW,
        r"static_cast<int64_t>\(slice\) \* weight_bytes",
        "0 * weight_bytes",
        "few_slices",
        "values",
    ),
    bug(
        "slices over each other",
        FEW,
        r"int o = \(slice \* groups \+ group\)",
        "int o = (0 * slice + group)",
        "few_slices",
        "block race",
    ),
    bug("missing wait", WHOLE, r"cp_async_wait<0>\(\);", "", "collapse_few", "copy not waited for"),
    bug("missing barrier after x", WHOLE, r"block_barrier\(\);  // x is there", "", "collapse_few", "any"),
    bug("missing barrier", WHOLE, r"block_barrier\(\);  // H is complete.*", "", "collapse_few", "any"),
    bug("single buffer", WHOLE, r"item % 2 \* item_bytes,", "0 * item_bytes,", "collapse_few", "any"),
    bug("swapped operands", WHOLE, r"a, w\[i\]\.x, w\[i\]\.y", "a, w[i].y, w[i].x", "collapse_few", "values"),
    bug(
        "last step of H forgotten", WHOLE, r"chunk < call\.z_rows", "chunk + 1 < call.z_rows", "collapse_few", "values"
    ),
    bug("wrong half of H", WHOLE, r"whole \? chunk \+ lane / 16 : chunk", "chunk", "collapse_few", "values"),
    bug("no relu", WHOLE, r"return value < 0 \? 0\.f : value;", "return value;", "collapse_few", "values"),
    bug("bias of another channel", WHOLE, r"to_float\(bias\[n \* 8\]\)", "to_float(bias[n])", "collapse_few", "values"),
    bug("stale accumulator", WHOLE, r"low\[0\] = low\[1\] = .*", "", "collapse_few_17", "values"),
    bug("wrong slot", WHOLE, r"h_row\[0\] \+ slot \* V", "h_row[0] + slot * 24", "collapse_few", "values"),
    bug("second tile forgotten", WHOLE, r"two = second < rows;", "two = false;", "collapse_few", "values"),
    bug("missing tail guard", WHOLE, r"row \+ 8 < rows && o", "o", "collapse_few", "any"),
    bug(
        "overlapping blocks",
        WHOLE,
        r"block_x\(\) % tiles \* call\.tile_windows",
        "block_x() % tiles * (call.tile_windows - 1)",
        "collapse_few",
        "block race",
    ),
    bug(
        "outputs in plain order",
        PACKING,
        r"lane / 8 \* 4 \+ part / 2 \* 2 \+ lane / 4 % 2",
        "part / 2 * 8 + lane / 4",
        "collapse_few",
        "values",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_seeded_bug_is_caught(bug: Bug) -> None:
    assert_caught(bug)


def test_the_table_covers_both_kernels() -> None:
    assert_a_dozen(BUGS, {FEW, AGGREGATION}, {WHOLE})
