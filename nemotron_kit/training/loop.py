"""What every training loop does around its steps: optimizer, learning rate, metrics rows, held-out values, checkpoints.

Pretraining's loop is in pretrain_loop.py, that of SFT and RL in step_loop.py."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.runs.folder import open_job
from nemotron_kit.runs.job import SLURM_STEP
from nemotron_kit.training import checkpoint, processes, sharded
from nemotron_kit.training.checkpoint import MODEL, OPTIMIZER, TrainingProgress, export_model, save_optimizer
from nemotron_kit.training.config_blocks import CheckpointConfig, SchedulerConfig
from nemotron_kit.training.model import ExpertBalance
from nemotron_kit.training.parallel import is_on_ranks, layout_of, seed_of
from nemotron_kit.training.pretrain_config import TrainConfig
from nemotron_kit.training.processes import HangWatch, Preempted, StopRequest, rank
from nemotron_kit.training.reporter import Reporter

if TYPE_CHECKING:
    import torch

    from nemotron_kit.training.sft_config import SFTOptimizerConfig


# How far a decay has come (1 … 0 of the way from lr to min_lr), by the fraction of its steps done.
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "minus_sqrt": lambda done: 1 - math.sqrt(done),
    "exponential": lambda done: 2 * 0.5**done - 1,
}


def learning_rate(config: SchedulerConfig, lr: float, step: int, train_iters: int) -> float:
    """The learning rate of step `step` (counted from 0) of a run of `train_iters` steps with the peak `lr`.

    Linear warm-up, then the style's schedule. WSD is warm-up–stable–decay (MiniCPM, arXiv 2404.06395): the rate stays
    at `lr` until the last `lr_wsd_decay_iters` steps. Styles, shapes and names are those of
    megatron/core/optimizer_param_scheduler.py. After the decay the rate stays at min_lr.
    """
    if step < config.lr_warmup_iters:
        return lr * (step + 1) / config.lr_warmup_iters
    if config.lr_decay_style == "constant":
        return lr
    end = train_iters if config.lr_decay_iters is None else config.lr_decay_iters
    whole = max(0, end - config.lr_warmup_iters)
    steps, shape = whole, config.lr_decay_style
    if config.lr_decay_style == "WSD":
        steps = min(whole, end // 5 if config.lr_wsd_decay_iters is None else config.lr_wsd_decay_iters)
        shape = config.lr_wsd_decay_style
    if steps <= 0 or step < end - steps:
        return lr if step < end else config.min_lr
    return config.min_lr + (lr - config.min_lr) * _SHAPES[shape](min(1.0, (step - (end - steps)) / steps))


def use_bf16(precision: str) -> bool:
    """Whether to train in bf16, by train.precision. Raises UserError if it is requested and the GPU does not support
    it."""
    import torch

    if not torch.cuda.is_available():
        return precision == "bf16"
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise UserError("train.precision is bf16, which this GPU doesn't have.", hint="Set train.precision=fp32.")
    return precision != "fp32" and bool(torch.cuda.is_bf16_supported())


def build_optimizer(config: TrainConfig | SFTOptimizerConfig, model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), by a `train` or `optimizer` block, with (decoupled) weight decay
    on every parameter of more than one dimension."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.adam_eps, fused=True)


def seed_step(seed: int, step: int) -> None:
    """Seed torch for a step: its random numbers depend on (seed, step, rank) only, resumed or not."""
    import torch

    torch.manual_seed(seed_of(seed, step, rank()))


def require_finite(what: str, value: float, step: int, lr_setting: str = "train.lr") -> None:
    """Raises NemotronError if a loss or gradient norm is NaN or infinite. `lr_setting`: the dotted name of the learning
    rate."""
    if not math.isfinite(value):
        raise NemotronError(
            f"{what} is {value} at step {step}: training has diverged.",
            hint=f"Lower {lr_setting}, or raise scheduler.lr_warmup_iters; earlier checkpoints are kept.",
        )


class CheckpointWriter:
    """The checkpoints that a run writes, each by the ranks that hold the model. Older ones are removed afterwards. What
    can't be removed is reported by `report`, once, and tried again."""

    def __init__(
        self,
        block: CheckpointConfig,
        model: Any,
        optimizer: torch.optim.Optimizer,
        report: Callable[[str], None],
        write_model: Callable[[Path], None] | None = None,
        prune: Callable[[Path], list[str]] | None = None,
    ) -> None:
        """`write_model(folder)` writes the model's part of a checkpoint of one process (all of it, in `model/`);
        `prune(folder)` removes older checkpoints (all but the newest `block.kept`) and returns what it can't remove."""
        self.block, self.model, self.optimizer = block, model, optimizer
        self._write_model = write_model or (lambda folder: export_model(model, folder / MODEL))
        self._prune_folder = prune or (lambda folder: checkpoint.prune(folder, block.kept))
        self._report, self._reported = report, set[str]()
        self._pending: sharded.Save | None = None

    def save(self, step: int, record: Mapping[str, Any], *, last: bool) -> None:
        """Write the checkpoint of `step`. All ranks must call it. Raises NemotronError, on all of them, if another run
        has written one of this step meanwhile, or if the disk refuses."""
        assert self.block.save is not None  # noqa: S101 - the caller has seen to it
        folder = Path(self.block.save)
        entry = {**record, "processes": processes.world_size(), "parallelism": str(layout_of(self.model))}
        if is_on_ranks(self.model):
            self.finish()
            later = self.block.asynchronous and not last
            self._pending = sharded.save(folder, step, entry, self.model, self.optimizer, later=later)
            if not later:
                self.finish()
            return

        def fill(aside: Path) -> dict[str, Any]:
            self._write_model(aside)
            save_optimizer(self.optimizer, self.model, aside / OPTIMIZER)
            return entry

        def write() -> None:
            if processes.rank() == 0:
                checkpoint.require_own(folder / checkpoint.name(step), record["identity"])
                checkpoint.write(folder, step, fill)
                self._prune(folder)

        processes.on_all_ranks(write)

    def poll(self) -> None:
        """Make the checkpoint that is being written one, if all ranks have written."""
        if self._pending is not None and not processes.any_rank(not self._pending.written):
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.commit()
            if processes.rank() == 0:
                self._prune(pending.final.parent)

    def _prune(self, folder: Path) -> None:
        for problem in self._prune_folder(folder):
            if problem not in self._reported:
                self._reported.add(problem)
                self._report(f"Warning: {problem} It is tried again after the next checkpoint.")


