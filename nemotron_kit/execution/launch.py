"""Executes a plan: makes its run folder and runs it here, or starts a worker that outlives this process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from nemotron_kit.app import Command
from nemotron_kit.config.resolvers import set_run_dir
from nemotron_kit.errors import UserError
from nemotron_kit.execution.hydra_context import enter_hydra
from nemotron_kit.execution.outcome import Outcome
from nemotron_kit.execution.run_job import run_job
from nemotron_kit.plan.plan import DETACHED, IN_PROCESS, Plan
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import JobFolder


START_SECONDS = 10.0


def execute(plan: Plan, command: Command, hydra: Any, extra_files: Mapping[str, str]) -> Outcome:
    """Do what the plan says; a plan with problems is refused before anything is written.

    `hydra` is Hydra's composed node, for HydraConfig; `extra_files` lie in the job folder beside the plan's own.
    """
    refuse_problems(plan)
    attached = plan.launch != DETACHED
    # The handler is imported before there is a folder: what doesn't import leaves nothing behind.
    if plan.launch == IN_PROCESS:
        command.load_handler()
    run = create_run(plan.run_id, plan.to_dict(), [{**plan.files, **extra_files}], attached=attached)
    if not attached:
        return _detach(plan, run)
    set_run_dir(plan.folder)
    enter_hydra(hydra, plan.job_folder)
    return run_planned(plan, command, run.job(plan.job))


def run_planned(plan: Plan, command: Command, job: JobFolder) -> Outcome:
    """Run a job whose folder is there, in this process or under torchrun."""
    if plan.launch == IN_PROCESS:
        return run_job(job, command.load_handler(), command.load_config_cls())
    return run_job(job)


def refuse_problems(plan: Plan) -> None:
    """Raise the plan's problems as one UserError."""
    if plan.problems:
        first, *more = plan.problems
        raise UserError(first, hint="\n".join(more) or None)


def _detach(plan: Plan, run: RunFolder) -> Outcome:
    """Start the worker in a session of its own; its own words go to logs/worker.log."""
    job = run.job(plan.job)
    with job.open_log("worker") as log:
        worker = subprocess.Popen(
            list(plan.launch_command),
            env={**os.environ, **plan.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # A worker that dies before it says `running` would leave its job pending for ever.
    deadline = time.monotonic() + START_SECONDS
    while job.state().state == "pending" and time.monotonic() < deadline:
        if worker.poll() not in (None, 0):
            job.finish(worker.returncode, "failed", error=f"the worker did not start: see {job.log_path('worker')}")
            return Outcome(1, "failed", f"the worker did not start: see {job.log_path('worker')}")
        time.sleep(0.02)
    return Outcome(0, "pending")
