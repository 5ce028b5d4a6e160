"""What the runtime must see, and must not see, in kernels of a few instructions; and that it counts right.

The faults that executors have had are here too: copies attributed to other instructions, sources out of bounds, copies
counted twice, ownership that outlives a launch, buffers that are not aligned.
"""

import gc
from collections.abc import Sequence

import emulator
import numpy as np
import pytest
from ptx_kernels import PtxKernels, put_words, words

KERNELS = PtxKernels()
SHARED = ["mov.u32 %r30, dynamic;", "mad.lo.u32 %r31, %r0, 4, %r30;"]  # %r31: this thread's word
STORE = ["st.shared.u32 [%r31], %r0;"]


def launch(
    name: str, *arrays: emulator.DeviceArray, grid: int = 1, threads: int = 64, shared: int = 1024, **options: object
) -> list[dict]:
    return KERNELS.compiled.launch(name, (grid,), threads, shared, *arrays, **options)


def load_of(thread: str) -> list[str]:
    """Reads the word of the thread whose number is in the register."""
    return [f"mad.lo.u32 %r32, {thread}, 4, %r30;", "ld.shared.u32 %r2, [%r32];"]


NEXT_LANE = ["xor.b32 %r1, %r0, 1;"]  # of the same warp
NEXT_WARP = ["xor.b32 %r1, %r0, 32;"]
WAIT = {"block": ["bar.sync 0;"], "warp": ["bar.warp.sync -1;"], "named": ["bar.sync 3, 64;"], "none": []}
for _barrier, _wait in WAIT.items():
    for _other, _with in (("lane", NEXT_LANE), ("warp", NEXT_WARP)):
        _exchange = [*SHARED, *STORE, *_wait, *_with, *load_of("%r1"), *put_words("r", 2, 1, 0)]
        KERNELS.add(f"exchange_{_barrier}_{_other}", _exchange, 1)
        _overwrite = [*SHARED, *STORE, "bar.sync 0;", *_with, *load_of("%r1"), *_wait, *STORE, *put_words("r", 2, 1, 0)]
        KERNELS.add(f"overwrite_{_barrier}_{_other}", _overwrite, 1)


@pytest.mark.parametrize("order", ["exchange", "overwrite"])
@pytest.mark.parametrize("other", ["lane", "warp"])
@pytest.mark.parametrize("barrier", WAIT)
def test_barriers_order_what_they_join(barrier: str, other: str, order: str) -> None:
    """A write and another thread's read, or a read and another thread's write, are a race unless a barrier of both
    lies between; whatever order happens to run."""
    ordered = barrier in ("block", "named") or (barrier, other) == ("warp", "lane")
    for seed in range(3):
        out = emulator.empty("out", (64,), np.uint32)
        if ordered:
            launch(f"{order}_{barrier}_{other}", out, seed=seed)
            np.testing.assert_array_equal(out.numpy(), np.arange(64) ^ (1 if other == "lane" else 32))
        else:
            # Before the other has written, there is nothing to race with yet.
            race = r"race: (reads|writes) shared\+0x\w+, which thread \d+|uninitialised read: shared"
            with pytest.raises(emulator.Fault, match=race):
                launch(f"{order}_{barrier}_{other}", out, seed=seed)


