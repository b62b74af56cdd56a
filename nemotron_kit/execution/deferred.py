"""A job that waits here to be submitted elsewhere: `--after` a run that its own scheduler knows nothing of.

Its code and its folder are sent at once. A process of this machine, `python -P -m … <run folder>`, waits for the other
runs and submits it then; should that process end too early, `nemotron runs resume` starts another.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path

from nemotron_kit import files
from nemotron_kit.errors import Cancelled, NemotronError, Unreachable, UserError
from nemotron_kit.execution.after import wait_for
from nemotron_kit.execution.backends.base import backend_for
from nemotron_kit.execution.hydra_launcher import stored
from nemotron_kit.execution.hydra_launcher.elsewhere import submit_waiting
from nemotron_kit.execution.hydra_launcher.queue import Busy, SweepQueue, alone
from nemotron_kit.execution.ssh_errors import NotSent
from nemotron_kit.plan.docker import missing_secrets
from nemotron_kit.plan.plan import WAIT_FIRST, Plan
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.process import process_facts

LOG, _WAITER = "waiter.log", "waiter"
_START_SECONDS = 10.0
# A cluster that does not answer is asked again, less and less often; after some hours a person has to look.
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 1800.0


def defer(plan: Plan, run: RunFolder) -> None:
    """Send what the job needs, and leave the rest to a process of this machine."""
    backend_for(plan).prepare(run, [plan])
    files.write_text(run.job(plan.job).path / stored.FILE, stored.to_text(plan))
    SweepQueue(run).add([plan.job])
    start(run)


def start(run: RunFolder) -> None:
    """Start the process that waits. Returns once it says so; NemotronError when it does not get so far."""
    (job,) = run.jobs()
    known = len(job.history())
    with FileIO(os.open(run.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        waiter = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_SECONDS
    while len(job.history()) == known and job.exit_record() is None and time.monotonic() < deadline:
        if waiter.poll() not in (None, 0):
            raise NemotronError(f"{run.id}: what is to submit it did not start: see {run.path / LOG}.")
        time.sleep(0.02)


def resume(run: RunFolder) -> bool:
    """Wait on, where the process that did so has ended; False where there is nothing to wait for any more. UserError
    where that process is there."""
    (job,) = run.jobs()
    queue = SweepQueue(run)
    try:
        with alone(run, _WAITER):
            pass
    except Busy as busy:
        reason = job.state().facts.get("reason")
        raise UserError(f"{run.id} waits for {reason}.", hint="It goes on by itself.") from busy
    if job.cancel_requested or job.number not in {*queue.waiting, *queue.unfinished}:
        return False
    (plan,) = stored.load_plans(run, [job.number])
    for said in missing_secrets(plan.secrets):
        raise UserError(f"{run.id}: {said}")
    start(run)
    return True


def main(argv: list[str] | None = None) -> int:
    """Wait, and submit; the job's record says how it went."""
    (folder,) = map(Path, sys.argv[1:] if argv is None else argv)
    run = RunFolder(folder)
    (job,) = run.jobs()
    try:
        with alone(run, _WAITER):
            return _wait(run, job)
    except Busy:  # two were started at once
        return 0


def _wait(run: RunFolder, job: JobFolder) -> int:
    job.transition("pending", process=process_facts(), reason=", ".join(run.plan()[WAIT_FIRST]))
    try:
        wait_for(job, run.plan()[WAIT_FIRST])
        # From here on the scheduler is asked how it stands, not this process.
        job.transition("pending", reason="its submission")
        _submit(run, job)
    except NemotronError as error:
        if not run.path.is_dir() or job.state().state == "cancelled":
            return error.exit_code  # `runs rm`, or `runs cancel`, which has said so
        if isinstance(error, Unreachable) and not isinstance(error, NotSent):
            return error.exit_code  # it may be queued: its scheduler has the last word
        job.finish(error.exit_code, "cancelled" if isinstance(error, Cancelled) else "failed", error=error.message)
        SweepQueue(run).drop([job.number])
        return error.exit_code
    return 0


def _submit(run: RunFolder, job: JobFolder) -> None:
    pause, sent = _FIRST_PAUSE, False
    while not job.cancel_requested:
        try:
            submit_waiting(run)
            return
        except (Unreachable, Busy) as error:
            sent = sent or not isinstance(error, NotSent | Busy)
            print(f"{error}\nnext try in {pause:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
            if pause > _LONGEST_PAUSE:
                raise
        time.sleep(pause)
        pause *= 2
    if not sent:  # else its scheduler has the last word
        raise Cancelled(f"{run.id}: cancelled before it was submitted.")


if __name__ == "__main__":
    sys.exit(main())
