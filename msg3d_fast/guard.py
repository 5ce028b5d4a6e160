"""Where the first value that is not finite comes from: which layer, and which clips of the batch.

A step that ended in NaN or infinity is done once more, watched: layer by layer, so that the convolutions are seen
before a batch normalisation spreads what is wrong over the whole batch, and if nothing is found there, as it ran.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .model import Recognizer
from .normalization import SyncBatchNorm


@dataclass(frozen=True)
class Finding:
    """The first value that is not finite.

    Args:
        what: e.g. "the output of backbone.sgcn1.0.mlp.layers.0", or "the statistics of" a batch normalisation, which
            huge coordinates overflow while its output still looks well.
        clips: bool (N,), in which clips of the micro-batch.
    """

    what: str
    clips: Tensor


def first_non_finite(
    model: Recognizer, x: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], autocast: Callable
) -> Finding | None:
    """Does a micro-batch again, forwards and backwards, and says what goes wrong first; None if nothing does.

    Args:
        model: in training mode; it is no good for training afterwards.
        x: clips (N, M, T, V, C) on the model's device.
        labels: of the clips.
        loss: losses (N,) of logits and labels.
        autocast: makes the context of the forward pass.
    """
    if not x.isfinite().all():
        return Finding("the clips themselves", _bad_rows(x, len(x)))
    backend, skip_absent = model.backend, model.backbone.skip_absent
    with autocast():  # runs layer by layer anyway
        order = (backend, "reference") if torch.is_autocast_enabled(x.device.type) else ("reference", backend)
    for module in model.modules():
        if isinstance(module, SyncBatchNorm):
            module.alone = True  # the other processes may have found nothing
    try:
        model.backbone.skip_absent = False  # so that rows are clips x persons
        for chosen in dict.fromkeys(order):
            model.backend = chosen
            if found := _watch(model, x, labels, loss, autocast):
                return found
    finally:
        model.backend, model.backbone.skip_absent = backend, skip_absent
    return None


def _watch(
    model: nn.Module, x: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], autocast: Callable
) -> Finding | None:
    found: list[Finding] = []

    def look(what: str, value: Tensor) -> None:
        if not found and not value.isfinite().all():
            found.append(Finding(what, _bad_rows(value, len(x))))

    model.zero_grad(set_to_none=True)
    with _hooks(model, look), autocast():
        logits = model(x)
        if not found:
            losses = loss(logits, labels)
            look("the loss", losses)
        if not found:
            losses.sum().backward()
    if not found:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return Finding(f"the gradient of {name}", torch.ones(len(x), dtype=torch.bool))
    return found[0] if found else None


@contextlib.contextmanager
def _hooks(model: nn.Module, look: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable:
        def watch(module: nn.Module, arguments: tuple, output: Tensor) -> None:
            if (variance := getattr(module, "running_var", None)) is not None:
                look(f"the statistics of {name}", variance.sum().expand(1))
            if isinstance(output, Tensor) and output.is_floating_point():
                look(f"the output of {name}", output.detach())
                if output.requires_grad:
                    output.register_hook(lambda grad: look(f"the gradient of the output of {name}", grad))

        return watch

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bad_rows(value: Tensor, clips: int) -> Tensor:
    """bool (clips,): which clips hold it; rows are clips, or clips x persons, or one row is everyone's."""
    bad = ~value.detach().flatten(1).isfinite().all(1) if value.ndim > 1 else ~value.detach().isfinite()
    return bad.expand(clips).cpu() if len(bad) == 1 else bad.view(clips, -1).any(1).cpu()
