"""The statistics of y that the tensor-core forward kernels leave, and their merging, executed with every check on; and
bugs seeded into both, by name."""

from dataclasses import replace

import emulator
import forward_kernels as forward
import pytest
import torch
from emulator import Mutation
from forward_bugs import FEW, FRAMES, WINDOWS, Bug, assert_a_dozen, assert_caught, bug
from forward_kernels import MERGING
from forward_shapes import FEW_CHANNELS, Shape
from forward_shapes import FRAMES as FRAME_SHAPES
from forward_shapes import WINDOWS as WINDOW_SHAPES
from test_cuda_forward import named
from tolerance import deviation

# Every kernel and tile, and what else there is to gathering.
SHAPES = [
    *(*FRAME_SHAPES, *WINDOW_SHAPES, *FEW_CHANNELS),
    Shape("windows_in_turn", 1, 96, 9, 9, 1, 192, (3, 1, 1)),  # two windows a warp, slices in turn
    Shape("one_joint_in_turn", 1, 16, 3, 1, 1, 144, (3, 1, 1)),  # whose Z is shorter than what goes over it
    Shape("few_idle_warps", 1, 3, 9, 17, 3, 144, (3, 1, 1)),  # three groups leave two warps of eight
    Shape("many_parts", 1, 16, 150, 5, 1, 6, multiprocessors=108),  # more than threads that merge them
    replace(next(shape for shape in WINDOW_SHAPES if shape.name == "windows_17_5"), name="in_tf32", tf32=True),
]
COMPILED = ("frames_17", "frames_slices", "windows_17_3", "windows_25_5", "few_windows_17")


@pytest.fixture(scope="module")
def kernels() -> emulator.Kernels:
    return emulator.build(*forward.SOURCES, forward.LAUNCHERS)


@named(SHAPES)
def test_values(kernels: emulator.Kernels, shape: Shape) -> None:
    """Of y as it is stored, which is what it is without them, whatever the order of execution."""
    inputs = shape.inputs(shape.dtype)
    found = forward.run(kernels, shape, inputs, statistics=True, landing="late")
    forward.assert_exact_enough(found, shape, inputs)
    again = forward.run(kernels, shape, inputs, statistics=True, seed=1, landing="early")
    assert torch.equal(again.statistics, found.statistics)
    assert torch.equal(found.y, forward.run(kernels, shape, inputs, checks=False).y)


@named([shape for shape in SHAPES if shape.name in ("frames_17", "windows_17_3", "few_windows_17")])
def test_without_a_bias(kernels: emulator.Kernels, shape: Shape) -> None:
    inputs = shape.inputs(shape.dtype)
    del inputs["bias"]
    found = forward.run(kernels, shape, inputs, statistics=True)
    forward.assert_exact_enough(found, shape, inputs | {"bias": torch.zeros(shape.O, dtype=torch.float64)})


@pytest.mark.slow
@pytest.mark.skipif(emulator.find_nvcc() is None, reason="route P runs what nvcc makes of the kernels")
@named([shape for shape in SHAPES if shape.name in COMPILED])
def test_what_nvcc_makes_of_them(kernels: emulator.Kernels, shape: Shape) -> None:
    """Values, and that packing, the forward pass and merging, all there is, write y once and never read it."""
    plan = forward.plan(kernels, shape)
    kind = forward.KERNELS[plan["kernel"]]
    one = f"{kind}_kernel.*bf16" + ("" if kind == "few_channels" else f"ELi{plan['tile']}E")
    entries = f"pack_kernel.*bf16|merge_kernel|{one}"
    compiled = emulator.build(*forward.SOURCES, forward.LAUNCHERS, arch="80", entries=entries)
    inputs = shape.inputs(shape.dtype)
    for landing in emulator.LANDINGS:
        found = forward.run(compiled, shape, inputs, statistics=True, route="ptx", landing=landing, count=True)
        forward.assert_exact_enough(found, shape, inputs)
        of_y = [launch["global"].get("y", {"bytes_read": 0, "bytes_written": 0}) for launch in found.counters]
        assert [counted["bytes_read"] for counted in of_y] == [0, 0, 0]
        assert [counted["bytes_written"] for counted in of_y] == [0, 2 * found.y.numel(), 0]


@named([shape for shape in SHAPES if shape.name in ("frames_17", "windows_17_3", "windows_25_5", "few_windows_17")])
def test_an_offset_keeps_its_variance(kernels: emulator.Kernels, shape: Shape) -> None:
    """A mean of a thousand standard deviations: E[y^2] - E[y]^2 would have no digit left."""
    inputs = shape.inputs(torch.float16)
    inputs["bias"] += 1000
    found = forward.run(kernels, shape, inputs, torch.float16, statistics=True)
    assert deviation(found.statistics, found.y) <= 1e-4


