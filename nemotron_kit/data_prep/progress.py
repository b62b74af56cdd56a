"""Tells how far the shards are, on standard error: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nemotron_kit.data_prep.plan import Plan
from nemotron_kit.data_prep.pool import Event
from nemotron_kit.data_prep.sizes import show_size

if TYPE_CHECKING:
    from nemotron_kit.data_prep.ranks import Ranks

_EVERY = 30.0  # seconds between lines where there is no terminal


class Progress:
    """A context manager; call `hear` with each event.

    `total` shards are made here. Of several ranks the first speaks for all; the others tell of damaged shards only.
    """

    def __init__(self, plan: Plan, *, total: int | None = None, ranks: Ranks | None = None) -> None:
        self.plan, self.ranks = plan, ranks
        self.total = len(plan.shards) if total is None else total
        self._quiet = ranks is not None and not ranks.leads
        self.shards = self.characters = self.tokens = 0
        self.kept = 0
        self._began = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
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
            self.say(f"data prep: {self.shards} shards{of}{kept}, {self._rate()}")

    def hear(self, event: Event) -> None:
        """Take in one event and show it."""
        self.characters += event.characters
        self.tokens += event.tokens
        if event.record is not None:
            self.shards += 1
            self.kept += event.how == "kept"
            if event.how.startswith("remade"):
                self.say(f"data prep: {event.how}; made again", always=True)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self.shards, what=f"{self.tokens / 1e6:.1f} M tokens, {self._speed()}"
            )
        elif time.monotonic() - self._last > _EVERY:
            self._last = time.monotonic()
            self.say(f"data prep: {self.shards} of {self.total} shards, {self._rate()}")

    def say(self, line: str, *, always: bool = False) -> None:
        """A line of its own, above the bar; `always`: whichever rank this is."""
        if self._quiet and not always:
            return
        # A file's name may hold anything: what a terminal would take for a command is shown as text.
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr)  # noqa: T201

    def _rate(self) -> str:
        elapsed = time.monotonic() - self._began
        text = show_size(self.characters)
        return f"{self.tokens:,} tokens from {text} of text in {elapsed:.1f} s ({self._speed()})"

    def _speed(self) -> str:
        return f"{show_size(self.characters / max(time.monotonic() - self._began, 1e-6))}/s"


def _bar(total: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("data prep"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("shards, {task.fields[what]}"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
    return bar, bar.add_task("", total=total, what="")
