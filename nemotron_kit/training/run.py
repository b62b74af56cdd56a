"""What happens around the steps of one run: experts balanced, losses counted, rows written, checkpoints saved."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import NemotronError
from nemotron_kit.training import checkpoint, ranks
from nemotron_kit.training.balance import ExpertBalance
from nemotron_kit.training.config import PretrainConfig
from nemotron_kit.training.evaluate import held_out_loss
from nemotron_kit.training.metrics import Reporter
from nemotron_kit.training.preempt import StopRequest
from nemotron_kit.training.samples import HeldOutSamples
from nemotron_kit.training.scheduler import learning_rate
from nemotron_kit.training.state import MODEL, OPTIMIZER, Progress, export_model, save_optimizer

if TYPE_CHECKING:
    import torch


@dataclass
class Run:
    """The state and the duties of a run between its steps (the Trainer's `Hooks`).

    `valid_on` stands for the content of `held_out`, on rank 0.
    """

    config: PretrainConfig
    model: Any
    optimizer: torch.optim.Optimizer
    balance: ExpertBalance
    held_out: HeldOutSamples | None
    progress: Progress
    identity: dict[str, Any]
    reporter: Reporter
    stop: StopRequest
    valid_on: str | None = None
    stopped: str | None = None

    def __post_init__(self) -> None:
        import torch

        self.first_step = self.progress.step + 1
        # Summed over the ranks only when it is needed; a resumed run's part is on rank 0.
        resumed = self.progress.nll if ranks.rank() == 0 else 0.0
        self._nll = torch.tensor(resumed, dtype=torch.float64, device=self.model.device)
        self._window = self._started = time.monotonic()
        self._window_steps = 0
        self._elapsed_before = self.progress.elapsed
        self._warned: set[str] = set()

    def before_step(self, step: int) -> None:
        """Seed the step: whatever is random in it depends on (seed, step, rank) alone, resumed or not."""
        import torch

        words = f"{self.config.train.seed} {step} {ranks.rank()}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1)

    def add_loss(self, nll: torch.Tensor) -> None:
        self._nll += nll

    def after_step(self, step: int) -> bool:
        self.balance.update()
        self.progress.step = step
        self.progress.steps_in_window += 1
        self._window_steps += 1
        self.reporter.advance()
        if ranks.any_rank(self.stop.signal is not None, self.model.device):
            self.stopped = self.stop.signal or "a signal to another process"
        return bool(self.stopped) or self._logs(step) or self._evaluates(step) or self._saves(step)

    def report(self, step: int, grad_norm: float | None) -> bool:
        self._require_finite("The gradients' norm", 0.0 if grad_norm is None else float(grad_norm))
        if self._logs(step):
            self._log(step, grad_norm)
        if self._evaluates(step) and not self.stopped:
            self.evaluate(step)
        if self._saves(step) or self.stopped:
            self.save()
        return bool(self.stopped)

    def save(self) -> None:
        """Save a checkpoint of this step, if the run keeps any; only then are older ones removed."""
        if not self.config.checkpoint.save:
            return
        self.progress.nll = self._window_nll()
        self.progress.elapsed = self._elapsed()
        if ranks.rank() == 0:
            folder = Path(self.config.checkpoint.save)
            self._require_own(folder / checkpoint.name(self.progress.step))
            checkpoint.write(folder, self.progress.step, self._fill)
            for problem in checkpoint.prune(folder, self.config.checkpoint.most_recent_k):
                self._warn(f"Warning: {problem} It is tried again after the next checkpoint.")
        ranks.barrier()

    def _require_own(self, path: Path) -> None:
        """NemotronError when the checkpoint of this step is there, and another run's that writes here meanwhile."""
        if path.exists() and checkpoint.read(path, verify=False).get("identity") != self.identity:
            raise NemotronError(
                f"{path} appeared while this run was under way, with the weights of another one.",
                hint="Give each run a checkpoint.save of its own.",
            )

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self.reporter.say(text)

    def _fill(self, folder: Path) -> dict[str, Any]:
        export_model(self.model, folder / MODEL)
        save_optimizer(self.optimizer, self.model, folder / OPTIMIZER)
        return {"progress": self.progress.to_dict(), "identity": self.identity, "processes": ranks.world_size()}

    def _logs(self, step: int) -> bool:
        return step % self.config.logger.log_interval == 0 or self._last(step)

    def _evaluates(self, step: int) -> bool:
        every = self.config.train.eval_interval
        return self.held_out is not None and (self._last(step) or bool(every and step % every == 0))

    def _saves(self, step: int) -> bool:
        every = self.config.checkpoint.save_interval
        return self._last(step) or bool(every and step % every == 0)

    def _last(self, step: int) -> bool:
        return step >= self.config.train.train_iters

    def _log(self, step: int, grad_norm: float | None) -> None:
        train = self.config.train
        tokens = train.global_batch_size * self.config.seq_length
        self.progress.loss = self._window_nll() / (self.progress.steps_in_window * tokens)
        now = time.monotonic()
        row = {
            "step": step,
            "loss": self.progress.loss,
            "lr": learning_rate(self.config.scheduler, train.lr, step - 1, train.train_iters),
            "tokens_per_second": self._window_steps * tokens / (now - self._window),
            "tokens": step * tokens,
            "elapsed": self._elapsed(),
        }
        self.reporter.row(row if grad_norm is None else {**row, "grad_norm": float(grad_norm)})
        self._nll.zero_()
        self.progress.steps_in_window = self._window_steps = 0
        self._window = now

    def evaluate(self, step: int) -> None:
        """Measure the held-out loss; only where there is a valid split."""
        assert self.held_out is not None  # noqa: S101 - the caller has seen to it
        began = time.monotonic()
        self.progress.valid_loss = held_out_loss(self.model, self.held_out, self.config.train.micro_batch_size)
        self.progress.valid_on = self.valid_on
        self.reporter.row({"step": step, "valid_loss": self.progress.valid_loss, "elapsed": self._elapsed()})
        self._window += time.monotonic() - began  # training's tokens a second, without the evaluation's time

    def _window_nll(self) -> float:
        """The loss summed since the last log line, over all ranks."""
        nll = float(ranks.sum_over_ranks(self._nll.clone()).item())
        self._require_finite("The loss", nll)
        return nll

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise NemotronError(
                f"{what} is {value} at step {self.progress.step}: training has diverged.",
                hint="Lower train.lr, or raise scheduler.lr_warmup_iters; earlier checkpoints are kept.",
            )

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._started
