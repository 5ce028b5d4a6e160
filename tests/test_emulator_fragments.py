"""What a warp does together: fragments of mma and ldmatrix, shuffles, votes; and how loads, stores and moves pack.

The layouts below are written down from the PTX ISA ("Matrix Fragments for mma"), element by element, as formulae of
groupID = lane / 4 and threadID_in_group = lane % 4: an independent statement of what collectives.cpp computes.
"""

from collections.abc import Callable, Sequence

import emulator
import numpy as np
import pytest
from emulator.ptx import WIDTHS
from ptx_kernels import PtxKernels, names, put_words, words

LANES = 32
Layout = Callable[[int, int, int], tuple[int, int]]  # groupID, threadID_in_group, element i -> row, column


def layouts(shape: str) -> tuple[Layout, Layout, int, int]:
    """Of A (M, K) and B (K, N), and how many elements of them a lane holds."""
    if shape == "m16n8k16":
        return (
            lambda g, t, i: (g if i < 2 or 4 <= i < 6 else g + 8, t * 2 + (i & 1) + (0 if i < 4 else 8)),
            lambda g, t, i: (t * 2 + (i & 1) + (0 if i < 2 else 8), g),
            8,
            4,
        )
    if shape == "m16n8k8":
        return lambda g, t, i: (g if i < 2 else g + 8, t * 2 + (i & 1)), lambda g, t, i: (t * 2 + i, g), 4, 2
    assert shape == "tf32"  # m16n8k8
    return lambda g, t, i: (g if i in (0, 2) else g + 8, t if i < 2 else t + 4), lambda g, t, i: (t + 4 * i, g), 4, 2


def accumulator(g: int, t: int, i: int) -> tuple[int, int]:
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


