"""The line at the bottom of an attached terminal: a bar, the step, the time left and the last loss of what is
followed."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence

from nemotron_kit.artifacts.pipe import is_step_output
from nemotron_kit.errors import NemotronError, printable
from nemotron_kit.executors.base import Observation
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import TERMINAL, JobFolder
from nemotron_kit.runs.logs import encodable
from nemotron_kit.runs.progress import MetricsTail, Progress, job_progress, metrics_tail
from nemotron_kit.spec.plan import Plan, stored_plan
from nemotron_kit.worker.streams import unless_gone

# Columns of the bar, of its text (so that the bar keeps its length), and of the longest line: a longer one would be
# broken in a terminal that is made narrower.
_BAR, _TEXT, _LONGEST = 30, 38, 100
# Seconds between two readings of a job's metrics, on this machine and on another.
_LOCAL_INTERVAL, _REMOTE_INTERVAL = 0.25, 2.0
# What is in front of the lines of a rank, a node or one of several jobs.
_MARKS = re.compile(r"\A(?:\[[^\]]*\] )*")
_ERASE = "\r\x1b[K"


class ProgressBar:
    """Prints text on a terminal, with the progress of a run's jobs in one line below it.

    Call `write` and `report` to print, and `update` to draw the line as it is now. If stdout or stderr is no terminal,
    or NO_COLOR is set, and until a job has logged metrics, there is only the text. The line is left out while the
    text ends in the middle of a line.
    """

    def __init__(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self._shown = not plain and sys.stdout.isatty() and sys.stderr.isatty()
        self._run, self._jobs = run, jobs
        self._plan: Plan | None = None
        self._progress: Progress | None = None
        self._due = 0.0
        self._drawn, self._midline = "", False

    def write(self, text: str) -> None:
        """Print a piece of a log on stdout; on a terminal without the artifacts that are meant for the next step."""
        if '{"' in text and sys.stdout.isatty():
            lines = text.splitlines(keepends=True)
            text = "".join(line for line in lines if not is_step_output(_MARKS.sub("", line)))
        if not text:
            return
        self.erase()
        self._midline = not text.endswith("\n")
        with unless_gone(sys.stdout):
            sys.stdout.write(encodable(text, sys.stdout.encoding))

    def report(self, text: str) -> None:
        """Print a line on stderr."""
        self.erase()
        with unless_gone(sys.stderr):
            print(printable(text), file=sys.stderr)  # noqa: T201

    def update(self, observed: Mapping[int, Observation]) -> None:
        """Draw the progress of the jobs, which are in these states."""
        if not self._shown or self._midline:
            return
        progress = self._progress_of(observed)
        line = _line(progress, _columns()) if progress else ""
        if line != self._drawn:
            self.erase()
            self._drawn = line
            _put(line)

    def erase(self) -> None:
        """Remove the line; the cursor is then where text goes on."""
        if self._drawn:
            _put(_ERASE)
            self._drawn = ""

    def _progress_of(self, observed: Mapping[int, Observation]) -> Progress | None:
        if len(self._jobs) > 1:
            ended = sum(each.state in TERMINAL for each in observed.values())
            return Progress("job", ended, len(self._jobs))
        job = self._jobs[0]
        if job.number not in observed or observed[job.number].state != "running":
            return None
        if time.monotonic() >= self._due:
            try:
                self._progress = job_progress(job, self._tail(job))
            except (OSError, NemotronError):  # whoever follows the job reports what is wrong with it, or its machine
                self._progress = None
        return self._progress

    def _tail(self, job: JobFolder) -> MetricsTail:
        """The end of the metrics, from the machine where the job writes them."""
        plan = self._plan = self._plan or stored_plan(self._run)
        self._due = time.monotonic() + (_REMOTE_INTERVAL if plan.has_separate_folder else _LOCAL_INTERVAL)
        if not plan.has_separate_folder:
            return metrics_tail(job)
        (found,), _ = transport_for(plan.settings).call("metrics_tails", jobs=[f"{plan.paths.run}/jobs/{job.number}"])
        return MetricsTail(**found) if found else MetricsTail([])


def _line(progress: Progress, columns: int) -> str:
    """The bar and its text, in one row of a terminal with so many columns."""
    room = min(columns - 1, _LONGEST)
    text = str(progress)
    text = text if len(text) <= room else f"{text[: max(room - 1, 0)]}…"
    wide = min(_BAR, room - max(len(text), _TEXT) - 1)
    if not progress.of or wide < 5:
        return text
    done = min(wide, wide * progress.done // progress.of)
    full, rest = "━" * done, "─" * (wide - done)
    if encodable(full + rest, sys.stdout.encoding) != full + rest:
        full, rest = "#" * done, "-" * (wide - done)
    return f"\x1b[36m{full}\x1b[0m\x1b[2m{rest}\x1b[0m {text}"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _put(text: str) -> None:
    with unless_gone(sys.stdout):
        sys.stdout.write(encodable(text, sys.stdout.encoding))
        sys.stdout.flush()
