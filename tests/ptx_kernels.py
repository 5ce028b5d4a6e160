"""Kernels written in PTX for the emulators' own tests: many entries, compiled at once."""

from collections.abc import Sequence

import emulator


class PtxKernels:
    """Entries by name. In every one %d0, %d1, ... hold the pointers, %r0 the thread, %d10 .. %d12 it times 4, 8, 16."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self._compiled: emulator.Kernels | None = None

    def add(self, name: str, body: Sequence[str], parameters: int) -> None:
        lines = [f".visible .entry {name}(", ",\n".join(f".param .u64 p{i}" for i in range(parameters)), ")", "{"]
        lines += [".reg .pred %p<9>;", ".reg .b16 %h<20>;", ".reg .b32 %r<40>;", ".reg .f32 %f<20>;"]
        lines += [".reg .b64 %d<40>;", *(f"ld.param.u64 %d{i}, [p{i}];" for i in range(parameters))]
        lines += ["mov.u32 %r0, %tid.x;"]
        lines += [f"mul.wide.u32 %d{10 + i}, %r0, {size};" for i, size in enumerate((4, 8, 16))]
        self.entries[name] = "\n".join([*lines, *body, "ret;", "}"])

    @property
    def compiled(self) -> emulator.Kernels:
        if self._compiled is None:
            text = [".extern .shared .align 128 .b8 dynamic[];", *self.entries.values()]
            self._compiled = emulator.build_ptx("\n".join(text))
        return self._compiled


def words(register: str, first: int, count: int, pointer: int) -> list[str]:
    """Loads of `count` words of this thread's row in the array at %d<pointer>."""
    lines = [f"mul.wide.u32 %d20, %r0, {4 * count};", f"add.s64 %d20, %d20, %d{pointer};"]
    return lines + [f"ld.global.b32 %{register}{first + i}, [%d20+{4 * i}];" for i in range(count)]


def put_words(register: str, first: int, count: int, pointer: int) -> list[str]:
    lines = [f"mul.wide.u32 %d20, %r0, {4 * count};", f"add.s64 %d20, %d20, %d{pointer};"]
    return lines + [f"st.global.b32 [%d20+{4 * i}], %{register}{first + i};" for i in range(count)]


def names(register: str, first: int, count: int) -> str:
    return "{" + ", ".join(f"%{register}{first + i}" for i in range(count)) + "}"