def fragment(matrix: np.ndarray, layout: Layout, elements: int) -> np.ndarray:
    """(32, elements): what every lane holds."""
    return np.array([[matrix[layout(l // 4, l % 4, i)] for i in range(elements)] for l in range(LANES)])  # noqa: E741


KERNELS = PtxKernels()


def run(name: str, arrays: Sequence[np.ndarray], out: np.ndarray, shared: int = 0) -> np.ndarray:
    devices = [emulator.upload(f"p{i}", array) for i, array in enumerate(arrays)]
    result = emulator.upload("out", out)
    KERNELS.compiled.launch(name, (1,), LANES, shared, *devices, result)
    return result.numpy()


MMA = {  # the shapes' layouts, elements and names
    "m16n8k16-bf16": "m16n8k16.row.col.f32.bf16.bf16.f32",
    "m16n8k16-f16": "m16n8k16.row.col.f32.f16.f16.f32",
    "m16n8k8-bf16": "m16n8k8.row.col.f32.bf16.bf16.f32",
    "m16n8k8-f16": "m16n8k8.row.col.f32.f16.f16.f32",
    "tf32-tf32": "m16n8k8.row.col.f32.tf32.tf32.f32",
}
ENCODE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bf16": emulator.to_bf16,
    "f16": lambda x: x.astype(np.float16).view(np.uint16),
    "tf32": lambda x: x.view(np.uint32) | 0x1FFF,  # the low 13 bits are not looked at
}
for _case, _name in MMA.items():
    _words = {"m16n8k16": (4, 2), "m16n8k8": (2, 1), "tf32": (4, 2)}[_case.partition("-")[0]]
    _operands = [names("f", 4, 4), names("r", 4, _words[0]), names("r", 12, _words[1]), names("f", 0, 4)]
    _body = [*words("r", 4, _words[0], 0), *words("r", 12, _words[1], 1), *words("f", 0, 4, 2)]
    _body += [f"mma.sync.aligned.{_name} {', '.join(_operands)};", *put_words("f", 4, 4, 3)]
    KERNELS.add(f"mma_{_case.replace('-', '_')}", _body, 4)


@pytest.mark.parametrize("case", MMA)
def test_mma(case: str) -> None:
    shape, element = case.split("-")
    of_a, of_b, a_elements, b_elements = layouts(shape)
    draw = np.random.default_rng(1)
    depth = 16 if shape == "m16n8k16" else 8
    # Small integers: exact in every format, and in any order of summation.
    a, b = draw.integers(-8, 9, (16, depth)).astype(np.float32), draw.integers(-8, 9, (depth, 8)).astype(np.float32)
    c = draw.integers(-99, 99, (16, 8)).astype(np.float32)
    arrays = [fragment(a, of_a, a_elements), fragment(b, of_b, b_elements)]
    arrays = [np.ascontiguousarray(ENCODE[element](array.astype(np.float32))).view(np.uint32) for array in arrays]
    arrays.append(fragment(c, accumulator, 4).astype(np.float32))
    got = run(f"mma_{case.replace('-', '_')}", arrays, np.zeros((LANES, 4), np.float32))
    np.testing.assert_array_equal(got, fragment(a @ b + c, accumulator, 4))


for _count in (1, 2, 4):
    for _trans in ("", ".trans"):
        _body = [*words("r", 1, 4, 0), "mov.u32 %r30, dynamic;", "mad.lo.u32 %r31, %r0, 16, %r30;"]
        _body += [f"st.shared.v4.b32 [%r31], {names('r', 1, 4)};", "bar.sync 0;", *words("r", 8, 1, 1)]
        _body += ["mad.lo.u32 %r32, %r8, 16, %r30;"]
        _body += [f"ldmatrix.sync.aligned.m8n8.x{_count}{_trans}.shared.b16 {names('r', 12, _count)}, [%r32];"]
        KERNELS.add(f"ldmatrix_{_count}{bool(_trans)}", [*_body, *put_words("r", 12, _count, 2)], 3)


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, transposed: bool) -> None:
    """Lane l receives of matrix i the elements (l/4, 2(l%4)) and its right neighbour; of its transpose with .trans."""
    matrices = np.random.default_rng(2).integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    rows = np.random.default_rng(3).permutation(32)  # where row r of all 4 x 8 stands in shared memory
    shared = np.zeros((32, 8), np.uint16)
    shared[rows] = matrices.reshape(32, 8)
    arrays = [shared.view(np.uint32), rows.astype(np.uint32)[:, None]]
    got = run(f"ldmatrix_{count}{transposed}", arrays, np.zeros((LANES, count), np.uint32), shared=512)
    for lane in range(LANES):
        for i in range(count):
            matrix = matrices[i].T if transposed else matrices[i]
            low, high = matrix[lane // 4, lane % 4 * 2], matrix[lane // 4, lane % 4 * 2 + 1]
            assert got[lane, i] == int(low) | int(high) << 16


_body = [*words("r", 1, 1, 0), "movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1;", *put_words("r", 2, 1, 1)]
KERNELS.add("movmatrix", _body, 2)


def test_movmatrix() -> None:
    matrix = np.random.default_rng(4).integers(0, 1 << 16, (8, 8)).astype(np.uint16)
    pairs = np.ascontiguousarray(matrix).view(np.uint32).reshape(LANES, 1)  # lane l: (l/4, 2(l%4)) and its neighbour
    got = run("movmatrix", [pairs], np.zeros((LANES, 1), np.uint32))
    np.testing.assert_array_equal(got, np.ascontiguousarray(matrix.T).view(np.uint32).reshape(LANES, 1))


SHUFFLES: dict[str, Callable[[int, int, int], tuple[int, bool]]] = {  # lane, b, segment width: source, in range
    "up": lambda lane, b, w: (lane - b, lane - b >= lane // w * w),
    "down": lambda lane, b, w: (lane + b, lane + b <= lane // w * w + w - 1),
    "bfly": lambda lane, b, w: (lane ^ b, (lane ^ b) <= lane // w * w + w - 1),
    "idx": lambda lane, b, w: (lane // w * w + b % w, True),
}
for _mode in SHUFFLES:
    for _width in (32, 8):
        _clamp = (32 - _width) << 8 | (0 if _mode == "up" else 31)
        _body = ["mad.lo.u32 %r1, %r0, 7, 1000;", f"shfl.sync.{_mode}.b32 %r2|%p1, %r1, 3, {_clamp}, -1;"]
        KERNELS.add(f"shuffle_{_mode}{_width}", [*_body, "selp.u32 %r3, 1, 0, %p1;", *put_words("r", 2, 2, 0)], 1)


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("mode", SHUFFLES)
def test_shuffle(mode: str, width: int) -> None:
    """Segments of `width` lanes, as CUDA's __shfl_*_sync makes them; a lane out of range keeps its own value."""
    got = run(f"shuffle_{mode}{width}", [], np.zeros((LANES, 2), np.uint32))
    for lane in range(LANES):
        source, valid = SHUFFLES[mode](lane, 3, width)
        assert tuple(got[lane]) == (1000 + 7 * (source if valid else lane), valid)


_body = [*words("r", 1, 1, 0), "setp.ne.u32 %p1, %r1, 0;", "vote.sync.any.pred %p2, %p1, -1;"]
_body += ["vote.sync.all.pred %p3, %p1, -1;", "vote.sync.ballot.b32 %r6, %p1, 0xffffffff;"]
_body += ["selp.u32 %r4, 1, 0, %p2;", "selp.u32 %r5, 1, 0, %p3;", *put_words("r", 4, 3, 1)]
KERNELS.add("vote", _body, 2)


@pytest.mark.parametrize("members", [(), range(32), (3, 17)], ids=["none", "all", "two"])
def test_vote(members: Sequence[int]) -> None:
    chosen = np.isin(np.arange(LANES), members).astype(np.uint32)[:, None]
    got = run("vote", [chosen], np.zeros((LANES, 3), np.uint32))
    assert (got == [len(members) > 0, len(members) == 32, sum(1 << lane for lane in members)]).all()


KINDS = ("u8", "s8", "u16", "s16", "b32", "f32", "b64", "f64")
for _kind in KINDS:
    _size = WIDTHS[_kind] // 8
    _first, _second = ("%d30", "%d24") if _size == 8 else ("%r30", "%r31")
    _body = [f"mul.wide.u32 %d21, %r0, {_size};", "add.s64 %d22, %d21, %d0;", f"ld.global.nc.{_kind} {_first}, [%d22];"]
    _body += ["mov.u64 %d23, dynamic;", "add.s64 %d23, %d23, %d21;", f"st.shared.{_kind} [%d23], {_first};"]
    _body += [f"ld.shared.{_kind} {_second}, [%d23];", *([] if _size == 8 else ["cvt.s64.s32 %d24, %r31;"])]
    KERNELS.add(f"extend_{_kind}", [*_body, "add.s64 %d25, %d11, %d1;", "st.global.u64 [%d25], %d24;"], 2)


@pytest.mark.parametrize("kind", KINDS)
def test_loads_extend_and_stores_cut(kind: str) -> None:
    """ld of a narrow type fills its register with zeros or the sign, st writes no more than its type."""
    size = WIDTHS[kind] // 8
    data = np.random.default_rng(5).integers(0, 256, (LANES, size)).astype(np.uint8)
    got = run(f"extend_{kind}", [data], np.zeros(LANES, np.int64), shared=512)
    as_numpy = {"b": "i", "u": "u", "s": "i", "f": "i"}[kind[0]] + str(size)
    np.testing.assert_array_equal(got, data.view(as_numpy).reshape(-1).astype(np.int64))


_body = ["add.s64 %d21, %d12, %d0;", "ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%d21];"]
_body += ["mov.b64 %d22, {%r1, %r2};", "mov.b64 {%r5, %r6}, %d22;", "mov.b32 {%h1, %h2}, %r3;"]
_body += ["mov.b32 %r7, {%h2, %h1};", "{ .reg .b16 tmp; mov.b32 {tmp, %h3}, %r4; }", "cvt.u32.u16 %r8, %h3;"]
_body += ["mov.u32 %r9, dynamic;", "cvt.u64.u32 %d23, %r9;", "cvta.shared.u64 %d24, %d23;", "add.s64 %d24, %d24, %d12;"]
_body += ["st.v2.b32 [%d24], {%r5, %r6};", "cvta.to.shared.u64 %d25, %d24;"]
_body += ["st.shared.v2.b32 [%d25+8], {%r7, %r8};", "ld.v2.b64 {%d26, %d27}, [%d24];", "add.s64 %d28, %d12, %d1;"]
KERNELS.add("parts", [*_body, "st.global.v2.b64 [%d28], {%d26, %d27};"], 2)


def test_vectors_and_parts() -> None:
    """v2 and v4 in order; mov between a register and its parts, low part first; generic addresses of shared memory."""
    data = np.random.default_rng(6).integers(0, 1 << 32, (LANES, 4)).astype(np.uint32)
    got = run("parts", [data], np.zeros((LANES, 4), np.uint32), shared=512)
    swapped = data[:, 2] << 16 | data[:, 2] >> 16
    np.testing.assert_array_equal(got, np.stack([data[:, 0], data[:, 1], swapped, data[:, 3] >> 16], 1))


SPECIALS = ("tid.x", "tid.y", "tid.z", "laneid", "ntid.x", "ntid.y", "ctaid.x", "ctaid.y", "ctaid.z", "nctaid.x")
SPECIALS += ("nctaid.y", "nctaid.z")
_body = [f"mov.u32 %r{20 + i}, %{name};" for i, name in enumerate(SPECIALS)]
_body += ["mad.lo.u32 %r5, %r28, %r30, %r27;", "mad.lo.u32 %r5, %r5, %r29, %r26;", "mad.lo.u32 %r0, %r5, 64, %r0;"]
KERNELS.add("indices", [*_body, *put_words("r", 20, 12, 0)], 1)


def test_indices() -> None:
    out = emulator.upload("out", np.zeros((4, 3, 2, 64, 12), np.uint32))
    KERNELS.compiled.launch("indices", (2, 3, 4), 64, 0, out)
    got = out.numpy()
    for z, y, x, thread in np.ndindex(4, 3, 2, 64):
        assert list(got[z, y, x, thread]) == [thread, 0, 0, thread % 32, 64, 1, x, y, z, 2, 3, 4]
