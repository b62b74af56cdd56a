"""`nemotron runs attach ID`: a run's logs from where they were last shown, until it ends; then exits as --run does."""

from __future__ import annotations

import sys
import time

from nemotron_kit.cli.grid import clean
from nemotron_kit.cli.toolargs import ToolParser, at_least
from nemotron_kit.errors import UserError
from nemotron_kit.execution.outcome import Outcome
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import open_run

_LOOK_SECONDS, _LONGEST_SECONDS = 0.2, 5.0


def attach(argv: list[str]) -> int:
    """Follow a run. Ctrl-C leaves it alone."""
    parser = ToolParser("nemotron runs attach", "Shows a run's logs from where they were last shown, until it ends.")
    parser.add_argument("id", metavar="ID", help="a run's id, the start of one, its last six digits, or latest")
    parser.add_argument("--job", type=at_least(0), metavar="N", help="of a run with many jobs: only this one")
    parser.add_argument("--all", action="store_true", help="from the first line on, whatever was shown before")
    options = parser.parse(argv)
    if options is None:
        return 0
    run = open_run(options.id)
    jobs = run.jobs() if options.job is None else [run.job(options.job)]
    _wait_for_submission(run, jobs)
    return report_end(run, _follow(run, _submitted(run, jobs), from_start=options.all))


def _wait_for_submission(run: RunFolder, jobs: list[JobFolder]) -> None:
    """Stay while a process of this machine waits for other runs, to submit this one."""
    from nemotron_kit.execution.hydra_launcher.queue import SweepQueue

    told, pause = False, _LOOK_SECONDS
    while (state := jobs[0].state()).state == "pending" and state.facts.get("reason") and SweepQueue(run).waiting:
        if not told:
            sys.stderr.write(f"waits for {clean(state.facts['reason'])}\n")
        told, pause = True, min(pause * 1.2, _LONGEST_SECONDS)
        time.sleep(pause)


def _submitted(run: RunFolder, jobs: list[JobFolder]) -> list[JobFolder]:
    """Those that somebody was asked to run; of a large sweep, some may wait for room. UserError where none was."""
    from nemotron_kit.execution.hydra_launcher.queue import SweepQueue

    waiting = set(SweepQueue(run).waiting)
    there = [job for job in jobs if job.number not in waiting]
    if not there:
        hint = f"nemotron runs resume {run.id}" if waiting else f"nemotron runs show {run.id}"
        raise UserError(f"{run.id} has no jobs yet that were submitted.", hint=hint)
    if len(there) < len(jobs):
        sys.stderr.write(f"{len(jobs) - len(there)} jobs wait to be submitted: nemotron runs resume {run.id}\n")
    return there


def _follow(run: RunFolder, jobs: list[JobFolder], *, from_start: bool) -> Outcome:
    from nemotron_kit.execution.attach import attach as follow
    from nemotron_kit.execution.backends.base import backend_for
    from nemotron_kit.execution.shown import Shown

    plan, shown = run.plan(), Shown(run)
    if from_start:
        shown.forget()
    cancels = bool((plan.get("settings") or {}).get("cancel_on_interrupt"))
    return follow(run, backend_for(plan), jobs, shown=shown, cancel_on_interrupt=cancels)


def report_end(run: RunFolder, outcome: Outcome, started: float | None = None) -> int:
    """How it ended, on standard error; the exit code."""
    if outcome.state == "detached":
        sys.stderr.write(f"Detached from {run.id}, which goes on.\n  nemotron runs attach {run.id}\n")
        sys.stderr.write(f"  nemotron runs cancel {run.id}\n")
        return outcome.code
    summary = run.summary()
    started = started or summary.started
    took = (summary.finished or time.time()) - started if started else None
    how = outcome.state + (f" in {took:.1f} s" if took is not None and outcome.state == "succeeded" else "")
    why = f": {outcome.error}" if outcome.error and outcome.state != "succeeded" else ""
    sys.stderr.write(f"{run.id}: {clean(how + why)} · nemotron runs show {run.id}\n")
    return outcome.code
