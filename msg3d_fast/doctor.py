"""What is installed, built and found: the first thing to read, and to paste into an issue."""

import copy
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import _library, ops
from .errors import UserError
from .inference import fuse
from .model import Recognizer
from .modules import STMSGCN, MSG3DBlock


def report() -> str:
    """Versions, the native library, threads, devices and environment variables, one a line."""
    lines = [f"msg3d_fast   {_version('msg3d_fast')}   Python {platform.python_version()}   {platform.platform()}"]
    packages = ("torch", "numpy", "matplotlib", "rich", "PyYAML")
    lines.append("packages     " + ", ".join(f"{name} {_version(name)}" for name in packages))
    lines.append(f"native       {_native()}")
    lines.append(f"backend      {ops.resolve_backend(None)}")
    lines.append(f"training     {_training()}")
    lines.append(
        f"CPU          {cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads of "
        f"{os.cpu_count()}"
    )
    lines.append(f"CUDA         {_cuda()}")
    variables = [
        f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(("MSG3D_", "OMP_", "CUDA_"))
    ]
    lines.append("environment  " + (" ".join(variables) or "no MSG3D_, OMP_ or CUDA_ variables"))
    return "\n".join(lines)


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


# Devices that plans are shown for: compute capability times ten, multiprocessors, shared memory of a block in KB.
GPUS = {"A100": (80, 108, 163), "H100": (90, 132, 227), "RTX 4090": (89, 128, 99), "T4": (75, 40, 64)}


@dataclass(frozen=True)
class Layer:
    """One graph convolution of a network, and the channels that a fused network folds its windows into; 0: none."""

    name: str
    sizes: _library.Sizes
    collapse: int

    @property
    def words(self) -> str:
        x, scales, channels, tau, stride, dilation = self.sizes
        return f"{self.name:24}{x!s:20}{scales:3}{channels:5}  {tau:3} {stride} {dilation}"


HEAD = f"{'layer':24}{'x (N, C, T, V)':20}{'K':>3}{'O':>5}  tau s d"


def layers() -> list[Layer]:
    """The graph convolutions of the default network, one clip of 100 frames."""
    found = []

    def note(name: str, layer: STMSGCN, x: torch.Tensor, collapse: int) -> None:
        window = (layer.window_size, layer.window_stride, layer.window_dilation)
        sizes = _library.Sizes(tuple(x.shape), layer.num_scales, layer.out_channels, *window)
        found.append(Layer(name, sizes, collapse))

    with torch.device("meta"):  # shapes without numbers
        model = Recognizer(backend="native").eval()
        collapses = {id(m.gcn3d[1]): m.out_conv.out_channels for m in model.modules() if isinstance(m, MSG3DBlock)}
        for name, layer in model.named_modules():
            if isinstance(layer, STMSGCN):
                name, out = name.removeprefix("backbone."), collapses.get(id(layer), 0)
                layer.register_forward_pre_hook(
                    lambda layer, inputs, name=name, out=out: note(name, layer, inputs[0], out)
                )
        model(torch.empty(1, 2, 100, 17, 3))
    return found


def plan() -> str:
    """What ms_g3d does for every graph convolution of the default network, one clip of 100 frames: tables.

    One for this CPU; one for each of `GPUS`, which need not be here, and for the GPUs that are.

    Raises:
        UserError: the native library is missing; its plans come from it.
    """
    _library.require()
    network = layers()
    lines = ["Recognizer(), x (1, 2, 100, 17, 3), float32 on this CPU; millions of multiply-adds of either order", ""]
    lines.append(f"{HEAD}  {'project':>8}{'aggregate':>10}  order")
    for layer in network:
        p = _library.plan(layer.sizes)
        costs = f"{p['project_first_macs'] / 1e6:8.1f}{p['aggregate_first_macs'] / 1e6:10.1f}"
        lines.append(f"{layer.words}  {costs}  {p['order']}{', forced' if p['forced'] else ''}")
    lines += [
        "",
        "GPUs, bfloat16 (float32 and float64 run by multiply-adds): the tile that is modelled fastest, not measured",
    ]
    if not _library.has_cuda():
        lines.append(f"this build has {_library.info().get('cuda')}: these are the plans of one that has the kernels")
    devices = {name: _limits(*numbers) for name, numbers in GPUS.items()}
    if torch.cuda.is_available() and _library.has_cuda():
        for index in range(torch.cuda.device_count()):
            devices[f"cuda:{index}, {torch.cuda.get_device_name(index)}"] = _library.device_limits(index)
    for name, limits in devices.items():
        lines += ["", *_gpu_plan(name, limits, network)]
    lines += ["", "the same for float32 while torch.backends.cuda.matmul.allow_tf32 is set, by default it is not"]
    for name, limits in devices.items():
        lines += ["", *_gpu_plan(f"{name}, tf32", limits, network, tf32=True)]
    return "\n".join(lines)


