"""`msg3d-fast doctor`: the plans for GPUs that are not there, and the self-test on the emulator."""

from itertools import pairwise

import pytest
import torch

from msg3d_fast import _library, doctor, ops

TINY = ((3, 16, 9, 3, 2, (3, 1, 1)), (16, 48, 17, 3, 2, (1, 1, 1)))
NETWORK = {"base_channels": 12, "num_gcn_scales": 2, "num_g3d_scales": 1, "num_person": 1, "num_classes": 5}


@pytest.fixture(scope="module")
def tables() -> dict[str, list[str]]:
    """What is said of every device, by its name."""
    parts = doctor.plan().split("\n\n")
    return {head.partition(":")[0]: rows.splitlines()[1:] for head, rows in pairwise(parts)}


def test_a_plan_for_every_gpu(tables: dict[str, list[str]]) -> None:
    for name, (arch, *_) in doctor.GPUS.items():
        rows = tables[name]
        assert len(rows) == 9 + 6, "nine graph convolutions; six with the collapse of a fused network"
        assert sum("fused" in row for row in rows) == 6
        assert all("multiply-adds: tensor cores for this need compute capability 8.0" in r for r in rows) == (arch < 80)
        assert all("a block" in row for row in rows if "multiply-adds" not in row)
        tf32 = tables[f"{name}, tf32"]
        assert len(tf32) == 9 + 6
        assert all("multiply-adds" in row for row in tf32) == (arch < 80)


def test_the_plans_are_what_the_library_says(tables: dict[str, list[str]]) -> None:
    layer = next(layer for layer in doctor.layers() if layer.name == "sgcn2.0")
    limits = dict(zip(("arch", "multiprocessors", "shared_bytes"), (90, 132, 227 << 10), strict=True))
    found = _library.cuda_plan(layer.sizes, dtype=torch.bfloat16, limits=limits)
    row = next(row for row in tables["H100"] if row.startswith("sgcn2.0"))
    assert found["tile"] in row
    assert f" {found['blocks']} " in row


def test_a_forced_plan_is_marked() -> None:
    _library.set_cuda_plan("plain")
    try:
        text = doctor.plan()
    finally:
        _library.set_cuda_plan("auto")
    assert text.count("multiply-adds: forced") == 2 * 15 * 3, "16 bits, tf32"


@pytest.mark.usefixtures("emulated_backend")
def test_self_test_on_the_emulator() -> None:
    assert doctor.self_test("emulated", "cpu", TINY, NETWORK, frames=3, seconds=600).startswith(
        "passed, 11 of 11 checks in "
    )


@pytest.mark.usefixtures("emulated_backend")
def test_self_test_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.ms_g3d

    def wrong(x, *args, backend=None, **options):
        y = right(x, *args, backend="reference", **options)
        return y if backend == "reference" else y * 1.1

    monkeypatch.setattr(ops, "ms_g3d", wrong)
    line = doctor.self_test("emulated", "cpu", TINY, NETWORK, frames=3, seconds=600)
    assert line.startswith("FAILED: y of C 3, O 16, (3, 1, 1), bfloat16 is off by ")
    assert line.endswith("please report it")


@pytest.mark.usefixtures("emulated_backend")
def test_self_test_ends_in_time() -> None:
    assert doctor.self_test("emulated", "cpu", TINY, NETWORK, frames=3, seconds=0) == "passed, 0 of 11 checks in 0 s"
