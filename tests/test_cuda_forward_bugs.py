"""Bugs seeded into the forward kernels, each by name, and the check that catches it.

A bug counts as caught if a run ends in a fault of the named kind, or in values that the tolerance rule refuses.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import emulator
import forward_kernels as forward
import pytest
from emulator import Mutation
from forward_kernels import Shape
from test_cuda_forward import SHAPES

FRAMES, WINDOWS, FEW, WHOLE, AGGREGATION, HEADER, COLLAPSE, PACKING = (
    f"{forward.FOLDER}/{name}"
    for name in (
        *("frames.cu", "windows.cu", "few_channels.cu", "few_channels_collapse.cu"),
        *("few_channels.h", "forward.h", "collapse.h", "forward.cu"),
    )
)


@dataclass(frozen=True)
class Bug:
    mutation: Mutation
    shape: str
    caught_by: str  # kind of fault, or "values", or "leak": a NaN in another clip

    @property
    def name(self) -> str:
        return f"{self.mutation.file.rpartition('/')[2].partition('.')[0]}: {self.mutation.name}"


def bug(name: str, file: str, pattern: str, replacement: str, shape: str, caught_by: str) -> Bug:
    return Bug(Mutation(name, file, pattern, replacement), shape, caught_by)


BUGS = [
    bug("missing wait", FRAMES, r"cp_async_wait<0>\(\);", "", "frames_17", "copy not waited for"),
    bug("missing barrier", FRAMES, r"block_barrier\(\);.*", "", "frames_17", "any"),
    bug(
        "single buffer",
        FRAMES,
        r"call\.weight_at \+ stage % 2 \* call\.weight_chunk_bytes,",
        "call.weight_at,",
        "frames_17",
        "copy not waited for",
    ),
    bug(
        "one buffer of A",
        FRAMES,
        r"call\.adjacency_at \+ scale % 2 \* kAdjacencyBytes,",
        "call.adjacency_at,",
        "frames_17",
        "any",
    ),
    bug("off by one joint", FRAMES, r"n \* 8 \+ v \+ 1 < call\.V", "n * 8 + v < call.V", "frames_25", "any"),
    bug("wrong mask", FRAMES, r"f \* V, \(f \+ 1\) \* V\)", "f * V, (f + 1) * V + 1)", "frames_17", "leak"),
    bug(
        "no mask",
        FRAMES,
        r"whole \? ~0u : mask\[j\]\);\n\s*fragment\[j\]\[1\]",
        "~0u); fragment[j][1]",
        "frames_17",
        "leak",
    ),
    bug("swapped operands", FRAMES, r"w\[i\], b\[0\], b\[1\]", "w[i], b[1], b[0]", "frames_17", "values"),
    bug("wrong swizzle", FRAMES, r"\(\(2 \* step \+ bit\) \^ turn\)", "(2 * step + bit)", "frames_17", "values"),
    bug(
        "missing tail guard",
        FRAMES,
        r"const bool inside = row < filled &&",
        "const bool inside =",
        "frames_17",
        "out of bounds",
    ),
    bug(
        "stale accumulator",
        FRAMES,
        r"y\[f\]\[i\]\[n\]\[0\] = y\[f\]\[i\]\[n\]\[1\] =",
        "y[f][i][n][2] =",
        "frames_slices",
        "values",
    ),
    bug(
        "wrong stride of frames",
        FRAMES,
        r"\(first_frame \+ frame\) \* call\.V",
        "(first_frame + frame) * 24",
        "frames_25",
        "any",
    ),
    bug(
        "overlapping blocks",
        FRAMES,
        r"block_x\(\)\) \* call\.tile_windows",
        "block_x()) * (call.tile_windows - 1)",
        "frames_17",
        "block race",
    ),
    bug(
        "uninitialised read",
        FRAMES,
        r"i < call\.weight_at / 16;",
        "i < call.weight_at / 16 - 80;",
        "frames_17",
        "uninitialised read",
    ),
    bug("missing wait", WINDOWS, r"cp_async_wait<0>\(\);", "", "windows_25_3", "copy not waited for"),
    bug(
        "missing wait for A",
        WINDOWS,
        r"cp_async_wait<0>\(\);",
        "if (item % items < chunks) cp_async_wait<0>();",
        "windows_25_3",
        "copy not waited for",
    ),
    bug(
        "missing barrier before Z is written",
        WINDOWS,
        r"block_barrier\(\);  // this chunk.*",
        "if (item % items >= chunks) block_barrier();",
        "windows_25_3",
        "any",
    ),
    bug(
        "missing barrier before Z is read",
        WINDOWS,
        r"block_barrier\(\);  // this chunk.*",
        "if (item % items < chunks) block_barrier();",
        "windows_25_3",
        "race",
    ),
    bug(
        "single buffer",
        WINDOWS,
        r"return item % 2 \? call\.adjacency_at : call\.weight_at;",
        "return call.weight_at;",
        "windows_streamed",
        "any",
    ),
    bug(
        "the same chunk of W again",
        WINDOWS,
        r"index < chunks \? index \* call\.weight_steps",
        "index < chunks ? 0 * call.weight_steps",
        "windows_streamed",
        "values",
    ),
    bug(
        "the last chunk of A as long as all others",
        WINDOWS,
        r"piece_bytes - skipped < pitch \? piece_bytes - skipped : pitch",
        "pitch",
        "windows_streamed",
        "out of bounds",
    ),
    bug(
        "off by one node",
        WINDOWS,
        r"stored && node \+ 1 < call\.nodes\);",
        "stored && node < call.nodes);",
        "windows_25_5",
        "any",
    ),
    bug(
        "wrong clamp of nodes",
        WINDOWS,
        r"j0 \+ q \* 16 < nodes \? j0 \+ q \* 16 : nodes - 1",
        "j0 + q * 16",
        "windows_25_3",
        "any",
    ),
    bug("swapped operands", WINDOWS, r"a, b01\[c\]\.x, b01\[c\]\.y", "a, b01[c].y, b01[c].x", "windows_25_3", "values"),
    bug(
        "wrong swizzle",
        WINDOWS,
        r"call\.z_rows\.offset\(r, column \+ n\)",
        "call.z_rows.offset(r + 1, column + n) - call.z_rows.bytes()",
        "windows_25_3",
        "values",
    ),
    bug(
        "missing tail guard",
        WINDOWS,
        r"const bool stored = window < place.windows && o",
        "const bool stored = o",
        "windows_17_3",
        "any",
    ),
    bug(
        "stale accumulator",
        WINDOWS,
        r"y\[w\]\[m\]\[n\]\[0\] = y\[w\]\[m\]\[n\]\[1\] =",
        "y[w][m][n][2] =",
        "windows_streamed",
        "values",
    ),
    bug("frames of the next clip", WINDOWS, r"frame >= 0 && frame < call\.T &&", "", "windows_stride", "any"),
    bug(
        "wrong frame step",
        WINDOWS,
        r"call\.dilation / call\.frame_step - 1",
        "call.dilation - 1",
        "windows_both",
        "any",
    ),
    bug(
        "overlapping blocks",
        WINDOWS,
        r"\(block - clip \* tiles\) \* call\.tile_windows",
        "(block - clip * tiles) * (call.tile_windows - 1)",
        "windows_25_3",
        "block race",
    ),
    bug(
        "uninitialised read",
        WINDOWS,
        r"if \(r < end\) \{",
        "if (r < end - 1) {",
        "windows_25_3",
        "uninitialised read",
    ),
    bug("missing wait", COLLAPSE, r"cp_async_wait<0>\(\);", "", "collapse_25_3", "copy not waited for"),
    bug("missing barrier", COLLAPSE, r"block_barrier\(\);  // these weights.*", "", "collapse_25_3", "any"),
    bug(
        "y over what is still read",
        WINDOWS,
        r"block_barrier\(\);  // nobody reads Z and A.*",
        "",
        "collapse_25_3",
        "race",
    ),
    bug("next W over the weights", WINDOWS, r"block_barrier\(\);  // nobody reads y and.*", "", "collapse_25_3", "any"),
    bug(
        "single buffer",
        COLLAPSE,
        r"\+ item % 2 \* at_once \* group_bytes",
        "+ 0 * at_once * group_bytes",
        "collapse_25_3",
        "any",
    ),
    bug("swapped rows", COLLAPSE, r"lower \? word1 : word0", "word0", "collapse_25_3", "values"),
    bug(
        "wrong swizzle",
        COLLAPSE,
        r"y_rows\.offset\(r0, 2 \* step \+ bit\)",
        "y_rows.offset(r0, (2 * step + bit) ^ 1)",
        "collapse_25_3",
        "values",
    ),
    bug("no relu", COLLAPSE, r"return value < 0 \? 0\.f : value;", "return value;", "collapse_25_3", "values"),
    bug(
        "slices overwrite each other",
        COLLAPSE,
        r"call\.accumulate \|\| slice > 0",
        "call.accumulate",
        "collapse_25_3",
        "values",
    ),
    bug(
        "stale accumulator",
        COLLAPSE,
        r"sum\[i\]\[n\]\[0\] = sum\[i\]\[n\]\[1\] =",
        "sum[i][n][2] =",
        "collapse_25_3",
        "values",
    ),
    bug("off by one joint", COLLAPSE, r"v \+ n \* 8 \+ 1 < call\.V", "v + n * 8 < call.V", "collapse_25_3", "any"),
    bug("bias with every slice", COLLAPSE, r"stored && slice == 0", "stored", "collapse_25_3", "values"),
    bug("wrong slot", COLLAPSE, r"slot \* call\.V;", "slot * 24;", "collapse_25_3", "values"),
    bug(
        "missing tail guard",
        COLLAPSE,
        r"\|\| group >= out_groups \|\| window >= windows\)",
        "|| group >= out_groups)",
        "collapse_17_3",
        "any",
    ),
    bug(
        "swapped halves",
        PACKING,
        r"step \* 16 \+ upper \* 8 \+ lane % 4 \* 2, k\}",
        "step * 16 + (1 - upper) * 8 + lane % 4 * 2, k}",
        "windows_25_3",
        "values",
    ),
    bug(
        "A transposed",
        PACKING,
        r"row \* call\.A_stride\[1\] \+ column \* call\.A_stride\[2\]",
        "row * call.A_stride[2] + column * call.A_stride[1]",
        "frames_17",
        "values",
    ),
    bug("unshifted copy of A", PACKING, r"lane % 4 \* 2 - frame \* call\.V % 8", "lane % 4 * 2", "frames_17", "values"),
    bug("wrong row of a channel", HEADER, r"2 \* \(r - 8\) \+ 1", "2 * (r - 8)", "frames_17", "values"),
]


def caught(kernels: emulator.Kernels, shape: Shape) -> set[str]:
    """What notices something within a few runs: kinds of faults, "values"."""
    found = set()
    inputs = shape.inputs(shape.dtype)
    for seed, landing in enumerate(emulator.LANDINGS):
        try:
            run = forward.run(kernels, shape, inputs, seed=seed, landing=landing)
            forward.assert_exact_enough(run, shape, inputs)
        except emulator.Fault as fault:
            found.add(fault.kind)
        except AssertionError:
            found.add("values")
    return found


def leaks(kernels: emulator.Kernels, shape: Shape) -> bool:
    """A NaN in frame 1 makes another frame's output one."""
    inputs = shape.inputs(shape.dtype)
    inputs["x"][0, :, 1] = float("nan")
    found = forward.run(kernels, shape, inputs).y
    return bool(found.isnan().any(dim=(1, 3))[0].nonzero().flatten().tolist() != [1])