# name: kind of the fault, body, its parameters
FAULTS: dict[str, tuple[str, list[str]]] = {
    "shared memory that nobody wrote": ("uninitialised read", [*SHARED, *load_of("%r0"), *put_words("r", 2, 1, 0)]),
    "past the end of shared memory": ("out of bounds", [*SHARED, "st.shared.u32 [%r31+1000], %r0;"]),
    "before shared memory": ("out of bounds", [*SHARED, "st.shared.u32 [%r31+-256], %r0;"]),
    "misaligned shared vector": ("misaligned", [*SHARED, "st.shared.v4.u32 [%r31], {%r0, %r0, %r0, %r0};"]),
    "past the end of a buffer": ("out of bounds", ["add.s64 %d20, %d0, %d10;", "st.global.u32 [%d20+16], %r0;"]),
    "before a buffer": ("out of bounds", ["ld.global.u32 %r1, [%d0+-4];"]),
    "null": ("out of bounds", ["mov.u64 %d20, 0;", "ld.global.u32 %r1, [%d20];"]),
    "misaligned global vector": ("misaligned", ["st.global.v2.u32 [%d0+4], {%r0, %r0};"]),
    "global memory that nobody wrote": ("uninitialised read", words("r", 1, 1, 0)),
    "two threads write one word": ("race", ["st.global.u32 [%d0], %r0;"]),
    "copy from past the end of a buffer": (
        "out of bounds",
        [*SHARED, "add.s64 %d20, %d1, %d10;", "cp.async.ca.shared.global [%r31], [%d20+16], 4;"],
    ),
    "copy that ends past the end of a buffer": (
        "out of bounds",
        ["mad.lo.u32 %r31, %r0, 16, 1024;", "cp.async.cg.shared.global [%r31], [%d0+256], 16;"],
    ),
    "misaligned copy": ("misaligned", [*SHARED, "cp.async.ca.shared.global [%r31], [%d0+4], 8;"]),
    "copy read before it is waited for": (
        "copy not waited for",
        [
            *SHARED,
            "add.s64 %d20, %d1, %d10;",
            "cp.async.ca.shared.global [%r31], [%d20], 4;",
            "cp.async.commit_group;",
            "cp.async.wait_group 1;",
            *load_of("%r0"),
            *put_words("r", 2, 1, 0),
        ],
    ),
    "copy waited for without a commit": (
        "copy not waited for",
        [
            *SHARED,
            "add.s64 %d20, %d1, %d10;",
            "cp.async.ca.shared.global [%r31], [%d20], 4;",
            "cp.async.wait_group 0;",
            *load_of("%r0"),
            *put_words("r", 2, 1, 0),
        ],
    ),
    "copy that others read without a barrier": (
        "race or copy not waited for or uninitialised read",  # as the other warp has come
        [
            *SHARED,
            "add.s64 %d20, %d1, %d10;",
            "cp.async.ca.shared.global [%r31], [%d20], 4;",
            "cp.async.wait_all;",
            *NEXT_WARP,
            *load_of("%r1"),
            *put_words("r", 2, 1, 0),
        ],
    ),
    "barrier that half a warp misses": (
        "divergence",
        ["setp.lt.u32 %p1, %r0, 16;", "@%p1 bra $Out;", "bar.sync 0;", "$Out:"],
    ),
    "shuffle that one lane misses": (
        "divergence",
        ["setp.eq.u32 %p1, %r0, 5;", "@%p1 bra $Out;", "shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;", "$Out:"],
    ),
    "lanes at two different shuffles": (
        "divergence",
        [
            "setp.lt.u32 %p1, %r0, 40;",
            "@%p1 bra $Out;",
            "shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;",
            "ret;",
            "$Out:",
            "shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;",
        ],
    ),
    "barrier that one warp misses": (
        "deadlock",
        ["setp.lt.u32 %p1, %r0, 32;", "@%p1 bra $Out;", "bar.sync 0;", "$Out:"],
    ),
    "warps at two different barriers": (
        "deadlock",
        ["shr.u32 %r1, %r0, 5;", "add.u32 %r1, %r1, 1;", "bar.sync %r1, 64;"],
    ),
    "loop without an end": ("deadlock", ["$Again:", "bra $Again;"]),
}
for _name, (_, _body) in FAULTS.items():
    KERNELS.add(f"fault_{_name.replace(' ', '_')}", _body, 2)


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    out, given = emulator.empty("out", (65,), np.uint32), emulator.upload("given", np.arange(64, dtype=np.uint32))
    for landing in emulator.LANDINGS:
        with pytest.raises(emulator.Fault) as caught:
            launch(f"fault_{name.replace(' ', '_')}", out, given, landing=landing)
        assert caught.value.kind in FAULTS[name][0].split(" or "), caught.value
        assert "thread " in str(caught.value)


_by_block = ["mov.u32 %r3, %ctaid.x;"]
KERNELS.add("blocks_apart", [*_by_block, "mad.lo.u32 %r0, %r3, 64, %r0;", *put_words("r", 3, 1, 0)], 1)
KERNELS.add("blocks_together", [*_by_block, *put_words("r", 3, 1, 0)], 1)
KERNELS.add("block_reads_another", [*_by_block, *words("r", 5, 1, 0), "mad.lo.u32 %r0, %r3, 64, %r0;",
                                    *put_words("r", 3, 1, 0)], 1)  # fmt: skip


