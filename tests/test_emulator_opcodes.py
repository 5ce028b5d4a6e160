"""Every opcode of route P against its meaning written in Python on exact integers and NumPy floats.

Each case is a kernel of one instruction: operands come from three arrays, the result goes to a fourth. Operands are the
edges of each type and random bits. A row of opcodes.TABLE without a case here fails the suite.
"""

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import emulator
import numpy as np
import pytest
from emulator import opcodes
from emulator.ptx import WIDTHS, Unsupported

COUNT = 256  # threads, each with operands of its own
REGISTERS = {1: "%p", 16: "%h", 32: "%r", 64: "%d"}


# ---- operands: bits of the type's width


def bits_of(kind: str, source: int) -> np.ndarray:
    width = WIDTHS[kind]
    draw = np.random.default_rng([source, *kind.encode()])
    if kind == "pred":
        return draw.integers(0, 2, COUNT, np.uint64)
    if kind in ("f32", "f64"):
        real = np.float32 if kind == "f32" else np.float64
        edges = [0.0, -0.0, 1.0, -1.5, 2.5, 3.5, 0.1, -7.75, 1e10, -3e9, np.inf, -np.inf, np.nan, 1e-40, 2**31, 65504.0]
        values = np.concatenate([np.tile(edges, 4), draw.standard_normal(COUNT - 64) * 10.0 ** draw.integers(-6, 9)])
        bits = values.astype(real).view(np.uint32 if kind == "f32" else np.uint64).astype(np.uint64)
    else:
        edges = [
            0,
            1,
            2,
            31,
            32,
            33,
            63,
            64,
            100,
            (1 << width - 1) - 1,
            1 << width - 1,
            (1 << width) - 1,
            (1 << width) - 2,
        ]
        bits = draw.integers(0, 1 << min(width, 63), COUNT, np.uint64) >> draw.integers(0, width, COUNT, np.uint64)
        bits[:52] = np.array((edges * 4), np.uint64)
    return draw.permutation(bits)


def decode(kind: str, bits: int) -> int | float:
    width = WIDTHS[kind]
    bits &= (1 << width) - 1
    if kind == "f32":
        return struct.unpack("<f", struct.pack("<I", bits))[0]
    if kind == "f64":
        return struct.unpack("<d", struct.pack("<Q", bits))[0]
    return bits - (1 << width) if kind[0] == "s" and bits >> width - 1 else bits


def encode(kind: str, value: object) -> int:
    if kind == "f32":
        with np.errstate(over="ignore"):
            return int(np.float32(value).view(np.uint32))
    if kind == "f64":
        return int(np.float64(value).view(np.uint64))
    return int(value) & ((1 << WIDTHS[kind]) - 1)


# ---- meanings. Integers are Python's, floats NumPy scalars of their width.


def real(kind: str) -> type:
    return np.float32 if kind == "f32" else np.float64


def fma(kind: str, a: float, b: float, c: float) -> object:
    if not all(map(math.isfinite, (a, b, c))):
        return real(kind)(a) * real(kind)(b) + real(kind)(c)
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return real(kind)(a) * real(kind)(b) + real(kind)(c)
    return round_fraction(kind, exact)


def round_fraction(kind: str, exact: Fraction) -> object:
    """The nearest float, ties to even."""
    digits, least = (24, -149) if kind == "f32" else (53, -1074)
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length() - digits
    while abs(exact) / Fraction(2) ** exponent >= 2**digits:
        exponent += 1
    exponent = max(exponent, least)
    units = round(exact / Fraction(2) ** exponent)
    with np.errstate(over="ignore"):
        return real(kind)(math.ldexp(units, exponent)) if abs(units) < 2**60 else real(kind)(math.inf)


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def pick(kind: str, a: float, b: float, larger: bool) -> float:
    if kind not in ("f32", "f64"):
        return max(a, b) if larger else min(a, b)
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    if a == b:
        negative, positive = (a, b) if math.copysign(1, a) < 0 else (b, a)
        return positive if larger else negative
    return max(a, b) if larger else min(a, b)


def bit_field(a: int, position: int, length: int, width: int, signed: bool) -> int:
    position, length = position & 255, length & 255
    bits = a & ((1 << width) - 1)
    if length == 0:
        return 0
    sign = bits >> min(position + length - 1, width - 1) & 1 if signed else 0
    field = 0
    for i in range(width):
        inside = i < length and position + i < width
        field |= (bits >> position + i & 1 if inside else sign) << i
    return field


