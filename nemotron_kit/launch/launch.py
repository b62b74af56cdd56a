"""Executes a plan: makes its run folder and runs it here, or starts a worker that outlives this process."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit import __version__, worker
from nemotron_kit.app import Command
from nemotron_kit.config.compose import Composed
from nemotron_kit.config.resolvers import set_run_dir
from nemotron_kit.errors import NemotronError, NotSent, Unreachable, UserError
from nemotron_kit.executors.base import Executor, executor_for
from nemotron_kit.polling import until
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.spec.paths import run_git
from nemotron_kit.spec.plan import DETACHED, IN_PROCESS, Plan, is_local
from nemotron_kit.worker.hydra import hydra_files, set_hydra_config
from nemotron_kit.worker.process import INTERRUPTED, TERMINATED, Outcome, Terminated, term_raises
from nemotron_kit.worker.run import run_job

if TYPE_CHECKING:
    from nemotron_kit.launch.attach import LogOffsets

# If git needs more seconds than this for the status of a large work tree, only its commit is recorded.
_SECONDS = 2.0


def code_facts() -> dict[str, Any]:
    """`{"kit", "python", "folder", "commit", "dirty"}` of the working folder. `commit` is None outside a git work tree
    and before the first commit, `dirty` None where it isn't known. Starts git once, and only in a work tree."""
    cwd = Path.cwd()
    commit: str | None = None
    dirty: bool | None = None
    if any((folder / ".git").exists() for folder in (cwd, *cwd.parents)):
        status = _ask(cwd, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=normal")
        if status is None:
            commit = (_ask(cwd, "rev-parse", "--verify", "HEAD") or "").strip() or None
        else:
            lines = [line for line in status.split("\0") if line]
            oid = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
            commit, dirty = None if oid == "(initial)" else oid, any(not line.startswith("#") for line in lines)
    return {
        "kit": __version__,
        "python": platform.python_version(),
        "folder": str(cwd),
        "commit": commit,
        "dirty": dirty,
    }


def _ask(folder: Path, *arguments: str) -> str | None:
    """The output of a git command; None if it fails or takes too long."""
    try:
        done = run_git(folder, *arguments, seconds=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


_START_SECONDS = 10.0


def execute(plan: Plan, composed: Composed) -> Outcome:
    """Create the run's folder and run the job, or submit it, as its plan specifies. Raises UserError for a plan with
    problems, before anything is written."""
    command = composed.command
    refuse_problems(plan)
    plan = replace(plan, files={**plan.files, **hydra_files(composed)})
    # Import the handler first: one that can't be imported leaves no run folder.
    if plan.launch == IN_PROCESS:
        command.load_handler()
    run = create_run(
        *(plan.run_id, plan.to_dict(), [plan.files]),
        attached=plan.launch == IN_PROCESS,
        starts_here=is_local(plan.executor),
        labels=plan.labels.to_dict() if plan.labels else None,
    )
    if plan.launch == DETACHED:
        return _submit(plan, run)
    if plan.launch == IN_PROCESS:
        set_run_dir(plan.folder)
        set_hydra_config(composed.config, composed.hydra, plan.job_folder)
    return run_planned(plan, command, run.job(plan.job))


def _submit(plan: Plan, run: RunFolder) -> Outcome:
    """Submit to the plan's executor, now or later; with --run, follow the job to its end. SIGTERM is as Ctrl-C."""
    from nemotron_kit.launch.attach import LEFT_RUNNING, attach

    backend, job = executor_for(plan.settings), run.job(plan.job)
    cancels, following = bool(plan.settings.cancel_on_interrupt), False
    try:
        with term_raises():
            submitted(run, job, backend, plan)
            if plan.mode != "run":
                return Outcome(0, "pending")
            following = True
            return attach(run, backend, [job], cancel_on_interrupt=cancels)
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED, "detached", "interrupted while submitting")
    except Terminated:
        if following and cancels:
            backend.cancel(run, [job])
            return replace(attach(run, backend, [job]), code=TERMINATED)
        return replace(LEFT_RUNNING, code=TERMINATED)


def submitted(run: RunFolder, job: JobFolder, backend: Executor, plan: Plan) -> None:
    """Submit a job, now or later. Errors are raised, and recorded."""
    try:
        if plan.deferred:
            from nemotron_kit.launch.submission import defer

            defer(plan, run)
        else:
            backend.submit(run, [plan])
    except NotSent as error:  # certainly not submitted
        job.finish(error.exit_code, "failed", error=error.message)
        raise
    except Unreachable as error:
        job.transition("unknown", observed=True, error=error.message)
        raise
    except NemotronError as error:
        job.finish(error.exit_code, "failed", error=error.message)
        raise


def run_planned(plan: Plan, command: Command, job: JobFolder) -> Outcome:
    """Run a job whose folder is there: in this process, or under torchrun below a worker that outlives it."""
    if plan.launch == IN_PROCESS:
        return run_job(job, command.load_handler(), command.load_config_cls(), if_left=worker.process_exits)
    run, backend = RunFolder(Path(plan.folder)), executor_for(plan.settings)
    return followed(run, backend, job, lambda: backend.submit(run, [plan]))


def followed(
    run: RunFolder, backend: Executor, job: JobFolder, start: Callable[[], None], offsets: LogOffsets | None = None
) -> Outcome:
    """Call `start`, which starts a job of this machine, and follow the job to its end; returns its outcome. Ctrl-C
    cancels the job and SIGTERM is passed on to it; if this process ends in any other way, the job continues."""
    from nemotron_kit.launch.attach import attach
    from nemotron_kit.runs.cancel import terminate

    try:
        with term_raises():
            start()
            outcome = attach(run, backend, [job], offsets=offsets, cancel_on_interrupt=True)
    except Terminated:
        # Its worker may be about to begin.
        if not until(lambda: terminate(job) or job.state().terminal, 0.05, within=_START_SECONDS):
            job.finish(TERMINATED, "cancelled", error="terminated before it ran")
        outcome = attach(run, backend, [job], offsets=offsets)
        if outcome.state == "cancelled":
            outcome = replace(outcome, code=TERMINATED)
    return replace(outcome, job_exit_code=job.state().code) if outcome.state != "detached" else outcome


def refuse_problems(plan: Plan, notes: Sequence[str] = ()) -> None:
    """Raise the plan's problems as one UserError, with notes that may explain them."""
    if plan.problems:
        lines = [*plan.problems, *notes]
        raise UserError(lines[0], hint="\n".join(lines[1:]) or None)