def test_blocks_may_not_share_what_one_writes() -> None:
    out = emulator.upload("out", np.zeros(256, np.uint32))
    launch("blocks_apart", out, grid=4)
    np.testing.assert_array_equal(out.numpy(), np.repeat(np.arange(4), 64))
    for name in ("blocks_together", "block_reads_another"):
        with pytest.raises(emulator.Fault, match="block race"):
            launch(name, out, grid=4)


def test_ownership_ends_with_the_launch() -> None:
    """Other blocks may write in the next launch, and memory that is handed out again has no past."""
    gc.collect()  # what exceptions of other tests may hold
    out = emulator.empty("out", (256,), np.uint32)
    for seed in range(4):
        launch("blocks_apart", out, grid=4, seed=seed)
    launch("blocks_together", out, grid=1)
    address = out.address
    del out
    again = emulator.empty("again", (256,), np.uint32)
    assert again.address == address
    with pytest.raises(emulator.Fault, match=r"uninitialised read: again\+0x"):
        launch("block_reads_another", again, grid=1)
    launch("blocks_apart", again, grid=2)


def test_buffers_start_at_256_bytes() -> None:
    """At 16 bytes, rows of 32-byte sectors would be counted half as many again."""
    sizes = (1, 33, 1000, 7)
    assert all(emulator.upload(f"b{n}", np.zeros(n, np.uint8)).address % 256 == 0 for n in sizes)
    kept = [emulator.upload(f"b{n}", np.zeros(n, np.uint8)) for n in sizes]
    assert all(array.address % 256 == 0 for array in kept)


# ---- counting. Thread i copies 16 bytes of row i in round j; in odd rounds every other lane does not.
_copy = ["add.s64 %d20, %d1, %d12;", "mad.lo.u32 %r31, %r0, 16, 1024;", "mov.u32 %r4, 0;", "and.b32 %r7, %r0, 1;"]
_round = ["mad.wide.u32 %d21, %r4, 1024, %d20;", "mad.lo.u32 %r6, %r4, 1024, %r31;", "and.b32 %r5, %r4, %r7;"]
_end = ["add.u32 %r4, %r4, 1;", "setp.lt.u32 %p2, %r4, 4;", "@%p2 bra $Round;"]
_end += ["cp.async.commit_group;", "cp.async.wait_group 0;"]
for _how in ("predicate", "branch"):
    _skip = ["setp.eq.u32 %p1, %r5, 0;", "@%p1 cp.async.cg.shared.global [%r6], [%d21], 16;"]
    if _how == "branch":
        _skip = [
            "setp.ne.u32 %p1, %r5, 0;",
            "@%p1 bra $Skip;",
            "cp.async.cg.shared.global [%r6], [%d21], 16;",
            "$Skip:",
        ]
    KERNELS.add(f"copies_{_how}", [*_copy, "$Round:", *_round, *_skip, *_end], 2)


@pytest.mark.parametrize("how", ["predicate", "branch"])
@pytest.mark.parametrize("landing", emulator.LANDINGS)
def test_copies_are_counted_once_and_where_they_belong(how: str, landing: str) -> None:
    rows = emulator.upload("rows", np.zeros((4, 64, 16), np.uint8))
    unused = emulator.upload("unused", np.zeros(4, np.uint8))
    (counted,) = launch(f"copies_{how}", unused, rows, shared=4096, landing=landing, count=True)
    # Even rounds: 64 lanes of 16 bytes are 32 sectors; odd rounds: 32 lanes, each in a sector of its own.
    assert counted["global"]["rows"]["read"] == 4 * 32
    assert counted["global"]["rows"]["bytes_read"] == 2 * 1024 + 2 * 512
    # Groups of 8 lanes; those of odd rounds have 4 that want different banks.
    assert counted["shared"]["cp_async"] == {"wavefronts": 4 * 8, "least": 4 * 8}
    assert counted["shared"]["sts"]["wavefronts"] == counted["shared"]["lds"]["wavefronts"] == 0


PATTERNS: dict[str, tuple[int, int, int, int]] = {  # bytes of a lane, stride; wavefronts, least
    "words": (4, 4, 1, 1),
    "every second word": (4, 8, 2, 1),
    "a column": (4, 128, 32, 1),
    "one for all": (4, 0, 1, 1),
    "odd pitch": (4, 132, 1, 1),
    "pairs": (8, 8, 2, 2),
    "rows of 16 bytes": (16, 16, 4, 4),
    "rows at pitch 32": (16, 32, 8, 4),
    "halves": (2, 2, 1, 1),
}
for _name, (_size, _stride, _, _) in PATTERNS.items():
    _type = {2: "u16", 4: "u32", 8: "v2.u32", 16: "v4.u32"}[_size]
    _to = {2: "%h1", 4: "%r5", 8: "{%r5, %r6}", 16: "{%r5, %r6, %r7, %r8}"}[_size]
    _body = [f"mad.lo.u32 %r4, %r0, {_stride}, 1024;", f"ld.shared.{_type} {_to}, [%r4];"]
    KERNELS.add(f"pattern_{_name.replace(' ', '_')}", _body, 0)


