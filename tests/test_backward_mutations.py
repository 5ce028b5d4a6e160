"""Bugs seeded into the backward kernels: each must be caught, and as what it is.

`caught` is the emulator's kind of fault, or "values" where results are wrong. Copies land late and then early: early
hides a missing wait.
"""

import re
from dataclasses import dataclass

import backward_kernels
import emulator
import pytest
from backward_kernels import FOLDER, LAUNCHERS, SOURCES, Shape
from seeded_bugs import Narrowed

RAGGED = Shape("ragged", 2, 16, 7, 5, 3, 40, (3, 1, 1))
CHUNKS = Shape("chunks", 1, 16, 9, 25, 3, 40, (3, 1, 1), shared_kb=99)
TEAM = Shape("team", 1, 128, 3, 17, 5, 32, (3, 1, 1), expects={"team": 4})
STRIDED = Shape("strided", 2, 16, 13, 5, 3, 8, (3, 2, 1))
NO_ROOM = Shape("no_room", 2, 192, 6, 25, 3, 32, (5, 1, 1), shared_kb=99, multiprocessors=1, expects={"x_room": 0})
AHEAD = Shape("ahead", 1, 32, 20, 17, 3, 32, (3, 1, 1), multiprocessors=1, expects={"gy_ahead": 1})
RING = Shape("ring", 1, 16, 23, 17, 3, 32, (3, 1, 1), multiprocessors=1)


@dataclass(frozen=True)
class Bug:
    gradient: str
    name: str
    file: str
    pattern: str
    replacement: str
    shape: Shape
    caught: tuple[str, ...]


def literal(text: str) -> str:
    """A pattern for the text, whatever white space clang-format put in."""
    return r"\s+".join(map(re.escape, text.split()))


def bug(gradient: str, name: str, file: str, old: str, new: str, shape: Shape, *caught: str) -> Bug:
    return Bug(gradient, name, f"{FOLDER}/{file}", literal(old), new.replace("\\", r"\\"), shape, caught)


