"""The training loop of SFT and RL: the callback computes a step's gradients, the loop does everything else.

A step's gradient is summed in parts: the first and the second half of the step's items, each in one process's order,
then the two together. So one process and two give bit-identical weights.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.training import processes
from nemotron_kit.training.checkpoint import TrainingProgress
from nemotron_kit.training.config_blocks import CheckpointConfig, SchedulerConfig
from nemotron_kit.training.loop import CheckpointWriter, learning_rate, preempted, require_finite, seed_step
from nemotron_kit.training.model import ExpertBalance
from nemotron_kit.training.parallel import is_on_ranks, scale_gradients
from nemotron_kit.training.processes import HangWatch, StopRequest
from nemotron_kit.training.reporter import Reporter

if TYPE_CHECKING:
    import torch

# A step's values, each this rank's part of it: a row has their sums over the ranks, as means over its steps. "tokens"
# is counted instead: how many this rank has trained on.
Step = Callable[[int], Mapping[str, Any]]
# Held-out values, the same on every rank; "valid_loss" is the one that the run's end reports.
Evaluate = Callable[[int], Mapping[str, float]]

# How many gradients are squared in float64 at a time, by the device: what fits a CPU's cache is ten times as fast.
_ON_CPU, _ELSEWHERE = 1 << 16, 1 << 22


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


class StepLoop:
    """One run: `run(step, evaluate)` calls `step(number)`, from `first_step` to the last, and does the rest: seeds, the
    sum of the gradients over the ranks, clipping, optimizer, expert balance, rows, checkpoints, signals.

    The callback iterates over `parts(count)` and calls backward in each, on its part of the loss of all ranks:
    gradients are summed, not averaged. Steps count from 1 over the whole run, resumed or not.
    """

    def __init__(
        self,
        settings: LoopSettings,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        progress: TrainingProgress,
        identity: Mapping[str, Any],
        reporter: Reporter,
        stop: StopRequest,
        balance: ExpertBalance | None = None,
        write_model: Callable[[Path], None] | None = None,
    ) -> None:
        """`write_model(folder)` writes the model's part of a checkpoint (the whole model is in `model/`)."""
        import torch

        self.settings, self.model, self.optimizer, self.progress = settings, model, optimizer, progress
        self.identity, self.reporter, self.stop = dict(identity), reporter, stop
        self.balance = balance or ExpertBalance(model, 0.0)
        self.first_step = progress.step + 1
        self._samples_before = progress.samples
        self.stopped: str | None = None
        self.watch = HangWatch(None)
        self.saves = CheckpointWriter(settings.checkpoint, model, optimizer, reporter.print, write_model)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._device = self._trained[0].device
        self._sharded = is_on_ranks(model)
        # One buffer for all gradients, each a view of it: summed, reduced and clipped at once. Those of a sharded model
        # are FSDP's own.
        size = 0 if self._sharded else sum(parameter.numel() for parameter in self._trained)
        self._gradient = torch.zeros(size, device=self._device)
        self._first_part: torch.Tensor | None = None
        self._window = {name: self._number(value) for name, value in progress.window.items()}
        if processes.rank() != 0:  # a resumed run's part is on rank 0
            self._window = {name: value * 0 for name, value in self._window.items()}
        self._tokens = torch.zeros((), dtype=torch.int64, device=self._device)
        self._tokens_before = progress.tokens
        self._since = self._started = time.monotonic()
        self._elapsed_before = progress.elapsed

    def parts(self, count: int) -> Iterator[range]:
        """This rank's share of `count` items, in one or two parts. After each part its gradients are added to the
        sum."""
        import torch

        share = count // processes.world_size()
        first = processes.rank() * share
        halves = 2 if processes.world_size() == 1 and share % 2 == 0 else 1
        for number in range(halves):
            yield range(first + number * share // halves, first + (number + 1) * share // halves)
            if number + 1 < halves:
                if self._first_part is None:
                    self._first_part = torch.empty_like(self._gradient)
                self._first_part.copy_(self._gradient)
                self._gradient.zero_()
        if halves > 1 and self._first_part is not None:
            self._gradient.add_(self._first_part)

    def samples(self, number: int, count: int) -> range:
        """The positions, in the order of the data, of the `count` samples that step `number` takes: behind those of all
        steps before, also of those that took another number of them."""
        before = self._samples_before or (self.first_step - 1) * count  # 0 in records of earlier versions
        start = before + (number - self.first_step) * count
        self.progress.samples = start + count
        return range(start, start + count)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Within the block, forward passes use bf16 if the run's precision is bf16."""
        import torch

        # A sharded model is cast where its weights are gathered.
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.bf16 and not self._sharded):
            yield

    def run(self, step: Step, evaluate: Evaluate | None = None) -> None:
        """Run the remaining steps. Raises Preempted if a signal stopped it; a checkpoint is saved by then."""
        self.model.train()
        with HangWatch(self.settings.hang_minutes) as self.watch:
            for number in range(self.first_step, self.settings.steps + 1):
                self._run_step(number, step, evaluate)
                self.watch.beat()

    def _run_step(self, number: int, step: Step, evaluate: Evaluate | None) -> None:
        seed_step(self.settings.seed, number)
        self._attach_gradients()
        values = step(number)
        norm = self._update(number)
        self._count(values)
        self.progress.step = number
        self.watch.beat()
        self.reporter.advance()
        self.saves.poll()
        if processes.any_rank(self.stop.signal is not None, self._device):
            self.stopped = self.stop.signal or "a signal to another process"
        self._report(number, norm, evaluate)
        if self.stopped and number < self.settings.steps:
            raise preempted(self.stopped, number, self.settings.steps, self.settings.checkpoint.save)

    def evaluate(self, evaluate: Evaluate) -> None:
        """Measure held-out values after the last step and write their row."""
        import torch

        began = time.monotonic()
        self.model.eval()
        try:
            with torch.no_grad():
                values = dict(evaluate(self.progress.step))
        except Exception:
            # The steps are done, and must not be lost. Other ranks may wait in this evaluation: they can't save.
            step = self.progress.step
            if step and self._due(step, self.settings.checkpoint.save_interval) and processes.world_size() == 1:
                self.save()
            raise
        self.model.train()
        for name, value in values.items():
            require_finite(f"The held-out {name}", value, self.progress.step, self.settings.lr_setting)
        self.progress.held_out, self.progress.held_out_step = values, self.progress.step
        self.progress.valid_loss = values.get("valid_loss")  # none of an earlier step, if there was nothing to measure
        if values:
            self.reporter.row({"step": self.progress.step, **values, "elapsed": self._elapsed()})
        self._since += time.monotonic() - began

    def save(self) -> None:
        """Save a checkpoint of the last step, if the run saves any."""
        if not self.settings.checkpoint.save:
            return
        self.progress.window, self.progress.elapsed = self._sums(), self._elapsed()
        record = {"progress": self.progress.to_dict(), "identity": self.identity}
        last = self.progress.step >= self.settings.steps or bool(self.stopped)
        self.saves.save(self.progress.step, record, last=last)

    def _attach_gradients(self) -> None:
        if self._sharded:
            self.optimizer.zero_grad(set_to_none=True)
            return
        self._gradient.zero_()
        start = 0
        for parameter in self._trained:
            end = start + parameter.numel()
            parameter.grad = self._gradient[start:end].view_as(parameter)
            start = end

    def _update(self, number: int) -> torch.Tensor:
        """One optimizer step with the gradients of all ranks; returns the gradients' norm before clipping."""
        import torch

        if self._sharded:
            norm = scale_gradients(self.model, self.settings.clip_grad)
        else:
            processes.sum_over_ranks(self._gradient)
            # Summed in float32 it was off by 1e-4 on CPUs, and the layouts clipped differently.
            count = _ON_CPU if self._gradient.device.type == "cpu" else _ELSEWHERE
            squares = [part.double().square().sum() for part in self._gradient.split(count)]
            norm = torch.stack(squares).sum().sqrt()
            if self.settings.clip_grad > 0:
                self._gradient.mul_((self.settings.clip_grad / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(number)
        self.optimizer.step()
        self.balance.update()
        return norm

    def _count(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            number = self._number(value)
            if name == "tokens":
                self._tokens += number.long()
            else:
                self._window[name] = self._window[name] + number if name in self._window else number
        self.progress.steps_in_window += 1

    def _number(self, value: Any) -> torch.Tensor:
        import torch

        return torch.as_tensor(value, dtype=torch.float64, device=self._device).detach()

    def _report(self, number: int, norm: torch.Tensor, evaluate: Evaluate | None) -> None:
        logs = self._due(number, self.settings.log_interval)
        saves = self._due(number, self.settings.checkpoint.save_interval)
        evaluates = evaluate is not None and self._due(number, None if self.stopped else self.settings.eval_interval)
        if not (logs or saves or evaluates or self.stopped):
            return
        require_finite("The gradients' norm", float(norm), number, self.settings.lr_setting)
        if logs:
            self._log(number, float(norm))
        if self.stopped:  # first: the time that is left may be too short for more
            self.save()
        if evaluates and evaluate is not None:
            self.evaluate(evaluate)
            self.watch.beat()
        if saves and not self.stopped:
            self.save()

    def _due(self, number: int, interval: int | None) -> bool:
        return number >= self.settings.steps or bool(interval and number % interval == 0)

    def _log(self, number: int, norm: float) -> None:
        means = {name: value / self.progress.steps_in_window for name, value in self._sums().items()}
        self.progress.loss = means.get("loss", self.progress.loss)
        now = time.monotonic()
        row = {
            "step": number,
            **means,
            "lr": self._lr(number),
            "grad_norm": norm,
            "tokens_per_second": (self.progress.tokens - self._tokens_before) / (now - self._since),
            "tokens": self.progress.tokens,
            "elapsed": self._elapsed(),
        }
        self.reporter.row(row)
        self._window = {}
        self.progress.steps_in_window = 0
        self._since, self._tokens_before = now, self.progress.tokens

    def _sums(self) -> dict[str, float]:
        """The values since the last row, summed over the ranks; this process keeps its own part. Also counts the
        tokens."""
        import torch

        names = sorted(self._window)
        own = torch.stack([*(self._window[name] for name in names), self._tokens.double()])
        sums = processes.sum_over_ranks(own).tolist()
        self.progress.tokens += int(sums.pop())
        self._tokens.zero_()
        for name, value in zip(names, sums, strict=True):
            require_finite(f"The step's {name}", value, self.progress.step, self.settings.lr_setting)
        return dict(zip(names, sums, strict=True))

    def _lr(self, number: int) -> float:
        return learning_rate(self.settings.scheduler, self.settings.lr, number - 1, self.settings.steps)

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._started
