"""One step of the optimizer and what surrounds it: learning rate, mixed precision, clipping, average of the weights.

descent.begin(step)                             the learning rate; gradients from zero
with descent.autocast(): ...                    the forward pass
descent.backward(loss)                          for each micro-batch
descent.finish()                                clip, step, average
"""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .config import TrainConfig
from .errors import UserError
from .schedule import make_schedule

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Descent:
    """The optimizer of a model.

    Args:
        model: what is trained, on its device.
        config: the settings.
        steps_per_epoch: optimizer steps of an epoch.

    Attributes:
        tested: the model to validate, test and keep: the moving average of the weights, or `model` itself.
        rate: learning rate of the last step.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        self.model, self.config = model, config
        self._lr = make_schedule(config, steps_per_epoch)
        self.device = next(model.parameters()).device
        self.optimizer = _optimizer(model, config)
        self.rate = self._lr(0)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._average = None
        if not 0 <= config.ema < 1:
            raise UserError(f"train.ema is {config.ema:g}, expected from 0 (no average) to below 1, such as 0.999")
        if config.ema:
            self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.tested = model if self._average is None else self._average.module

    def begin(self, step: int) -> None:
        """Sets the learning rate of step `step`, counted over all epochs, and the gradients to none."""
        self.rate = self._lr(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.zero_grad(set_to_none=True)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of the forward pass."""
        dtype = _DTYPES.get(self.config.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a micro-batch's loss."""
        self._scaler.scale(loss).backward()

    def finish(self) -> bool:
        """Takes the step; False, and nothing done, where the gradient is not finite.

        In fp16 the first such gradients only lower the scale of the loss, and the step is left out.
        """
        self._scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.config.clip_grad is None:
            norm = get_total_norm(gradients)
        else:
            norm = clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        finite = math.isfinite(float(norm))
        if not finite and self._scaler.get_scale() <= 1:
            return False
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if finite and self._average is not None:
            self._average.update_parameters(self.model)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs beside the weights of `tested`."""
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        if self._average is not None:
            state["weights"] = {key: value.detach().cpu() for key, value in self.model.state_dict().items()}
            state["averaged"] = int(self._average.n_averaged)
        return state

    def load_state_dict(self, state: dict[str, Any], tested: dict[str, Tensor]) -> None:
        """Goes on from `state_dict()` and the weights of `tested`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.tested.load_state_dict(tested)
        if self._average is not None:
            self.model.load_state_dict(state["weights"])
            self._average.n_averaged.fill_(state["averaged"])


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    decay, parameters = config.weight_decay, model.parameters()
    if config.optimizer == "sgd":
        momentum = config.momentum
        # On the CPU torch takes five small operations for each parameter unless told to take one.
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        fused = True if on_cpu and config.precision != "fp16" else None
        return torch.optim.SGD(parameters, config.lr, momentum, weight_decay=decay, nesterov=momentum > 0, fused=fused)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(parameters, config.lr, (config.momentum, 0.999), weight_decay=decay)
