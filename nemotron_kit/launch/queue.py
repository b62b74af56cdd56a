"""The jobs of a sweep on disk: their plans, which jobs exist, and which were handed to the executor."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import read_regular
from nemotron_kit.home import located
from nemotron_kit.runs.folder import PLAN_SHAPE, RunFolder
from nemotron_kit.runs.job import DamagedRunRecord, JobFolder, read_object
from nemotron_kit.spec.plan import DETACHED, Plan

LAUNCH_FILE = "launch.json"
# The fields of a plan that launch.json in a job's folder holds, besides `extra`, which is Plan.optional_fields().
_PER_JOB = ("mode", "executor", "settings", "place")
_SHAPE = {**{name: PLAN_SHAPE[name] for name in (*_PER_JOB, "secrets")}, "extra": PLAN_SHAPE, "files": [str]}


class Texts(Mapping[str, str]):
    """Name in a job's folder → the file's text, with paths inside the home as they are now. Read on access: a sweep may
    have very many."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, tuple(names)

    def __getitem__(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return str(JobFolder(self._folder).located(read_regular(self._folder / name).decode()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def to_text(plan: Plan) -> str:
    """The content of launch.json: the part of a job's plan that is not in the run's plan.json."""
    stored = plan.to_dict()
    per_job = {name: stored[name] for name in (*_PER_JOB, "secrets")}
    return json.dumps({**per_job, "extra": plan.optional_fields(), "files": list(plan.files)}) + "\n"


def load_plans(run: RunFolder, numbers: Sequence[int]) -> list[Plan]:
    """The plans of a sweep's jobs, as their back end takes them. Raises DamagedRunRecord."""
    shared = run.plan()
    return [_load(run, shared, number) for number in numbers]


def load_plan(run: RunFolder, job: JobFolder) -> Plan:
    """The plan of one job of a run, whichever way it was launched. Raises DamagedRunRecord."""
    shared = run.plan()
    if (job.path / LAUNCH_FILE).exists():
        return _load(run, shared, job.number)
    plan = Plan.from_dict(shared, run.path, job.number)
    return replace(plan, launch=DETACHED, files=Texts(job.path, list(plan.files)))


def _load(run: RunFolder, shared: Mapping[str, Any], number: int) -> Plan:
    file = run.job(number).path / LAUNCH_FILE
    stored = located(read_object(file, _SHAPE), run.path)
    # The other facts in the run's record are those of its first job.
    common = {name: shared.get(name) for name in ("recipe", "stage", "profile", "environment")}
    names, extra = stored.pop("files", None) or (), stored.pop("extra", None) or {}
    plan = Plan.from_dict({**common, **extra, **stored}, run.path, number, where=file)
    return replace(plan, launch=DETACHED, files=Texts(file.parent, names))


SWEEP_FILE = "sweep.json"
_SWEEP = {"jobs": [int], "batches": [{"jobs": [int], "done": bool}], "levels": [[int]]}


class SweepQueue:
    """Which jobs of a sweep have been submitted, in `sweep.json` of the run's folder.

    Jobs are submitted in batches. `begin` records a batch before it is submitted and `end` afterwards, so that a launch
    that was killed in between is resumed with that batch. Jobs in levels are submitted level by level: each starts once
    all jobs of the level before have succeeded.
    """

    def __init__(self, run: RunFolder) -> None:
        self._path = run.path / SWEEP_FILE
        record = read_object(self._path, _SWEEP) if self._path.exists() else {"jobs": [], "batches": []}
        # Jobs that are missing would count as not submitted yet, and be waited for without end.
        batches: list[dict[str, Any]] = [batch or {} for batch in record.get("batches") or ()]
        named = [record.get("jobs"), *(batch.get("jobs") for batch in batches)]
        if record.get("batches") is None or None in named:
            raise DamagedRunRecord(f"{self._path}: numbers of jobs are missing.")
        self._jobs: list[int] = list(record["jobs"])
        self._batches: list[dict[str, Any]] = [
            {"jobs": list(batch["jobs"]), "done": bool(batch.get("done"))} for batch in batches
        ]
        self.levels: list[list[int]] = [list(level) for level in record.get("levels") or ()]
        batched = {number for batch in self._batches for number in batch["jobs"]}
        for number in batched.difference(self._jobs):  # one that was dropped has its folder still
            if not os.path.isdir(run.path / "jobs" / str(number)):  # noqa: PTH112 — a name may be too long
                raise DamagedRunRecord(f"{self._path}: batches: there is no such job: {str(number)[:20]}.")

    @property
    def listed(self) -> set[int]:
        """The numbers of all jobs, without those that were dropped."""
        return set(self._jobs)

    @property
    def waiting(self) -> list[int]:
        """The numbers of the jobs that are in no batch yet."""
        taken = {number for batch in self._batches for number in batch["jobs"]}
        return [number for number in self._jobs if number not in taken]

    @property
    def unfinished(self) -> list[int]:
        """The job numbers of the first batch that was begun and not ended; empty without one."""
        return next((list(batch["jobs"]) for batch in self._batches if not batch["done"]), [])

    def add(self, numbers: Sequence[int], levels: Sequence[Sequence[int]] = ()) -> None:
        """Append jobs, whose folders exist."""
        self._jobs.extend(numbers)
        self.levels.extend(map(list, levels))
        self._write()

    def together(self, numbers: Sequence[int]) -> list[int]:
        """Those of `numbers` that may be submitted at once: all, or those of the first level that has any."""
        if not self.levels:
            return list(numbers)
        return next((found for level in self.levels if (found := [n for n in numbers if n in set(level)])), [])

    def before(self, number: int) -> list[int]:
        """The jobs that must have succeeded before this one starts."""
        at = next((index for index, level in enumerate(self.levels) if number in level), 0)
        return self.levels[at - 1] if at else []

    def requeue(self, numbers: Sequence[int]) -> None:
        """Put jobs that were submitted or dropped back among those that wait."""
        chosen = set(numbers)
        self._jobs = sorted({*self._jobs, *chosen})
        for batch in self._batches:
            batch["jobs"] = [number for number in batch["jobs"] if number not in chosen]
        self._batches = [batch for batch in self._batches if batch["jobs"]]
        self._write()

    def begin(self, numbers: Sequence[int]) -> None:
        """Record a batch that is about to be submitted."""
        if list(numbers) != self.unfinished:
            self._batches.append({"jobs": list(numbers), "done": False})
            self._write()

    def end(self) -> None:
        """Record that the batch that was begun has been submitted."""
        next(batch for batch in self._batches if not batch["done"])["done"] = True
        self._write()

    def drop(self, numbers: Sequence[int]) -> None:
        """Remove jobs that are not to be submitted."""
        self._jobs = [number for number in self._jobs if number not in set(numbers)]
        self._write()

    def _write(self) -> None:
        levels = {"levels": self.levels} if self.levels else {}
        files.write_json(self._path, {"jobs": self._jobs, "batches": self._batches, **levels})


class Busy(UserError):
    """Another process holds the lock of the run."""


@contextmanager
def run_lock(run: RunFolder, what: str = "sweep") -> Iterator[None]:
    """Hold the run's lock named `what` within the block ("sweep": submitting its jobs). Raises Busy when another
    process holds it.
    """
    lock = os.open(run.path / f".{what}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise Busy(
            f"Another process is submitting the jobs of {run.id}.", hint="It goes on by itself; or stop it first."
        ) from error
    except OSError as error:
        os.close(lock)
        raise NemotronError(
            f"{run.path} can't be locked ({error.strerror}), without which jobs could be submitted twice.",
            hint="Put NEMOTRON_HOME on another file system.",
        ) from error
    try:
        yield
    finally:
        os.close(lock)
