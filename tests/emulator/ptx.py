"""Reads PTX as nvcc emits it: entries with their parameters, registers, and statements with source lines."""

import re
from dataclasses import dataclass, field
from pathlib import PurePath

WIDTHS = {"pred": 1, "b8": 8, "u8": 8, "s8": 8}
WIDTHS |= {f"{kind}{bits}": bits for kind in "bus" for bits in (16, 32, 64)}
WIDTHS |= {"f16": 16, "f32": 32, "f64": 64}


class Unsupported(NotImplementedError):
    """PTX that the transpiler does not know: never guessed, always an error."""


@dataclass
class Statement:
    opcode: tuple[str, ...]  # split at the dots
    operands: list[str]
    predicate: str | None  # register, or !register
    place: str  # file:line of the source

    @property
    def name(self) -> str:
        return ".".join(self.opcode)


@dataclass
class Entry:
    name: str
    parameters: list[str]
    registers: dict[str, int] = field(default_factory=dict)  # name to width in bits; 1 is a predicate
    local_bytes: dict[str, int] = field(default_factory=dict)
    body: list[Statement | str] = field(default_factory=list)  # a str is a label


@dataclass
class Program:
    entries: list[Entry]
    dynamic_shared: set[str]  # names of the block's dynamic shared memory


def split_operands(text: str) -> list[str]:
    """At commas, but not within [] and {}."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _statement(text: str, place: str) -> Statement:
    match = re.fullmatch(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.DOTALL)
    if not match:
        raise Unsupported(f"{place}: PTX statement {text!r}")
    predicate, opcode, operands = match.groups()
    return Statement(tuple(opcode.split(".")), split_operands(operands), predicate, place)


def _declare(entry: Entry, text: str) -> None:
    register = re.fullmatch(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>", text)
    if register and register[1] in WIDTHS:
        for i in range(int(register[3])):
            entry.registers[f"{register[2]}{i}"] = WIDTHS[register[1]]
        return
    single = re.fullmatch(r"\.reg\s+\.(\w+)\s+(%\w+(?:\s*,\s*%\w+)*)", text)
    if single and single[1] in WIDTHS:
        for name in re.split(r"\s*,\s*", single[2]):
            entry.registers[name] = WIDTHS[single[1]]
        return
    local = re.fullmatch(r"\.local\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\]", text)
    if local:
        entry.local_bytes[local[1]] = int(local[2])
        return
    raise Unsupported(f"PTX declaration {text!r}")


def entry_names(text: str) -> list[str]:
    return re.findall(r"^(?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$]+)", text, re.MULTILINE)


def only_entry(text: str, name: str) -> str:
    """The text without the bodies of all other entries."""
    bodies = r"^((?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$]+)\s*\([^)]*\).*?^\})"
    return re.sub(bodies, lambda m: m[1] if m[2] == name else "", text, flags=re.MULTILINE | re.DOTALL)


def parse(text: str) -> Program:
    files: dict[str, str] = {
        number: PurePath(name).name
        for number, name in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE)
    }
    program = Program([], set())
    entry: Entry | None = None
    header, pending, place, inside = "", "", "", False
    for raw in text.splitlines():
        line = raw.partition("//")[0].strip()
        half = re.fullmatch(r"\{ \.reg \.b16 tmp; (mov\.b32 .*;) \}", line)  # one half of a register, the other dropped
        if half:
            line = re.sub(r"\btmp\b", "_", half[1])
        if not line or line.startswith((".pragma", ".file", ".version", ".target", ".address_size")):
            continue
        if not inside:
            if line.startswith(".section"):  # what -lineinfo adds for debuggers
                break
            shared = re.match(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[\]", line)
            if shared:
                program.dynamic_shared.add(shared[1])
                continue
            header += line + "\n"
            if line != "{":
                continue
            match = re.match(r"(?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$]+)\s*\((.*?)\)", header, re.DOTALL)
            if not match:
                raise Unsupported(f"PTX at the top level: {header.strip()[:200]!r}")
            parameters = [re.sub(r"\[\d+\]$", "", p.strip()).split()[-1] for p in match[2].split(",") if p.strip()]
            entry, header, inside = Entry(match[1], parameters), "", True
            program.entries.append(entry)
            continue
        if re.match(r"\.loc\s", line):
            number, source_line = line.split()[1:3]
            place = f"{files.get(number, '?')}:{source_line}"
            continue
        if not pending and line == "}":
            inside = False
            continue
        label = re.fullmatch(r"([$\w]+):", line)
        if label and not pending:
            entry.body.append(label[1])
            continue
        pending = f"{pending} {line}".strip()
        while ";" in pending:
            statement, _, pending = pending.partition(";")
            statement, pending = statement.strip(), pending.strip()
            if statement.startswith("."):
                _declare(entry, statement)
            else:
                entry.body.append(_statement(statement, place))
    if inside or pending:
        raise Unsupported("PTX that ends within an entry")
    return program