def _limits(arch: int, multiprocessors: int, kilobytes: int) -> dict[str, int]:
    return {"arch": arch, "multiprocessors": multiprocessors, "shared_bytes": kilobytes << 10}


def _gpu_plan(name: str, limits: dict[str, int], network: list[Layer], tf32: bool = False) -> list[str]:
    """A table for one device. "fused" layers are those of `fuse(model)`, the collapse of their windows included."""
    memory = f"{limits['shared_bytes'] >> 10} KB of shared memory a block"
    lines = [f"{name}: sm_{limits['arch']}, {limits['multiprocessors']} multiprocessors, {memory}", ""]
    lines.append(f"{HEAD}  blocks waves     KB  kernel")
    for layer in network:
        for collapse in sorted({0, layer.collapse}):
            dtype = torch.float32 if tf32 else torch.bfloat16
            p = _library.cuda_plan(layer.sizes, dtype=dtype, limits=limits, tf32=tf32, collapse=collapse)
            words = layer.words if not collapse else f"{'  fused, into ' + str(collapse):{len(layer.words)}}"
            forced = ", forced" if p["forced"] else ""
            if p["kernel"] == "plain":
                lines.append(f"{words}  {'':19}  multiply-adds: {p['refused']}")
            else:
                launch = f"{p['blocks']:6} {p['waves']:5} {p['shared_bytes'] / 1024:6.1f}"
                lines.append(f"{words}  {launch}  {p['tile']}{forced}")
                refused = (why for why in p["backward"].values() if why and not collapse)
                lines += [f"{'':{len(layer.words)}}  {'':19}  backwards multiply-adds: {why}" for why in refused]
    return lines


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _native() -> str:
    try:
        _library.require()
    except UserError as error:
        return str(error)
    facts = _library.info()
    isas, used = ", ".join(facts["supported_isas"]), facts["isa"]
    if facts["wide_isa"] != used:
        used += f" in use, {facts['wide_isa']} for wide products"
    else:
        used += " in use"
    return f"built against torch {facts['torch']} with compiler {facts['compiler']}; {used}, of {isas}; {facts['cuda']}"


def _training() -> str:
    backend = ops.resolve_backend(None)
    if backend == "reference" or not _library.available():
        return "layer by layer; absent persons are computed like the others"
    return (
        "whole blocks fused on the CPU, memory fast or low (model.memory), absent persons computed once for each slot "
        "and batch (model.skip_absent); layer by layer on a GPU"
    )


def _cuda() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "no device" if built else "no device; this torch was built without CUDA"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = f"{', '.join(names)}, CUDA {torch.version.cuda}"
    if not _library.has_cuda():
        return f"{found}; this build has no CUDA kernels, so the reference backend runs there"
    devices = _library.info()["cuda_runtime"]["devices"]
    without = [d["name"] for d in devices if not d["has_code"]]
    if without:
        return f"{found}; no code in this build for {', '.join(without)}: build with MSG3D_CUDA_ARCHS"
    return f"{found}; kernels for all of them; self-test {self_test()}"


SELF_TEST_SECONDS = 20.0
# C, O, V, T, K and the window: graph convolutions of the network's kinds.
SELF_TEST = (
    (3, 96, 25, 40, 4, (5, 1, 1)),
    (96, 96, 25, 40, 4, (1, 1, 1)),
    (96, 96, 17, 40, 4, (3, 2, 1)),
    (192, 192, 25, 20, 4, (5, 2, 1)),
)


