"""MSTCN's temporal branches for inference: inputs, what is right, and a run of the kernels on the emulator."""

import emulator
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FOLDER = "csrc/kernels/mstcn/cuda"
SOURCES = (f"{FOLDER}/tensor_cores.cu", f"{FOLDER}/plain/multiply_adds.cu")
LAUNCHERS = "tests/emulator/launch_temporal.cpp"
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # in the launcher's order
UNITS = {torch.float32: 2.0**-21, torch.float64: 2.0**-42, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def inputs(N: int, T: int, V: int, width: int, last: int, stride: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """h, weight, scale and out of four branches, a max-pool and `last` channels more; rounded to dtype."""
    draw = torch.Generator().manual_seed(0)

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=draw) * scale).to(dtype)

    last_format = {"memory_format": torch.channels_last}
    return {
        "h": normal(N, 5 * width, T, V).contiguous(**last_format),
        "weight": normal(4, 3, width, width, scale=(3 * width) ** -0.5),
        "scale": normal(width),
        "out": normal(N, 5 * width + last, (T - 1) // stride + 1, V).contiguous(**last_format),
    }


def expected(given: dict[str, Tensor], stride: int, relu: bool, dtype: torch.dtype) -> Tensor:
    """What `out` becomes, computed by torch in dtype."""
    h, weight, scale, out = (tensor.to(dtype) for tensor in given.values())
    *parts, pooled = h.split(weight.shape[2], 1)
    added = [
        F.conv2d(part, taps.permute(1, 2, 0).unsqueeze(3), stride=(stride, 1), padding=(d, 0), dilation=(d, 1))
        for d, (part, taps) in enumerate(zip(parts, weight, strict=True), 1)
    ]
    added.append(F.max_pool2d(pooled, (3, 1), (stride, 1), (1, 0)) * scale.view(-1, 1, 1))
    joined = torch.cat(added, 1)
    y = out + F.pad(joined, (0, 0, 0, 0, 0, out.shape[1] - joined.shape[1]))
    return y.relu() if relu else y


def run(
    kernels: emulator.Kernels, given: dict[str, Tensor], stride: int, relu: bool, arch: int = 80, **options: object
) -> Tensor:
    """`out` after a call; options are the emulator's."""
    return counted(kernels, given, stride, relu, arch, **options)[0]


def counted(
    kernels: emulator.Kernels, given: dict[str, Tensor], stride: int, relu: bool, arch: int = 80, **options: object
) -> tuple[Tensor, list[dict]]:
    """The same with the counters of its launches."""
    dtype = given["h"].dtype
    dense = {name: (t.permute(0, 2, 3, 1) if name in ("h", "out") else t).contiguous() for name, t in given.items()}
    arrays = [
        emulator.upload(name, (t.view(torch.int16) if t.itemsize == 2 else t).numpy()) for name, t in dense.items()
    ]
    N, T, V, _ = dense["h"].shape
    width, O = given["weight"].shape[2], given["out"].shape[1]  # noqa: E741
    counters = kernels.call(
        "temporal_run", *arrays, N, T, V, width, O, 4, 3, stride, arch, TYPES.index(dtype), relu, **options
    )
    found = torch.from_numpy(np.ascontiguousarray(arrays[3].numpy())).view(dtype)
    return found.view(dense["out"].shape).permute(0, 3, 1, 2), counters
