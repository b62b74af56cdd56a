"""`nemotron runs resume ID`: a job that has stopped goes on; jobs that were never submitted are."""

from __future__ import annotations

import time

from nemotron_kit.cli.grid import clean, write_lines
from nemotron_kit.cli.runs_attach import report_end
from nemotron_kit.cli.runs_reference import open_jobs
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import UserError
from nemotron_kit.plan.plan import WAIT_FIRST
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder

_SAYS = """\
Goes on with what has stopped. A job that failed, was cancelled or was preempted begins another attempt under the same
record, in the same folder: training goes on from its last checkpoint there, and what keeps nothing begins from the
beginning. Of a sweep, the jobs that wait are submitted: those that the cluster had no room for, and those whose launch
ended too early; none twice. Of a job that is to start after another run, and whose waiting process has ended, it starts
another. `nemotron runs rerun` starts anew, under a new record."""
_SHOWN = 8


def resume(argv: list[str]) -> int:
    """Submit what waits, as far as there is room; else have a job that has stopped go on, and exit as it does."""
    parser = ToolParser("nemotron runs resume", _SAYS)
    what = "a run's id, the start of one, its last six digits, or latest; ID/N is a sweep's job N"
    parser.add_argument("id", metavar="ID", help=what)
    options = parser.parse(argv)
    if options is None:
        return 0
    run, jobs = open_jobs(options.id)
    if "/" not in options.id:
        said = _submit_waiting(run)
        if said is not None:
            write_lines([said])
            return 0
        if len(jobs) > 1:
            raise _which(run, jobs)
    return _go_on(run, jobs[0])


def _submit_waiting(run: RunFolder) -> str | None:
    """Submit the jobs that wait to be; what was done, None where none does."""
    from nemotron_kit.execution.hydra_launcher.elsewhere import submit_waiting
    from nemotron_kit.execution.hydra_launcher.queue import FILE, SweepQueue

    if not (run.path / FILE).exists():
        _refuse_unplanned(run)
        return None
    if run.plan().get(WAIT_FIRST):
        from nemotron_kit.execution import deferred

        return f"{run.id}: it waits again, to be submitted" if deferred.resume(run) else None
    queue = SweepQueue(run)
    if not (queue.waiting or queue.unfinished):
        return None
    given = submit_waiting(run)
    waiting = len(SweepQueue(run).waiting)
    rest = f"; {waiting} wait for room: nemotron runs resume {run.id}" if waiting else ""
    return f"{run.id}: {len(given)} jobs submitted{rest}"


def _refuse_unplanned(run: RunFolder) -> None:
    """UserError for a sweep elsewhere without a list of its jobs, which is written once all their folders are there."""
    plan = run.plan()
    if plan.get("kind") == "sweep" and plan.get("executor") not in (None, "local"):
        raise UserError(
            f"{run.id} ended while it was planned, before anything was submitted.",
            hint=f"Launch it again: {plan.get('command_line')}",
        )


def _which(run: RunFolder, jobs: list[JobFolder]) -> UserError:
    stopped = [job for job in jobs if job.state().terminal and job.state().state != "succeeded"]
    if not stopped:
        return UserError(f"{run.id} has no jobs that wait to be submitted, and none that has stopped.")
    shown = ", ".join(job.reference for job in stopped[:_SHOWN]) + (", …" if len(stopped) > _SHOWN else "")
    return UserError(
        f"{run.id} has no jobs that wait to be submitted; {len(stopped)} have stopped.",
        hint=f"Name the one that is to go on: nemotron runs resume {stopped[0].reference}. There is: {shown}.",
    )


def _go_on(run: RunFolder, job: JobFolder) -> int:
    from nemotron_kit.execution.resume import resume as begin_again

    started = time.time()
    outcome = begin_again(run, job)
    if outcome.state != "pending":
        return report_end(run, outcome, started)
    write_lines([f"{job.reference}: {clean(job.state().state)} again", f"  nemotron runs attach {run.id}"])
    return 0
