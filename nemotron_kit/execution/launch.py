"""Executes a plan: makes its run folder and runs it here, or starts a worker that outlives this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_kit.app import Command
from nemotron_kit.config.resolvers import set_run_dir
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.execution.attach import attach
from nemotron_kit.execution.backends.base import Backend, backend_for
from nemotron_kit.execution.hydra_context import enter_hydra
from nemotron_kit.execution.outcome import INTERRUPTED, TERMINATED, Outcome
from nemotron_kit.execution.run_job import run_job
from nemotron_kit.execution.signals import Terminated, term_raises
from nemotron_kit.execution.ssh_errors import NotSent
from nemotron_kit.plan.plan import DETACHED, IN_PROCESS, Plan
from nemotron_kit.runs.cancel import terminate
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import JobFolder


def execute(plan: Plan, command: Command, hydra: Any, extra_files: Mapping[str, str]) -> Outcome:
    """Do what the plan says; a plan with problems is refused before anything is written.

    `hydra` is Hydra's composed node, for HydraConfig; `extra_files` lie in the job folder beside the plan's own.
    """
    refuse_problems(plan)
    # The handler is imported before there is a folder: what doesn't import leaves nothing behind.
    if plan.launch == IN_PROCESS:
        command.load_handler()
    run = create_run(plan.run_id, plan.to_dict(), [{**plan.files, **extra_files}], attached=plan.launch == IN_PROCESS)
    if plan.launch == DETACHED:
        return _elsewhere(plan, run)
    if plan.launch == IN_PROCESS:
        set_run_dir(plan.folder)
        _enter_hydra(hydra, run.job(plan.job))
    return run_planned(plan, command, run.job(plan.job))


def _enter_hydra(node: Any, job: JobFolder) -> None:
    try:
        enter_hydra(node, str(job.path))
    # logging raises a ValueError for whatever stopped a handler: a folder that can't be written, a wrong setting.
    except (OSError, ValueError) as error:
        why = error.__cause__ if isinstance(error.__cause__, OSError) else error
        said = f"{os.fsdecode(why.filename)}: {why.strerror}" if isinstance(why, OSError) and why.filename else str(why)
        kind = NemotronError if isinstance(why, OSError) else UserError
        failure = kind(f"The job's logging can't be set up: {said}.", hint="See hydra.job_logging.")
        job.finish(failure.exit_code, "failed", error=failure.message)
        raise failure from error


def _elsewhere(plan: Plan, run: RunFolder) -> Outcome:
    """Submit to the plan's back end, now or later; with --run, stay until the end."""
    backend, job = backend_for(plan), run.job(plan.job)
    try:
        if plan.deferred:
            from nemotron_kit.execution.deferred import defer

            defer(plan, run)
        else:
            backend.submit(run, [plan])
    except NotSent as error:  # it is known that nothing was submitted
        job.finish(error.exit_code, "failed", error=error.message)
        raise
    except Unreachable as error:
        job.transition("unknown", observed=True, error=error.message)
        raise
    except NemotronError as error:
        job.finish(error.exit_code, "failed", error=error.message)
        raise
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED, "detached", "interrupted while submitting")
    if plan.mode != "run":
        return Outcome(0, "pending")
    return attach(run, backend, [job], cancel_on_interrupt=bool(plan.settings.get("cancel_on_interrupt")))


def run_planned(plan: Plan, command: Command, job: JobFolder) -> Outcome:
    """Run a job whose folder is there: in this process, or under torchrun below a worker that outlives it."""
    if plan.launch == IN_PROCESS:
        return run_job(job, command.load_handler(), command.load_config_cls())
    run, backend = RunFolder(Path(plan.folder)), backend_for(plan)
    backend.submit(run, [plan])
    return followed(run, backend, job)


def followed(run: RunFolder, backend: Backend, job: JobFolder) -> Outcome:
    """Follow a job of this machine to its end. Ctrl-C cancels it; TERM is passed on to it; whatever else ends this
    process leaves it running."""
    try:
        with term_raises():
            outcome = attach(run, backend, [job], cancel_on_interrupt=True)
    except Terminated:
        terminate(job)
        outcome = attach(run, backend, [job])
        if outcome.state == "cancelled":
            outcome = replace(outcome, code=TERMINATED)
    return replace(outcome, own=job.state().code) if outcome.state != "detached" else outcome


def refuse_problems(plan: Plan) -> None:
    """Raise the plan's problems as one UserError."""
    if plan.problems:
        first, *more = plan.problems
        raise UserError(first, hint="\n".join(more) or None)
