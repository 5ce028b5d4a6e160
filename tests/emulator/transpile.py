"""From PTX, as nvcc emits it, to C++ on the runtime: one function per kernel, one thread's worth of it.

Registers become integers of their width, labels and branches gotos, arithmetic the expressions of opcodes.py; memory,
collectives and cp.async call the runtime. Every such place has a site (its source line, for messages) and a key that
all lanes share when they execute it in the same rounds of the loops around it: so accesses of a warp are gathered.

A kernel is one function of thousands of statements: they are casts and operators rather than calls of templates, which
the host's compiler takes twice as long to read.
"""

import re
from collections.abc import Callable

from .opcodes import CPP, operation
from .ptx import WIDTHS, Entry, Program, Statement, Unsupported, parse

SPECIAL = {"%tid.x": "lane.index", "%tid.y": "0", "%tid.z": "0", "%laneid": "(lane.index & 31)"}
SPECIAL |= {f"%ctaid.{axis}": f"lane.block[{i}]" for i, axis in enumerate("xyz")}
SPECIAL |= {f"%nctaid.{axis}": f"lane.grid[{i}]" for i, axis in enumerate("xyz")}
SPECIAL |= {"%ntid.x": "block.threads", "%ntid.y": "1", "%ntid.z": "1"}
SPACES = ("shared", "global", "local", "param")
# What does not change which bytes are moved: how caches are used.
HINTS = {"nc", "volatile", "weak", "L1::no_allocate", "L1::evict_last", "L2::128B", "L2::256B", "cs", "lu", "cg", "ca"}
REGISTER = {1: "bool", 8: "uint8_t", 16: "uint16_t", 32: "uint32_t", 64: "uint64_t"}
# Spread what keys are made of over 64 bits: rounds of loops, and, by a factor of its own, the number of the site.
OF_ROUNDS, OF_SITES = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
SHUFFLES = {"up": "kUp", "down": "kDown", "bfly": "kXor", "idx": "kIndex"}


