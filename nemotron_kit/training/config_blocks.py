"""What the configs of the training stages have in common: their blocks, and checks of values. Light: every launch
imports it, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from nemotron_kit.errors import UserError, nearest
from nemotron_kit.training.parallel import DDP, Layout

PRECISIONS = ("auto", "bf16", "fp32")
# Tokens whose logits exist at a time where a model is sharded: 0.5 GB of them in float32, at the published vocabulary.
LOSS_CHUNK = 1024
# Settings of a `train` block that decide no weights: how the work is divided, and how often it is watched.
FREE_SETTINGS = frozenset(
    {
        *("micro_batch_size", "eval_interval", "eval_iters", "fsdp"),
        *("parallelism", "activation_checkpointing", "compile", "loss_chunk", "hang_minutes"),
    }
)
DECAY_STYLES = ("WSD", "constant", "linear", "cosine")
DECAY_SHAPES = ("linear", "cosine", "minus_sqrt", "exponential")


def free_block(help: str) -> Any:
    """The field of a block of settings (`dict[str, Any]`, empty by default) whose keys are checked by who reads it."""
    return field(default_factory=dict, metadata={"help": help})


@dataclass
class BatchBlock:
    """The batches of a `train` block."""

    train_iters: int = field(default=1000, metadata={"help": "Optimizer steps"})
    global_batch_size: int = field(
        default=32, metadata={"help": "Sequences a step, over all processes and micro-batches"}
    )
    micro_batch_size: int = field(
        default=1, metadata={"help": "Sequences one process handles at a time; gradients are accumulated over the rest"}
    )


@dataclass
class AdamWBlock:
    """AdamW, beside its learning rate."""

    weight_decay: float = field(
        default=0.1, metadata={"help": "AdamW's; norms, biases and all else of one dimension don't decay"}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's decay of the mean of the gradients"})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's decay of the mean of their squares"})
    adam_eps: float = field(default=1e-8, metadata={"help": "AdamW's epsilon, in the denominator"})
    clip_grad: float = field(default=1.0, metadata={"help": "Largest norm of the gradients (0: no limit)"})


def peak_lr(default: float) -> Any:
    """The field of the peak learning rate."""
    return field(default=default, metadata={"help": "Peak learning rate (its course: the scheduler block)"})


@dataclass
class ParallelBlock:
    """How a model lies on the processes, and what of it is kept in memory."""

    parallelism: Any = field(
        default=DDP,
        metadata={
            "help": "ddp: each process holds the whole model; {fsdp_size: N, ep_size: 1, dp_replicate_size: 1}: "
            "sharded over N processes (FSDP2), experts dealt out over ep_size of them, dp_replicate_size times over"
        },
    )
    activation_checkpointing: bool = field(
        default=False,
        metadata={"help": "Keep the input of each block alone, and compute its activations again in the backward pass"},
    )
    compile: bool = field(default=False, metadata={"help": "Compile each block of the model (torch.compile)"})
    loss_chunk: int | None = field(
        default=None,
        metadata={"help": "Tokens whose logits exist at a time (null: 1024 where the model is sharded, else all)"},
    )

    hang_minutes: float | None = field(
        default=None,
        metadata={
            "help": "After so long without a step each process prints its stacks, and the run ends with exit code 70 "
            "(null: torch's own limit, 10 minutes with NCCL and 30 with Gloo, ends processes that wait for another). "
            "Steps, evaluations and checkpoints must each take less"
        },
    )

    def check_hang(self) -> None:
        """Raises UserError for a time that is none."""
        if self.hang_minutes is not None and not 0 < self.hang_minutes < math.inf:
            raise UserError(f"train.hang_minutes is {self.hang_minutes}; it must be more than 0, or null.")

    @property
    def layout(self) -> Layout:
        """How the model lies on the processes. UserError for a setting that says no such thing."""
        return Layout.of(self.parallelism)

    @property
    def tokens_per_chunk(self) -> int | None:
        """How many tokens' logits there are at a time; None for those of a whole micro-batch."""
        return self.loss_chunk or (LOSS_CHUNK if self.layout.ranks > 1 else None)


