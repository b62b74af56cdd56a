"""Attached mode: prints every log of a launch from its first line to its last, until all jobs have ended; on a
terminal with a line below: a bar, the step, the time left and the last loss. Ctrl-C only detaches."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from nemotron_kit import files
from nemotron_kit.artifacts.pipe import is_step_output
from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.executors.base import Executor, Observation
from nemotron_kit.launch.status import StatusSnapshot, Watch, effective_state, record
from nemotron_kit.polling import Pace
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import DAMAGED, EXIT_CODES, TERMINAL, DamagedRunRecord, JobFolder, JobState, read_object
from nemotron_kit.runs.logs import TerminalSanitizer, encodable
from nemotron_kit.runs.progress import MetricsTail, Progress, job_progress, metrics_tail
from nemotron_kit.spec.plan import Plan, stored_plan
from nemotron_kit.worker.process import INTERRUPTED, Outcome
from nemotron_kit.worker.streams import print_notice, unless_gone

_NAME = "attached.json"


class LogOffsets:
    """How far each log of a run has been printed: job number → log → bytes, stored in the run's folder. A damaged file
    counts as empty. Without a run the offsets begin at `jobs`, and are not stored."""

    def __init__(self, run: RunFolder | None, jobs: Mapping[int, Mapping[str, int]] | None = None) -> None:
        self._jobs = {str(number): dict(of) for number, of in (jobs or {}).items()}
        self._path = run.path / _NAME if run else None
        if self._path is None:
            return
        with contextlib.suppress(FileNotFoundError, DamagedRunRecord):
            for number, offsets in read_object(self._path).items():
                if isinstance(offsets, dict) and all(type(at) is int and at >= 0 for at in offsets.values()):
                    self._jobs[number] = offsets

    def of(self, job: int) -> dict[str, int]:
        """Log → the bytes that have been printed, of one job."""
        return dict(self._jobs.get(str(job), {}))

    def keep(self, offsets: Mapping[int, Mapping[str, int]]) -> None:
        """Store how far each job's logs have been printed."""
        new = {**self._jobs, **{str(number): dict(of) for number, of in offsets.items() if of}}
        if self._path is None or new == self._jobs:
            return
        with contextlib.suppress(OSError):  # a full disk must not end the attached mode
            files.write_json(self._path, new)
        # Set last, so that after Ctrl-C during the write it is written again.
        self._jobs = new

    def forget(self) -> None:
        """Reset the offsets, so that everything is printed again."""
        self._jobs = {}


# One round trip over ssh each.
CHUNK = 1 << 20
# Each rank's lines are in its node's log too.
SKIPPED = ("rank-", "worker")
LEFT_RUNNING = Outcome(INTERRUPTED, "detached", "detached")


class Follower:
    """Prints a job's logs from the offsets on, in bounded memory. Lines of logs other than the main one (another
    node's) are prefixed with the log's name; `label` precedes every line."""

    def __init__(
        self, backend: Executor, job: JobFolder, offsets: Mapping[str, int] | None = None, label: str | None = None
    ) -> None:
        self.backend, self.job, self.label = backend, job, label
        self.offsets = dict(offsets or {})
        self._clean: dict[str, TerminalSanitizer] = {}
        self._at_start: dict[str, bool] = {}

    def pump(self, write: Callable[[str], object], keep: Callable[[], object]) -> bool:
        """Print new bytes, and `keep` the new offsets; returns whether there were any."""
        moved = False
        while pieces := self.backend.read_logs(self.job, self.offsets, CHUNK, skip=SKIPPED):
            for name, offset, data in pieces:
                text = self._marked(name, self._clean.setdefault(name, TerminalSanitizer()).feed(data))
                with _uninterrupted():  # what is written counts as shown, and nothing else
                    write(text)
                    self.offsets[name] = offset + len(data)
            keep()
            moved = True
        return moved

    def rest(self, write: Callable[[str], object]) -> None:
        """Print an incomplete character that was held back, at the end of the log."""
        for name, clean in self._clean.items():
            write(self._marked(name, clean.feed(b"", final=True)))

    @property
    def written(self) -> dict[str, int]:
        """Log → the bytes of it that have been printed, without those held back."""
        return {name: at - (self._clean[name].held if name in self._clean else 0) for name, at in self.offsets.items()}

    def _marked(self, name: str, text: str) -> str:
        """Prefix another node's lines with its name; lines of its ranks have their own prefix."""
        marks = [f"[{mark}] " for mark in (self.label, None if name == "job" else name) if mark]
        if not marks or not text:
            return text
        lines = text.splitlines(keepends=True)
        fresh = self._at_start.get(name, True)
        self._at_start[name] = lines[-1].endswith("\n")
        short = f"[{self.label}] " if self.label else ""
        marked = [(short if line.startswith("[rank ") else "".join(marks)) + line for line in lines]
        return "".join(marked if fresh else [lines[0], *marked[1:]])


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
        print_notice(text)

    def update(self, observed: Mapping[int, Observation]) -> None:
        """Draw the progress of the jobs, which are in these states."""
        if not self._shown or self._midline:
            return
        try:
            columns = os.get_terminal_size(sys.stdout.fileno()).columns or 80
        except (OSError, ValueError):
            columns = 80
        progress = self._progress_of(observed)
        line = _line(progress, columns) if progress else ""
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
                plan = self._plan = self._plan or stored_plan(self._run)
                self._due = time.monotonic() + (_REMOTE_INTERVAL if plan.has_separate_folder else _LOCAL_INTERVAL)
                if plan.has_separate_folder:
                    folder = f"{plan.paths.run}/jobs/{job.number}"
                    (found,), _ = transport_for(plan.settings).call("metrics_tails", jobs=[folder])
                    tail = MetricsTail(**found) if found else MetricsTail([])
                else:
                    tail = metrics_tail(job)
                self._progress = job_progress(job, tail)
            except (OSError, NemotronError):  # whoever follows the job reports what is wrong with it, or its machine
                self._progress = None
        return self._progress


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


