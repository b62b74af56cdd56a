"""The training loop of SFT and RL: the callback computes a step's gradients, the loop does everything else.

A step's gradient is summed in parts: the first and the second half of the step's items, each in one process's order,
then the two together. So one process and two give bit-identical weights.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nemotron_kit.training import processes
from nemotron_kit.training.loop import Evaluate, Loop, preempted, require_finite, seed_step
from nemotron_kit.training.parallel import is_on_ranks, scale_gradients
from nemotron_kit.training.processes import HangWatch

if TYPE_CHECKING:
    import torch

# A step's values, each this rank's part of it: a row has their sums over the ranks, as means over its steps. "tokens"
# is counted instead: how many this rank has trained on.
Step = Callable[[int], Mapping[str, Any]]
# How many gradients are squared in float64 at a time, by the device: what fits a CPU's cache is ten times as fast.
_ON_CPU, _ELSEWHERE = 1 << 16, 1 << 22


class StepLoop(Loop):
    """One run: `run(step, evaluate)` calls `step(number)`, from `first_step` to the last, and does the rest: seeds, the
    sum of the gradients over the ranks, clipping, optimizer, expert balance, rows, checkpoints, signals.

    The callback iterates over `parts(count)` and calls backward in each, on its part of the loss of all ranks:
    gradients are summed, not averaged.
    """

    def __post_init__(self) -> None:
        import torch

        super().__post_init__()
        progress, model = self.progress, self.model
        self._samples_before = progress.samples
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
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
        self.measure = evaluate
        self.model.train()
        with HangWatch(self.settings.hang_minutes) as self.watch:
            for number in range(self.first_step, self.settings.steps + 1):
                seed_step(self.settings.seed, number)
                self._attach_gradients()
                values = step(number)
                norm = self._update(number)
                for name, value in values.items():
                    if name == "tokens":
                        self._tokens += self._number(value).long()
                    elif name in self._window:
                        self._window[name] = self._window[name] + self._number(value)
                    else:
                        self._window[name] = self._number(value)
                self.progress.steps_in_window += 1
                if self.end_step(number):
                    self.report(number, float(norm))
                if self.stopped and number < self.settings.steps:
                    raise preempted(self.stopped, number, self.settings.steps, self.settings.checkpoint.save)

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

    def _number(self, value: Any) -> torch.Tensor:
        import torch

        return torch.as_tensor(value, dtype=torch.float64, device=self._device).detach()

    def _keep_measured(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            require_finite(f"The held-out {name}", value, self.progress.step, self.settings.lr_setting)
        self.progress.held_out, self.progress.held_out_step = dict(values), self.progress.step
        self.progress.valid_loss = values.get("valid_loss")  # none of an earlier step, if there was nothing to measure

    def _keep_window(self, measured: bool) -> None:
        del measured  # held_out_step says of which step the held-out values are
        self.progress.window = self._sums()

    def _log(self, step: int, grad_norm: float | None) -> None:
        means = {name: value / self.progress.steps_in_window for name, value in self._sums().items()}
        self.progress.loss = means.get("loss", self.progress.loss)
        now = time.monotonic()
        row = {
            "step": step,
            **means,
            "lr": self._lr(step),
            "grad_norm": grad_norm,
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