@dataclass
class TrainBlock(ParallelBlock, BatchBlock):
    """The `train` block that pretraining and fine-tuning share; the names are Megatron's."""

    seed: int = field(default=1234, metadata={"help": "Seed of the weights, and of everything random in a step"})
    precision: str = field(
        default="auto", metadata={"help": "bf16 (over float32 weights), fp32, or auto: bf16 on a GPU that has it"}
    )
    eval_interval: int | None = field(
        default=None, metadata={"help": "Steps between held-out evaluations (null: only at the end)"}
    )
    eval_iters: int | None = field(
        default=None, metadata={"help": "Global batches of the valid split an evaluation reads (null: the whole split)"}
    )
    moe_router_bias_update_rate: float = field(
        default=1e-3, metadata={"help": "How far an expert's bias moves in a step: aux-loss-free balancing (0: never)"}
    )

    def check(self) -> None:
        """Raises UserError for a value that can't be trained with."""
        self.check_hang()
        sizes = ("train_iters", "global_batch_size", "micro_batch_size", "eval_interval", "eval_iters", "loss_chunk")
        check_least("train", self, sizes, 1)
        if self.precision not in PRECISIONS:
            raise UserError(f"train.precision is {self.precision!r}; there is: {', '.join(PRECISIONS)}.")
        if not 0 <= self.seed < 1 << 32:
            raise UserError(f"train.seed is {self.seed}; it must be a whole number from 0 to {(1 << 32) - 1}.")
        check_limits("train", {"moe_router_bias_update_rate": self.moe_router_bias_update_rate})
        self.layout  # noqa: B018 - raises when it is none


# (the smallest value, None for any above 0; what a value must be less than) of the numbers of an optimizer.
_LIMITS: dict[str, tuple[float | None, float]] = {
    "lr": (None, math.inf),
    "min_lr": (0, math.inf),
    "weight_decay": (0, math.inf),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_eps": (None, math.inf),
    "clip_grad": (0, math.inf),
    "moe_router_bias_update_rate": (0, math.inf),
}


def check_limits(block: str, values: Mapping[str, Any], *, called: Mapping[str, str] | None = None) -> None:
    """Raises UserError for the first of `values`, by Megatron's names of an optimizer's settings, that can't be trained
    with; None means not set. `block` is where they are in the config, `called` has the names that are others there."""
    for name, value in values.items():
        if value is None or unknown(value):
            continue
        least, below = _LIMITS[name]
        shown = f"{block}.{(called or {}).get(name, name)} is {value!r}; it must be"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{shown} a number.")
        if not (value > 0 if least is None else value >= least) or not value < below:
            lower = "more than 0" if least is None else f"{least} or more"
            upper = ", and finite" if below == math.inf and value == math.inf else ""
            raise UserError(f"{shown} {lower}{upper if below == math.inf else f' and less than {below}'}.")


def check_optimizer(block: Any, *, closed: bool = True) -> None:
    """Raises UserError for an invalid value of an `optimizer` block, and where it is `closed` for one that it has no
    field for; None means not set."""
    names = [each.name for each in fields(block)]
    if closed:
        check_keys("optimizer", {name: value for name, value in vars(block).items() if name not in names}, names)
    check_limits("optimizer", {name: getattr(block, name) for name in names})


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
        """Raises UserError for an invalid value."""
        for name, known in (("lr_decay_style", DECAY_STYLES), ("lr_wsd_decay_style", DECAY_SHAPES)):
            if (style := getattr(self, name)) not in known:
                raise UserError(f"scheduler.{name} is {style!r}; {nearest(style, known)}")
        check_least("scheduler", self, ("lr_warmup_iters", "lr_decay_iters", "lr_wsd_decay_iters"), 0)
        check_limits("scheduler", {"min_lr": self.min_lr})

    def check_peak(self, lr: Any, key: str) -> None:
        """Raises UserError where the rate would rise to min_lr in place of a decay. `lr`: the peak; `key`: its name."""
        known = all(isinstance(rate, int | float) for rate in (lr, self.min_lr))  # none that only the job can resolve
        if known and self.lr_decay_style != "constant" and self.min_lr > lr:
            raise UserError(
                f"scheduler.min_lr is {self.min_lr}, more than {key} {lr}: the learning rate would end above its peak.",
                hint=f"Set scheduler.min_lr to {lr} or less.",
            )


