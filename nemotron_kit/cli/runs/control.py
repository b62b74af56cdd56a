"""`nemotron runs wait|cancel|resume|shell`: wait for a run, stop it, continue it, or open a shell in it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from nemotron_kit.cli.output import clean, print_status, write_lines
from nemotron_kit.cli.runs.list import chosen_jobs, open_jobs
from nemotron_kit.cli.runs.show_logs import report_end
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import Unreachable, UserError, listed
from nemotron_kit.executors.base import executor_for
from nemotron_kit.launch import submission
from nemotron_kit.launch.queue import SWEEP_FILE, SweepQueue
from nemotron_kit.launch.resume import resume as resume_job
from nemotron_kit.launch.resume import resume_levels
from nemotron_kit.launch.status import Watch, ask, effective_state, refresh
from nemotron_kit.launch.submission import drop_waiting, submit_waiting
from nemotron_kit.polling import Pace, until
from nemotron_kit.runs.cancel import cancel_jobs, stop_launch
from nemotron_kit.runs.folder import DAMAGE, RunFolder, RunSummary
from nemotron_kit.runs.job import DAMAGED, EXIT_CODES, TERMINAL, JobFolder, JobState, run_state
from nemotron_kit.spec.plan import is_local, stored_plan

# The exit code for several runs is that of the first of these states that any of them is in.
_WORST = (DAMAGED, "unreachable", "unknown", "pending", "failed", "preempted", "cancelled", "succeeded")


def wait(argv: list[str]) -> int:
    """Wait until every run named has ended. A run whose target does not answer is retried for `--patience` seconds."""
    options = ToolParser("runs", "wait").parse(argv)
    asked = [chosen_jobs(reference) for reference in options.ids]
    named = {(run.id, *(job.number for job in jobs or ())): (run, jobs) for run, jobs in asked}
    waits = [Watch(run, jobs, patience=options.patience, lost=options.patience) for run, jobs in named.values()]
    pace = Pace(1.0, 1.3, 30.0) if any(each.is_remote for each in waits) else Pace(0.1, 1.2, 2.0)
    reported = False
    while True:
        unfinished = [each for each in waits if not each.over]
        snapshots = refresh(each.run for each in unfinished if each.is_remote)
        for each in unfinished:
            each.update(snapshots.get(each.run.id))
        if all(each.over for each in waits):
            break
        lost = next((s.lost for s in snapshots.values() if s.lost), None)
        if lost and not reported:
            print_status(f"unreachable, still trying: {clean(lost)}")
        reported = lost is not None
        pace.wait()
    for each in waits:
        print_end(each.run, each.state, each.jobs, each.why)
    return EXIT_CODES.get(next(state for state in _WORST if state in {each.state for each in waits}), 3)


def print_end(run: RunFolder, state: str, chosen: Sequence[JobFolder] | None = None, why: str | None = None) -> None:
    """Print in one line how a run, or the chosen jobs of it, ended: of several, the first one in that state."""
    states = [job.state() for job in chosen or ()]
    ended = next((each for each in states if each.state == state), None)
    reported: RunSummary | JobState = ended or (states[0] if states else run.summary())
    code = f" (exit code {reported.code})" if reported.code else ""
    name = _reference(run, chosen)
    error = reported.error or why or (run.summary().error if state == DAMAGED else None)
    write_lines([clean(f"{name}: {state}{code}{f': {error}' if error else ''}")])


def cancel(argv: list[str]) -> int:
    """`nemotron runs cancel ID`: stop a run's jobs, on this machine or by their scheduler; returns the exit code."""
    options = ToolParser("runs", "cancel").parse(argv)
    run, chosen = chosen_jobs(options.id, options.job)
    if run.is_pipeline:
        return _cancel_stages(run, options.grace)
    jobs = run.jobs() if chosen is None else chosen
    remote = not is_local(run.summary().executor)
    if remote:
        return _cancel_remote(run, jobs, chosen, options.grace)
    # The launch first: it would start the next job of a sweep.
    stopped = chosen is None and stop_launch(run, grace=options.grace)
    if stopped and not run.path.exists():
        write_lines([f"{run.id}: its launch was stopped before its first job; it leaves no record"])
        return 0
    if not stopped and all(job.state().terminal for job in jobs):
        _print_ended(run, chosen)
        return 0
    cancel_jobs(run.jobs() if chosen is None else jobs, grace=options.grace)
    print_end(run, _state(run, chosen), chosen)
    return 0


