"""The plain path's kernels on the emulator: `run` gives what `problems.reference_answer` does."""

import emulator
import numpy as np
import torch
from problems import Problem
from torch import Tensor

FOLDER = "csrc/kernels/ms_g3d/cuda/plain"
SOURCES = (f"{FOLDER}/gather.cu", f"{FOLDER}/parameters.cu")
LAUNCHERS = "tests/emulator/launch_plain.cpp"
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # in the launchers' order
PASSES = ("forward", "input", "parameters")


def upload(name: str, tensor: Tensor) -> emulator.DeviceArray:
    """The tensor's values, dense in its order of dimensions."""
    tensor = tensor.detach().contiguous()
    return emulator.upload(name, (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy())


def run(
    kernels: emulator.Kernels,
    problem: Problem,
    dtype: torch.dtype = torch.float32,
    wanted: tuple[str, ...] = PASSES,
    **options: object,
) -> dict[str, Tensor]:
    """Output and gradients of the wanted passes for the gradient of the output that `problems.gradients` takes."""
    N, C, T, V, K, O = (getattr(problem, letter) for letter in "NCTVKO")  # noqa: E741
    tau, stride, dilation = problem.window
    R = tau * V
    windows = (T + 2 * ((tau - 1) * dilation // 2) - dilation * (tau - 1) - 1) // stride + 1
    sizes = (N, C, T, V, K, O, *problem.window, TYPES.index(dtype))
    inputs = problem.inputs(dtype)
    x, A, weight, bias = (
        upload(name, tensor.permute(0, 2, 3, 1) if name == "x" else tensor) for name, tensor in inputs.items()
    )
    gy = torch.randn(N, O, windows, R, generator=torch.Generator().manual_seed(1)).to(dtype)
    gy = upload("gy", gy.permute(0, 2, 3, 1))
    bits = {2: np.int16, 4: np.float32, 8: np.float64}[dtype.itemsize]
    found = {}

    def out(name: str, *shape: int) -> emulator.DeviceArray:
        found[name] = emulator.empty(name, shape, bits)
        return found[name]

    if "forward" in wanted:
        kernels.call("plain_forward", x, A, weight, bias, out("y", N, windows, R, O), *sizes, False, **options)
    if "input" in wanted:
        kernels.call("plain_backward_input", A, weight, gy, out("x", N, T, V, C), *sizes, **options)
    if "parameters" in wanted:
        count = emulator.empty("count", (1,), np.int64)
        kernels.call("plain_workspace", count, *sizes)
        arrays = (out("A", K, R, R), out("weight", O, K, C), out("bias", O))
        workspace = emulator.empty("workspace", (int(count.numpy()[0]),), np.uint8)
        kernels.call("plain_backward_parameters", x, A, weight, gy, *arrays, workspace, *sizes, **options)
    tensors = {name: torch.from_numpy(array.numpy()).view(dtype) for name, array in found.items()}
    return {name: tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor for name, tensor in tensors.items()}
