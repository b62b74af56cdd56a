"""What a data preparation shows while it runs: its steps, then a bar of shards; and how fast it was, for estimates."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nemotron_kit.data_prep.config import show_size
from nemotron_kit.data_prep.shard_plan import ShardPlan
from nemotron_kit.errors import printable
from nemotron_kit.files import read_regular, write_json
from nemotron_kit.home import nemotron_home
from nemotron_kit.runs.metrics import log_metrics

if TYPE_CHECKING:
    from nemotron_kit.data_prep.pool import ShardEvent
    from nemotron_kit.data_prep.ranks import RankLayout


_EVERY = 30.0  # seconds between lines where there is no terminal


def one_line(text: str) -> str:
    """A text that may hold a file's or a dataset's name, as one line: what a terminal would take for a command, or for
    the line's end, is shown as text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def print_line(line: str) -> None:
    """Print a line on stderr."""
    print(one_line(line), file=sys.stderr)  # noqa: T201


@contextmanager
def shown_steps() -> Iterator[Callable[[str], object]]:
    """A function that says on stderr what is done before there are shards to count; on a terminal it stays there only
    for so long."""
    if not sys.stderr.isatty():
        yield lambda step: print(f"data prep: {step}", file=sys.stderr, flush=True)  # noqa: T201
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("data prep: reading the tokenizer") as status:
        yield lambda step: status.update(f"data prep: {escape(printable(step))}")


class PrepProgress:
    """Shows the progress of a data preparation: a bar on a terminal, else a line every 30 s. A context manager.

    Call `update` with each event; `total` is the number of shards made by this rank. Only rank 0 prints, but for
    damaged shards. With `counted` the numbers also go to the job's metrics, where whoever launched it finds them.
    """

    def __init__(self, plan: ShardPlan, *, total: int, ranks: RankLayout | None = None, counted: bool = False) -> None:
        self.plan, self.total, self.ranks, self._counted = plan, total, ranks, counted
        self._quiet = ranks is not None and not ranks.leads
        self.shards = self.characters = self.tokens = 0
        self.kept = self.made = 0  # shards that were there; characters of those that were not
        self._began = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> PrepProgress:
        if sys.stderr.isatty() and not self._quiet:
            self._bar, self._task = _bar(self.total)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None:
            kept = f" ({self.kept} of them were there already)" if self.kept else ""
            of = f" of {len(self.plan.shards)} by rank 0 of {self.ranks.count}" if self.ranks else ""
            self.print(f"data prep: {self.shards} shards{of}{kept}, {self._rate()}")

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def update(self, event: ShardEvent) -> None:
        """Process one event and show it."""
        self.characters += event.characters
        self.tokens += event.tokens
        if event.record is not None:
            self.shards += 1
            self.kept += event.how == "kept"
            self.made += event.record.characters if event.how != "kept" else 0
            if self._counted:
                log_metrics({"shards": self.shards, "of": self.total, "tokens": self.tokens, "text": self.characters})
            if event.how.startswith("remade"):
                self.print(f"data prep: {event.how}; made again", always=True)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self.shards, what=f"{self.tokens / 1e6:.1f} M tokens, {self._speed()}"
            )
        elif time.monotonic() - self._last > _EVERY:
            self._last = time.monotonic()
            self.print(f"data prep: {self.shards} of {self.total} shards, {self._rate()}")

    def print(self, line: str, *, always: bool = False) -> None:
        """Print a line, above the bar; with `always` on every rank."""
        if self._quiet and not always:
            return
        if self._bar is not None:
            self._bar.console.print(one_line(line), highlight=False, markup=False)
        else:
            print_line(line)

    def _rate(self) -> str:
        text = show_size(self.characters)
        return f"{self.tokens:,} tokens from {text} of text in {self.elapsed:.1f} s ({self._speed()})"

    def _speed(self) -> str:
        return f"{show_size(self.characters / max(self.elapsed, 1e-6))}/s"


def _bar(total: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.theme import Theme

    columns = (
        TextColumn("data prep"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("shards, {task.fields[what]}"),
        TimeElapsedColumn(),
    )
    # rich's own style of the time is yellow, which can't be read on a light ground.
    console = Console(stderr=True, theme=Theme({"progress.elapsed": "dim"}))
    bar = Progress(*columns, console=console, refresh_per_second=4)
    return bar, bar.add_task("", total=total, what="")


_RATES = "data-prep-rates.json"
_WORTH = 20_000_000  # characters: less says nothing about the speed
# Characters a CPU-second, where none was measured: of scripts/bench/data_prep.py on this version's test machine.
DEFAULT_RATE = 2.5e6


def note_rate(model: str, characters: int, workers: int, seconds: float) -> None:
    """Record how fast a tokenizer was on a CPU here, for estimates."""
    if characters < _WORTH or seconds <= 0:
        return
    path = nemotron_home() / "cache" / _RATES
    with suppress(OSError):  # only an estimate is the worse for it
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, {**_rates(), model: round(characters / seconds / workers)})


def measured_rate(model: str) -> float | None:
    """Characters a CPU-second of the newest run with this tokenizer here; None where there was none."""
    rate = _rates().get(model)
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def _rates() -> dict[str, Any]:
    try:
        found = json.loads(read_regular(nemotron_home() / "cache" / _RATES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