def insert(a: int, b: int, position: int, length: int, width: int) -> int:
    position, length = position & 255, length & 255
    mask = ((1 << length) - 1) << position & ((1 << width) - 1)
    return b & ~mask | a << position & mask


def permute(a: int, b: int, selector: int) -> int:
    data = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    chosen = [selector >> 4 * i & 15 for i in range(4)]
    return int.from_bytes([(255 * (data[s & 7] >> 7)) if s & 8 else data[s & 7] for s in chosen], "little")


def funnel(a: int, b: int, by: int, left: bool, clamp: bool) -> int:
    by = min(by, 32) if clamp else by % 32
    both = b << 32 | a
    return both << by >> 32 if left else both >> by


def meaning(name: str) -> Callable[..., object]:
    """What the instruction computes, from the text of the PTX ISA."""
    parts = name.split(".")
    head, kind = parts[0], parts[-1]
    width, floating = WIDTHS[kind], kind in ("f32", "f64")
    by_name: dict[str, Callable[..., object]] = {
        "mov": lambda a: a,
        "selp": lambda a, b, p: a if p else b,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "not": lambda a: 1 - a if kind == "pred" else ~a,
        "shl": lambda a, n: 0 if n >= width else a << n,
        "shr": lambda a, n: a >> min(n, width),
        "min": lambda a, b: pick(kind, a, b, False),
        "max": lambda a, b: pick(kind, a, b, True),
        "bfe": lambda a, p, n: bit_field(a, p, n, width, kind[0] == "s"),
        "bfi": lambda a, b, p, n: insert(a, b, p, n, width),
        "clz": lambda a: width - int(a).bit_length(),
        "popc": lambda a: int(a).bit_count(),
        "brev": lambda a: int(f"{a:032b}"[::-1], 2),
        "prmt": permute,
        "lop3": lambda a, b, c, table: sum(
            (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32)
        ),
        "shf": lambda a, b, n: funnel(a, b, n, parts[1] == "l", parts[2] == "clamp"),
    }
    if floating:
        one = real(kind)
        by_name |= {
            "add": lambda a, b: one(a) + one(b),
            "sub": lambda a, b: one(a) - one(b),
            "mul": lambda a, b: one(a) * one(b),
            "div": lambda a, b: one(a) / one(b),
            "fma": lambda a, b, c: fma(kind, a, b, c),
            "rcp": lambda a: one(1) / one(a),
            "sqrt": lambda a: np.sqrt(one(a)),
            "neg": lambda a: -one(a),
            "abs": lambda a: abs(one(a)),
        }
    else:
        by_name |= {
            "add": lambda a, b: a + b,
            "sub": lambda a, b: a - b,
            "mul": lambda a, b: a * b >> width if parts[1] == "hi" else a * b,
            "mad": lambda a, b, c: a * b + c,
            "div": truncated,
            "rem": lambda a, b: a - truncated(a, b) * b,
            "neg": lambda a: -a,
            "abs": abs,
        }
    return by_name[head]