RACE, UNINITIALISED, BOUNDS, LATE = ("race", "uninitialised read", "out of bounds", "copy not waited for")
# fmt: off
BUGS = [
    # ---- grad_x, with what it shares with grad_weight
    bug("x", "missing wait", "grad_x.cu", "cp_async_wait<0>(); block_barrier(); // this chunk",
        "block_barrier();  // this chunk", RAGGED, LATE),
    bug("x", "missing barrier", "grad_x.cu", "cp_async_wait<0>(); block_barrier(); // this chunk",
        "cp_async_wait<0>();  // this chunk", RAGGED, RACE, UNINITIALISED),
    bug("x", "single buffer of A", "grad_x.cu", "if (more) stage_next(at, buffer ^ 1);",
        "if (more) stage_next(at, buffer);", CHUNKS, RACE, LATE),
    bug("x", "single buffer of weights", "grad_x.cu", "at.groups & 1 : 0", "0 : 0", RAGGED, RACE, LATE),
    bug("x", "gy replaced while it is read", "grad_x.cu",
        "block_barrier(); // all have done with the channels before", "", RAGGED, RACE, LATE),
    bug("x", "off by one frame in the store", "grad_x.cu", "f < p.gather.frames ? p.V - u : 0",
        "f <= p.gather.frames ? p.V - u : 0", RAGGED, "block race", BOUNDS),
    bug("x", "wrong mask of slots", "backward.cu", "if (back >= slots || u >= p.joints) return 0.f;",
        "if (back > slots || u >= p.joints) return 0.f;", RAGGED, BOUNDS, "values"),
    bug("x", "swapped operands", "grad_x.cu", "multiply_step<T>(gx[c][n], a, b[n][0], b[n][1]);",
        "multiply_step<T>(gx[c][n], a, b[n][1], b[n][0]);", RAGGED, "values"),
    bug("x", "wrong swizzle", "gather.h", "ldmatrix_x4_trans(a[1], address ^ 32);",
        "ldmatrix_x4_trans(a[1], address + 32);", RAGGED, "values", UNINITIALISED, RACE, BOUNDS),
    bug("x", "missing tail guard", "gather.h", "* 8, row = at < end ? first_row + at : zeros",
        "* 8, row = first_row + at", RAGGED, UNINITIALISED, "values"),
    bug("x", "uninitialised zeros", "gather.h", "i < (rows + 1) * kRow32Chunks<T>;", "i < rows * kRow32Chunks<T>;",
        RAGGED, UNINITIALISED),
    bug("x", "stale accumulator", "grad_x.cu", "if (here.step == 0) clear(h);",
        "if (here.step == 0 && here.groups == 0) clear(h);", RAGGED, "values"),
    bug("x", "wrong stride at the tile's edge", "grad_x.cu", "p.gather.phases * (tile.first + frame) + tile.phase",
        "p.gather.phases * tile.first + frame + tile.phase", STRIDED, "block race", "race", "values", UNINITIALISED),
    bug("x", "overlapping blocks", "gather.h", "tile.first = index % p.frame_tiles * p.tile_frames;",
        "tile.first = index % p.frame_tiles * (p.tile_frames - 1);", RAGGED, "block race"),
    bug("x", "windows before the first", "gather.h", "row < rows && t >= 0 && t < p.windows",
        "row < rows && t < p.windows", RAGGED, BOUNDS, "values"),
    bug("x", "team not waited for", "grad_x.cu", "block_barrier(); // the team's H is there", "", TEAM, RACE,
        UNINITIALISED),
    bug("x", "exchange overwritten", "grad_x.cu", "if (step + 1 < Tile::kSteps) block_barrier();", "", TEAM, RACE),
    bug("x", "accumulator not transposed", "grad_x.cu",
        "b[n][0] = movmatrix_trans(pack_pair<T>(h[n][step][0], h[n][step][1]));",
        "b[n][0] = pack_pair<T>(h[n][step][0], h[n][step][1]);", RAGGED, "values"),
    # ---- grad_weight
    bug("weight", "missing wait", "grad_weight.cu", "cp_async_wait<0>(); block_barrier(); // this chunk",
        "block_barrier();  // this chunk", RAGGED, LATE),
    bug("weight", "missing barrier", "grad_weight.cu", "cp_async_wait<0>(); block_barrier(); // this chunk",
        "cp_async_wait<0>();  // this chunk", RAGGED, RACE),
    bug("weight", "H over gy that is read", "grad_weight.cu",
        "block_barrier(); // gy has been read: H may lie over it", "", NO_ROOM, RACE),
    bug("weight", "single buffer of A", "grad_weight.cu",
        "stage_chunk(tile, step + p.gather.chunk_steps, buffer ^ 1);",
        "stage_chunk(tile, step + p.gather.chunk_steps, buffer);", NO_ROOM, RACE, LATE, "values"),
    bug("weight", "single buffer of gy", "grad_weight.cu",
        "stage_ahead(frame_tile(p.gather, next), place ^ 1, buffer ^ 1);",
        "stage_ahead(frame_tile(p.gather, next), place, buffer ^ 1);", AHEAD, RACE, LATE, "values"),
    bug("weight", "H and x replaced while they are read", "grad_weight.cu", "if (!ahead) block_barrier();", "",
        NO_ROOM, RACE, LATE),
    bug("weight", "off by one tile", "grad_weight.cu", "tiles * (split + 1) / p.splits)",
        "tiles * (split + 1) / p.splits + 1)", RAGGED, "values", BOUNDS),
    bug("weight", "part stored over its neighbour", "grad_weight.cu",
        "(static_cast<int64_t>(split) * p.gather.K + first_scale + scale)",
        "(static_cast<int64_t>(split) * p.gather.K + scale)", RAGGED, "block race", "race", UNINITIALISED),
    bug("weight", "missing tail guard of frames", "grad_weight.cu",
        "f < p.gather.frames && c < p.C && is_read(p.gather, tile, frame)", "c < p.C", RAGGED, BOUNDS, "values"),
    bug("weight", "swapped operands", "grad_weight.cu", "multiply_step<T>(sum[c][m], a[m], b[0], b[1]);",
        "multiply_step<T>(sum[c][m], a[m], b[1], b[0]);", RAGGED, "values"),
    bug("weight", "wrong swizzle", "grad_weight.cu", "row_offset(row_of(joint + (lane & 15)), tile, p.pitch)",
        "(row_of(joint + (lane & 15)) * p.pitch + tile) * 16", RAGGED, "values"),
    bug("weight", "uninitialised zeros", "grad_weight.cu", "i < (rows + 1) * p.pitch;", "i < rows * p.pitch;", RAGGED,
        UNINITIALISED),
    bug("weight", "stale accumulator", "grad_weight.cu", "clear(h);", "if (index == first_tile) clear(h);", AHEAD,
        "values", UNINITIALISED),
    bug("weight", "last part forgotten", "backward.cu", "part < s.count; ++part", "part + 1 < s.count; ++part",
        RAGGED, "values"),
    # ---- grad_A
    bug("A", "missing wait", "grad_A.cu", "cp_async_wait<1>();", "cp_async_wait<2>();", RING, LATE),
    bug("A", "gy not waited for", "grad_A.cu", "cp_async_wait<0>(); block_barrier(); // Z and gy are there",
        "block_barrier();  // Z and gy are there", RING, LATE),
    bug("A", "missing barrier before phase 2", "grad_A.cu",
        "cp_async_wait<0>(); block_barrier(); // Z and gy are there", "cp_async_wait<0>();  // Z and gy are there",
        RING, RACE, UNINITIALISED, LATE),
    bug("A", "missing barrier behind phase 2", "grad_A.cu", "block_barrier(); // Z and gy have been read", "", RING,
        RACE, LATE),
    bug("A", "x replaced while it is read", "grad_A.cu", "block_barrier(); // x has been read", "", STRIDED, RACE,
        LATE),
    bug("A", "ring one frame short", "grad_A.cu", "slot < p.slots ? slot : slot - p.slots",
        "slot <= p.slots ? slot : slot - p.slots", RING, UNINITIALISED, RACE, BOUNDS, "values"),
    bug("A", "frames of the ring forgotten", "grad_A.cu", "done < oldest ? oldest : done;",
        "done < oldest ? oldest : done + 1;", RING, "values", UNINITIALISED),
    bug("A", "ring of another clip", "grad_A.cu", "index == first_tile || tile.first == 0 || done < oldest",
        "index == first_tile || done < oldest",
        Shape("three_clips", 3, 16, 20, 17, 3, 32, (3, 1, 1), multiprocessors=1), "values", UNINITIALISED, LATE,
        RACE),
    bug("A", "off by one row in the store", "grad_A.cu", "m < row_tiles && row < rows && node < width",
        "m < row_tiles && row <= rows && node < width", RAGGED, "block race", "race", BOUNDS),
    bug("A", "wrong mask of rows", "grad_A.cu", "const int row = wanted < rows ? wanted : rows - 1; const int scale",
        "const int row = wanted;  const int scale", RAGGED, UNINITIALISED, BOUNDS),
    bug("A", "missing tail guard of windows", "grad_A.cu", "t < p.windows && channel < p.O", "channel < p.O", RING,
        BOUNDS, "values"),
    bug("A", "swapped operands", "grad_A.cu", "multiply_step<T>(sum[m][n], a[m], b[0], b[1]);",
        "multiply_step<T>(sum[m][n], a[m], b[1], b[0]);", RAGGED, "values"),
    bug("A", "wrong swizzle", "grad_A.cu", "z + row32_offset<T>(at, n) + (l & 3) * 4",
        "z + at * 64 + n * 16 + (l & 3) * 4", RAGGED, "values", UNINITIALISED),
    bug("A", "stale accumulator", "grad_A.cu", "float sum[PT][4][4];",
        "static thread_local float sum[PT][4][4]; if (unit == 0)", RING, "values"),
    bug("A", "wrong stride at the tile's edge", "grad_A.cu", "p.phases * (tile.first + slot) + tile.phase",
        "p.phases * tile.first + slot + tile.phase",
        Shape("dilated", 1, 16, 13, 5, 3, 8, (3, 1, 2), multiprocessors=1), "values", BOUNDS),
    bug("A", "overlapping parts", "grad_A.cu", "split * p.output_chunks + chunk);", "chunk);", RING, "block race",
        UNINITIALISED),
    bug("A", "wrong slot of a window", "grad_A.cu", "const int base = p.slot_step * (tile.first + window) % p.slots;",
        "const int base = p.slot_step * window % p.slots;", RING, "values"),
]
# fmt: on