def _put(text: str) -> None:
    with unless_gone(sys.stdout):
        sys.stdout.write(encodable(text, sys.stdout.encoding))
        sys.stdout.flush()


def attach(
    run: RunFolder,
    backend: Executor,
    jobs: Sequence[JobFolder],
    *,
    offsets: LogOffsets | None = None,
    cancel_on_interrupt: bool = False,
) -> Outcome:
    """Follow jobs to their end, printing their logs. A lost connection neither cancels them nor counts as success.

    `offsets` is how much of each log was printed before: that is not printed again, and the new offsets are stored in
    the run's folder. Ctrl-C leaves the jobs running; with `cancel_on_interrupt` it cancels them and waits for their end
    (a second one exits at once).
    """
    offsets = offsets or LogOffsets(run)
    many = len(jobs) > 1
    followers = [Follower(backend, j, offsets.of(j.number), f"job {j.number}" if many else None) for j in jobs]
    bar = ProgressBar(run, jobs)
    try:
        return _follow(run, backend, jobs, followers, offsets, bar)
    except KeyboardInterrupt:
        if not cancel_on_interrupt:
            return LEFT_RUNNING
    bar.report(f"{run.id}: cancelling; press Ctrl-C again to return without waiting for its end")
    try:
        backend.cancel(run, jobs)
        outcome = _follow(run, backend, jobs, followers, offsets, bar)
    except KeyboardInterrupt:
        return LEFT_RUNNING
    return replace(outcome, code=INTERRUPTED)


def _follow(
    run: RunFolder,
    backend: Executor,
    jobs: Sequence[JobFolder],
    followers: Sequence[Follower],
    offsets: LogOffsets,
    bar: ProgressBar,
) -> Outcome:
    def keep() -> None:
        with unless_gone(sys.stdout):
            sys.stdout.flush()
        offsets.keep({follower.job.number: follower.written for follower in followers})

    # The executor sets how often it is queried.
    fastest, slowest = backend.pace
    pace, lost, watch = Pace(fastest, 1.3, slowest), False, Watch(run, jobs)
    try:
        while True:
            moved, asked = False, time.time()
            try:
                observed = backend.observe(run, jobs)
                with suppress(OSError):  # a full disk must not end the attached mode
                    record(jobs, observed, asked)
                snapshot = StatusSnapshot(asked, observed)
                watch.update(snapshot)  # before the logs are read: a job that has ended has written all of them
                moved = sum(follower.pump(bar.write, keep) for follower in followers) > 0
                lost = False
            except Unreachable as error:
                if not lost:
                    bar.report(f"{run.id}: unreachable, still trying: {error.message}")
                lost = True
            keep()
            if watch.over and not lost:
                for follower in followers:
                    follower.rest(bar.write)
                if watch.state == DAMAGED:
                    return Outcome(EXIT_CODES[DAMAGED], DAMAGED, watch.why)
                return outcome_of([effective_state(job, snapshot) for job in jobs])
            if moved:
                pace.restart()
            if not lost:
                bar.update(observed)
            pace.wait()
    finally:
        bar.erase()
        keep()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Within the block Ctrl-C is delayed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outcome_of(ends: Sequence[JobState]) -> Outcome:
    """One outcome of many jobs: success only if all are known to have succeeded."""
    for state in ("unknown", "unreachable", "failed", "preempted", "cancelled"):
        if found := [end for end in ends if end.state == state]:
            error = next((end.error for end in found if end.error), state)
            return Outcome(EXIT_CODES.get(state, 1), state, error)
    return Outcome(0, "succeeded")
