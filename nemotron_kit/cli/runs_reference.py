"""Jobs on the command line: a run, or `ID/N`, the job N of a sweep."""

from __future__ import annotations

from nemotron_kit.errors import UserError
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import open_run


def open_jobs(reference: str) -> tuple[RunFolder, list[JobFolder]]:
    """The run, and the jobs of it that are meant: one, or all."""
    name, slash, number = reference.partition("/")
    if slash and not number.isdecimal():
        raise UserError(f"{reference!r}: behind the / stands the number of a job.")
    run = open_run(name)
    jobs = run.jobs()
    if not jobs:
        raise UserError(f"{run.id} has no jobs.", hint=f"nemotron runs show {run.id}")
    return run, [run.job(int(number))] if slash else jobs


def open_job(reference: str) -> tuple[RunFolder, JobFolder]:
    """The run and the job that are meant. UserError for a sweep whose job isn't named."""
    run, (job, *more) = open_jobs(reference)
    if more:
        raise UserError(f"{run.id} is a sweep of {len(more) + 1} jobs.", hint=f"Name one: {reference}/0.")
    return run, job