def _cancel_stages(run: RunFolder, grace: int) -> int:
    """Cancel the unfinished stages of a pipeline, the last first, so that none starts because another ends."""
    records = run.stages()
    for damage in (record[DAMAGE] for record in records if DAMAGE in record):
        print_status(f"note: the stage's run is not known: {clean(damage)}")
    stages = [each for record in records if (each := run.stage_run(record)) is not None]
    unfinished = [each for each in reversed(stages) if each.summary().state not in (*TERMINAL, DAMAGED)]
    if not unfinished:
        _print_ended(run, None)
    return max((cancel([each.id, f"--grace={grace}"]) for each in unfinished), default=0)


def _reference(run: RunFolder, chosen: Sequence[JobFolder] | None) -> str:
    """The reference that selects the chosen jobs: `ID`, `ID/2` or `ID/2-5`."""
    if not chosen:
        return run.id
    return chosen[0].reference + (f"-{chosen[-1].number}" if len(chosen) > 1 else "")


def _state(run: RunFolder, chosen: Sequence[JobFolder] | None) -> str:
    return run_state(job.state().state for job in chosen) if chosen else run.state()


def _print_ended(run: RunFolder, chosen: Sequence[JobFolder] | None) -> None:
    verb = "have" if chosen and len(chosen) > 1 else "has"
    write_lines([f"{_reference(run, chosen)} {verb} ended already: {_state(run, chosen)}"])


def _cancel_remote(run: RunFolder, jobs: Sequence[JobFolder], chosen: Sequence[JobFolder] | None, grace: float) -> int:
    """Request the cancellation, and wait up to `grace` seconds for the jobs to end. Raises Unreachable if it is not
    known whether the request arrived."""
    refresh([run])
    unfinished = [job for job in jobs if not job.state().terminal]
    if not unfinished:
        _print_ended(run, chosen)
        return 0
    backend = executor_for(stored_plan(run).settings)
    if handed_over := drop_waiting(run, unfinished):
        backend.cancel(run, handed_over)

    def have_ended() -> bool:
        if any(not job.state().terminal for job in unfinished):
            with suppress(Unreachable):  # the request has arrived; only its effect is not known yet
                ask(run, backend, unfinished)
        return all(job.state().terminal for job in unfinished)

    if until(have_ended, 0.5, within=grace):
        print_end(run, _state(run, chosen), chosen)
    else:
        name = _reference(run, chosen)
        write_lines([f"{name}: cancellation requested; to wait for its end: nemotron runs wait {name}"])
    return 0


_LISTED = 8


