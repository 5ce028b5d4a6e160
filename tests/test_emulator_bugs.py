"""Bugs seeded into kernels are caught, each by name: what the emulators are worth is what they see."""

import re
from dataclasses import dataclass

import emulator
import pytest
from emulator import Mutation
from test_emulator import needs_nvcc, run_gemm

GEMM = "tests/emulator/examples.cu"
SIMT = "csrc/kernels/simt/simt.h"


@dataclass(frozen=True)
class Bug:
    """A mutation, and the kind of fault that names it; "values": nothing but wrong numbers shows it."""

    name: str
    kind: str
    pattern: str
    replacement: str
    file: str = GEMM
    route: str = "source"

    @property
    def mutation(self) -> Mutation:
        return Mutation(self.name, self.file, self.pattern, self.replacement)


BUGS = [
    Bug("missing wait", "copy not waited for", r"cp_async_wait<1>\(\);", ""),
    Bug("missing last wait", "copy not waited for", r"cp_async_wait<0>\(\);", ""),
    Bug("wait for one group too few", "copy not waited for", "cp_async_wait<1>", "cp_async_wait<2>"),
    Bug("missing commit", "copy not waited for", r"^  cp_async_commit\(\);", ""),
    Bug("missing barrier before the reads", "race", r"block_barrier\(\);  // everybody.*$", ""),
    Bug("missing barrier behind the reads", "race|copy not waited for", r"block_barrier\(\);  // nobody.*$", ""),
    Bug("single buffer", "race|copy not waited for", r"\(\(chunk \+ 1\) % 2\) \* Tile", "(chunk % 2) * Tile"),
    Bug("missing guard of rows read", "out of bounds", r"line < \(of_a \? p\.M : p\.N\) && k", "k"),
    Bug("missing guard of rows written", "out of bounds", r"row < p\.M && ", ""),
    Bug("off by one at the tail", "out of bounds|block race", r"row < p\.M &&", "row <= p.M &&"),
    Bug("tail not filled with zeros", "uninitialised read", r"cp_async<16>\(stage", "if (inside) cp_async<16>(stage"),
    Bug("wrong swizzle", "values", r"lane / 8 % 2 \* 8", "(1 - lane / 8 % 2) * 8"),
    Bug("odd pitch", "misaligned", r"kPitch = kDepth \+ 8", "kPitch = kDepth + 9"),
    Bug("too little shared memory", "out of bounds", r"2 \* kStageBytes;", "2 * kStageBytes - 512;"),
    Bug("swapped operands", "values", r"b\[0\], b\[1\]\)", "b[1], b[0])"),
    Bug("stale accumulator", "values", r"^  float d\[2\]\[4\] = \{\};", "  float d[2][4] = {{1}};"),
    Bug("wrong stride", "values|out of bounds", r"static_cast<int64_t>\(line\) \* p\.K", "line * p.N"),
    Bug("overlapping blocks", "block race", r"block_y\(\) \* Tile::kColumns \+ warp", "0 * Tile::kColumns + warp"),
    Bug("early return", "divergence|deadlock", r"^  float d\[2\]", "  if (lane == 31) return;\n  float d[2]"),
    Bug("barrier in a branch", "race|divergence", r"block_barrier\(\);  // nob", "if (lane) block_barrier(); //"),
    Bug(
        "swapped operands of inline PTX",
        "values",
        r'(bf16\.bf16\.f32 \{%0, %1, %2, %3\}, \{%4, %5, %6, %7\}), \{%8, %9\}, "',
        r'\1, {%9, %8}, "',
        SIMT,
        "ptx",
    ),
]  # fmt: skip


def test_there_are_enough() -> None:
    assert len(BUGS) == len({bug.name for bug in BUGS}) >= 12


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, id=bug.name, marks=[needs_nvcc] if bug.route == "ptx" else []) for bug in BUGS],
)
def test_caught(bug: Bug) -> None:
    arch = "80" if bug.route == "ptx" else None
    kernels = emulator.build(GEMM, arch=arch, entries="bf16", mutations=[bug.mutation])
    for landing in emulator.LANDINGS:
        with pytest.raises(AssertionError) as caught:
            run_gemm(kernels, route=bug.route, landing=landing)
        kind = caught.value.kind if isinstance(caught.value, emulator.Fault) else "values"
        assert re.fullmatch(bug.kind, kind), caught.value
