"""The `train` block, and what is built from it: AdamW, its schedule, the Trainer's arguments."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.training.ranks import world_size
from nemotron_kit.training.scheduler import SchedulerConfig, learning_rate

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

PRECISIONS = ("auto", "bf16", "fp32")


@dataclass
class TrainConfig:
    """The `train` block; the names are Megatron's."""

    train_iters: int = field(default=1000, metadata={"help": "Optimizer steps"})
    global_batch_size: int = field(
        default=32, metadata={"help": "Sequences a step, over all processes and micro-batches"}
    )
    micro_batch_size: int = field(
        default=1, metadata={"help": "Sequences one process handles at a time; gradients are accumulated over the rest"}
    )
    lr: float = field(default=1e-3, metadata={"help": "Peak learning rate (its course: the scheduler block)"})
    weight_decay: float = field(
        default=0.1, metadata={"help": "AdamW's; norms, biases and all else of one dimension don't decay"}
    )
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = field(default=1.0, metadata={"help": "Largest norm of the gradients (0: no limit)"})
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
    fsdp: bool = field(default=False, metadata={"help": "Not available in this engine; true is refused"})

    def check(self) -> None:
        """Raises UserError for a value that can't be trained with."""
        for name in ("train_iters", "global_batch_size", "micro_batch_size", "eval_interval", "eval_iters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"train.{name} is {value}; it must be 1 or more.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"train.lr is {self.lr}; it must be more than 0.")
        if self.precision not in PRECISIONS:
            raise UserError(f"train.precision is {self.precision!r}; there is: {', '.join(PRECISIONS)}.")
        if self.fsdp:
            # The Trainer would take the wish on a CPU and train plain DDP without a word.
            raise UserError(
                "train.fsdp: this engine shards nothing; it trains data-parallel (DDP).", hint="Leave it out."
            )

    def check_split(self, processes: int) -> None:
        """Raises UserError when the global batch can't be dealt out evenly to `processes`."""
        share = self.micro_batch_size * processes
        if self.global_batch_size % share:
            raise UserError(
                f"train.global_batch_size {self.global_batch_size} is no multiple of train.micro_batch_size "
                f"{self.micro_batch_size} × {processes} process{'es' if processes > 1 else ''}.",
                hint=f"For instance train.global_batch_size={math.ceil(self.global_batch_size / share) * share}.",
            )


def use_bf16(config: TrainConfig) -> bool:
    """Whether to train in bf16. UserError when it is asked for and the GPU has none."""
    import torch

    if not torch.cuda.is_available():
        return config.precision == "bf16"
    if config.precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise UserError("train.precision is bf16, which this GPU doesn't have.", hint="Set train.precision=fp32.")
    return config.precision != "fp32" and bool(torch.cuda.is_bf16_supported())


def trainer_arguments(config: TrainConfig, folder: Path, steps: int) -> "TrainingArguments":
    """The Trainer's arguments for `steps` steps; it is kept from logging, saving and evaluating by itself."""
    import torch
    from transformers import TrainingArguments

    cpu = not torch.cuda.is_available()
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.global_batch_size // (config.micro_batch_size * world_size()),
        max_grad_norm=config.clip_grad,
        bf16=use_bf16(config),
        use_cpu=cpu,
        seed=config.seed,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        logging_nan_inf_filter=False,
        average_tokens_across_devices=False,
        ddp_backend=("gloo" if cpu else "nccl") if world_size() > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        report_to=[],
    )
    args._n_gpu = min(1, args.n_gpu)  # one process, one GPU: never torch's DataParallel
    return args


def build_optimizer(config: TrainConfig, model: "torch.nn.Module") -> "torch.optim.AdamW":
    """AdamW with weight decay on everything that has more than one dimension."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.adam_eps, fused=True)


def build_schedule(
    config: TrainConfig, scheduler: SchedulerConfig, optimizer: "torch.optim.Optimizer", done: int
) -> "torch.optim.lr_scheduler.LambdaLR":
    """The schedule from step `done` on: a function of the step, with no state of its own."""
    from torch.optim.lr_scheduler import LambdaLR

    def factor(step: int) -> float:
        return learning_rate(scheduler, config.lr, done + step, config.train_iters) / config.lr

    return LambdaLR(optimizer, factor)
