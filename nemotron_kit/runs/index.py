"""A cache of the summaries of runs that are over, for filters that look at every run. Deleting it loses nothing."""

from __future__ import annotations

import binascii
import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from nemotron_kit import files
from nemotron_kit.files import read_regular
from nemotron_kit.runs.folder import RunFolder, RunSummary
from nemotron_kit.runs.states import DAMAGED, TERMINAL

_NAME = ".index.json"
_VERSION = 4
# Fewer new entries than this are cheaper to compute again than to write.
_WORTH_WRITING = 32
# A sweep's jobs would each have to be looked at to know that the entry still holds.
_MOST_JOBS = 16
_COLUMNS = tuple(field.name for field in fields(RunSummary))[1:]  # the id is the key
_RECIPE, _STAGE, _STATE, _JOBS = map(_COLUMNS.index, ("recipe", "stage", "state", "jobs"))

# Whether a run of this recipe and stage is asked for.
Named = Callable[[str | None, str | None], bool]


class Index:
    """Run id → [what its plan.json was, what its exit records were, its summary's values]."""

    def __init__(self, root: Path, run_ids: Collection[str]) -> None:
        """`run_ids`: every run that there is; entries of others are dropped when the cache is next written."""
        self._path, self._root = root / _NAME, str(root)
        self._run_ids = run_ids
        self._entries: dict[str, Any] = {}
        self._new = 0

    def __enter__(self) -> Index:
        # No cache, or a damaged one: the folders are asked.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            head, _, body = read_regular(self._path, limit=1 << 30).partition(b"\n")
            if json.loads(head) == {"version": _VERSION, "crc": binascii.crc32(body)}:
                self._entries = dict(json.loads(body))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._new >= _WORTH_WRITING:
            there = set(self._run_ids)
            kept = {run_id: entry for run_id, entry in self._entries.items() if run_id in there}
            with contextlib.suppress(OSError):  # a cache that can't be written (full, read-only) is no reason to fail
                body = json.dumps(kept).encode()
                head = json.dumps({"version": _VERSION, "crc": binascii.crc32(body)}).encode()
                files.write_bytes(self._path, head + b"\n" + body)

    def search(self, run_ids: Iterable[str], named: Named, states: Collection[str]) -> Iterator[RunSummary]:
        """The summaries of the runs that are `named` so, and either in one of `states` (any, if empty) or not over: how
        one of these stands now, others know better."""
        for run_id in run_ids:
            try:
                row = self._row(run_id, named, states)
            # An entry that another version wrote, or nobody; or the run's files are gone.
            except (TypeError, ValueError, LookupError, OSError):
                row = None
            if row:
                yield RunSummary(run_id, *row)
            elif row is None:
                summary = self._fresh(RunFolder(self._path.parent / run_id))
                over = summary.state in TERMINAL and bool(states) and summary.state not in states
                if named(summary.recipe, summary.stage) and not over:
                    yield summary

    def _row(self, run_id: str, named: Named, states: Collection[str]) -> list[Any] | None:
        """The run's summary without its id; empty where it is not asked for, None where its folder has to be read.

        What a run is called never changes. Its state may, by another exit record: one look at that is spared nobody.
        """
        if run_id not in self._entries:
            return None
        plan, exits, row = self._entries[run_id]
        folder = f"{self._root}/{run_id}"
        if DAMAGED not in states and not named(row[_RECIPE], row[_STAGE]):
            return []
        if len(row) != len(_COLUMNS) or exits != _exits(folder, row[_JOBS]):
            return None
        if states and row[_STATE] not in states and DAMAGED not in states:
            return []
        found: list[Any] = row
        return found if plan == _stamp(f"{folder}/plan.json") else None

    def _fresh(self, run: RunFolder) -> RunSummary:
        """The stamps are taken first: what changes while the folder is read makes the entry stale, not wrong."""
        jobs, folder = len(run.jobs()), str(run.path)
        stamps: list[list[int]] = []
        with contextlib.suppress(OSError):
            stamps = [_stamp(f"{folder}/plan.json"), _exits(folder, jobs)] if jobs <= _MOST_JOBS else []
        summary = run.summary()
        if stamps and summary.state in TERMINAL:
            self._entries[run.id] = [*stamps, [getattr(summary, name) for name in _COLUMNS]]
            self._new += 1
        return summary


# Paths are text here, and rows lists: for 10,000 runs pathlib and dataclasses take longer than all the rest.


def _stamp(path: str) -> list[int]:
    """Identity, size and time of a file."""
    status = os.stat(path)  # noqa: PTH116
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _exits(run: str, jobs: int) -> list[int]:
    """Those of every exit record: with plan.json, what the summary of a run that is over rests on."""
    if jobs == 1:
        return _stamp(f"{run}/jobs/0/exit.json")
    return [value for number in range(jobs) for value in _stamp(f"{run}/jobs/{number}/exit.json")]
