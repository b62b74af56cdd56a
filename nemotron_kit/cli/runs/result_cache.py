"""A cache of the results of ended jobs, so that a table of 10,000 jobs reads one file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nemotron_kit.cli.runs.results import JobResult, goal_of, job_result, sort_order, sweep_table
from nemotron_kit.files import read_cache, write_cache
from nemotron_kit.runs.folder import RunFolder, RunSummary
from nemotron_kit.runs.job import DamagedRecord, JobFolder, JobState
from nemotron_kit.runs.metrics import METRICS_FILE, Measured
from nemotron_kit.spec.plan import stored_plan

_NAME = ".results.json"
_VERSION = 1
# Fewer new entries than this are read again faster than written.
_WORTH_WRITING = 32

Known = tuple[JobState, JobResult]


class ResultCache:
    """A cache of results: key → [stamp of the job's records, its state, its result]. The folders are authoritative: an
    entry whose stamp is not that of the files now is read again. `folder` is a run's,
    whose jobs are the keys, or that of all runs."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._entries: dict[str, Any] = {}
        self._new = 0

    def __enter__(self) -> ResultCache:
        self._entries = read_cache(self._path, _VERSION)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._new >= _WORTH_WRITING:
            write_cache(self._path, _VERSION, self._entries)

    def keep_only(self, keys: Sequence[str]) -> None:
        """Drop the entries of other keys: their runs were removed."""
        kept = set(keys)
        self._entries = {key: entry for key, entry in self._entries.items() if key in kept}

    def known(self, key: str, folder: str) -> Known | None:
        """The cached state and result of the ended job in `folder`; None if there is no valid entry. The state has no
        `facts`."""
        entry = self._entries.get(key)
        try:
            if entry is None or entry[0] != _stamp(folder):
                return None
            state, started, finished, code, error, number, overrides, value, metrics = entry[1:]
            measured = {name: Measured(*values) for name, values in metrics.items()}
        # The entry is of another version, or the job's files were deleted.
        except (OSError, TypeError, ValueError):
            return None
        why = error or (f"exit code {code}" if code else None)
        result = JobResult(number, state, why, overrides, value, measured)
        return JobState(state, finished, started, finished, code, error), result

    def read(self, key: str, job: JobFolder, state: JobState | None = None) -> Known:
        """The state (`state`, if the caller has it) and the result of a job, read from its folder; cached if the job
        has ended."""
        stamp: list[int] = []
        folder = str(job.path)
        with contextlib.suppress(OSError):  # before the folder is read: a change meanwhile makes the entry invalid
            stamp = _stamp(folder)
        state = state or job.state()
        result = job_result(job, state)
        if stamp and state.terminal:
            metrics = {
                name: [metric.last, metric.step, metric.best, metric.best_step]
                for name, metric in result.metrics.items()
            }
            state_values = [state.state, state.started, state.finished, state.code, state.error]
            self._entries[key] = [stamp, *state_values, result.number, result.overrides, result.value, metrics]
            self._new += 1
        return state, result

    def result(self, key: str, job: JobFolder, state: JobState | None = None) -> JobResult:
        """The result of a job."""
        return (self.known(key, str(job.path)) or self.read(key, job, state))[1]


def _stamp(folder: str) -> list[int]:
    """Inode, size and mtime (ns) of the exit record, and the size of the metrics; -1 without metrics."""
    status = os.stat(f"{folder}/exit.json")  # noqa: PTH116 — pathlib's takes longer than all the rest
    try:
        size = os.stat(f"{folder}/{METRICS_FILE}").st_size  # noqa: PTH116
    except FileNotFoundError:
        size = -1
    return [status.st_ino, status.st_size, status.st_mtime_ns, size]


def results_of_runs(
    root: Path, runs: Sequence[RunSummary], every: Sequence[str], sort: str | None = None
) -> dict[str, JobResult]:
    """Run id → the result of its job, or of a sweep's best job, by the metric `sort` where its jobs have it; without
    runs that have none. `every` are the ids of all existing runs."""
    found: dict[str, JobResult] = {}
    with ResultCache(root) as cache:
        if len(every) < len(cache._entries):
            cache.keep_only(every)
        for summary in runs:
            folder = f"{root}/{summary.id}"
            if summary.jobs == 1:
                known = cache.known(summary.id, f"{folder}/jobs/0")
                run = RunFolder(root / summary.id) if known is None else None
                jobs = run.jobs() if run else []
                if known is not None:
                    found[summary.id] = known[1]
                elif jobs:
                    found[summary.id] = cache.read(summary.id, jobs[0])[1]
            elif summary.jobs > 1:
                run = RunFolder(root / summary.id)
                with contextlib.suppress(DamagedRecord):
                    results = results_of_jobs(run, run.jobs())
                    metrics = {name for job in results for name in job.metrics}
                    by = sort if {sort, sort_order(sort, metrics)[0]} & metrics else None
                    table = sweep_table(results, by, goal_of(stored_plan(run)))
                    if table.best is not None:
                        found[summary.id] = table.best
    return found


def results_of_jobs(run: RunFolder, jobs: Sequence[JobFolder]) -> list[JobResult]:
    """The results of a sweep's jobs."""
    with ResultCache(run.path) as cache:
        return [cache.result(job.path.name, job) for job in jobs]
