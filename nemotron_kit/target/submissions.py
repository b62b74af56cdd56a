"""What was asked of sbatch and what it answered: one file an intent in the run's folder, written before the asking."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError
from nemotron_kit.files import read_regular

FOLDER = "slurm"
_INTENT = re.compile(r"[0-9a-f]{12}\Z")


@dataclass(frozen=True)
class Submission:
    """One sbatch call. `jobs` are the run's job numbers, by array index; `job` is Slurm's id once it is known.

    `at` is when it was first tried, in seconds since the epoch by the target's clock; `logged` is how much its jobs had
    printed by then in earlier attempts (None: nothing). `refused` is what Slurm said when it is known that there is no
    such job.
    """

    intent: str
    name: str
    jobs: list[int]
    array: bool
    at: float
    job: str | None = None
    cluster: str | None = None
    refused: str | None = None
    logged: int | None = None

    def slurm_id(self, number: int) -> str | None:
        """Slurm's id of one job of the run."""
        if self.job is None:
            return None
        return f"{self.job}_{self.jobs.index(number)}" if self.array else self.job


def path_of(run: Path, intent: str) -> Path:
    if not _INTENT.match(intent):
        raise NemotronError(f"{intent!r} is no intent.")
    return run / FOLDER / f"{intent}.json"


def read(run: Path, intent: str) -> Submission | None:
    """The record, None while there is none. NemotronError when it is damaged: then nothing may be submitted."""
    path = path_of(run, intent)
    try:
        values: Any = json.loads(read_regular(path))
        return Submission(**{f.name: values[f.name] for f in fields(Submission) if f.name in values})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise NemotronError(f"{path}: damaged: {error}.") from error


def write(run: Path, submission: Submission) -> None:
    files.write_json(path_of(run, submission.intent), asdict(submission))


def read_all(run: Path) -> list[Submission]:
    """Every submission of a run, oldest first."""
    try:
        names = os.listdir(run / FOLDER)  # noqa: PTH208 — names only
    except FileNotFoundError:
        return []
    intents = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    found = [read(run, intent) for intent in intents if _INTENT.match(intent)]
    return sorted((s for s in found if s is not None), key=lambda s: s.at)


def has_begun(run: Path, submission: Submission) -> bool:
    """Whether a worker of it has been there: then Slurm has its job or had it, whoever knows of it now."""
    now = logged(run, submission.jobs)
    return now is not None and (submission.logged is None or now > submission.logged)


def logged(run: Path, jobs: Sequence[int]) -> int | None:
    """How many bytes the jobs have printed; None where none of them has a log."""
    sizes = []
    for number in jobs:
        with contextlib.suppress(FileNotFoundError):
            sizes.append((run / "jobs" / str(number) / "logs" / "job.log").stat().st_size)
    return sum(sizes) if sizes else None


def by_job(submissions: Sequence[Submission]) -> dict[int, Submission]:
    """The latest submission of each job of a run."""
    return {number: submission for submission in submissions for number in submission.jobs}


@contextmanager
def locked(run: Path, intent: str) -> Iterator[int]:
    """Within the block no other process of this machine submits the intent. The lock is the open file that it gives: a
    child that has it too (sbatch) keeps the lock when this process is killed."""
    path = path_of(run, intent).with_suffix(".lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)