@pytest.mark.parametrize("name", PATTERNS)
def test_bank_conflicts(name: str) -> None:
    wavefronts, least = PATTERNS[name][2:]
    (counted,) = launch(f"pattern_{name.replace(' ', '_')}", threads=32, shared=8192, checks=False, count=True)
    assert counted["shared"]["lds"] == {"wavefronts": wavefronts, "least": least}


_loop = ["mov.u32 %r3, 0;", "$Again:", "ld.shared.u32 %r5, [%r31];", "ld.shared.u32 %r6, [%r31+512];"]
_loop += ["add.u32 %r3, %r3, 1;", "setp.lt.u32 %p1, %r3, 3;", "@%p1 bra $Again;"]
KERNELS.add("rounds", [*SHARED, *_loop], 0)


def test_rounds_of_a_loop_are_counted_apart() -> None:
    """A warp's accesses are gathered by instruction and round: two loads in three rounds are six."""
    (counted,) = launch("rounds", threads=32, checks=False, count=True)
    assert counted["shared"]["lds"] == {"wavefronts": 6, "least": 6}


_mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r0, %r0, %r0}, {%r0, %r0}, "
_mma += "{%f0, %f1, %f2, %f3};"
_clear = [f"mov.f32 %f{i}, 0f00000000;" for i in range(4)]
_warp_of = ["shr.u32 %r1, %r0, 5;", "setp.ne.u32 %p1, %r1, 1;"]
# Interval 1: one mma of every warp, a store of every thread. Interval 2: three more of warp 1 alone.
_body = [*_clear, *SHARED, _mma, *STORE, "bar.sync 0;", *_warp_of, "@%p1 bra $Out;", _mma, _mma, _mma, "$Out:"]
KERNELS.add("intervals", _body, 0)


def test_intervals_and_sub_partitions() -> None:
    (counted,) = launch("intervals", threads=256, count=True)
    assert counted["mma"] == 8 + 3
    assert counted["mma_clocks"] == (16, 16 + 24, 16, 16)  # 8 warps on 4 sub-partitions, 8 clocks each
    assert counted["shared"]["sts"]["wavefronts"] == 8
    assert counted["intervals"] == 2
    assert counted["interval_mma"] == 16 + 24
    assert counted["interval_a100"] == 16 + 24
    assert counted["interval_h100"] == 8 + 12


_local = [".local .align 16 .b8 depot[262144];", "mov.b64 %d20, depot;", "cvta.local.u64 %d21, %d20;"]
_local += ["add.s64 %d22, %d21, %d10;", "st.u32 [%d22+200000], %r0;", "add.s64 %d23, %d20, %d10;"]
KERNELS.add("local", [*_local, "ld.local.u32 %r1, [%d23+200000];", *put_words("r", 1, 1, 0)], 1)


def test_large_frames_have_room() -> None:
    out = emulator.empty("out", (64,), np.uint32)
    launch("local", out)
    np.testing.assert_array_equal(out.numpy(), np.arange(64))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threads": 48}, "48 threads: not a multiple of 32"),
        ({"threads": 2048}, "invalid configuration argument"),
        ({"shared": 228 * 1024}, "invalid argument"),
    ],
)
def test_what_a_launch_refuses(options: dict[str, int], text: str) -> None:
    with pytest.raises(emulator.Fault, match=text):
        launch("blocks_apart", emulator.empty("out", (64,), np.uint32), **options)


def test_every_block_runs_once_whatever_the_order() -> None:
    def run(seed: int, blocks: int) -> Sequence[int]:
        out = emulator.empty("out", (blocks * 64,), np.uint32)
        launch("blocks_apart", out, grid=blocks, seed=seed)
        return list(out.numpy()[::64])

    for blocks in (1, 2, 7, 12):
        for seed in range(3):
            assert run(seed, blocks) == list(range(blocks))
