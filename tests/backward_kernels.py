"""The tensor-core backward kernels on the emulator: named shapes, their runs, and what they are judged by."""

from dataclasses import dataclass, field

import emulator
import numpy as np
import shapes
import torch
from forward_kernels import bits, to_tf32
from tolerance import assert_as_good_as_eager, error

from msg3d_fast import reference

FOLDER = "csrc/kernels/ms_g3d/cuda/backward"
SOURCES = tuple(f"{FOLDER}/{name}.cu" for name in ("backward", "grad_x", "grad_weight", "grad_A"))
FORWARD = (
    "forward",
    "frames",
    "windows",
    "few_channels",
    "few_channels_collapse",
)  # of which grad_x without windows makes use
SOURCES += tuple(f"csrc/kernels/ms_g3d/cuda/forward/{name}.cu" for name in FORWARD)
LAUNCHERS = "tests/emulator/launch_backward.cpp"
# What backward_plan of the launchers tells, in its order.
FIELDS = ["refused", "input_workspace", "parameters_workspace", "x_tile", "x_warps", "x_shared", "weight_tile"]
FIELDS += ["weight_warps", "weight_shared", "A_tile", "A_warps", "A_shared", "team", "x_slices", "weight_buffers"]
FIELDS += ["weight_slices", "gy_ahead", "x_ahead", "x_room", "window_groups", "node_slices", "pieces", "as_forward"]
UNIT = 2.0**-11  # of tf32: half of the distance between neighbours of ten bits of mantissa
GRADIENTS = ("x", "A", "weight")


@dataclass(frozen=True)
class Shape(shapes.Shape):
    """A backward call, by default on an A100."""

    multiprocessors: int = 108
    expects: dict[str, int] = field(default_factory=dict, hash=False)  # of the plan, so that the name stays true

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*super().sizes, self.tf32)

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
        """x (N, C, T, V), A, weight and gy, rounded to dtype, in float64."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "x": torch.randn(self.N, self.C, self.T, self.V, generator=generator),
            "A": torch.randn(self.K, self.nodes, self.nodes, generator=generator) / self.nodes**0.5,
            "weight": torch.randn(self.O, self.K, self.C, generator=generator) / (self.K * self.C) ** 0.5,
            "gy": torch.randn(self.N, self.O, self.windows, self.nodes, generator=generator),
        }
        return {name: tensor.to(dtype).double() for name, tensor in tensors.items()}


def with_rounded_operands(
    shape: Shape, inputs: dict[str, torch.Tensor], as_forward: bool = False
) -> dict[str, torch.Tensor]:
    """What the kernels compute in tf32, but with exact sums: every operand of a product is rounded once.

    as_forward: grad_x without windows is a forward pass, which projects gy before it aggregates.
    """
    x, A, weight, gy = (to_tf32(inputs[name]) for name in ("x", "A", "weight", "gy"))
    frames = torch.zeros(shape.N, shape.K * shape.O, shape.T, shape.V, dtype=torch.float64, requires_grad=True)
    sent_back = torch.einsum("notv,kvu->nkotu", gy, A).flatten(1, 2)
    (features,) = torch.autograd.grad(reference.unfold_windows(frames, *shape.window), frames, sent_back)
    features = to_tf32(features).unflatten(1, (shape.K, shape.O))
    projected = to_tf32(torch.einsum("ncfu,okc->nkofu", x, weight)).flatten(1, 2)
    windows = reference.unfold_windows(projected, *shape.window).unflatten(1, (shape.K, shape.O))
    if as_forward:
        grad_x = torch.einsum("nkcfv,kvu->ncfu", to_tf32(torch.einsum("nofv,okc->nkcfv", gy, weight)), A)
    else:
        grad_x = torch.einsum("nkofu,okc->ncfu", features, weight)
    return {
        "x": grad_x,
        "A": torch.einsum("notv,nkotu->kvu", gy, windows),
        "weight": torch.einsum("nkofu,ncfu->okc", features, x),
    }


def exact(shape: Shape, inputs: dict[str, torch.Tensor], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The reference's gradients, computed in dtype."""
    leaves = [inputs[name].detach().clone().to(dtype).requires_grad_() for name in GRADIENTS]
    y = reference.ms_g3d(*leaves, None, *shape.window)
    return dict(zip(GRADIENTS, torch.autograd.grad(y, leaves, inputs["gy"].to(dtype)), strict=True))


