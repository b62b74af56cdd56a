"""Resumes a job that has stopped: a new attempt in the same folder, with its checkpoints and its log.

The record is continued: the earlier attempt's end joins its history, and config, inputs and code are the same.
"""

from __future__ import annotations

from dataclasses import replace

from nemotron_kit.errors import Unreachable, UserError
from nemotron_kit.executors.base import executor_for, missing_secrets
from nemotron_kit.launch.attach import LogOffsets, attach
from nemotron_kit.launch.dependencies import After
from nemotron_kit.launch.launch import followed, submitted
from nemotron_kit.launch.queue import SweepQueue, load_plan, load_plans, run_lock
from nemotron_kit.launch.status import ENDED, effective_state, refresh
from nemotron_kit.launch.submission import attempts, submit_waiting
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import STARTER, TERMINAL, JobFolder, JobState
from nemotron_kit.spec.plan import Plan, is_local, stored_plan
from nemotron_kit.worker.process import Outcome
from nemotron_kit.worker.streams import print_notice

_LOCK = "resume"


def resume(run: RunFolder, job: JobFolder) -> Outcome:
    """Start another attempt of a job that has ended without success; follow it, unless it was launched with --batch.

    Raises UserError, with nothing changed, for a job that has succeeded, that has not ended, or that can't start.
    """
    # Without the lock, which is held while the job is followed, so that a second call reports the state.
    _state(run, job)
    with run_lock(run, _LOCK):
        state = _state(run, job)
        plan = load_plan(run, job)
        if plan.after and not job.has_run:
            after = After.of(plan.after)
            for other in after.left:
                how = ENDED.get(after.states[other.id], "has not succeeded yet")
                hint = f"nemotron runs {'resume' if after.states[other.id] in ENDED else 'wait'} {other.id}"
                what = f"{job.reference} starts after {other.id}, which {how}."
                raise UserError(what, hint=f"That one first: {hint}")
        plan = replace(plan, dependency=None, wait_first=None)  # nothing delays it any more
        for problem in missing_secrets(plan.secrets):
            raise UserError(f"{job.reference}: {problem}")
        backend = executor_for(plan.settings)
        offsets = LogOffsets(run)
        # What the earlier attempts logged counts as printed.
        logs = {path.stem: path.stat().st_size for path in (job.path / "logs").glob("*.log")}
        offsets.keep({job.number: {**offsets.of(job.number), **logs}})
        print_notice(f"{job.reference}: another attempt")
        if state.terminal:
            _reset(job, plan)
        plan = replace(plan, attempt=attempts(job))
        if is_local(plan.executor) and plan.mode != "batch":
            return followed(run, backend, job, lambda: submitted(run, job, backend, plan), offsets)
        submitted(run, job, backend, plan)
    if plan.mode == "batch":
        return Outcome(0, "pending")
    cancels = bool(plan.settings.cancel_on_interrupt)
    return attach(run, backend, [job], offsets=offsets, cancel_on_interrupt=cancels)


def resume_levels(run: RunFolder) -> list[JobFolder]:
    """Submit the waiting jobs of an array and those that have ended without success. Returns the submitted jobs. Raises
    UserError if there are none."""
    with run_lock(run, _LOCK):
        refresh([run])
        jobs = run.jobs()
        states = {job.number: job.state().state for job in jobs}
        stopped = [job for job in jobs if states[job.number] in TERMINAL and states[job.number] != "succeeded"]
        queue = SweepQueue(run)
        if not stopped and not (queue.waiting or queue.unfinished):
            if all(state == "succeeded" for state in states.values()):
                raise UserError(f"{run.id} has succeeded.", hint=f"To run it anew: nemotron runs rerun {run.id}")
            raise UserError(f"{run.id} is {run.state()}.", hint=f"nemotron runs attach {run.id} follows it.")
        plans = load_plans(run, [job.number for job in stopped])
        for problem in missing_secrets(dict.fromkeys(name for plan in plans for name in plan.secrets)):
            raise UserError(f"{run.id}: {problem}")  # before any job is reset
        for plan in plans:
            _reset(run.job(plan.job), plan)
        queue.requeue([job.number for job in stopped])
    return submit_waiting(run)


def _state(run: RunFolder, job: JobFolder) -> JobState:
    """The job's state now. Raises UserError, or Unreachable, if no other attempt may begin."""
    state, plan = effective_state(job, refresh([run]).get(run.id)), stored_plan(run)
    name, run_id, is_remote = job.reference, job.run_id, not is_local(plan.executor)
    if state.state == "succeeded":
        # Only the program composes its jobs' configs, which `rerun` would have to.
        anew = plan.command_line if job.spec().get("module") else f"nemotron runs rerun {name}"
        raise UserError(f"{name} has succeeded.", hint=f"To run it anew: {anew}")
    if state.state == "running":
        why = f": {state.error}" if state.error else ""
        hint = f"nemotron runs attach {run_id} follows it; nemotron runs cancel {run_id} ends it."
        raise UserError(f"{name} is running{why}.", hint=hint)
    # A pending job without a process, of an older version, was never started.
    if state.state == "pending" and (is_remote or state.facts.get("process") or state.facts.get(STARTER)):
        reason = state.facts.get("reason")
        raise UserError(f"{name} is pending{f': {reason}' if reason else ''}.", hint="It begins by itself.")
    if state.state == "unreachable":
        raise Unreachable(f"{name}: its state is not known: {state.error}", hint="Try again once that answers.")
    if not state.terminal and state.state != "pending":
        raise UserError(
            f"{name} is {state.state}: {str(state.error).removesuffix('.')}.", hint=f"nemotron runs show {run_id}"
        )
    return state


def _reset(job: JobFolder, plan: Plan) -> None:
    """Set a job to pending: first in the folder that it writes, if that is not the record's, so that the old end is not
    read there."""
    if plan.has_separate_folder:
        folder = f"{plan.paths.run}/jobs/{job.number}"
        transport_for(plan.settings).call("begin_again", jobs=[folder])
    job.begin_again(starts_here=is_local(plan.executor))