def preempted(signal: str, step: int, steps: int, save: str | None) -> Preempted:
    """The exception of a run that a signal stopped after `step` of `steps`."""
    stopped = f"Stopped by {signal} after step {step} of {steps}"
    if not save:
        return Preempted(f"{stopped}; nothing is saved.", hint="checkpoint.save names a folder for checkpoints.")
    try:
        line = f"nemotron runs resume {open_job(os.environ['NEMO_RUN_DIR']).reference}"
        hint = f"If Slurm does not start it again: {line}" if SLURM_STEP in os.environ else f"To go on: {line}"
    except (KeyError, UserError):  # outside of a launch
        hint = "The same command goes on from there."
    return Preempted(f"{stopped}; saved in {save}.", hint=hint)


@dataclass(frozen=True)
class LoopSettings:
    """The loop's settings: the number of `steps`, the peak `lr` and its schedule, and the intervals of its actions."""

    steps: int
    lr: float
    scheduler: SchedulerConfig
    checkpoint: CheckpointConfig
    clip_grad: float = 1.0
    seed: int = 1234
    log_interval: int = 10
    eval_interval: int | None = None
    bf16: bool = False
    lr_setting: str = "optimizer.lr"  # what errors call the peak rate
    hang_minutes: float | None = None


# Held-out values, the same on every rank; "valid_loss" is the one that the run's end reports.
Evaluate = Callable[[int], Mapping[str, float]]


