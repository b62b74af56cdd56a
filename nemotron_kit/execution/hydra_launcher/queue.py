"""sweep.json: which jobs a sweep has, and which of them were handed to the back end, in which batches.

A batch is on disk before its back end is asked, so that whoever goes on after a crash asks for the very same one again:
back ends do not start a job twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import UserError
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.records import read_object

FILE = "sweep.json"


class SweepQueue:
    """The jobs of one sweep on their way to a back end."""

    def __init__(self, run: RunFolder) -> None:
        self._path = run.path / FILE
        record = read_object(self._path) if self._path.exists() else {}
        self._jobs: list[int] = list(record.get("jobs", []))
        self._batches: list[dict[str, Any]] = list(record.get("batches", []))

    @property
    def listed(self) -> set[int]:
        """All of its jobs, but for those that were dropped."""
        return set(self._jobs)

    @property
    def waiting(self) -> list[int]:
        """Those that were never handed over."""
        taken = {number for batch in self._batches for number in batch["jobs"]}
        return [number for number in self._jobs if number not in taken]

    @property
    def unfinished(self) -> list[int]:
        """The first batch whose handing over was begun and is not known to have ended well; empty without one."""
        return next((list(batch["jobs"]) for batch in self._batches if not batch["done"]), [])

    def add(self, numbers: Sequence[int]) -> None:
        """More jobs, whose folders are all there."""
        self._jobs.extend(numbers)
        self._write()

    def begin(self, numbers: Sequence[int]) -> None:
        """Write down that these are about to be handed over."""
        if list(numbers) != self.unfinished:
            self._batches.append({"jobs": list(numbers), "done": False})
            self._write()

    def end(self) -> None:
        """They were."""
        next(batch for batch in self._batches if not batch["done"])["done"] = True
        self._write()

    def drop(self, numbers: Sequence[int]) -> None:
        """These are not to be handed over any more."""
        self._jobs = [number for number in self._jobs if number not in set(numbers)]
        self._write()

    def _write(self) -> None:
        files.write_json(self._path, {"jobs": self._jobs, "batches": self._batches})


class Busy(UserError):
    """Another process does it already."""


@contextmanager
def alone(run: RunFolder, what: str = "sweep") -> Iterator[None]:
    """Within the block no other process does this with the run; "sweep" is handing over jobs of it. Busy when one
    does now."""
    lock = os.open(run.path / f".{what}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise Busy(
            f"Another process is submitting the jobs of {run.id}.", hint="It goes on by itself; or stop it first."
        ) from error
    try:
        yield
    finally:
        os.close(lock)
