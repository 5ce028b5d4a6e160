"""The tensor-core forward kernels on the emulator: runs of them, and what they are judged by."""

from dataclasses import dataclass

import emulator
import numpy as np
import torch
from forward_shapes import Shape
from tolerance import deviation, error
from torch.nn import functional as F

from msg3d_fast import reference

FOLDER = "csrc/kernels/ms_g3d/cuda/forward"
NAMES = ("forward", "frames", "windows", "few_channels", "few_channels_collapse")
MERGING = "csrc/kernels/ms_g3d/cuda/plain/statistics.cu"
SOURCES = (*(f"{FOLDER}/{name}.cu" for name in NAMES), MERGING)
LAUNCHERS = "tests/emulator/launch_forward.cpp"
FIELDS = [
    *("kernel", "tile", "warps", "groups", "parts", "windows", "slots", "frame_step", "weight_steps", "weight_columns"),
    *("channel_steps", "slices", "slices_per_block", "slices_at_once", "shared_bytes", "blocks", "waves"),
    *("weight_bytes", "adjacency_bytes", "collapse_bytes", "workspace_bytes", "moments_bytes", "clocks"),
]
KERNELS = ("plain", "frames", "windows", "few_channels")


def exact(
    shape: Shape,
    inputs: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.float64,
    relu: bool = False,
    accumulate: bool = False,
) -> torch.Tensor:
    """The reference in dtype: y, or with a collapse its output, (N, channels, T_out, nodes or V), in float64.

    float32 is tf32 here: exact but for the operands of all products, which are rounded to ten bits of mantissa."""
    if dtype == torch.float32:
        return with_rounded_operands(shape, inputs, relu, accumulate)
    values = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    y = reference.ms_g3d(values["x"], values["A"], values["weight"], values.get("bias"), *shape.window)
    if shape.out:
        y = F.relu(y).unflatten(3, (shape.window[0], shape.V))
        y = F.conv3d(y, values["collapse_weight"][:, :, None, :, None], values["collapse_bias"]).squeeze(3)
        if accumulate:
            y = y + values["out"]
    return (F.relu(y) if relu else y).double()


