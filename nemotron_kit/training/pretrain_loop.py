"""The pretraining loop, whose steps are those of transformers' Trainer; what is between them is in loop.py."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.training import processes
from nemotron_kit.training.config_blocks import SchedulerConfig
from nemotron_kit.training.data import BatchSampler, HeldOutSamples, collate
from nemotron_kit.training.loop import (
    Loop,
    LoopSettings,
    learning_rate,
    require_finite,
    seed_step,
    use_bf16,
)
from nemotron_kit.training.parallel import is_on_ranks, token_nll
from nemotron_kit.training.pretrain_config import PretrainConfig, TrainConfig
from nemotron_kit.training.processes import rank, sum_over_ranks, world_size

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer, TrainingArguments


def loop_settings(config: PretrainConfig) -> LoopSettings:
    """The loop's settings; clipping and precision are the Trainer's (see `trainer_arguments`)."""
    train = config.train
    return LoopSettings(
        train.train_iters,
        train.lr,
        config.scheduler,
        config.checkpoint,
        seed=train.seed,
        log_interval=config.logger.log_interval,
        eval_interval=train.eval_interval,
        lr_setting="train.lr",
    )


@dataclass(eq=False, repr=False)
class TrainingRun(Loop):
    """The loop of pretraining, whose steps are the Trainer's. `valid_on` is the digest of the content of
    `held_out`, on rank 0."""

    _: KW_ONLY
    config: PretrainConfig
    held_out: HeldOutSamples | None
    valid_on: str | None = None

    def __post_init__(self) -> None:
        import torch

        super().__post_init__()
        progress = self.progress
        self.measure = self.held_out_values if self.held_out is not None else None
        # Records of earlier versions do not have them.
        self.first_sample = progress.samples or progress.step * self.config.train.global_batch_size
        progress.tokens = progress.tokens or progress.step * self.step_tokens
        # Summed over the ranks only when it is needed; a resumed run's part is on rank 0.
        resumed = progress.nll if processes.rank() == 0 else 0.0
        self._nll = torch.tensor(resumed, dtype=torch.float64, device=self._device)
        self._window_steps = 0

    @property
    def step_tokens(self) -> int:
        """Tokens predicted in one step, over all ranks."""
        return self.config.train.global_batch_size * self.config.seq_length

    def add_loss(self, nll: torch.Tensor) -> None:
        """Add a micro-batch's summed negative log likelihood (nats, float [], detached) to the loss of the next row."""
        self._nll += nll

    def after_step(self, step: int) -> bool:
        """Move the experts' biases and count what was trained on; see `end_step`."""
        self.balance.update()
        size = self.config.train.global_batch_size
        self.progress.samples = self.first_sample + (step - self.first_step + 1) * size
        self.progress.tokens += self.step_tokens
        self.progress.steps_in_window += 1
        self._window_steps += 1
        return self.end_step(step)

    def held_out_values(self, _step: int) -> dict[str, float]:
        """The held-out loss."""
        assert self.held_out is not None  # noqa: S101 - the caller has seen to it
        train = self.config.train
        loss = held_out_loss(self.model, self.held_out, train.micro_batch_size, train.tokens_per_chunk)
        return {"valid_loss": loss}

    def _log(self, step: int, grad_norm: float | None) -> None:
        self.progress.loss = self._window_nll() / (self.progress.steps_in_window * self.step_tokens)
        now = time.monotonic()
        row = {
            "step": step,
            "loss": self.progress.loss,
            "lr": self._lr(step),
            "tokens_per_second": self._window_steps * self.step_tokens / (now - self._since),
            "tokens": self.progress.tokens,
            "elapsed": self._elapsed(),
        }
        self.reporter.row(row if grad_norm is None else {**row, "grad_norm": grad_norm})
        self._nll.zero_()
        self.progress.steps_in_window = self._window_steps = 0
        self._since = now

    def _keep_measured(self, values: Mapping[str, float]) -> None:
        self.progress.valid_loss = values["valid_loss"]
        require_finite("The held-out loss", values["valid_loss"], self.progress.step)
        self.progress.valid_on = self.valid_on

    def _keep_window(self, measured: bool) -> None:
        if not measured:
            self.progress.valid_on = None
        self.progress.nll = self._window_nll()

    def _window_nll(self) -> float:
        """The loss summed since the last log line, over all ranks."""
        nll = float(processes.sum_over_ranks(self._nll.clone()).item())
        require_finite("The loss", nll, self.progress.step)
        return nll


