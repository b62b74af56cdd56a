"""Reads records for the pages: states, results and curves, each file again only after it has changed. What runs
elsewhere is queried in the background, so that a page never waits for a target."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nemotron_kit.cli.runs.results import JobResult, job_result, results_of_jobs
from nemotron_kit.cli.runs.show_logs import LocalLog, RemoteLog
from nemotron_kit.errors import NemotronError, UserError, printable
from nemotron_kit.files import stamp
from nemotron_kit.home import runs_root
from nemotron_kit.launch.status import (
    LOST,
    StatusSnapshot,
    effective_state,
    is_mirrored,
    mirror,
    progress_now,
    refresh,
    refresh_stages,
)
from nemotron_kit.masking import mask
from nemotron_kit.runs.folder import LABELS, RunFolder, RunSummary
from nemotron_kit.runs.job import DAMAGED, TERMINAL, DamagedRunRecord, JobFolder, JobState
from nemotron_kit.runs.ledger import labels_of
from nemotron_kit.runs.logs import TerminalSanitizer
from nemotron_kit.runs.metrics import METRICS_FILE, series
from nemotron_kit.runs.progress import Progress, progress_of
from nemotron_kit.spec.plan import Plan, is_local, stored_plan

# The least seconds between two queries of a run's target.
_ASK_S = 5.0
# A metrics file of more bytes than this is read again only so often.
_LARGE, _LARGE_S = 32 << 20, 30.0
_KEPT = 4096
# Jobs of a sweep whose results are kept here.
_MANY = 200
# The most bytes of a log in one response.
LOG_BYTES = 256 * 1024
_LOG_LINES = 1000
_LOG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Stamp = list[int] | None
Found = TypeVar("Found")


def _stamp(path: Path) -> Stamp:
    """The stamp of a file; None without one."""
    with suppress(OSError):
        return stamp(str(path))
    return None


class RecordReader:
    """One dashboard's view of the records; its methods may be called by many threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[Any, float, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="elsewhere")
        # Of all runs, which a search goes through.
        self._labels: dict[str, tuple[Stamp, dict[str, Any]]] = {}
        self._rare: dict[Hashable, tuple[float, Any]] = {}
        self._asked: dict[str, float] = {}
        self._snapshots: dict[str, StatusSnapshot] = {}

    def close(self) -> None:
        """End the background requests."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def kept(self, key: Hashable, version: Any, read: Callable[[], Found], age: float = 0.0) -> Found:
        """What `read()` gave for this version of `key`, or for another one that is less than `age` seconds old."""
        now = time.monotonic()
        with self._lock:
            known = self._kept.get(key)
            if known is not None and (known[0] == version or now - known[1] < age):
                self._kept.move_to_end(key)
                return known[2]  # type: ignore[no-any-return]
        found = read()
        with self._lock:
            self._kept[key] = (version, now, found)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def rarely(self, key: Hashable, read: Callable[[], Found], is_large: Callable[[Found], bool]) -> Found:
        """What `read()` gave; if that is large, it is read for a tenth of the time at most."""
        now = time.monotonic()
        known = self._rare.get(key)
        if known is not None and now < known[0]:
            return known[1]  # type: ignore[no-any-return]
        found = read()
        if is_large(found):
            self._rare[key] = (now + 11 * (time.monotonic() - now), found)
        return found

    def labels(self, run_id: str) -> dict[str, Any]:
        """A run's name, tags and note."""
        version = _stamp(runs_root() / run_id / LABELS)
        known = self._labels.get(run_id)
        if known is None or known[0] != version:
            known = self._labels[run_id] = (version, labels_of(run_id))
        return known[1]

    # --- a job

    def state(self, job: JobFolder) -> JobState:
        """The job's state: as recorded, and `unreachable` where its target did not answer lately."""
        return effective_state(job, self._snapshots.get(job.run_id))

    def result(self, job: JobFolder, state: JobState | None = None) -> JobResult:
        """The job's overrides, return value and metrics."""
        state = state or self.state(job)
        key = ("result", str(job.path))
        version = (_metrics_stamp(job), state.state, state.code, state.error)
        return self.kept(key, version, lambda: job_result(job, state), self._age(job))

    def results(self, run: RunFolder, jobs: Sequence[JobFolder]) -> list[JobResult]:
        """The results of a sweep's jobs; of a large one, those that `runs show` keeps beside its records."""
        if len(jobs) > _MANY:
            return self.rarely(("results", run.id), lambda: results_of_jobs(run, jobs), lambda _: True)
        return [self.result(job) for job in jobs]

    def curves(self, job: JobFolder) -> dict[str, tuple[list[int], list[float]]]:
        """Each metric's steps and values, and those of the times as TIMESTAMP."""
        return self.kept(
            ("curves", str(job.path)), _metrics_stamp(job), lambda: series(job.path, times=True), self._age(job)
        )

    @staticmethod
    def _age(job: JobFolder) -> float:
        found = _stamp(job.path / METRICS_FILE)
        return _LARGE_S if found is not None and found[1] > _LARGE else 0.0

    # --- elsewhere

    def summary(self, run: RunFolder) -> RunSummary:
        """A run's summary; that of a large sweep has been read from the records of all of its jobs."""
        return self.with_reachability(self.rarely(("summary", run.id), run.summary, lambda found: found.jobs > _MANY))

    def with_reachability(self, run: RunSummary) -> RunSummary:
        """A run's summary: as recorded, and `unreachable` where its target did not answer lately."""
        lost = snapshot.lost if (snapshot := self._snapshots.get(run.id)) else None
        return replace(run, state=LOST, error=lost) if lost and not is_over(run) else run

    def progress(self, run: RunSummary) -> Progress | None:
        """How far a running run is; None for others. What runs elsewhere: as its target reported lately."""
        if run.state != "running":
            return None
        found = {run_id: progress_now(snapshot) for run_id, snapshot in list(self._snapshots.items())}
        return progress_of(run, {run_id: progress for run_id, progress in found.items() if progress})

    def ask(self, runs: Iterable[RunFolder], *, records: bool = False) -> None:
        """Have the targets of these runs asked, soon, in the background; with `records` also for what their jobs left
        there. Nothing for runs of this machine."""
        now = time.monotonic()
        due = [run for run in runs if now - self._asked.get(run.id, -_ASK_S) >= _ASK_S]
        self._asked |= {run.id: now for run in due}
        if due:
            with suppress(RuntimeError):  # closing
                self._pool.submit(self._ask, due, records)

    def _ask(self, runs: Sequence[RunFolder], records: bool) -> None:
        try:
            for run in runs:
                if run.is_pipeline:
                    self._snapshots |= refresh_stages(run, progress=True)
            self._snapshots |= refresh(runs, progress=True)
            for run in runs if records else ():
                if (plan := plan_of(run)) is not None and not is_local(plan.executor):
                    mirror(plan, [job for job in run.jobs()[:64] if not is_mirrored(job)])
        except NemotronError as error:
            sys.stderr.write(f"note: what ran elsewhere is shown as recorded: {error.message}\n")
        except Exception as error:  # noqa: BLE001 — nothing waits for this thread: print the error
            sys.stderr.write(f"warning: {type(error).__name__} while asking about runs: {printable(str(error))}\n")