@dataclass
class CheckpointConfig:
    """The `checkpoint` block; the names are Megatron's."""

    save: str | None = field(
        default=None,
        metadata={
            "help": "Folder for checkpoints and the trained model; a complete checkpoint there, of the same "
            "configuration, is resumed from (null: the model goes to the job's folder, without checkpoints)"
        },
    )
    save_interval: int | None = field(
        default=None,
        metadata={"help": "Steps between checkpoints (null: only at the end and on a stop signal)"},
    )
    most_recent_k: int = field(default=2, metadata={"help": "How many checkpoints are kept"})
    keep: int | None = field(
        default=None,
        metadata={"help": "Another name of most_recent_k; wins where set", "same_as": "checkpoint.most_recent_k"},
    )
    asynchronous: bool = field(
        default=False,
        metadata={
            "help": "Of a sharded model: copy the state to memory, and write it while training goes on. It counts as a "
            "checkpoint once all processes have written; the last one is always waited for"
        },
    )
    load: str | None = field(
        default=None, metadata={"help": "Folder of checkpoints to go on from while `save` has none yet"}
    )
    pretrained_checkpoint: str | None = field(
        default=None, metadata={"help": "Model in transformers' format whose weights a new run starts from"}
    )
    finetune: bool = field(default=False, metadata={"help": "Take only the weights from `load`; start at step 0"})
    may_differ: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Settings in which a checkpoint may differ from this run and is resumed all the same, such as "
            "train.lr or dataset.content; the model's metadata lists them (none: what differs is refused by name)"
        },
    )

    @property
    def kept(self) -> int:
        """How many checkpoints are kept."""
        return self.most_recent_k if self.keep is None else self.keep

    def check(self) -> None:
        """Raises UserError for an invalid value."""
        check_least("checkpoint", self, ("save_interval", "most_recent_k", "keep"), 1)
        if self.finetune and not (self.load or self.pretrained_checkpoint):
            raise UserError(
                "checkpoint.finetune is true, but there is nothing to start from.",
                hint="Set checkpoint.load or checkpoint.pretrained_checkpoint.",
            )
        if self.load and self.pretrained_checkpoint:
            raise UserError("checkpoint.load and checkpoint.pretrained_checkpoint are both set; give one of them.")


@dataclass
class LoggerConfig:
    """The `logger` block; the names are Megatron's."""

    log_interval: int = field(default=10, metadata={"help": "Steps between two rows of metrics"})
    metrics_file: str | None = field(
        default=None,
        metadata={"help": "Where the rows go (null: metrics.jsonl in the job's folder or checkpoint.save)"},
    )
    wandb_project: str | None = field(default=None, metadata={"help": "W&B project, when no launcher has set one up"})
    wandb_entity: str | None = field(default=None, metadata={"help": "W&B entity, likewise"})
    wandb_exp_name: str | None = field(default=None, metadata={"help": "Name of the run in W&B, likewise"})

    def check(self) -> None:
        """Raises UserError for an invalid value."""
        check_least("logger", self, ("log_interval",), 1)


def check_least(where: str, block: Any, names: Iterable[str], least: int) -> None:
    """UserError for a number of the block `where` that is too small; None means not set."""
    for name in names:
        value = getattr(block, name)
        if value is not None and value < least:
            raise UserError(f"{where}.{name} is {value}; it must be {least} or more.")


def check_keys(block: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """UserError for a key of a free block that the engine does not have."""
    for name in values:
        if name not in names:
            raise UserError(f"{block}.{name}: this engine has no such setting; {nearest(name, names)}")


def check_target(recipe: Mapping[str, Any], targets: Sequence[str], because: str = "") -> None:
    """UserError for a `recipe._target_` other than `targets`: nothing else is ever imported on a config's word."""
    target = recipe.get("_target_")
    if target is not None and not unknown(target) and target not in targets:
        theirs = "; or set engine=megatron_bridge" if str(target).startswith("megatron.bridge.") else ""
        raise UserError(
            f"recipe._target_ is {target!r}, which this recipe doesn't run{because}.",
            hint=f"Leave it out, or set it to {' or '.join(targets)}{theirs}.",
        )


def unknown(value: Any) -> bool:
    """Whether a value is a reference that only the job can resolve (`${art:…}`), which a plan may contain."""
    return isinstance(value, str) and "${" in value


def whole_number(name: str, value: Any, *, least: int, most: int = (1 << 63) - 1) -> None:
    """Raises UserError if the setting `name` is no whole number from `least` to `most`; a reference that only the job
    can resolve passes."""
    if unknown(value):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} is {value!r}; it must be a whole number, {least} or more.")
    if value > most:
        raise UserError(f"{name} is {value}; it must be {most} at most.")
