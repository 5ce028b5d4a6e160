"""The plan of the forward kernels: a pure function of sizes and of the device's limits."""

from dataclasses import replace

import emulator
import forward_kernels as forward
import pytest
from forward_shapes import Shape

# The network's layers behind its first stage, for two persons of one clip.
NETWORK = [
    Shape(f"{V}_{C}_{window}_{stride}", 2, C, T, V, 13 if window == 1 else 6, C, (window, stride, 1))
    for V in (17, 18, 25)
    for C, T in ((96, 100), (192, 50))
    for window, stride in ((1, 1), (3, 2), (5, 2))
]


@pytest.fixture(scope="module")
def kernels() -> emulator.Kernels:
    return emulator.build(*forward.SOURCES, forward.LAUNCHERS)


@pytest.mark.parametrize("shared_kb", [99, 163, 227])
@pytest.mark.parametrize("multiprocessors", [20, 108, 132])
def test_every_plan_fits_its_device(kernels: emulator.Kernels, shared_kb: int, multiprocessors: int) -> None:
    for shape in NETWORK:
        for out in (0, 2 * shape.C) if shape.window[0] > 1 else (0,):
            asked = replace(shape, shared_kb=shared_kb, multiprocessors=multiprocessors, out=out)
            plan = forward.plan(kernels, asked)
            if plan["kernel"] == 0:  # only what the smallest devices have no room for, and it says so
                assert (shared_kb, shape.V, shape.C, shape.window[0]) == (99, 25, 192, 5)
                assert "a block may have 101376" in forward.refusal(kernels, asked)
                continue
            assert plan["shared_bytes"] <= shared_kb * 1024
            assert plan["warps"] <= 8
            assert plan["slices_per_block"] == plan["slices"] or not out


def test_small_batches_get_small_tiles(kernels: emulator.Kernels) -> None:
    for shape in NETWORK:
        small = forward.plan(kernels, replace(shape, multiprocessors=108))
        large = forward.plan(kernels, replace(shape, N=128, multiprocessors=108))
        assert small["windows"] <= large["windows"]
        assert small["blocks"] >= 50 or shape.window[1] == 2
        assert large["waves"] > small["waves"] == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"C": 20}, "C is over 8 and not a multiple of 8"),
        ({"O": 33}, "O is odd"),
        ({"V": 65}, "V is over 64"),
        ({"V": 64, "window": (7, 1, 1)}, "no tile fits"),
        ({"window": (3, 1, 1), "out": 7}, "the collapse's output channels are odd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_say_why(kernels: emulator.Kernels, change: dict, why: str) -> None:
    shape = replace(Shape("refused", 1, 96, 20, 25, 6, 96), **change)
    assert forward.plan(kernels, shape)["kernel"] == 0
    assert why in forward.refusal(kernels, shape)