def self_test(
    backend: str = "native",
    device: str = "cuda",
    cases: Sequence[tuple] = SELF_TEST,
    network: Mapping[str, Any] | None = None,
    frames: int = 16,
    seconds: float = SELF_TEST_SECONDS,
) -> str:
    """Hold the kernels of a GPU to the float64 reference on the CPU: "passed", or "FAILED" and where; with how much.

    Args:
        backend: "native", or "emulated" with device "cpu".
        device: where to compute.
        cases: graph convolutions (C, O, V, T, K, window), forwards and backwards in every type, and in tf32.
        network: arguments of the `Recognizer` that is fused and held to eager; None: the default one.
        frames: of its clip.
        seconds: after so many no further check is begun.
    """
    torch.manual_seed(0)
    began, done = time.monotonic(), 0
    checks = [
        *(partial(_check_operator, backend, device, case, dtype) for dtype in SELF_TEST_TYPES for case in cases),
        *(partial(_check_operator, backend, device, case, torch.float32, tf32=True) for case in cases),
        *(partial(_check_network, backend, device, network or {}, frames, dtype) for dtype in SELF_TEST_TYPES),
    ]
    for check in sorted(checks, key=lambda check: check.func is not _check_network):  # the networks first
        if time.monotonic() - began >= seconds:
            break
        with _tf32_allowed(check.keywords.get("tf32", False)):
            fault = check()
        if fault:
            return f"FAILED: {fault}; please report it"
        done += 1
    return f"passed, {done} of {len(checks)} checks in {time.monotonic() - began:.0f} s"


SELF_TEST_TYPES = (torch.bfloat16, torch.float32, torch.float16)


@contextmanager
def _tf32_allowed(allowed: bool) -> Iterator[None]:
    """Whatever the process allows: cuDNN takes tf32 by default, cuBLAS in some containers."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = allowed
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def _check_operator(backend: str, device: str, case: tuple, dtype: torch.dtype, tf32: bool = False) -> str | None:
    C, O, V, T, K, window = case  # noqa: E741
    nodes = window[0] * V
    shapes = (2, C, T, V), (K, nodes, nodes), (O, K, C), (O,)
    exact = [torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5 for shape in shapes]
    expected = _answer("reference", exact, window)
    inputs = [tensor.to(dtype) for tensor in exact]
    eager = _answer("reference", [tensor.double() for tensor in inputs], window)
    found = _answer(backend, [tensor.to(device) for tensor in inputs], window)
    for name, ours, theirs, right in zip(("y", "x", "A", "weight", "bias"), found, eager, expected, strict=True):
        off, rounding = _error(ours, right), _error(theirs, right)
        if not off <= 2 * rounding + 4 * (2.0**-10 if tf32 else torch.finfo(dtype).eps):
            return f"{name} of C {C}, O {O}, {window}, {'tf32' if tf32 else _type(dtype)} is off by {off:.1e}"
    return None


@torch.no_grad()
def _check_network(
    backend: str, device: str, arguments: Mapping[str, Any], frames: int, dtype: torch.dtype
) -> str | None:
    model = Recognizer(**arguments, backend="reference").eval()
    x = torch.randn(1, model.backbone.num_person, frames, model.layout.num_joints, model.backbone.in_channels)
    short, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    right, eager = model.double()(x.double()), short(x)
    short = short.to(device)
    short.backend = backend
    off, rounding = _error(fuse(short)(x.to(device)), right), _error(eager, right)
    if not off <= 2 * rounding + 4 * torch.finfo(dtype).eps:
        return f"the fused network in {_type(dtype)} is off by {off:.1e}, eager by {rounding:.1e}"
    return None


def _error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double().cpu() - right).abs().max() / right.abs().max())


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _answer(backend: str, inputs: list[torch.Tensor], window: tuple[int, int, int]) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = ops.ms_g3d(*leaves, *window, backend=backend)
    return [y.detach(), *torch.autograd.grad(y.square().mean(), leaves)]
