"""The learning rate of every step.

    cosine   base * (1 + cos(pi * step / steps)) / 2
    step     base * gamma^(milestones passed), a milestone being an epoch

After a linear warm-up, the cosine runs over the steps that are left.
"""

import math
from collections.abc import Callable

from .config import TrainConfig
from .errors import UserError


def cosine_lr(base: float, step: int, steps: int) -> float:
    """Learning rate before step `step` of `steps`: base * (1 + cos(pi * step / steps)) / 2."""
    return 0.5 * base * (1 + math.cos(math.pi * step / steps))


def base_lr(config: TrainConfig) -> float:
    """`lr`, in proportion to the batch where `lr_batch` says which batch it is meant for."""
    return config.lr if config.lr_batch is None else config.lr * config.batch_size / config.lr_batch


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate as a function of the steps done.

    Raises:
        UserError: milestones that do not rise within the epochs, or a warm-up as long as the training.
    """
    base, steps = base_lr(config), config.epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    milestones = config.milestones
    if config.schedule == "cosine" and milestones:
        raise UserError("train.milestones are given, but train.schedule is cosine; set --train.schedule=step")
    if sorted(set(milestones)) != milestones or (
        milestones and not 0 < milestones[0] <= milestones[-1] < config.epochs
    ):
        raise UserError(f"train.milestones are {milestones}, expected rising epochs between 1 and {config.epochs - 1}")
    if warmup >= steps:
        raise UserError(
            f"train.warmup_epochs is {config.warmup_epochs:g}, expected less than the {config.epochs} train.epochs"
        )

    def lr(step: int) -> float:
        if step < warmup:
            return base * (step + 1) / warmup
        if config.schedule == "cosine":
            return cosine_lr(base, step - warmup, steps - warmup)
        return base * config.gamma ** sum(step // steps_per_epoch >= epoch for epoch in milestones)

    return lr
