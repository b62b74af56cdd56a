"""What is built from the `train` block: AdamW, its schedule, the Trainer's arguments."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.training.blocks import SchedulerConfig, TrainConfig
from nemotron_kit.training.ranks import world_size
from nemotron_kit.training.scheduler import learning_rate

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments


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
