"""A cache of the summaries of runs that are over, for filters that look at every run. Deleting it loses nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from nemotron_kit import files
from nemotron_kit.runs.folder import RunFolder, RunSummary
from nemotron_kit.runs.records import DamagedRecord, read_object
from nemotron_kit.runs.states import TERMINAL

_NAME = ".index.json"
_VERSION = 2
# Fewer new entries than this are cheaper to compute again than to write.
_WORTH_WRITING = 32
# A sweep's jobs would each have to be looked at to know that the entry still holds.
_MOST_JOBS = 16


class Index:
    """Summaries by run id, each with the sizes and times of the files that it was made from."""

    def __init__(self, root: Path, run_ids: Collection[str]) -> None:
        """`run_ids`: every run that there is; entries of others are dropped when the cache is next written."""
        self._path, self._root = root / _NAME, str(root)
        self._run_ids = run_ids
        self._entries: dict[str, Any] = {}
        self._new = 0

    def __enter__(self) -> Index:
        with contextlib.suppress(FileNotFoundError, DamagedRecord):  # no cache, or a damaged one: the folders are asked
            record = read_object(self._path)
            if record.get("version") == _VERSION and isinstance(record.get("runs"), dict):
                self._entries = record["runs"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._new >= _WORTH_WRITING:
            there = set(self._run_ids)
            kept = {run_id: entry for run_id, entry in self._entries.items() if run_id in there}
            with contextlib.suppress(OSError):  # a cache that can't be written (full, read-only) is no reason to fail
                files.write_json(self._path, {"version": _VERSION, "runs": kept})

    def summary(self, run_id: str) -> RunSummary:
        entry = self._entries.get(run_id)
        if entry is not None:
            with contextlib.suppress(TypeError, KeyError, OSError, AttributeError):
                if entry["stamp"] == _stamp(f"{self._root}/{run_id}", entry["summary"]["jobs"]):
                    return RunSummary(**entry["summary"])
        return self._fresh(RunFolder(self._path.parent / run_id))

    def _fresh(self, run: RunFolder) -> RunSummary:
        """The stamp is taken first: what changes while the folder is read makes the entry stale, not wrong."""
        jobs = len(run.jobs())
        stamp: list[list[int]] | None = None
        with contextlib.suppress(OSError):
            stamp = _stamp(str(run.path), jobs) if jobs <= _MOST_JOBS else None
        summary = run.summary()
        if stamp and summary.state in TERMINAL:
            self._entries[run.id] = {"stamp": stamp, "summary": asdict(summary)}
            self._new += 1
        return summary


def _stamp(run: str, jobs: int) -> list[list[int]]:
    """Identity, size and time of plan.json and every exit record: what the summary of a run that is over rests on.

    Paths are text here: for 10,000 runs pathlib takes longer than all the rest.
    """
    paths = [f"{run}/plan.json", *(f"{run}/jobs/{number}/exit.json" for number in range(jobs))]
    return [[s.st_ino, s.st_size, s.st_mtime_ns] for s in map(os.stat, paths)]