def build_trainer(
    model: torch.nn.Module,
    args: TrainingArguments,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR],
    batches: BatchSampler,
    run: TrainingRun,
    loss_chunk: int | None = None,
) -> Trainer:
    """A Trainer that takes its micro-batches from `batches` and only calls `run` between steps."""
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    class PretrainTrainer(Trainer):  # type: ignore[misc,unused-ignore]
        loss_is_scaled_for_ga = True

        def get_train_dataloader(self) -> BatchSampler:
            return batches

        def floating_point_ops(self, inputs: Any) -> int:
            del inputs
            return 0  # nobody reads it, and it goes through all modules for each micro-batch

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            nll = token_nll(model, inputs["input_ids"], inputs["labels"], loss_chunk)
            run.add_loss(nll.detach())
            # DDP averages gradients over the ranks; what is wanted is the mean over the tokens of the global batch.
            return nll * (world_size() / run.step_tokens)

    trainer = PretrainTrainer(model, args, optimizers=optimizers, callbacks=[_callback(run)])
    trainer.remove_callback(PrinterCallback)
    return trainer


def _callback(run: TrainingRun) -> Any:
    from transformers import TrainerCallback

    class StepCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
        reported = 0

        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            seed_step(run.settings.seed, run.first_step + state.global_step)

        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_log = run.after_step(run.first_step + state.global_step - 1)

        # The Trainer knows the gradients' norm only when it logs, so what is due is done then.
        def on_log(self, _args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.global_step > self.reported:  # the Trainer logs once more when all is over
                self.reported = state.global_step
                norm = (logs or {}).get("grad_norm")
                stop = run.report(run.first_step + state.global_step - 1, None if norm is None else float(norm))
                control.should_training_stop = control.should_training_stop or stop

    return StepCallback()


def held_out_loss(
    model: PreTrainedModel, samples: HeldOutSamples, batch_size: int, loss_chunk: int | None = None
) -> float:
    """The mean negative log likelihood (nats per token) of the windows, which are divided among the ranks."""
    import torch

    total = torch.zeros(1, dtype=torch.float64, device=model.device)
    for turn in range(0, len(samples), world_size() * batch_size):
        start = turn + rank() * batch_size
        if start >= len(samples) and not is_on_ranks(model):
            continue
        # Where ranks share a model, one that has no window left still gives its part of the others' forward pass.
        positions = range(start, min(start + batch_size, len(samples))) or range(1)
        batch = collate(samples, positions, model.config.vocab_size)
        nll = token_nll(model, batch["input_ids"].to(model.device), batch["labels"].to(model.device), loss_chunk)
        total += nll * (start < len(samples))
    return float(sum_over_ranks(total).item()) / (len(samples) * samples.seq_length)


def trainer_arguments(config: TrainConfig, folder: Path, steps: int) -> TrainingArguments:
    """The Trainer's arguments for `steps` steps, with its own logging, saving and evaluation turned off."""
    import torch
    from transformers import TrainingArguments

    cpu = not torch.cuda.is_available()
    sharded = config.layout.ranks > 1
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.global_batch_size // (config.micro_batch_size * world_size()),
        max_grad_norm=config.clip_grad,
        # A sharded model is cast where its weights are gathered (parallel.py).
        bf16=use_bf16(config.precision) and not sharded,
        # Else each rank would keep the whole model's gradients between micro-batches.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}} if sharded else None,
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


def build_schedule(
    config: TrainConfig, scheduler: SchedulerConfig, optimizer: torch.optim.Optimizer, done: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate schedule from step `done` on: a function of the step, without state."""
    from torch.optim.lr_scheduler import LambdaLR

    def factor(step: int) -> float:
        return learning_rate(scheduler, config.lr, done + step, config.train_iters) / config.lr

    return LambdaLR(optimizer, factor)