class Narrowed:
    """The mutation, in files that keep only the tile which its shape runs on: these compile in a second."""

    def __init__(self, mutation: Mutation, kernel: str, tile: int, element: str = "bf16") -> None:
        self.mutation, self.kernel, self.tile, self.element = mutation, kernel, tile, element

    def apply(self) -> dict[Path, str]:
        texts = self.mutation.apply()
        for file in (FRAMES, WINDOWS, FEW, WHOLE):
            path = emulator.ROOT / file
            text = texts.get(path) or path.read_text(encoding="utf-8")
            if file in (FRAMES, WINDOWS):
                name = file.rpartition("/")[2].partition(".")[0]
                tile = self.tile if name == self.kernel else 0
                one = f"return run({name}_kernel<T, {tile}>);\n"
                text, found = re.subn(r"switch \(tile\) \{.*?^  \}\n", one, text, flags=re.DOTALL | re.MULTILINE)
                assert found == 1
            texts[path] = re.sub(r"<simt::(half|bf16|tf32)>", f"<simt::{self.element}>", text)
        return texts


@pytest.fixture(scope="module")
def plans() -> dict[str, dict[str, int]]:
    kernels = emulator.build(*forward.SOURCES, forward.LAUNCHERS)
    return {shape.name: forward.plan(kernels, shape) for shape in SHAPES}


def assert_caught(bug: Bug, plan: dict[str, int]) -> None:
    shape = next(shape for shape in SHAPES if shape.name == bug.shape)
    narrowed = Narrowed(bug.mutation, forward.KERNELS[plan["kernel"]], plan["tile"])
    kernels = emulator.build(*forward.SOURCES, forward.LAUNCHERS, mutations=[narrowed])
    if bug.caught_by == "leak":
        assert leaks(kernels, shape)
        return
    found = caught(kernels, shape)
    assert found if bug.caught_by == "any" else bug.caught_by in found, f"noticed: {sorted(found)}"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_seeded_bug_is_caught(bug: Bug, plans: dict[str, dict[str, int]]) -> None:
    assert_caught(bug, plans[bug.shape])


def test_the_table_covers_every_family() -> None:
    for file in (FRAMES, WINDOWS, COLLAPSE):
        assert sum(bug.mutation.file == file for bug in BUGS) >= 12
    assert len({bug.name for bug in BUGS}) == len(BUGS)