def test_the_shapes_reach_every_way_to_gather(kernels: emulator.Kernels) -> None:
    plans = {shape.name: forward.plan(kernels, shape) for shape in SHAPES}
    tiles = {(plan["kernel"], plan["tile"]) for plan in plans.values()}
    assert tiles == {(1, tile) for tile in range(7)} | {(2, tile) for tile in range(7)} | {(3, 0)}
    in_turn = ("frames_slices", "windows_in_turn", "one_joint_in_turn")
    assert all(plans[name]["slices_per_block"] > 1 for name in in_turn)
    assert plans["windows_in_turn"]["windows"] * plans["windows_in_turn"]["groups"] > plans["windows_in_turn"]["warps"]
    assert plans["windows_25_7"]["parts"] > 1
    assert plans["few_idle_warps"]["warps"] % plans["few_idle_warps"]["groups"] > 0
    assert plans["many_parts"]["blocks"] > 64
    assert (plans["windows_25_5"]["tile"], plans["few_slices"]["slices"]) == (6, 2)


MOMENTS, ADDING, ROWS = (f"csrc/kernels/ms_g3d/cuda/{name}.h" for name in ("forward/moments", "moments", "statistics"))
# fmt: off
BUGS = [
    bug("missing barrier before Z's place", MOMENTS, r"simt::block_barrier\(\);(\n#pragma unroll\n  for \(int m)",
        r"\1", "windows_17_3", "race"),
    bug("missing barrier before Z's place with 128 nodes", MOMENTS,
        r"simt::block_barrier\(\);(\n#pragma unroll\n  for \(int m)", r"\1", "windows_25_5", "race"),
    bug("missing barrier before the weights' place", MOMENTS,
        r"simt::block_barrier\(\);(\n#pragma unroll\n  for \(int m)", r"\1", "frames_17", "race"),
    bug("missing barrier behind what is kept", MOMENTS, r"simt::block_barrier\(\);(\n  const int groups)", r"\1",
        "frames_17", "any"),
    bug("missing barrier before H's place", FEW, r"block_barrier\(\);  // nobody reads H and W.*", "", "few_frames_25",
        "race"),
    bug("over the weights that come", FRAMES, r"call\.weight_at \+ \(stage \+ 1\) % 2", "call.weight_at + stage % 2",
        "frames_slices", "any"),
    Bug(Mutation("over the weights that come", WINDOWS, r"(warp % call\.groups|leave_part\(call, slice), call\.z_at",
        r"\1, call.weight_at", 2), "windows_in_turn", "any"),
    Bug(Mutation("over the weights that come with 128 nodes", WINDOWS,
        r"(warp % call\.groups|leave_part\(call, slice), call\.z_at", r"\1, call.weight_at", 2), "windows_25_5", "any"),
    bug("read where it is not kept", FRAMES, r"leave_part\(call, slice, used", "leave_part(call, slice, 0", "frames_17",
        "any"),
    bug("warps over each other", MOMENTS, r"simt::warp_index\(\) \* kMomentBytes",
        "simt::warp_index() / 2 * kMomentBytes", "frames_17", "race"),
    bug("rows of padding", FRAMES, r"f < mine && joint < call\.V", "f < mine", "frames_17", "values"),
    bug("frames behind the last", FRAMES, r"f < mine && joint < call\.V", "joint < call.V", "frames_17", "values"),
    bug("frames behind the last counted", FRAMES, r"at_most\(P::kFrames, frames -",
        "at_most(P::kFrames, call.tile_windows -", "frames_17", "values"),
    bug("nodes of padding", WINDOWS, r"node < mine \* nodes", "mine > 0", "windows_25_7", "values"),
    bug("nodes of padding of 128", WINDOWS, r"node < mine \* nodes", "mine > 0", "windows_25_5", "values"),
    bug("node behind the last of 125", WINDOWS, r"node < mine \* nodes", "node <= mine * nodes", "windows_25_5",
        "values"),
    bug("last node of 125", WINDOWS, r"node < mine \* nodes", "node + 1 < mine * nodes", "windows_25_5", "values"),
    bug("nodes of padding in two windows", WINDOWS, r"w < mine && node < nodes", "w < mine", "windows_in_turn",
        "values"),
    bug("windows behind the last", WINDOWS, r"w < mine && node < nodes", "node < nodes", "windows_in_turn", "values"),
    bug("parts of a window counted as whole", WINDOWS,
        r"call\.nodes - warp / opaque\(call\.groups\) % opaque\(call\.parts\)", "call.nodes - 0", "windows_25_7",
        "values"),
    bug("rows behind the last", FEW, r"\{ return at < left; \}", "{ return true; }", "few_windows_17", "values"),
    bug("rows behind the last counted", FEW, r"left < 8 \* kRowTiles \? left : 8 \* kRowTiles", "8 * kRowTiles",
        "few_windows_17", "values"),
    bug("bias forgotten", MOMENTS, r"d\[0\] \+ bias0", "d[0]", "frames_17", "values"),
    bug("bias twice", FRAMES, r"call\.moments \? nullptr : call\.bias", "call.bias", "frames_17", "values"),
    bug("bias twice", WINDOWS, r"call\.moments \? nullptr", "false ? nullptr", "windows_17_3", "values"),
    bug("bias twice", FEW, r"call\.moments \? nullptr : call\.bias", "call.bias", "few_windows_17", "values"),
    bug("not rounded", MOMENTS, r"round_pair<T>\(d\[0\], d\[1\]\), round_pair<T>\(d\[2\], d\[3\]\);", "", "frames_17",
        "values"),
    bug("squares of padding", MOMENTS, r"first \? d\[2 \* channel\] - of\.mean\[channel\] : 0\.f",
        "d[2 * channel] - of.mean[channel]", "frames_17", "values"),
    bug("wrong lane", MOMENTS, r"shuffle_xor\(value, 2\)", "shuffle_xor(value, 4)", "frames_17", "values"),
    bug("lanes that keep nothing", MOMENTS, r"if \(lane % 4 == 0\)", "if (lane % 8 == 0)", "few_windows_17", "any"),
    bug("mean of all rows there could be", MOMENTS, r"1\.f / static_cast<float>\(count\)",
        "1.f / static_cast<float>(kOuter * kTiles * 8)", "frames_17", "values"),
    bug("stale count of what is kept", FEW, r"kept_rows \+= count;", "kept_rows = count;", "few_idle_warps", "values"),
    bug("only the last unit kept", FEW, r"merge\(kept\[i\], kept_rows,", "merge(kept[i] = {}, 0 * kept_rows,",
        "few_windows_17", "values"),
    bug("units of two warps", FEW, r"warp_index\(\) < step \? warp_index\(\) : row_units \* groups;",
        "warp_index();", "few_idle_warps", "race"),
    bug("idle warps counted", FEW, r"set < sets \? (.*) : 0;", r"\1;", "few_idle_warps", "values"),
    bug("last rows counted in full", FEW, r"\(has_last \? row_units \* 8 \* kRowTiles - rows : 0\)", "0 * has_last",
        "few_windows_17", "values"),
    bug("moments of the first slice", FEW, r"leave_part\(call, slice,", "leave_part(call, 0 * slice,", "few_slices",
        "block race"),
    bug("overlapping parts", MOMENTS, r"simt::grid_x\(\) \+ simt::block_x\(\)\)",
        "simt::grid_x() + simt::block_x() / 2)", "frames_17", "block race"),
    bug("slices over each other", MOMENTS, r"o = slice \* groups \* kGroup \+ c", "o = 0 * slice + c", "frames_slices",
        "any"),
    bug("channels behind the last", MOMENTS, r"if \(o < call\.O\) \{\n      float", "{\n      float", "joints_5",
        "out of bounds"),
    bug("deviation of means forgotten", ADDING, r"other\.squares \+ step \* step \* count \* share", "other.squares",
        "many_parts", "values"),
    bug("wrong share", ADDING, r"other\.count / all", "count / all", "many_parts", "values"),
    bug("blocks alike", ROWS, r"unit / per_group \* rows", "unit / per_group * per_group * step", "frames_17",
        "values"),
    bug("missing barrier", MERGING, r"block_barrier\(\);(\n  if \(tid < 4)", r"\1", "many_parts", "any"),
    bug("wrong lane", MERGING, r"int lanes = 4; lanes < 32", "int lanes = 2; lanes < 16", "frames_17", "values"),
    bug("wrong divisor", MERGING, r"sum\.squares / sum\.count", "sum.squares / (sum.count - 1)", "many_parts",
        "values"),
    bug("part of another block", MERGING, r"block_x\(\)\) \* parts \+ part\)",
        "block_x()) * parts + (part + 1) % parts)", "frames_17", "values"),
    bug("channels of another block", MERGING, r"static_cast<int64_t>\(block_x\(\)\) \* parts", "int64_t{0} * parts",
        "frames_17", "values"),
    bug("channels behind the last read", MERGING, r"if \(o < call\.O\) \{", "{", "many_parts",
        "uninitialised read"),
    bug("channels behind the last written", MERGING, r"if \(tid < 4 && o < call\.O\)", "if (tid < 4)", "many_parts",
        "any"),
    bug("warps over each other", MERGING, r"of_warp\[warp_index\(\) \* 4 \+ channel\] = sum", "of_warp[channel] = sum",
        "many_parts", "race"),
    bug("last warp forgotten", MERGING, r"warp < kWarps; \+\+warp\) sum", "warp < kWarps - 1; ++warp) sum",
        "many_parts", "values"),
    bug("later parts forgotten", MERGING, r"part \+= kThreads / 4", "part += parts", "many_parts", "values"),
    bug("first warp alone", MERGING, r"int warp = 1; (.*\) sum)", r"int warp = kWarps; \1", "many_parts", "values"),
]
# fmt: on
QUICK = (
    "moments: missing barrier before Z's place",
    "frames: over the weights that come",
    "windows: bias twice",
    "few_channels: rows behind the last",
    "moments: not rounded",
    "statistics: part of another block",
)  # of every file one; all others are slow


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, marks=[] if bug.name in QUICK else pytest.mark.slow, id=bug.name) for bug in BUGS],
)
def test_seeded_bug_is_caught(bug: Bug) -> None:
    assert_caught(bug, statistics=True, shapes=SHAPES)


def test_the_table_covers_every_file() -> None:
    assert_a_dozen(BUGS, {FRAMES, WINDOWS, FEW}, {MOMENTS}, {MERGING, ADDING, ROWS})
