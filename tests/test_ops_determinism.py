"""ms_g3d gives the same bits for any number of threads, and keeps what is not a number where it belongs."""

from collections.abc import Iterator
from multiprocessing.pool import ThreadPool

import pytest
import torch
from problems import LONG, PROBLEMS, Problem, gradients
from torch import Tensor

from msg3d_fast import _library, ops

ORDERS = ("project_first", "aggregate_first")
THREADED = [LONG, *(p for p in PROBLEMS if p.name in ("stage1", "coco_stage2", "ntu_stage2"))]


@pytest.fixture(autouse=True)
def _threads_and_order_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    _library.set_order("auto")


def answer(problem: Problem, **changed: Tensor) -> dict[str, Tensor]:
    inputs = {**problem.inputs(), **changed}
    return gradients(ops.ms_g3d(*inputs.values(), *problem.window), inputs)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("problem", THREADED, ids=lambda problem: problem.name)
def test_same_bits_for_any_number_of_threads(problem: Problem, order: str) -> None:
    _library.set_order(order)
    torch.set_num_threads(1)
    expected = answer(problem)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        for name, tensor in answer(problem).items():
            assert torch.equal(tensor, expected[name]), f"{name} with {threads} threads"


def test_same_bits_when_called_from_several_threads_at_once() -> None:
    expected = answer(LONG)["y"]
    with ThreadPool(3) as pool:
        for found in pool.map(lambda _: answer(LONG)["y"], range(6)):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_frame_stays_in_its_windows(value: float, order: str) -> None:
    _library.set_order(order)
    clean, frame = answer(LONG), 31
    x = LONG.inputs()["x"].detach().clone(memory_format=torch.preserve_format)
    x[1, :, frame] = value
    y = answer(LONG, x=x.requires_grad_())["y"]
    reached = torch.zeros(LONG.N, LONG.T, dtype=torch.bool)
    reached[1, frame - 1 : frame + 2] = True  # window_size 3, stride 1
    assert not torch.isfinite(y.permute(0, 2, 1, 3)[reached]).any()
    assert torch.equal(y.permute(0, 2, 1, 3)[~reached], clean["y"].permute(0, 2, 1, 3)[~reached])


@pytest.mark.parametrize("order", ORDERS)
def test_a_broken_gradient_stays_in_its_frames(order: str) -> None:
    _library.set_order(order)
    inputs = LONG.inputs()
    y = ops.ms_g3d(*inputs.values(), *LONG.window)
    gy = torch.randn(y.shape).contiguous(memory_format=torch.channels_last)
    (clean,) = torch.autograd.grad(y, inputs["x"], gy, retain_graph=True)
    gy[2, :, 40] = float("nan")
    (grad_x,) = torch.autograd.grad(y, inputs["x"], gy)
    reached = torch.zeros(LONG.N, LONG.T, dtype=torch.bool)
    reached[2, 39:42] = True
    assert torch.isnan(grad_x.permute(0, 2, 1, 3)[reached]).all()
    assert torch.equal(grad_x.permute(0, 2, 1, 3)[~reached], clean.permute(0, 2, 1, 3)[~reached])


def test_memory_is_read_after_it_was_written() -> None:
    """With NaN in all fresh memory, workspace included (see conftest.py), and without, the bits are the same."""
    assert torch.are_deterministic_algorithms_enabled()
    poisoned = answer(LONG)
    torch.use_deterministic_algorithms(False)
    for name, tensor in answer(LONG).items():
        assert torch.equal(tensor, poisoned[name])
