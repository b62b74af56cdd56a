"""One job on the command line: a run, or `ID/N`, the job N of a sweep."""

from __future__ import annotations

from nemotron_kit.errors import UserError
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.runs.records import DamagedRecord


def open_job(reference: str, *, whole: str = "") -> tuple[RunFolder, JobFolder]:
    """The run and the job that are meant. UserError for a sweep whose job isn't named; its hint says `whole` with the
    sweep's own command line, if there is one."""
    name, slash, number = reference.partition("/")
    if slash and not number.isdecimal():
        raise UserError(f"{reference!r}: behind the / stands the number of a job.")
    run = open_run(name)
    jobs = run.jobs()
    if not jobs:
        raise UserError(f"{run.id} has no jobs.", hint=f"nemotron runs show {run.id}")
    if not slash and len(jobs) > 1:
        raise UserError(f"{run.id} is a sweep of {len(jobs)} jobs.", hint=f"Name one: {name}/0.{_all_of(run, whole)}")
    return run, run.job(int(number)) if slash else jobs[0]


def _all_of(run: RunFolder, whole: str) -> str:
    try:
        line = run.plan().get("command_line")
    except DamagedRecord:
        return ""
    return f" {whole}: {line}" if whole and line else ""