def to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Float32 values to the nearest ones of ten bits of mantissa, ties away from zero; in float64."""
    words = tensor.float().contiguous().view(torch.int32)
    return ((words + 0x1000) & ~0x1FFF).view(torch.float32).double()


def with_rounded_operands(
    shape: Shape, inputs: dict[str, torch.Tensor], relu: bool = False, accumulate: bool = False
) -> torch.Tensor:
    """What the kernels compute in tf32, but with exact sums: every operand of a product is rounded once."""
    x, A, weight = (to_tf32(inputs[name]) for name in ("x", "A", "weight"))
    if shape.C <= 8:  # aggregate first
        features = torch.einsum("nctu,kvu->nkctv", reference.unfold_windows(x, *shape.window), A)
        y = torch.einsum("nkctv,okc->notv", to_tf32(features), weight)
    else:
        features = to_tf32(torch.einsum("nctu,okc->nkotu", x, weight))
        windows = reference.unfold_windows(features.flatten(1, 2), *shape.window).unflatten(1, (shape.K, shape.O))
        y = torch.einsum("nkotu,kvu->notv", windows, A)
    if "bias" in inputs:
        y = y + inputs["bias"][:, None, None]
    if shape.out:
        y = to_tf32(F.relu(y)).unflatten(3, (shape.window[0], shape.V))
        y = F.conv3d(y, to_tf32(inputs["collapse_weight"])[:, :, None, :, None], inputs["collapse_bias"]).squeeze(3)
        if accumulate:
            y = y + inputs["out"]
    return F.relu(y) if relu else y


def bits(tensor: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    if dtype == torch.float32:
        return tensor.float().contiguous().numpy()
    return tensor.to(dtype).contiguous().view(torch.int16).numpy().view(np.uint16)


def plan(kernels: emulator.Kernels, shape: Shape) -> dict[str, int]:
    out = emulator.empty("plan", (len(FIELDS),), np.int64)
    kernels.call("forward_plan", out, *shape.sizes)
    return dict(zip(FIELDS, map(int, out.numpy()), strict=True))


def refusal(kernels: emulator.Kernels, shape: Shape) -> str:
    text = emulator.upload("text", np.zeros(256, np.uint8))
    kernels.call("forward_refusal", text, *shape.sizes)
    return text.numpy().tobytes().rstrip(b"\0").decode()


@dataclass
class Run:
    """What one call wrote, (N, channels, T_out, nodes or V) in float64 and bit for bit, and its launches' counters.

    `statistics`, where wanted: mean and variance of every channel of y, (2, O) in float32."""

    y: torch.Tensor
    array: np.ndarray
    counters: list[dict]
    statistics: torch.Tensor | None = None


def run(
    kernels: emulator.Kernels,
    shape: Shape,
    inputs: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.bfloat16,
    relu: bool = False,
    transposed: bool = False,
    accumulate: bool = False,
    residual: torch.Tensor | None = None,
    statistics: bool = False,
    **options: object,
) -> Run:
    """One forward pass; options are the emulator's. `transposed` hands A and the weights over with other strides."""
    dtype = shape.dtype if shape.tf32 else dtype
    given = dict(inputs)
    if transposed:
        given |= {"A": inputs["A"].transpose(1, 2), "weight": inputs["weight"].permute(2, 1, 0)}
        if shape.out:
            given["collapse_weight"] = inputs["collapse_weight"].permute(2, 1, 0)
    given["x"] = inputs["x"].permute(0, 2, 3, 1)
    if residual is not None:
        given["A_res"] = residual
    names = ("x", "A", "A_res", "weight", "bias", "collapse_weight", "collapse_bias")
    arguments = [emulator.upload(name, bits(given[name], dtype)) if name in given else None for name in names]
    channels, last = (shape.out, shape.V) if shape.out else (shape.O, shape.nodes)
    sizes = shape.N, shape.windows, last, channels
    if accumulate:
        y = emulator.upload("y", bits(inputs["out"].permute(0, 2, 3, 1), dtype))
    else:
        y = emulator.empty("y", sizes, np.float32 if shape.tf32 else np.uint16)
    planned = plan(kernels, shape)
    workspace = emulator.empty("workspace", (planned["workspace_bytes"],), np.uint8)
    gathered = (None, None)  # parts, and what they make
    if statistics:
        assert planned["moments_bytes"], f"{shape.name}: no kernel of the tensor cores"
        gathered = (
            emulator.empty("moments", (planned["moments_bytes"] // 4,), np.float32),
            emulator.empty("statistics", (2, shape.O), np.float32),
        )
    half = dtype == torch.float16
    counters = kernels.call(
        *("forward_run", *arguments, y, workspace, *gathered, *shape.sizes),
        *(half, relu, transposed, accumulate),
        **options,
    )
    array = y.numpy()
    found = torch.from_numpy(array if shape.tf32 else array.view(np.int16)).view(dtype).double()
    merged = torch.from_numpy(gathered[1].numpy()) if statistics else None
    return Run(found.permute(0, 3, 1, 2), array, counters, merged)


def assert_exact_enough(
    found: Run,
    shape: Shape,
    inputs: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.bfloat16,
    relu: bool = False,
    accumulate: bool = False,
) -> None:
    """The error is at most twice the reference's own in the same type, plus one rounding of the largest value.

    tf32 rounds operands alone: with the same operands rounded, an exact sum is nearer by far than the truth. What is
    left is the rounding of float32's sums, which makes another operand of one that lies between two, now and then.
    Statistics are those of y as it was stored, whatever it should have been.
    """
    if found.statistics is not None:
        apart = deviation(found.statistics, found.y)
        assert apart <= 2e-6, f"{shape.name}: statistics are off by {apart:.2e}"
    dtype = shape.dtype if shape.tf32 else dtype
    correct = exact(shape, inputs, relu=relu, accumulate=accumulate)
    eager = exact(shape, inputs, dtype, relu, accumulate)
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11  # tf32 has the mantissa of float16
    ours, theirs = error(found.y, correct), error(eager, correct)
    assert ours <= 2 * theirs + unit, f"{shape.name}: error {ours:.2e}, eager's {theirs:.2e}"
    if shape.tf32:
        apart = ((found.y - eager).norm() / eager.norm()).item() if eager.numel() else 0.0
        assert apart <= unit / 8, f"{shape.name}: {apart:.2e} from what rounded operands make"