@dataclass(eq=False, repr=False)
class Loop(ABC):
    """What all stages do between their steps, in this order: the row of metrics, the held-out evaluation, the
    checkpoint, the end that a signal asks for. `measure` gives the held-out values, where there are any. Steps count
    from 1 over the whole run, resumed or not. `write_model` and `prune`: see CheckpointWriter."""

    settings: LoopSettings
    model: Any
    optimizer: torch.optim.Optimizer
    _: KW_ONLY
    progress: TrainingProgress
    identity: Mapping[str, Any]
    reporter: Reporter
    stop: StopRequest
    balance: ExpertBalance = field(default_factory=ExpertBalance)
    write_model: Callable[[Path], None] | None = None
    prune: Callable[[Path], list[str]] | None = None

    def __post_init__(self) -> None:
        self.measure: Evaluate | None = None
        self.first_step = self.progress.step + 1
        self.stopped: str | None = None
        self.watch = HangWatch(None)
        kept, report = self.settings.checkpoint, self.reporter.print
        self.saves = CheckpointWriter(kept, self.model, self.optimizer, report, self.write_model, self.prune)
        self._device = next(self.model.parameters()).device
        self._since = self._started = time.monotonic()
        self._elapsed_before = self.progress.elapsed

    def end_step(self, step: int) -> bool:
        """Record that the step is done, and look for a stop signal on any rank. Returns whether a row, an evaluation, a
        checkpoint or the stop is due, which `report` does; all ranks return the same."""
        self.progress.step = step
        self.watch.beat()
        self.reporter.advance()
        self.saves.poll()
        if processes.any_rank(self.stop.signal is not None):
            self.stopped = self.stop.signal or "a signal to another process"
        every = [self.settings.log_interval, self.settings.checkpoint.save_interval]
        every += [self.settings.eval_interval] if self.measure is not None else []
        return bool(self.stopped) or any(self._due(step, interval) for interval in every)

    def report(self, step: int, grad_norm: float | None) -> bool:
        """Write the row, evaluate and save what is due after `step`; returns whether to stop. `grad_norm` is the norm
        before clipping. All ranks must call it. Raises NemotronError if the loss or the norm is no finite number."""
        settings = self.settings
        require_finite("The gradients' norm", 0.0 if grad_norm is None else grad_norm, step, settings.lr_setting)
        if self._due(step, settings.log_interval):
            self._log(step, grad_norm)
        if self.stopped:  # first: the time that is left may be too short for more
            self.save(measured=step < settings.steps)
        if self.measure is not None and self._due(step, None if self.stopped else settings.eval_interval):
            self.evaluate(self.measure)
            self.watch.beat()
        if self._due(step, settings.checkpoint.save_interval) and not self.stopped:
            self.save()
        self.watch.beat()
        return bool(self.stopped)

    def evaluate(self, measure: Evaluate) -> None:
        """Measure held-out values after the last step and write their row."""
        import torch

        began, step = time.monotonic(), self.progress.step
        self.model.eval()
        try:
            with torch.no_grad():
                values = dict(measure(step))
        except Exception:
            # The steps are done, and must not be lost. Other ranks may wait in this evaluation: they can't save.
            if step and self._due(step, self.settings.checkpoint.save_interval) and processes.world_size() == 1:
                self.save(measured=False)
            raise
        self.model.train()
        self._keep_measured(values)
        if values:
            self.reporter.row({"step": step, **values, "elapsed": self._elapsed()})
        self._since += time.monotonic() - began  # training's tokens a second, without the evaluation's time

    def save(self, *, measured: bool = True) -> None:
        """Save a checkpoint of the last step, if the run saves any; older ones are removed afterwards. Not `measured`:
        its held-out values are still to come."""
        if not self.settings.checkpoint.save:
            return
        self._keep_window(measured)
        self.progress.elapsed = self._elapsed()
        record = {"progress": asdict(self.progress), "identity": self.identity}
        last = self.progress.step >= self.settings.steps or bool(self.stopped)
        self.saves.save(self.progress.step, record, last=last)

    @abstractmethod
    def _log(self, step: int, grad_norm: float | None) -> None:
        """Write the row of the steps since the last one."""

    @abstractmethod
    def _keep_measured(self, values: Mapping[str, float]) -> None:
        """Put held-out values into the progress. Raises NemotronError if one is no finite number."""

    @abstractmethod
    def _keep_window(self, measured: bool) -> None:
        """Put what was summed since the last row into the progress, before it is saved."""

    def _due(self, step: int, interval: int | None) -> bool:
        return step >= self.settings.steps or bool(interval and step % interval == 0)

    def _lr(self, step: int) -> float:
        return learning_rate(self.settings.scheduler, self.settings.lr, step - 1, self.settings.steps)

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._started