def device_inputs(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, emulator.DeviceArray]:
    """Channels last, as the kernels take them."""
    order = {"x": (0, 2, 3, 1), "gy": (0, 2, 3, 1), "A": (0, 1, 2), "weight": (0, 1, 2)}
    return {name: emulator.upload(name, bits(inputs[name].permute(*order[name]), dtype)) for name in order}


def plan(kernels: emulator.Kernels, shape: Shape) -> dict[str, int]:
    out = emulator.empty("plan", (len(FIELDS),), np.int64)
    kernels.call("backward_plan", out, *shape.sizes)
    return dict(zip(FIELDS, map(int, out.numpy()), strict=True))


@dataclass
class Run:
    """What one call wrote, bit for bit, and the counters of its launches."""

    arrays: dict[str, np.ndarray]
    counters: list[dict]
    dtype: torch.dtype
    as_forward: bool  # grad_x

    def tensors(self) -> dict[str, torch.Tensor]:
        """The gradients in float64 and in the reference's order."""
        found = {}
        for name, array in self.arrays.items():
            if array.dtype == np.uint16:
                found[name] = torch.from_numpy(array.view(np.int16)).view(self.dtype).double()
            else:
                found[name] = torch.from_numpy(array).double()
        if "x" in found:
            found["x"] = found["x"].permute(0, 3, 1, 2)
        return found


def run(
    kernels: emulator.Kernels,
    shape: Shape,
    inputs: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.bfloat16,
    wanted: tuple[str, ...] = GRADIENTS,
    in_float: bool = False,
    transposed: bool = False,
    residual: torch.Tensor | None = None,
    **options: object,
) -> Run:
    """Run the wanted gradients; options are the emulator's. `transposed` hands A and weight over with other strides."""
    dtype = shape.dtype if shape.tf32 else dtype
    element = np.float32 if shape.tf32 else np.uint16
    if transposed:
        on_device = device_inputs(
            inputs | {"A": inputs["A"].transpose(1, 2), "weight": inputs["weight"].permute(2, 1, 0)}, dtype
        )
    else:
        on_device = device_inputs(inputs, dtype)
    A_res = None if residual is None else emulator.upload("A_res", bits(residual, dtype))
    common = (on_device["x"], on_device["A"], A_res, on_device["weight"], on_device["gy"])
    sizes, half = plan(kernels, shape), dtype == torch.float16
    arrays, counters = {}, []
    if "x" in wanted:
        grad_x = emulator.empty("grad_x", (shape.N, shape.T, shape.V, shape.C), element)
        workspace = emulator.empty("workspace", (sizes["input_workspace"],), np.uint8)
        counters += kernels.call(
            "backward_input", *common, grad_x, workspace, *shape.sizes, half, transposed, **options
        )
        arrays["x"] = grad_x.numpy()
    if set(wanted) - {"x"}:
        kind = np.float32 if in_float else element
        out = {
            "A": emulator.empty("grad_A", (shape.K, shape.nodes, shape.nodes), kind) if "A" in wanted else None,
            "weight": emulator.empty("grad_weight", (shape.O, shape.K, shape.C), kind) if "weight" in wanted else None,
        }
        workspace = emulator.empty("workspace", (sizes["parameters_workspace"],), np.uint8)
        arguments = (*common, out["A"], out["weight"], workspace, *shape.sizes, half, transposed, in_float)
        counters += kernels.call("backward_parameters", *arguments, **options)
        arrays |= {name: array.numpy() for name, array in out.items() if array is not None}
    return Run(arrays, counters, dtype, bool(sizes["as_forward"]))


def assert_exact_enough(found: Run, shape: Shape, inputs: dict[str, torch.Tensor]) -> None:
    """Every gradient errs at most twice as much as the reference in the same type, plus a tiny floor.

    tf32 rounds operands alone: there may be half a unit more, and exact sums of rounded operands are nearer by far.
    """
    correct = exact(shape, inputs)
    eager = with_rounded_operands(shape, inputs, found.as_forward) if shape.tf32 else exact(shape, inputs, found.dtype)
    for name, tensor in found.tensors().items():
        ours, theirs = error(tensor, correct[name]), error(eager[name], correct[name])
        if not shape.tf32:
            assert_as_good_as_eager(ours, theirs, f"{shape.name}, grad_{name}")
            continue
        assert ours <= 2 * theirs + UNIT, f"{shape.name}, grad_{name}: error {ours:.2e}, eager's {theirs:.2e}"
        apart = ((tensor - eager[name]).norm() / eager[name].norm()).item() if tensor.numel() else 0.0
        assert apart <= UNIT / 8, f"{shape.name}, grad_{name}: {apart:.2e} from what rounded operands make"
