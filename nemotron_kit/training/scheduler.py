"""The learning rate as a function of the step: warm-up, a stable phase, a decay."""

import math
from collections.abc import Callable

from nemotron_kit.training.blocks import SchedulerConfig

# How far a decay has come (1 … 0 of the way from lr to min_lr), by the fraction of its steps done.
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "minus_sqrt": lambda done: 1 - math.sqrt(done),
    "exponential": lambda done: 2 * 0.5**done - 1,
}


def learning_rate(config: SchedulerConfig, lr: float, step: int, train_iters: int) -> float:
    """The learning rate of step `step` (the first is 0) of a run of `train_iters` with the peak `lr`."""
    if step < config.lr_warmup_iters:
        return lr * (step + 1) / config.lr_warmup_iters
    if config.lr_decay_style == "constant":
        return lr
    end = train_iters if config.lr_decay_iters is None else config.lr_decay_iters
    steps, shape = _decay(config, end)
    if steps <= 0 or step < end - steps:
        return lr if step < end else config.min_lr
    return config.min_lr + (lr - config.min_lr) * _SHAPES[shape](min(1.0, (step - (end - steps)) / steps))


def _decay(config: SchedulerConfig, end: int) -> tuple[int, str]:
    """(steps that the decay takes, its shape)."""
    whole = max(0, end - config.lr_warmup_iters)
    if config.lr_decay_style != "WSD":
        return whole, config.lr_decay_style
    steps = end // 5 if config.lr_wsd_decay_iters is None else config.lr_wsd_decay_iters
    return min(steps, whole), config.lr_wsd_decay_style