def resume(argv: list[str]) -> int:
    """`nemotron runs resume ID[/N]`: submit the waiting jobs of a sweep, as far as its limit allows; else start another
    attempt of a stopped job, and return its exit code."""
    instead = "With other values it is another run: nemotron runs rerun ID KEY=VALUE"
    options = ToolParser("runs", "resume").parse(argv, instead=instead)
    run, jobs = open_jobs(options.id)
    if "/" not in options.id:
        if (run.path / SWEEP_FILE).exists() and SweepQueue(run).levels:
            submitted = resume_levels(run)
            write_lines([f"{run.id}: {len(submitted)} jobs submitted", f"  nemotron runs attach {run.id}"])
            return 0
        message = _submit_waiting(run)
        if message is not None:
            write_lines([message])
            return 0
        if len(jobs) > 1 and not (stopped := _stopped(jobs)):
            raise UserError(f"{run.id} has no jobs that wait to be submitted, and no stopped ones.")
        if len(jobs) > 1:
            names = listed([job.reference for job in stopped], _LISTED)
            raise UserError(
                f"{run.id} has no jobs that wait to be submitted; {len(stopped)} have stopped.",
                hint=f"Name the one to resume: nemotron runs resume {stopped[0].reference}. Stopped: {names}.",
            )
    codes = []
    for job in jobs:
        started = time.time()
        outcome = resume_job(run, job)
        if outcome.state == "pending":
            write_lines([f"{job.reference}: {clean(job.state().state)} again", f"  nemotron runs attach {run.id}"])
        else:
            codes.append(report_end(run, outcome, started))
    return next((code for code in codes if code), 0)


def _submit_waiting(run: RunFolder) -> str | None:
    """Submit the waiting jobs; returns a message, None if no job waits."""
    plan = stored_plan(run)
    if not (run.path / SWEEP_FILE).exists():
        # The list of a sweep's jobs is written after all their folders.
        if plan.kind == "sweep" and not is_local(plan.executor):
            raise UserError(
                f"{run.id}: its launch ended during planning, before any job was submitted.",
                hint=f"Launch it again: {plan.command_line}",
            )
        return None
    if plan.wait_first:
        return f"{run.id}: waiting again, to be submitted" if submission.resume(run) else None
    queue = SweepQueue(run)
    if not (queue.waiting or queue.unfinished):
        # No error: a script may repeat the command until no job waits.
        return None if _stopped(run.jobs()) else f"{run.id}: 0 jobs submitted; none is waiting."
    submitted = submit_waiting(run)
    waiting = len(SweepQueue(run).waiting)
    rest = f"; {waiting} are still waiting: nemotron runs resume {run.id}" if waiting else ""
    return f"{run.id}: {len(submitted)} jobs submitted{rest}"


def _stopped(jobs: list[JobFolder]) -> list[JobFolder]:
    return [job for job in jobs if job.state().terminal and job.state().state != "succeeded"]


def shell(argv: list[str]) -> int:
    """`nemotron runs shell ID[/N]`: replace this process by a shell, or the command after `--`, where the job runs.
    Raises UserError if that is not possible."""
    at = argv.index("--") if "--" in argv else len(argv)
    options = ToolParser("runs", "shell").parse(argv[:at])
    run, chosen = chosen_jobs(options.id, options.job)
    if chosen is not None and len(chosen) > 1:
        raise UserError(
            f"{options.id} are {len(chosen)} jobs; a shell is opened in one.",
            hint=f"Name it: {run.id}/{chosen[0].number}",
        )
    job = chosen[0] if chosen else run.job()
    plan = stored_plan(run)
    # A job on this machine has its folder in any state.
    state = job.state() if is_local(plan.executor) else _running(run, job)
    line = executor_for(plan.settings).shell(plan, job, state, argv[at + 1 :], options.node)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(line[0], line)  # noqa: S606 — the user asked for exactly that
    except OSError as error:
        raise UserError(f"{line[0]} can't be started: {error.strerror}.") from error


def _running(run: RunFolder, job: JobFolder) -> JobState:
    """The job's current state, with the facts of its allocation. Raises UserError for a job that is not running."""
    snapshot = refresh([run]).get(run.id)
    state = effective_state(job, snapshot)
    observed = snapshot.observed.get(job.number) if snapshot else None
    if state.state != "running":
        why = f": {state.error}" if state.error else ""
        where = f" Its folder: {job.path}" if state.terminal else ""
        raise UserError(f"{run.id}: job {job.number} is {state.state}{why}, not running.{where}")
    return JobState(state.state, facts={**state.facts, **(observed.facts if observed else {})})
