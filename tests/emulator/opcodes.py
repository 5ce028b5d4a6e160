"""The arithmetic of PTX as C++ expressions: what each opcode does with the values of its source operands.

`expression(opcode)` gives the type of the result, the types of the sources and a template with {0}, {1}, ... for them.
Integers wrap, so sums and products are computed unsigned. Rounding modes, .ftz, .sat and types that are not listed are
unknown opcodes: a hard error. tests/test_emulator_opcodes.py holds every line to semantics written in Python.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .ptx import Unsupported

CPP = {"pred": "bool", "f32": "float", "f64": "double"}
CPP |= {f"{kind}{bits}": f"{'' if kind == 's' else 'u'}int{bits}_t" for kind in "bus" for bits in (8, 16, 32, 64)}
INTEGERS = tuple(f"{kind}{bits}" for kind in "us" for bits in (16, 32, 64))
SIGNED = ("s16", "s32", "s64")
BITS = ("b16", "b32", "b64")
FLOATS = ("f32", "f64")
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


@dataclass(frozen=True)
class Operation:
    result: str
    sources: tuple[str, ...]
    template: str


TABLE: dict[str, Operation] = {}


def _define(name: str, result: str, sources: str, template: str) -> None:
    assert name not in TABLE, name
    TABLE[name] = Operation(result, tuple(sources.split()), template)


def _unsigned(kind: str) -> str:
    """The type to compute a wrapping result in: 16 bits would be promoted to int."""
    return "uint32_t" if kind.endswith("16") else CPP["u" + kind[1:]]


def _shift_right(kind: str) -> str:
    """As far as the type is wide or farther: what is left is the sign of a signed type, or nothing."""
    bits = kind[1:]
    if kind[0] == "s":
        return f"{{0}} >> ({{1}} < {bits} ? {{1}} : {int(bits) - 1})"
    return f"{{1}} < {bits} ? {{0}} >> {{1}} : 0"


def _integers() -> None:
    for t in INTEGERS:
        u = _unsigned(t)
        for name, sign in (("add", "+"), ("sub", "-"), ("mul.lo", "*")):
            _define(f"{name}.{t}", t, f"{t} {t}", f"({u})({{0}}) {sign} ({u})({{1}})")
        _define(f"mad.lo.{t}", t, f"{t} {t} {t}", f"({u})({{0}}) * ({u})({{1}}) + ({u})({{2}})")
        _define(f"mul.hi.{t}", t, f"{t} {t}", "mul_hi({0}, {1})")
        _define(f"div.{t}", t, f"{t} {t}", f"divide<{CPP[t]}>({{0}}, {{1}})")
        _define(f"rem.{t}", t, f"{t} {t}", f"remainder<{CPP[t]}>({{0}}, {{1}})")
        _define(f"min.{t}", t, f"{t} {t}", f"minimum<{CPP[t]}>({{0}}, {{1}})")
        _define(f"max.{t}", t, f"{t} {t}", f"maximum<{CPP[t]}>({{0}}, {{1}})")
        _define(f"shr.{t}", t, f"{t} u32", _shift_right(t))
        if t in WIDER:
            wide, w = WIDER[t], CPP[WIDER[t]]
            _define(f"mul.wide.{t}", wide, f"{t} {t}", f"({w})({{0}}) * ({w})({{1}})")
            uw = CPP["u" + wide[1:]]
            _define(f"mad.wide.{t}", wide, f"{t} {t} {wide}", f"({uw})(({w})({{0}}) * ({w})({{1}})) + ({uw})({{2}})")
    for t in SIGNED:
        _define(f"neg.{t}", t, t, f"0 - ({_unsigned(t)})({{0}})")
        _define(f"abs.{t}", t, t, f"{{0}} < 0 ? 0 - ({_unsigned(t)})({{0}}) : ({_unsigned(t)})({{0}})")


def _bits() -> None:
    for t in (*BITS, "pred"):
        for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
            _define(f"{name}.{t}", t, f"{t} {t}", f"{{0}} {sign} {{1}}")
        _define(f"not.{t}", t, t, "!{0}" if t == "pred" else "~{0}")
    for t in BITS:
        _define(f"shl.{t}", t, f"{t} u32", f"{{1}} < {t[1:]} ? {{0}} << {{1}} : 0")
        _define(f"shr.{t}", t, f"{t} u32", _shift_right(t))
    for t in ("u32", "s32", "u64", "s64"):
        _define(f"bfe.{t}", t, f"{t} u32 u32", f"extract_bits<{CPP[t]}>({{0}}, {{1}}, {{2}})")
    for t in ("b32", "b64"):
        _define(f"bfi.{t}", t, f"{t} {t} u32 u32", f"insert_bits<{CPP[t]}>({{0}}, {{1}}, {{2}}, {{3}})")
        _define(f"clz.{t}", "u32", t, "count_leading_zeros({0})")
        _define(f"popc.{t}", "u32", t, "count_bits({0})")
    _define("brev.b32", "b32", "b32", "reverse_bits({0})")
    _define("prmt.b32", "b32", "b32 b32 b32", "permute_bytes({0}, {1}, {2})")
    _define("lop3.b32", "b32", "b32 b32 b32 b32", "logic3({0}, {1}, {2}, {3})")
    for side in "lr":
        for mode in ("clamp", "wrap"):
            call = f"funnel_shift({str(side == 'l').lower()}, {str(mode == 'clamp').lower()}, {{0}}, {{1}}, {{2}})"
            _define(f"shf.{side}.{mode}.b32", "b32", "b32 b32 u32", call)


def _floats() -> None:
    for t in FLOATS:
        c = CPP[t]
        for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
            for rounding in ("", ".rn"):
                _define(f"{name}{rounding}.{t}", t, f"{t} {t}", f"{{0}} {sign} {{1}}")
        _define(f"div.rn.{t}", t, f"{t} {t}", "{0} / {1}")
        _define(f"fma.rn.{t}", t, f"{t} {t} {t}", "std::fma({0}, {1}, {2})")
        _define(f"rcp.rn.{t}", t, t, f"{c}(1) / {{0}}")
        _define(f"sqrt.rn.{t}", t, t, "std::sqrt({0})")
        _define(f"neg.{t}", t, t, "-{0}")
        _define(f"abs.{t}", t, t, "std::fabs({0})")
        _define(f"min.{t}", t, f"{t} {t}", f"minimum<{c}>({{0}}, {{1}})")
        _define(f"max.{t}", t, f"{t} {t}", f"maximum<{c}>({{0}}, {{1}})")


def _moves() -> None:
    for t in ("pred", *BITS, *INTEGERS, *FLOATS):
        _define(f"mov.{t}", t, t, "{0}")
        if t != "pred":
            _define(f"selp.{t}", t, f"{t} {t} pred", "{2} ? {0} : {1}")


COMPARISONS: dict[str, str] = {"eq": "=", "ne": "!", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def compare(name: str, kind: str) -> str:
    """The C++ condition of a comparison of two values of the type; with NaN, *u forms are true and the others false."""
    if kind in FLOATS:
        ordered = {"eq": "{0} == {1}", "ne": "{0} < {1} || {0} > {1}"}
        ordered |= {name: f"{{0}} {COMPARISONS[name]} {{1}}" for name in ("lt", "le", "gt", "ge")}
        if name in ordered:
            return ordered[name]
        if name.endswith("u") and name[:-1] in ordered:
            opposite = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}[name]
            return f"!({ordered[opposite]})"
        if name in ("nan", "num"):
            return "std::isnan({0}) || std::isnan({1})" if name == "nan" else "!std::isnan({0}) && !std::isnan({1})"
    signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    if name in ("eq", "ne") or (kind in INTEGERS and name in signs):
        return f"{{0}} {signs[name]} {{1}}"
    unsigned = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
    if name in unsigned and kind in INTEGERS and kind[0] == "u":
        return f"{{0}} {unsigned[name]} {{1}}"
    raise Unsupported(f"comparison {name}.{kind}")


def convert(modifiers: tuple[str, ...]) -> Operation:
    """cvt: the modifiers are everything behind `cvt.`."""
    special = {
        ("rn", "f16", "f32"): Operation("b16", ("f32",), "detail::round_to_half({0})"),
        ("rn", "bf16", "f32"): Operation("b16", ("f32",), "detail::round_to_bf16({0})"),
        ("f32", "f16"): Operation("f32", ("b16",), "to_float(half{{{0}}})"),
        ("f32", "bf16"): Operation("f32", ("b16",), "to_float(bf16{{{0}}})"),
        ("rn", "bf16x2", "f32"): Operation("b32", ("f32", "f32"), "pack_pair<bf16>({1}, {0})"),
        ("rn", "f16x2", "f32"): Operation("b32", ("f32", "f32"), "pack_pair<half>({1}, {0})"),
        ("rna", "tf32", "f32"): Operation("b32", ("f32",), "to_tf32({0})"),
        ("f64", "f32"): Operation("f64", ("f32",), "static_cast<double>({0})"),
        ("rn", "f32", "f64"): Operation("f32", ("f64",), "static_cast<float>({0})"),
    }
    if modifiers in special:
        return special[modifiers]
    *rounding, to, source = modifiers
    whole = ("u8", "s8", *INTEGERS)
    modes = {"rni": "kNearest", "rzi": "kZero", "rmi": "kDown", "rpi": "kUp"}
    if to in whole and source in whole and not rounding:
        return Operation(to, (source,), f"static_cast<{CPP[to]}>({{0}})")
    if to in FLOATS and source in whole and rounding == ["rn"]:
        return Operation(to, (source,), f"static_cast<{CPP[to]}>({{0}})")
    if source in FLOATS and len(rounding) == 1 and rounding[0] in modes:
        rounded = f"round_to_integer({{0}}, Round::{modes[rounding[0]]})"
        if to in INTEGERS:
            return Operation(to, (source,), f"to_integer<{CPP[to]}>({rounded})")
        if to == source:
            return Operation(to, (source,), rounded)
    raise Unsupported(f"cvt.{'.'.join(modifiers)}")


def set_predicate(modifiers: tuple[str, ...]) -> Operation:
    """setp.compare[.and|.or|.xor].type: with a Boolean operation a predicate is the third source."""
    kinds = (*BITS, *INTEGERS, *FLOATS)
    if len(modifiers) == 2 and modifiers[1] in kinds:
        return Operation("pred", (modifiers[1],) * 2, compare(modifiers[0], modifiers[1]))
    joins = {"and": "&&", "or": "||"}
    if len(modifiers) == 3 and modifiers[1] in joins and modifiers[2] in kinds:
        condition = compare(modifiers[0], modifiers[2])
        return Operation("pred", (*(modifiers[2],) * 2, "pred"), f"({condition}) {joins[modifiers[1]]} {{2}}")
    raise Unsupported(f"setp.{'.'.join(modifiers)}")


FAMILIES: dict[str, Callable[[tuple[str, ...]], Operation]] = {"cvt": convert, "setp": set_predicate}


def operation(opcode: tuple[str, ...]) -> Operation:
    if opcode[0] in FAMILIES:
        return FAMILIES[opcode[0]](opcode[1:])
    name = ".".join(opcode)
    if name not in TABLE:
        raise Unsupported(name)
    return TABLE[name]


_integers()
_bits()
_floats()
_moves()
