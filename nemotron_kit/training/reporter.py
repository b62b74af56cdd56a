"""A run's metrics: rows in metrics.jsonl, a progress bar or plain lines on stderr, and W&B when a W&B run is open."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import NemotronError
from nemotron_kit.files import write_text
from nemotron_kit.runs.metrics import METRICS_FILE, MetricsFile, to_tensorboard, to_wandb
from nemotron_kit.training.config_blocks import LoggerConfig
from nemotron_kit.training.processes import rank

if TYPE_CHECKING:
    from rich.progress import Progress


class Reporter:
    """Writes rows of numbers to a JSONL file, the terminal and W&B; on any rank but 0 it does nothing.

    `Reporter(path, done, total)` drops the rows after step `done` of `total`: a run that is resumed there makes them
    again.
    """

    def __init__(self, path: Path, done: int, total: int) -> None:
        self._path = path
        self._total = total
        self._silent = rank() != 0
        self._bar: Progress | None = None
        if self._silent:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                # A run without a checkpoint begins anew: with what it measures before its first step (step 0), too.
                kept = [line for line in lines if _step(line) <= (done or -1)]
                if len(kept) < len(lines):
                    write_text(path, "".join(f"{line}\n" for line in kept))
        except OSError as error:
            raise NemotronError(f"{path}: metrics can't be written: {error.strerror}.") from error
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            text, left = progress.TextColumn("{task.description}"), progress.TimeRemainingColumn()
            columns = (progress.BarColumn(), progress.MofNCompleteColumn(), text, left)
            self._bar = progress.Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=total, completed=done)
            self._bar.start()

    def print(self, text: str) -> None:
        """Print one line for a person, on stderr: standard output is reserved for the artifacts passed to the next
        step."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def advance(self) -> None:
        """Record that one step is done."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def row(self, row: dict[str, Any]) -> None:
        """Record `row`, a mapping with a "step"; floats are written unrounded."""
        if self._silent:
            return
        MetricsFile.of(self._path).write(row, now=True)
        to_wandb(row)
        to_tensorboard(row)
        text = describe(row, self._total)
        if self._bar is not None and not {"valid_loss", "val_reward"} & row.keys():
            self._bar.update(self._task, description=text.partition(": ")[2])
        else:
            self.print(text)

    def close(self) -> None:
        """Remove the progress bar. Rows are in the file already."""
        if self._bar is not None:
            self._bar.stop()


def metrics_path(config: LoggerConfig, save: Path) -> Path:
    """The path of the rows: logger.metrics_file, else in the job's folder, else in the checkpoints' folder."""
    if config.metrics_file:
        return Path(config.metrics_file)
    return Path(os.environ.get("NEMO_RUN_DIR") or save) / METRICS_FILE


_REWARDS = {
    "reward": "reward",
    "val_reward_greedy": "held-out reward greedy",
    "val_reward": "held-out reward sampled",
}


def describe(row: dict[str, Any], total: int) -> str:
    """A row as a line: `step 20/300: loss 5.123, lr 1.00e-03, 34,100 tokens/s`."""
    parts = []
    if "loss" in row:
        parts.append(f"loss {row['loss']:.4f}")
    if "valid_loss" in row:
        parts.append(f"held-out loss {row['valid_loss']:.4f}")
    parts += [f"{words} {row[name]:.3f}" for name, words in _REWARDS.items() if name in row]
    if "lr" in row:
        parts.append(f"lr {row['lr']:.2e}")
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    return f"step {row['step']}/{total}: " + ", ".join(parts)


def _step(line: str) -> float:
    """The row's step; minus infinity for a row without one, infinity for a line that a kill cut short."""
    try:
        return float(json.loads(line).get("step", "-inf"))
    except (ValueError, AttributeError, TypeError):
        return float("inf")