class Translator:
    """Of one entry."""

    def __init__(self, program: Program, entry: Entry) -> None:
        self.program, self.entry, self.lines = program, entry, []
        self.sites: list[str] = [""]
        self.loops = self._find_loops()
        self.position, self.needs_rounds = 0, False

    def _find_loops(self) -> dict[str, tuple[int, int]]:
        """Loops by label: from where to where in the body. A branch backwards makes one."""
        labels = {item: i for i, item in enumerate(self.entry.body) if isinstance(item, str)}
        loops: dict[str, tuple[int, int]] = {}
        for i, item in enumerate(self.entry.body):
            if isinstance(item, Statement) and item.opcode[0] == "bra":
                target = item.operands[0]
                if target not in labels:
                    raise Unsupported(f"branch to {target}")
                if labels[target] <= i:
                    loops[target] = (labels[target], i)
        return loops

    # ---- operands

    def width(self, register: str) -> int:
        if register not in self.entry.registers:
            raise Unsupported(f"operand {register!r}")
        return self.entry.registers[register]

    def value(self, operand: str, kind: str) -> str:
        """A source operand as a C++ value of the type."""
        cpp = CPP[kind]
        if operand in SPECIAL:
            return f"({cpp})({SPECIAL[operand]})"
        if operand.startswith("%"):
            name = _register(operand)
            width = self.width(operand)
            if kind == "pred" or width == 1:
                if kind != "pred" or width != 1:
                    raise Unsupported(f"{operand} as {kind}")
                return name
            if width < WIDTHS[kind]:
                raise Unsupported(f"{operand} is too narrow for {kind}")
            if kind[0] != "f":
                return name if cpp == REGISTER[width] else f"({cpp}){name}"
            if width != WIDTHS[kind]:
                raise Unsupported(f"{operand} as {kind}")
            return f"__builtin_bit_cast({cpp}, {name})"
        if operand.startswith("!%"):
            return f"!{self.value(operand[1:], 'pred')}"
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
            return f"__builtin_bit_cast({cpp}, 0x{operand[2:]}u)"
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", operand):
            return f"__builtin_bit_cast({cpp}, (uint64_t)0x{operand[2:]}ull)"
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+U?|\d+U?)", operand):
            number = int(operand.rstrip("U"), 0)
            if kind == "pred":
                return str(bool(number)).lower()
            bits = number & (2 ** WIDTHS[kind] - 1)
            if kind in ("f32", "f64"):
                return f"__builtin_bit_cast({cpp}, (uint{WIDTHS[kind]}_t){bits}ull)"
            return f"{bits}u" if cpp == "uint32_t" else f"({cpp}){bits}ull"
        if operand in self.program.dynamic_shared:
            return f"({cpp})kSharedBase"
        if operand in self.entry.local_bytes:
            return f"({cpp})(uintptr_t){operand}"
        raise Unsupported(f"operand {operand!r}")

    def assign(self, operand: str, kind: str, expression: str) -> str:
        """A statement that gives a destination register a C++ value of the type."""
        if operand == "_":
            return f"(void)({expression});"
        width = self.width(operand)
        if (kind == "pred") != (width == 1):
            raise Unsupported(f"{operand} takes {kind}")
        if width < WIDTHS[kind]:
            raise Unsupported(f"{operand} is too narrow for {kind}")
        name, register = _register(operand), REGISTER[width]
        if kind == "pred":
            return f"{name} = {expression};"
        if width > WIDTHS[kind]:
            wide = f"int{width}_t" if kind[0] == "s" else register
            return f"{name} = ({register})({wide})({CPP[kind]})({expression});"
        if kind[0] == "f":
            return f"{name} = __builtin_bit_cast({register}, ({CPP[kind]})({expression}));"
        return f"{name} = {expression};"

    def address(self, operand: str) -> tuple[str, str]:
        """[base+offset]: base and offset."""
        match = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if not match:
            raise Unsupported(f"address {operand!r}")
        return match[1], match[2] or "0"

    # ---- statements

    def emit(self, text: str) -> None:
        self.lines.append(text)

    def site(self, statement: Statement) -> str:
        """Marks the place for the runtime."""
        self.sites.append(statement.place)
        number = len(self.sites) - 1
        self.needs_rounds = True
        return f"site = {number}; site_key = rounds + {number * OF_SITES % 2**64}u;"

    def rounds(self) -> str:
        """Says in which rounds of the loops around it the run of statements that starts here is executed."""
        key = "0ull"
        for label, (first, last) in self.loops.items():
            if first <= self.position <= last:
                key = f"({key} + round{_label(label)}) * {OF_ROUNDS}u"
        return f"rounds = {key};"

    def translate(self) -> str:
        handlers: dict[str, Callable[[Statement], str]] = {
            "ld": self.load,
            "st": self.store,
            "bra": self.branch,
            "bar": self.barrier,
            "ret": lambda s: "return;",
            "exit": lambda s: "return;",
            "cp": self.cp_async,
            "cvta": self.convert_address,
            "ldmatrix": self.ldmatrix,
            "movmatrix": self.movmatrix,
            "mma": self.mma,
            "shfl": self.shuffle,
            "vote": self.vote,
        }
        known_rounds = False  # whether `rounds` holds since the last label or branch
        for position, item in enumerate(self.entry.body):
            self.position, self.needs_rounds = position, False
            if isinstance(item, str):
                self.emit(f"{_label(item)}:;")
                known_rounds = False
                continue
            try:
                text = handlers.get(item.opcode[0], self.arithmetic)(item)
            except Unsupported as error:
                raise Unsupported(f"{item.place}: {item.name} {', '.join(item.operands)}: {error}") from None
            if self.needs_rounds and not known_rounds:
                self.emit(self.rounds())
                known_rounds = True
            if item.opcode[0] == "bra":
                known_rounds = False
            self.emit(f"if ({self.value(item.predicate, 'pred')}) {{ {text} }}" if item.predicate else text)
        declared = [f"  {REGISTER[width]} {_register(name)};" for name, width in self.entry.registers.items()]
        declared += [f"  alignas(16) unsigned char {name}[{size}];" for name, size in self.entry.local_bytes.items()]
        declared += [f"  uint32_t round{_label(label)} = 0;" for label in self.loops]
        declared += ["  uint64_t rounds = 0;"]
        sites = ", ".join(f'"{place}"' for place in self.sites)
        name = self.entry.name
        return "\n".join(
            [
                f"static const char* const sites_{name}[] = {{{sites}}};",
                f"static void run_{name}(void* const* arguments) {{",
                "  [[maybe_unused]] const Lane& lane = running();",
                *declared,
                *(f"  {line}" for line in self.lines),
                "}",
                f'static const int added_{name} = (add_ptx_kernel("{name}", run_{name}, sites_{name}), 0);',
            ]
        )

    def arithmetic(self, statement: Statement) -> str:
        operands = statement.operands
        if statement.opcode[0] == "mov" and any("{" in operand for operand in operands):
            return self.move_parts(statement)
        if statement.opcode[0] == "mov" and len(operands) == 2 and operands[1] in self.entry.parameters:
            index = self.entry.parameters.index(operands[1])
            return self.assign(operands[0], statement.opcode[1], f"(uint64_t)arguments[{index}]")
        found = operation(statement.opcode)
        if len(operands) != 1 + len(found.sources):
            raise Unsupported(f"{len(operands)} operands")
        values = [self.value(operand, kind) for operand, kind in zip(operands[1:], found.sources, strict=True)]
        return self.assign(operands[0], found.result, found.template.format(*values))

    def move_parts(self, statement: Statement) -> str:
        """mov between a register and the parts it is made of, low part first."""
        target, source = statement.operands
        width = WIDTHS[statement.opcode[1]]
        parts = _vector(target) if "{" in target else _vector(source)
        part = width // len(parts)
        whole, wide = f"b{width}", f"uint{width}_t"
        if "{" in source:
            joined = " | ".join(f"({wide})({self.value(p, f'b{part}')}) << {i * part}" for i, p in enumerate(parts))
            return self.assign(target, whole, joined)
        value = self.value(source, whole)
        return (
            f"{{ const {wide} whole = {value}; "
            + " ".join(self.assign(p, f"b{part}", f"whole >> {i * part}") for i, p in enumerate(parts))
            + " }"
        )

    def _access(self, statement: Statement) -> tuple[str, int, str, list[str]]:
        """State space, number of elements, type of a load or store, and what else its name says."""
        *modifiers, kind = statement.opcode[1:]
        space, count, rest = "generic", 1, []
        for modifier in modifiers:
            if modifier in SPACES:
                space = modifier
            elif modifier in ("v2", "v4"):
                count = int(modifier[1])
            elif modifier not in HINTS:
                rest.append(modifier)
        if kind not in WIDTHS or kind == "pred" or rest:
            raise Unsupported("modifiers")
        return space, count, kind, rest

    def place_of(self, operand: str, space: str, size: int, write: bool, statement: Statement) -> str:
        """Marks the site and leaves the checked host address in `at`."""
        base, offset = self.address(operand)
        if space == "param" and base in self.entry.parameters:
            index = self.entry.parameters.index(base)
            return f"const char* const at = (const char*)arguments[{index}] + {offset};"
        base = self.value(base, "b32" if base.startswith("%") and self.width(base) == 32 else "b64")
        where = f"(uint64_t)({base}) + (int64_t){offset}"
        if space in ("param", "local"):
            return f"char* const at = (char*)({where});"
        call = f"at_{space}({where}, {size}, {str(write).lower()})"
        return f"{self.site(statement)} unsigned char* const at = {call};"

    def load(self, statement: Statement) -> str:
        space, count, kind, _ = self._access(statement)
        targets = _vector(statement.operands[0]) if count > 1 else [statement.operands[0]]
        size = WIDTHS[kind] // 8
        if len(targets) != count:
            raise Unsupported("vector")
        place = self.place_of(statement.operands[1], space, size * count, False, statement)
        moves = [self.assign(t, kind, f"*({CPP[kind]}*)(at + {i * size})") for i, t in enumerate(targets)]
        return f"{{ {place} {' '.join(moves)} }}"

    def store(self, statement: Statement) -> str:
        space, count, kind, _ = self._access(statement)
        sources = _vector(statement.operands[1]) if count > 1 else [statement.operands[1]]
        size = WIDTHS[kind] // 8
        if len(sources) != count or space == "param":
            raise Unsupported("vector or space")
        place = self.place_of(statement.operands[0], space, size * count, True, statement)
        moves = [f"*({CPP[kind]}*)(at + {i * size}) = {self.value(s, kind)};" for i, s in enumerate(sources)]
        return f"{{ {place} {' '.join(moves)} }}"

    def branch(self, statement: Statement) -> str:
        if statement.opcode not in (("bra",), ("bra", "uni")):
            raise Unsupported("branch")
        target = statement.operands[0]
        if target not in self.loops or self.position < self.loops[target][0]:
            return f"goto {_label(target)};"
        first, last = self.loops[target]
        inner = [
            label for label, (begin, end) in self.loops.items() if label != target and first <= begin and end <= last
        ]
        cleared = " ".join(f"round{_label(label)} = 0;" for label in inner)
        return f"count_step(); ++round{_label(target)}; {cleared} goto {_label(target)};"

    def barrier(self, statement: Statement) -> str:
        operands, name = statement.operands, statement.name
        if name == "bar.warp.sync":
            if operands not in (["-1"], ["0xffffffff"], ["4294967295"]):
                raise Unsupported("mask")
            return f"{self.site(statement)} warp_barrier();"
        if name == "bar.sync" and operands == ["0"]:
            return f"{self.site(statement)} block_barrier();"
        if name == "bar.sync" and len(operands) == 2:
            identity, threads = (self.value(operand, "s32") for operand in operands)
            return f"{self.site(statement)} named_barrier({identity}, {threads});"
        raise Unsupported("barrier")

    def cp_async(self, statement: Statement) -> str:
        operands, opcode = statement.operands, tuple(m for m in statement.opcode if m not in HINTS - {"ca", "cg"})
        if opcode == ("cp", "async", "commit_group"):
            return "cp_async_commit();"
        if opcode == ("cp", "async", "wait_group"):
            return f"{self.site(statement)} cp_async_wait({int(operands[0])});"
        if opcode == ("cp", "async", "wait_all"):
            return f"{self.site(statement)} cp_async_wait(-1);"
        if opcode[:2] != ("cp", "async") or opcode[2] not in ("ca", "cg") or opcode[3:] != ("shared", "global"):
            raise Unsupported("copy")
        if opcode[2] == "cg" and operands[2] != "16":
            raise Unsupported("size")
        target, source = (self._whole_address(operand) for operand in operands[:2])
        read = self.value(operands[3], "s32") if len(operands) == 4 else operands[2]
        return f"{self.site(statement)} cp_async((uint32_t)({target}), (const void*)({source}), {operands[2]}, {read});"

    def _whole_address(self, operand: str) -> str:
        base, offset = self.address(operand)
        base = self.value(base, "b32" if base.startswith("%") and self.width(base) == 32 else "b64")
        return f"(uint64_t)({base}) + (int64_t){offset}"

    def convert_address(self, statement: Statement) -> str:
        target, source = statement.operands
        opcode = statement.opcode[1:]
        value = self.value(source, "b64")
        known = {
            ("to", "global", "u64"): value,
            ("global", "u64"): value,
            ("to", "local", "u64"): value,
            ("local", "u64"): value,
            ("param", "u64"): value,
            ("shared", "u64"): f"shared_to_generic({value})",
            ("to", "shared", "u64"): f"generic_to_shared({value})",
        }
        if opcode not in known:
            raise Unsupported("space")
        return self.assign(target, "b64", known[opcode])

    def ldmatrix(self, statement: Statement) -> str:
        match = re.fullmatch(
            r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", statement.name
        )
        if not match:
            raise Unsupported("shape")
        targets = _vector(statement.operands[0])
        if len(targets) != int(match[1]):
            raise Unsupported("registers")
        moves = " ".join(self.assign(t, "b32", f"r[{i}]") for i, t in enumerate(targets))
        address = f"(uint32_t)({self._whole_address(statement.operands[1])})"
        call = f"ldmatrix(r, {match[1]}, {str(bool(match[2])).lower()}, {address});"
        return f"{{ uint32_t r[4]; {self.site(statement)} {call} {moves} }}"

    def movmatrix(self, statement: Statement) -> str:
        if statement.name != "movmatrix.sync.aligned.m8n8.trans.b16":
            raise Unsupported("shape")
        target, source = statement.operands
        return f"{self.site(statement)} " + self.assign(target, "b32", f"transpose_matrix({self.value(source, 'b32')})")

    def mma(self, statement: Statement) -> str:
        shapes = {}
        for element, name in (("bf16", "kBf16"), ("f16", "kHalf")):
            shapes[f"m16n8k16.row.col.f32.{element}.{element}.f32"] = (name, 16, 4, 2)
            shapes[f"m16n8k8.row.col.f32.{element}.{element}.f32"] = (name, 8, 2, 1)
        shapes["m16n8k8.row.col.f32.tf32.tf32.f32"] = ("kTf32", 8, 4, 2)
        shape = statement.name.removeprefix("mma.sync.aligned.")
        if shape not in shapes:
            raise Unsupported("shape")
        element, depth, a_words, b_words = shapes[shape]
        d, a, b, c = (_vector(operand) for operand in statement.operands)
        if (len(d), len(a), len(b), len(c)) != (4, a_words, b_words, 4):
            raise Unsupported("registers")
        sums = ", ".join(self.value(r, "f32") for r in c)
        words_a, words_b = (", ".join(self.value(r, "b32") for r in registers) for registers in (a, b))
        moves = " ".join(self.assign(r, "f32", f"d[{i}]") for i, r in enumerate(d))
        return (
            f"{{ float d[4] = {{{sums}}}; const uint32_t a[] = {{{words_a}}}, b[] = {{{words_b}}}; "
            f"{self.site(statement)} mma(Element::{element}, {depth}, d, a, b); {moves} }}"
        )

    def names_all_lanes(self, mask: str) -> bool:
        """The number itself, or a register to which all that is ever written is that number."""
        everybody = ("-1", "0xffffffff")
        if not mask.startswith("%"):
            return mask in everybody
        mentioned = re.compile(rf"{re.escape(mask)}(?!\d)")
        writers = [
            s for s in self.entry.body if not isinstance(s, str) and s.operands and mentioned.search(s.operands[0])
        ]
        return bool(writers) and all(s.opcode[0] == "mov" and s.operands[1] in everybody for s in writers)

    def shuffle(self, statement: Statement) -> str:
        _, sync, mode, kind = statement.opcode
        target, source, lanes, clamp, mask = statement.operands
        if sync != "sync" or mode not in SHUFFLES or kind != "b32" or not self.names_all_lanes(mask):
            raise Unsupported("mode or mask")
        target, _, valid = target.partition("|")
        values = ", ".join([self.value(source, "b32"), f"Shuffle::{SHUFFLES[mode]}"])
        values += ", " + ", ".join(self.value(operand, "b32") for operand in (lanes, clamp))
        moves = self.assign(target, "b32", "r") + (" " + self.assign(valid, "pred", "ok") if valid else "")
        return f"{{ uint32_t r; {self.site(statement)} const bool ok = shuffle_ptx(r, {values}); (void)ok; {moves} }}"

    def vote(self, statement: Statement) -> str:
        target, source, mask = statement.operands
        results = {
            "vote.sync.any.pred": ("pred", "bits != 0"),
            "vote.sync.all.pred": ("pred", "bits == 0xffffffffu"),
            "vote.sync.ballot.b32": ("b32", "bits"),
        }
        if statement.name not in results or not self.names_all_lanes(mask):
            raise Unsupported("mode or mask")
        kind, result = results[statement.name]
        call = f"const uint32_t bits = ballot({self.value(source, 'pred')});"
        return f"{{ {self.site(statement)} {call} {self.assign(target, kind, result)} }}"


def _register(operand: str) -> str:
    return operand.replace("%", "reg_")


def _label(name: str) -> str:
    return "_" + name.replace("$", "")


def _vector(operand: str) -> list[str]:
    if not (operand.startswith("{") and operand.endswith("}")):
        raise Unsupported(f"vector {operand!r}")
    return [part.strip() for part in operand[1:-1].split(",")]


def translate(text: str, symbols: bool = False) -> str:
    """C++ for every entry, to be compiled behind ptx_support.h; Unsupported for anything that is not known.

    With `symbols` every entry also gets a symbol of its name, for PTX that no kernel of a host compiler stands beside.
    """
    program = parse(text)
    lines = ["namespace msg3d::simt::emulator::ptx {"]
    lines += [Translator(program, entry).translate() for entry in program.entries]
    lines += [f'extern "C" void {entry.name}() {{}}' for entry in program.entries if symbols]
    return "\n".join([*lines, "}", ""])
