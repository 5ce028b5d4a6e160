"""Bugs seeded into kernels by regular expressions, and what counts as caught: tables of these are tests.

A bug is caught if a run ends in a fault of the named kind, or in values that the tolerance rule refuses.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emulator
from emulator import Mutation


@dataclass(frozen=True)
class Bug:
    kernel: str  # that shows it
    name: str
    file: str
    pattern: str
    replacement: str
    sizes: Any  # of the run that shows it
    caught: str  # regular expression: kinds of faults, "values"

    def __str__(self) -> str:
        return f"{self.kernel}: {self.name}"


@dataclass(frozen=True)
class Narrowed:
    """The mutation, in kernels of one type alone, which compile in a third of the time.

    `to` names files, the pattern of their choice of a type, and what stands there instead.
    """

    seeded: Bug
    to: tuple[tuple[str, str, str], ...]

    def apply(self) -> dict[Path, str]:
        seeded = self.seeded
        texts = Mutation(seeded.name, seeded.file, seeded.pattern, seeded.replacement).apply()
        for file, pattern, one in self.to:
            path = emulator.ROOT / file
            text = texts.get(path) or path.read_text(encoding="utf-8")
            texts[path], found = re.subn(pattern, one, text, flags=re.DOTALL | re.MULTILINE)
            assert found == 1
        return texts


def assert_caught(seeded: Bug, check: Callable[[int], None]) -> None:
    """At the latest by the third seed of `check`, which runs the kernels and asserts that values are right."""
    found = set()
    for seed in range(3):
        try:
            check(seed)
        except emulator.Fault as fault:
            found.add(fault.kind)
        except AssertionError:
            found.add("values")
        if any(re.fullmatch(seeded.caught, kind) for kind in found):
            return
    raise AssertionError(f"noticed: {sorted(found)}")


def assert_a_dozen(bugs: list[Bug], *families: set[str]) -> None:
    """At least twelve bugs, each with a name of its own, for each family of kernels."""
    assert len({str(seeded) for seeded in bugs}) == len(bugs)
    for kernels in families:
        assert sum(seeded.kernel in kernels for seeded in bugs) >= 12, kernels
