"""The learning rate as a function of the step: warm-up, a stable phase, a decay."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nemotron_kit.errors import UserError, nearest

# How far a decay has come (1 … 0 of the way from lr to min_lr), by the fraction of its steps done.
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "minus_sqrt": lambda done: 1 - math.sqrt(done),
    "exponential": lambda done: 2 * 0.5**done - 1,
}
_STYLES = ("WSD", "constant", "linear", "cosine")


@dataclass
class SchedulerConfig:
    """The `scheduler` block; the names are Megatron's."""

    lr_warmup_iters: int = field(default=0, metadata={"help": "Steps of linear warm-up to train.lr"})
    lr_decay_style: str = field(
        default="WSD",
        metadata={"help": "WSD (stable, then a decay), constant, linear or cosine (a decay from the warm-up on)"},
    )
    lr_decay_iters: int | None = field(
        default=None, metadata={"help": "The step at which the decay ends (null: train.train_iters)"}
    )
    lr_wsd_decay_iters: int | None = field(
        default=None, metadata={"help": "How many steps WSD's decay takes (null: a fifth of lr_decay_iters)"}
    )
    lr_wsd_decay_style: str = field(
        default="cosine", metadata={"help": "The decay's shape: linear, cosine, minus_sqrt or exponential"}
    )
    min_lr: float = field(default=0.0, metadata={"help": "Where a decay ends"})

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        _one_of("scheduler.lr_decay_style", self.lr_decay_style, _STYLES)
        _one_of("scheduler.lr_wsd_decay_style", self.lr_wsd_decay_style, _SHAPES)
        for name in ("lr_warmup_iters", "lr_decay_iters", "lr_wsd_decay_iters", "min_lr"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"scheduler.{name} is {value}; it must be 0 or more.")


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


def _one_of(field: str, value: str, known: Iterable[str]) -> None:
    names = list(known)
    if value not in names:
        raise UserError(f"{field} is {value!r}; {nearest(value, names)}")
