"""Bugs seeded into the forward kernels: what a table of them is made of, and what counts as caught.

A bug counts as caught if a run ends in a fault of the named kind, or in values that the tolerance rule refuses.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import emulator
import forward_kernels as forward
from emulator import Mutation
from forward_shapes import SHAPES, Shape

ELEMENTS = "csrc/kernels/ms_g3d/cuda/elements.h"
FRAMES, WINDOWS, PROJECTION, FEW, WHOLE, AGGREGATION, HEADER, COLLAPSE, PACKING = (
    f"{forward.FOLDER}/{name}"
    for name in (
        *("frames.cu", "windows.cu", "projection.h", "few_channels.cu", "few_channels_collapse.cu"),
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


def caught(kernels: emulator.Kernels, shape: Shape, statistics: bool = False) -> set[str]:
    """What notices something within a few runs: kinds of faults, "values"."""
    found = set()
    inputs = shape.inputs(shape.dtype)
    for seed, landing in enumerate(emulator.LANDINGS):
        try:
            run = forward.run(kernels, shape, inputs, statistics=statistics, seed=seed, landing=landing)
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

    def __init__(self, mutation: Mutation, kernel: str, tile: int, element: str) -> None:
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


@cache
def _whole() -> emulator.Kernels:
    return emulator.build(*forward.SOURCES, forward.LAUNCHERS)


def assert_caught(
    bug: Bug, tf32: bool = False, statistics: bool = False, shapes: Iterable[Shape] = tuple(SHAPES)
) -> None:
    """In bfloat16, or in float32 where torch allows tf32; with or without the statistics of y."""
    shape = next(shape for shape in shapes if shape.name == bug.shape)
    if tf32:  # whose elements need more room
        shape = replace(shape, tf32=True, shared_kb=max(shape.shared_kb, 163))
    plan = forward.plan(_whole(), shape)
    narrowed = Narrowed(bug.mutation, forward.KERNELS[plan["kernel"]], plan["tile"], "tf32" if tf32 else "bf16")
    kernels = emulator.build(*forward.SOURCES, forward.LAUNCHERS, mutations=[narrowed])
    if bug.caught_by == "leak":
        assert leaks(kernels, shape)
        return
    found = caught(kernels, shape, statistics)
    assert found if bug.caught_by == "any" else bug.caught_by in found, f"noticed: {sorted(found)}"


def assert_a_dozen(bugs: list[Bug], *families: Iterable[str]) -> None:
    """At least twelve bugs, each with a name of its own, for each family of files."""
    assert len({bug.name for bug in bugs}) == len(bugs)
    for files in families:
        assert sum(bug.mutation.file in files for bug in bugs) >= 12