def compare(how: str, kind: str, a: float, b: float) -> bool:
    unordered = kind in ("f32", "f64") and (math.isnan(a) or math.isnan(b))
    if how in ("nan", "num"):
        return unordered == (how == "nan")
    if how in ("lo", "ls", "hi", "hs"):
        how = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}[how]
    if len(how) == 3:
        return unordered or compare(how[:2], kind, a, b)
    return not unordered and {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[how]


# ---- cases: name, type of the result, types of the sources, meaning of the sources' values

Case = tuple[str, str, tuple[str, ...], Callable[..., object]]


def comparisons() -> list[Case]:
    cases: list[Case] = []
    for kind in (*opcodes.BITS, *opcodes.INTEGERS, *opcodes.FLOATS):
        hows = ["eq", "ne"] if kind[0] == "b" else ["eq", "ne", "lt", "le", "gt", "ge"]
        hows += ["lo", "ls", "hi", "hs"] if kind[0] == "u" else []
        hows += ["equ", "neu", "ltu", "leu", "gtu", "geu", "nan", "num"] if kind[0] == "f" else []
        for how in hows:
            cases.append((f"setp.{how}.{kind}", "pred", (kind, kind), lambda a, b, h=how, k=kind: compare(h, k, a, b)))
    for join, combine in (("and", bool.__and__), ("or", bool.__or__)):
        for kind in ("s32", "f32"):
            name = f"setp.lt.{join}.{kind}"
            run = lambda a, b, p, c=combine, k=kind: c(compare("lt", k, a, b), bool(p))  # noqa: E731
            cases.append((name, "pred", (kind, kind, "pred"), run))
    return cases


def to_integer(value: float, kind: str, source: str, how: str) -> int:
    bits = WIDTHS[kind]
    if math.isnan(value):
        return 1 << bits - 1 if bits == 64 or source == "f64" else 0
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    if math.isinf(value):
        return high if value > 0 else low
    rounded = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[how](value)
    return min(max(rounded, low), high)


def half_bits(value: float) -> int:
    with np.errstate(over="ignore"):
        return 0x7FFF if math.isnan(value) else int(np.float16(value).view(np.uint16))


def bf16_bits(value: float) -> int:
    return int(emulator.to_bf16(np.array([value], np.float32))[0])


def tf32_bits(value: float) -> int:
    if math.isnan(value):
        return 0x7FFFFFFF
    if math.isinf(value) or value == 0:
        return encode("f32", value)
    exact, step = abs(Fraction(value)), Fraction(2) ** max(math.frexp(value)[1] - 11, -136)
    units = exact / step
    rounded = math.floor(units) + (units - math.floor(units) >= Fraction(1, 2))
    return encode("f32", math.copysign(float(rounded * step), value))


def conversions() -> list[Case]:
    cases: list[Case] = [
        ("cvt.rn.f16.f32", "b16", ("f32",), half_bits),
        ("cvt.rn.bf16.f32", "b16", ("f32",), bf16_bits),
        ("cvt.f32.f16", "f32", ("b16",), lambda a: np.float32(np.uint16(a).view(np.float16))),
        ("cvt.f32.bf16", "f32", ("b16",), lambda a: np.uint32(a << 16).view(np.float32)),
        ("cvt.rn.f16x2.f32", "b32", ("f32", "f32"), lambda a, b: half_bits(a) << 16 | half_bits(b)),
        ("cvt.rn.bf16x2.f32", "b32", ("f32", "f32"), lambda a, b: bf16_bits(a) << 16 | bf16_bits(b)),
        ("cvt.rna.tf32.f32", "b32", ("f32",), tf32_bits),
        ("cvt.f64.f32", "f64", ("f32",), lambda a: a),
        ("cvt.rn.f32.f64", "f32", ("f64",), lambda a: a),
    ]
    whole = ("u8", "s8", *opcodes.INTEGERS)
    for to in whole:
        for source in whole:
            cases.append((f"cvt.{to}.{source}", to, (source,), lambda a: a))
    for to in opcodes.FLOATS:
        for source in whole:
            exact = lambda a, t=to: round_fraction(t, Fraction(a)) if a else real(t)(0)  # noqa: E731
            cases.append((f"cvt.rn.{to}.{source}", to, (source,), exact))
        for how in ("rni", "rzi", "rmi", "rpi"):
            rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[how]
            cases.append((f"cvt.{how}.{to}.{to}", to, (to,), lambda a, r=rounding, t=to: r(real(t)(a))))
            for whole_kind in opcodes.INTEGERS:
                run = lambda a, k=whole_kind, s=to, h=how: to_integer(a, k, s, h)  # noqa: E731
                cases.append((f"cvt.{how}.{whole_kind}.{to}", whole_kind, (to,), run))
    return cases


ARITHMETIC: list[Case] = [(n, op.result, op.sources, meaning(n)) for n, op in opcodes.TABLE.items()]
CASES = [*ARITHMETIC, *comparisons(), *conversions()]


def entry(index: int, case: Case) -> str:
    """PTX of one case; a predicate is read and written as 0 or 1, other types through a register of their width."""
    name, result, sources, _ = case
    lines = [f".visible .entry case_{index}(", ", ".join(f".param .u64 p{i}" for i in range(5)), ")", "{"]
    lines += [".reg .pred %p<9>;", ".reg .b16 %h<9>;", ".reg .b32 %r<9>;", ".reg .b64 %d<20>;"]
    lines += ["mov.u32 %r8, %tid.x;", "mul.wide.u32 %d10, %r8, 8;"]
    names = []
    for i, kind in enumerate(sources):
        lines += [f"ld.param.u64 %d{11 + i}, [p{i}];", f"add.s64 %d{11 + i}, %d{11 + i}, %d10;"]
        width = max(WIDTHS[kind], 16)
        if kind == "pred":
            lines += [f"ld.global.u32 %r{i}, [%d{11 + i}];", f"setp.ne.u32 %p{i}, %r{i}, 0;"]
            names.append(f"%p{i}")
        else:
            lines.append(f"ld.global.b{width} {REGISTERS[width]}{i}, [%d{11 + i}];")
            names.append(f"{REGISTERS[width]}{i}")
    width = max(WIDTHS[result], 16) if result != "pred" else 1
    target = f"{REGISTERS[width]}7"
    immediate = name == "lop3.b32"  # its table is part of the instruction
    lines.append(f"{name} {target}, {', '.join([*names[:3], '0xe2'] if immediate else names)};")
    lines += ["ld.param.u64 %d15, [p4];", "add.s64 %d15, %d15, %d10;"]
    if result == "pred":
        lines += ["selp.u32 %r7, 1, 0, %p7;", "st.global.u32 [%d15], %r7;"]
    else:
        lines.append(f"st.global.b{width} [%d15], {target};")
    return "\n".join([*lines, "ret;", "}"])


@pytest.fixture(scope="module")
def kernels() -> emulator.Kernels:
    return emulator.build_ptx("\n".join(entry(i, case) for i, case in enumerate(CASES)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("index", range(len(CASES)), ids=[case[0] for case in CASES])
def test_opcode(kernels: emulator.Kernels, index: int) -> None:
    name, result, sources, mean = CASES[index]
    operands = [bits_of(kind, i) for i, kind in enumerate(sources)]
    if name == "lop3.b32":
        operands[3][:] = 0xE2
    if name.startswith(("div", "rem")) and sources[1][0] in "us":
        mask = np.uint64((1 << WIDTHS[sources[1]]) - 1)
        operands[1] = np.where(operands[1] & mask == 0, np.uint64(3), operands[1])
    devices = [emulator.upload(f"operand {i}", bits) for i, bits in enumerate(operands)]
    out = emulator.upload("out", np.zeros(COUNT, np.uint64))
    unused = [devices[0]] * (4 - len(devices))
    kernels.launch(f"case_{index}", (1,), COUNT, 0, *devices, *unused, out, checks=False)
    for i, got in enumerate(out.numpy()):
        values = [decode(kind, int(bits[i])) for kind, bits in zip(sources, operands, strict=True)]
        expected = mean(*values)
        shown = f"{name} of {values}: {decode(result, int(got))}, expected {expected}"
        if result in ("f32", "f64") and math.isnan(float(expected)):
            assert math.isnan(decode(result, int(got))), shown
        elif result == "pred":
            assert bool(got) == bool(expected), shown
        else:  # an 8-bit result stands in a 16-bit register, extended by its sign
            width = max(16, WIDTHS[result])
            wide = result if WIDTHS[result] >= 16 else f"{result[0]}16"
            value = decode(result, encode(result, expected)) if WIDTHS[result] < 16 else expected
            assert int(got) & ((1 << width) - 1) == encode(wide, value), shown


@pytest.mark.parametrize(
    "instruction",
    [
        "add.f32x2 %d1, %d1, %d1;",
        "add.rz.f32 %r1, %r1, %r1;",
        "mul.ftz.f32 %r1, %r1, %r1;",
        "cvt.sat.f32.f32 %r1, %r1;",
        "atom.global.add.u32 %r1, [%d1], %r1;",
        "ld.global.b128 %d1, [%d1];",
        "bar.arrive 0, 64;",
        "shfl.sync.bfly.b32 %r1, %r1, 1, 31, 0xffff;",
        "shfl.sync.bfly.b32 %r1, %r1, 1, 31, %r2;",
        "mov.b32 %r2, -1; add.u32 %r2, %r2, 1; shfl.sync.bfly.b32 %r1, %r1, 1, 31, %r2;",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1}, {%r1}, {%r1}, {%r1};",
        "mov.u32 %r1, %clock;",
        "bra $elsewhere;",
    ],
)
def test_what_is_not_known_is_an_error(instruction: str) -> None:
    text = f".visible .entry k(\n.param .u64 p\n)\n{{\n.reg .b32 %r<4>;\n.reg .b64 %d<4>;\n{instruction}\nret;\n}}\n"
    with pytest.raises(Unsupported):
        emulator.build_ptx(text)
