"""Stops jobs of this machine: SIGTERM, then SIGKILL after a grace period, to the job's whole process group only."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.polling import until
from nemotron_kit.runs.job import JobFolder, JobState
from nemotron_kit.runs.process_facts import descendants, is_gone, is_on_this_host

if TYPE_CHECKING:
    from nemotron_kit.runs.folder import RunFolder

GRACE = 10.0
_EXIT_SECONDS = 30.0


def cancel_jobs(jobs: Sequence[JobFolder], *, grace: float = GRACE) -> list[JobState]:
    """Stop the jobs and return their final states. Jobs that have ended already are left unchanged.

    A process gets SIGTERM, and after `grace` seconds SIGKILL, with its children. A job that never started is marked
    cancelled; `transition("running")` then refuses. Raises UserError, before anything is stopped, if one of them is not
    a process of this machine.
    """
    active = [(job, _process(job)) for job in jobs if not job.state().terminal]
    for job, _ in active:  # all requests first: several jobs may run in one process, and end with it
        job.request_cancel()
    for job, process in active:
        code = _stop(job, process, grace) if process is not None else signal.SIGTERM
        if job.exit_record() is None:  # killed, or never started
            job.finish(128 + code, "cancelled", error="cancelled by `nemotron runs cancel`")
    return [job.state() for job in jobs]


def stop_launch(run: RunFolder, *, grace: float = GRACE) -> bool:
    """Stop the process that still adds jobs to a run of this machine, and ends its job; False if there is none. Its
    jobs are marked as cancelled. Raises UserError for a process of another machine."""
    launcher = run.launcher_at_work()
    if launcher is None:
        return False
    if not is_on_this_host(launcher):
        raise UserError(
            f"{run.id} is launched on {launcher.get('host')}, and can't be stopped from this machine.",
            hint=f"On that machine: nemotron runs cancel {run.id}.",
        )
    for job in run.jobs():
        if not job.state().terminal:
            job.request_cancel()
    run.launch_failed("stopped by `nemotron runs cancel`, and jobs may be missing")
    os.kill(launcher["pid"], signal.SIGTERM)  # not its group: it ends its job itself
    _wait_gone(launcher, grace)
    return True


def terminate(job: JobFolder) -> bool:
    """Send TERM to the process of a job without marking the job cancelled; returns whether it has a process."""
    state = job.state()
    process = state.facts.get("process")
    if state.terminal or not isinstance(process, Mapping):
        return False
    _check_process(job, process)
    _send(process, signal.SIGTERM)
    return True


def _process(job: JobFolder) -> Mapping[str, Any] | None:
    """The process to stop; None for a job that has none yet. Raises UserError for a job that this process can't
    stop."""
    state = job.state()
    process = state.facts.get("process")
    if state.state == "unknown":
        raise UserError(f"{job.run_id}: job {job.number} can't be stopped: {str(state.error).removesuffix('.')}.")
    if isinstance(process, Mapping):
        _check_process(job, process)
        return process
    if state.state != "pending" or state.facts.get("scheduler"):
        raise UserError(f"{job.run_id}: job {job.number} is {state.state}, but is no process of this machine.")
    return None


def _check_process(job: JobFolder, process: Mapping[str, Any]) -> None:
    if not isinstance(process.get("pid"), int) or process["pid"] <= 1:
        raise UserError(f"{job.run_id}: the record of job {job.number} has no valid pid: {process.get('pid')!r}.")
    if not is_on_this_host(process):
        raise UserError(
            f"{job.run_id} runs on {process.get('host')}, and can't be stopped from this machine.",
            hint=f"On that machine: nemotron runs cancel {job.run_id}.",
        )


def _stop(job: JobFolder, process: Mapping[str, Any], grace: float) -> int:
    """Send the process SIGTERM, then SIGKILL if it does not end; returns the last signal that was needed. A process
    that has written the job's exit record gets time to end by itself, so that its exit code is the record's."""
    _send(process, signal.SIGTERM)
    gone = _wait_gone(process, grace) or (job.exit_record() is not None and _wait_gone(process, _EXIT_SECONDS))
    if not gone:
        _send(process, signal.SIGKILL)
        _wait_gone(process, 5.0)
        return signal.SIGKILL
    return signal.SIGTERM


def _send(process: Mapping[str, Any], number: signal.Signals) -> None:
    """Send a signal to the process group if the process leads one (a job started in the foreground of a script does
    not), else to the process. SIGKILL is also sent to all descendants, which may be in other groups."""
    if is_gone(process):
        return
    pid = process["pid"]
    children = descendants(pid) if number == signal.SIGKILL else []
    for target in [-pid if process.get("pgid") == pid else pid, *children]:
        try:
            os.kill(target, number)
        except ProcessLookupError:
            continue  # it ended by itself
        except PermissionError as error:
            raise UserError(f"Process {pid} belongs to another user.") from error


def _wait_gone(process: Mapping[str, Any], seconds: float) -> bool:
    return until(lambda: is_gone(process), 0.05, within=seconds)