def with_the_bug(seeded: Bug, element: str = "bf16") -> emulator.Kernels:
    """Of one type alone, which compiles in a third of the time."""
    one = r"type == Type::kBFloat16\s+\? of_type\(bf16.*?of_type\(tf32\{\}\)", f"of_type({element}{{}})"
    to = tuple((f"{FOLDER}/{name}.cu", *one) for name in ("grad_x", "grad_weight", "grad_A"))
    return emulator.build(*SOURCES, LAUNCHERS, mutations=[Narrowed(seeded, to)])


def caught_as(kernels: emulator.Kernels, seeded: Bug) -> str | None:
    inputs = seeded.shape.inputs(seeded.shape.dtype)
    for landing in ("late", "early"):
        for seed in range(2):
            try:
                found = backward_kernels.run(
                    kernels, seeded.shape, inputs, wanted=(seeded.gradient,), landing=landing, seed=seed
                )
            except emulator.Fault as fault:
                return fault.kind
            try:
                backward_kernels.assert_exact_enough(found, seeded.shape, inputs)
            except AssertionError:
                return "values"
    return None


@pytest.mark.parametrize("seeded", BUGS, ids=lambda seeded: f"grad_{seeded.gradient}: {seeded.name}".replace(" ", "_"))
def test_a_seeded_bug_is_caught(seeded: Bug) -> None:
    kernels = with_the_bug(seeded)
    plan = backward_kernels.plan(kernels, seeded.shape)
    assert {name: plan[name] for name in seeded.shape.expects} == seeded.shape.expects
    assert caught_as(kernels, seeded) in seeded.caught


@pytest.mark.parametrize("gradient", backward_kernels.GRADIENTS)
def test_a_dozen_bugs_for_every_kernel(gradient: str) -> None:
    assert len({seeded.name for seeded in BUGS if seeded.gradient == gradient}) >= 12
