"""How fast a network runs on this machine, beside plain PyTorch: medians of calls that take turns.

A machine that is shared drifts by more than what is compared, so each round calls everything once, after a pause in
which the thread pools of the call before go to sleep. benchmarks/ measures more, against more rivals.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _library
from .doctor import cpu_name
from .errors import UserError
from .inference import fuse
from .model import Recognizer

PAUSE = 0.03  # seconds
WARM_UP = 2  # the first calls allocate and pack
BUSY = 0.5  # load average at which ratios become doubtful
TOLERANCE = 1e-4  # relative, of float32 logits


@dataclass(frozen=True)
class Comparison:
    """What was done, on how many clips, and how long a call took: medians in seconds."""

    name: str
    clips: int
    plain: float
    ours: float

    @property
    def ratio(self) -> float:
        return self.plain / self.ours


def compare(model: Recognizer, *, clips: int = 1, frames: int = 100, rounds: int = 10) -> list[Comparison]:
    """Time inference, with all persons and with one, and a training step; float32, on the GPU if there is one.

    Args:
        model: the network; weights are drawn, since no time depends on them.
        clips: N of a call.
        frames: T of a clip.
        rounds: calls of each.

    Raises:
        UserError: a number is below 1, or the native library, which is what is measured, is not there.
        RuntimeError: the two do not compute the same.
    """
    for name, value in (("clips", clips), ("frames", frames), ("rounds", rounds)):
        if value < 1:
            raise UserError(f"bench: {name} is {value}, expected at least 1")
    _library.require()
    device = torch.device("cuda" if torch.cuda.is_available() and _library.has_cuda() else "cpu")
    h = model.hparams
    plain, ours = (Recognizer(**h, backend=backend).to(device).eval() for backend in ("reference", "native"))
    ours.load_state_dict(plain.state_dict())
    generator = torch.Generator().manual_seed(0)
    shape = (clips, h["num_person"], frames, model.layout.num_joints, h["in_channels"])
    x = torch.randn(shape, generator=generator).to(device)
    cases = {"inference": x}
    if h["num_person"] > 1:
        cases[f"inference, 1 person of {h['num_person']}"] = torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1)
    found = []
    fused = fuse(ours)
    for name, given in cases.items():
        pair = (_inference(plain, given), _inference(fused, given))
        right, answer = (call() for call in pair)
        if not (error := float((answer - right).norm() / right.norm())) <= TOLERANCE:
            raise RuntimeError(f"{name}: the fused network's logits differ from plain PyTorch's by {error:.1e}")
        found.append(Comparison(name, clips, *_medians(pair, rounds)))
    del fused
    labels = torch.arange(clips, device=device) % h["num_classes"]
    found.append(
        Comparison("training step", clips, *_medians([_training(net, x, labels) for net in (plain, ours)], rounds))
    )
    return found


def busy() -> str:
    """One line of warning where other work takes part of the machine, else ""."""
    load = os.getloadavg()[0]
    return f"The machine is busy (load average {load:.1f}): times and ratios will be off." if load > BUSY else ""


def machine() -> str:
    """What was measured on."""
    if torch.cuda.is_available() and _library.has_cuda():
        name = torch.cuda.get_device_name()
    else:
        name = f"{cpu_name()}, {torch.get_num_threads()} thread(s)"
    return f"{name}, torch {torch.__version__}, float32"


def table(found: list[Comparison]) -> str:
    """The comparisons as text, times in milliseconds."""
    width = max(len(one.name) for one in found)
    lines = [f"{'ms':{width}}{'PyTorch':>12}{'msg3d_fast':>12}{'ratio':>8}{'clips/s':>10}"]
    lines += [
        f"{one.name:{width}}{1e3 * one.plain:12.1f}{1e3 * one.ours:12.1f}{one.ratio:8.2f}{one.clips / one.ours:10.1f}"
        for one in found
    ]
    return "\n".join(lines)


def _inference(network: torch.nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return network(x)

    return call


def _training(model: Recognizer, x: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return call


def _medians(calls: tuple[Callable[[], object], ...] | list[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of each call."""
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(WARM_UP + rounds):
        for series, call in zip(taken, calls, strict=True):
            time.sleep(PAUSE)
            _wait()
            start = time.perf_counter()
            call()
            _wait()
            if turn >= WARM_UP:
                series.append(time.perf_counter() - start)
    return [statistics.median(series) for series in taken]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