def _metrics_stamp(job: JobFolder) -> list[Stamp]:
    """Of the metrics of all its ranks."""
    return [_stamp(path) for path in sorted(job.path.glob("metrics*.jsonl"))]


def plan_of(run: RunFolder) -> Plan | None:
    """The run's plan; None for one that can't be read."""
    try:
        return stored_plan(run)
    except DamagedRunRecord:
        return None


def is_over(run: RunSummary) -> bool:
    """Whether a run's recorded state is final."""
    return run.state in (*TERMINAL, DAMAGED)


def read_log(run: RunFolder, job: JobFolder, name: str, offset: int | None) -> dict[str, Any]:
    """A part of a log as JSON data: its `text`, and the `next` offset to read from. None for `offset` begins with the
    last lines. Raises UserError for a name that no log has, Unreachable."""
    if not _LOG_NAME.fullmatch(name):
        raise UserError(f"{name!r} names no log.")
    log = _log(run, job, name)
    if offset is None:
        offset = log.tail(_LOG_LINES)
    data = b""
    for piece in log.read(offset):
        data += piece
        if len(data) >= LOG_BYTES:
            break
    sanitizer = TerminalSanitizer()
    text = sanitizer.feed(data)
    read = len(data) - sanitizer.held
    # A line that was printed over by carriage returns: as the terminal showed it last.
    last = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return {"text": mask(last), "next": offset + read, "more": len(data) >= LOG_BYTES}


def log_names_of(run: RunFolder, job: JobFolder) -> list[str]:
    """The logs of a job on this machine, or the one that every job has where it runs."""
    log = _log(run, job, "job")
    return log.names() if isinstance(log, LocalLog) else ["job"]


def _log(run: RunFolder, job: JobFolder, name: str) -> LocalLog | RemoteLog:
    plan = plan_of(run)
    if plan is None or is_local(plan.executor) or not plan.has_separate_folder:
        return LocalLog(job, name)
    return RemoteLog(plan, job, name)
