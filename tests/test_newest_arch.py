"""What nvcc makes of the kernels for the newest compute capability it knows, executed with every check on.

For compute_80 the budgets do so; an opcode that only newer ones have is a hard error here, and gets a unit test.
"""

import backward_kernels
import emulator
import forward_kernels as forward
import plain_kernels
import pytest
import test_backward_kernels
import test_cuda_forward
import torch
from problems import Problem, assert_parity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.find_nvcc() is None, reason="route P runs what nvcc makes of the kernels"),
]
BACKWARD = [test_backward_kernels.BY_NAME[name] for name in ("ragged", "coco_frames", "stride2")]


@pytest.mark.parametrize("landing", ["late", "early"])
@test_cuda_forward.named(test_cuda_forward.TYPICAL)
def test_forward(shape: forward.Shape, landing: str) -> None:
    kernels = emulator.build(*forward.SOURCES, forward.LAUNCHERS, arch=emulator.newest_arch(), entries="bf16")
    inputs = shape.inputs(torch.bfloat16)
    forward.assert_exact_enough(forward.run(kernels, shape, inputs, route="ptx", landing=landing), shape, inputs)


@pytest.mark.parametrize("landing", ["late", "early"])
@pytest.mark.parametrize("shape", BACKWARD, ids=lambda shape: shape.name)
def test_backward(shape: backward_kernels.Shape, landing: str) -> None:
    kernels = emulator.build(
        *backward_kernels.SOURCES,
        backward_kernels.LAUNCHERS,
        arch=emulator.newest_arch(),
        entries="sum_parts|bf16",
    )
    inputs = shape.inputs(torch.bfloat16)
    found = backward_kernels.run(kernels, shape, inputs, route="ptx", landing=landing)
    backward_kernels.assert_exact_enough(found, shape, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_plain(dtype: torch.dtype) -> None:
    kernels = emulator.build(
        *plain_kernels.SOURCES, plain_kernels.LAUNCHERS, arch=emulator.newest_arch(), entries="kernelI[fd]"
    )
    problem = Problem("windows", N=2, C=3, T=7, V=5, K=3, O=40, window_size=3, window_stride=2)
    assert_parity(plain_kernels.run(kernels, problem, dtype, route="ptx"), problem)
