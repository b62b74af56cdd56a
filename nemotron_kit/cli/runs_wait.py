"""`nemotron runs wait ID …`: until runs have ended; the exit code says how."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nemotron_kit.cli.grid import clean, write_lines
from nemotron_kit.cli.runs import is_asked
from nemotron_kit.cli.toolargs import ToolParser, at_least
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.runs.records import DamagedRecord
from nemotron_kit.runs.states import DAMAGED, EXIT_CODES, TERMINAL

if TYPE_CHECKING:
    from nemotron_kit.execution.ledger import Sight

_HERE = (0.1, 1.2, 2.0)
_ELSEWHERE = (1.0, 1.3, 30.0)
_PATIENCE = 600
_UNSURE = ("unreachable", "unknown")
# Of many runs the exit code is that of the first of these that one of them ended as.
_WORST = (DAMAGED, "unreachable", "unknown", "failed", "preempted", "cancelled", "succeeded")


def wait(argv: list[str]) -> int:
    """Wait until every run named has ended. One that can't be asked about is given `--patience` seconds."""
    parser = ToolParser("nemotron runs wait", "Waits until runs have ended, and exits as they did.")
    what = "a run's id, the start of one, its last six digits, or latest"
    parser.add_argument("ids", metavar="ID", nargs="+", help=what)
    parser.add_argument(
        "--patience",
        type=at_least(0),
        default=_PATIENCE,
        metavar="S",
        help=f"give up (exit code 3) when nothing has been known of a run for S seconds ({_PATIENCE})",
    )
    options = parser.parse(argv)
    if options is None:
        return 0
    runs = [open_run(reference) for reference in dict.fromkeys(options.ids)]
    waits = [_Wait(run, options.patience) for run in {run.id: run for run in runs}.values()]
    until_over(waits)
    for each in waits:
        say_end(each.run, each.state)
    return EXIT_CODES[next(state for state in _WORST if state in {each.state for each in waits})]


class _Wait:
    """One run that is waited for: `state` as it was last seen, `over` once nothing more is to come."""

    def __init__(self, run: RunFolder, patience: float) -> None:
        self.run, self.patience = run, patience
        self.elsewhere = is_asked(_executor(run))
        self.state, self.over = "pending", False
        self._unsure_since: float | None = None

    def look(self, sight: Sight | None) -> None:
        self.state = self._state(sight)
        if self.state not in _UNSURE:
            self._unsure_since = None
            self.over = self.state in (*TERMINAL, DAMAGED)
            return
        now = time.monotonic()
        self._unsure_since = now if self._unsure_since is None else self._unsure_since
        # What a folder of this machine doesn't say nobody will add to it.
        self.over = not self.elsewhere or now - self._unsure_since >= self.patience

    def _state(self, sight: Sight | None) -> str:
        if not self.run.jobs():
            return self.run.summary().state
        if not self.elsewhere:
            return self.run.state()
        from nemotron_kit.execution.ledger import run_standing

        return run_standing(self.run, sight)


def until_over(waits: Sequence[_Wait]) -> None:
    """Look at them, less and less often, until all are over."""
    first, factor, slowest = _ELSEWHERE if any(each.elsewhere for each in waits) else _HERE
    pause, told = first, False
    while True:
        left = [each for each in waits if not each.over]
        sights = _ask(each.run for each in left if each.elsewhere)
        for each in left:
            each.look(sights.get(each.run.id))
        if all(each.over for each in waits):
            return
        lost = next((s.lost for s in sights.values() if s.lost), None)
        if lost and not told:
            sys.stderr.write(f"out of sight, still trying: {clean(lost)}\n")
        told = lost is not None
        time.sleep(pause)
        pause = min(pause * factor, slowest)


def _ask(runs: Iterable[RunFolder]) -> dict[str, Sight]:
    asked = list(runs)
    if not asked:
        return {}
    from nemotron_kit.execution.ledger import refresh

    return refresh(asked)


def _executor(run: RunFolder) -> str | None:
    try:
        executor = run.plan().get("executor")
    except DamagedRecord:
        return None
    return executor if isinstance(executor, str) else None


def say_end(run: RunFolder, state: str) -> None:
    """How a run ended, in one line."""
    summary = run.summary()
    code = f" (exit code {summary.code})" if summary.code else ""
    write_lines([clean(f"{run.id}: {state}{code}{f': {summary.error}' if summary.error else ''}")])
