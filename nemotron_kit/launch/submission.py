"""Submits jobs to a scheduler up to its limits; the others wait."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path

from nemotron_kit import files
from nemotron_kit.errors import Cancelled, NemotronError, NotSent, Unreachable, UserError
from nemotron_kit.executors.base import Executor, Observation, executor_for, missing_secrets
from nemotron_kit.launch.dependencies import After, wait_for
from nemotron_kit.launch.queue import LAUNCH_FILE, SWEEP_FILE, Busy, SweepQueue, load_plans, run_lock, to_text
from nemotron_kit.launch.status import mirror, record
from nemotron_kit.polling import Pace, polls
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import RESUMED, TERMINAL, JobFolder
from nemotron_kit.runs.process_facts import process_facts
from nemotron_kit.spec.plan import Plan, stored_plan
from nemotron_kit.worker import python_module
from nemotron_kit.worker.process import Terminated, start_detached

log = logging.getLogger("nemotron_kit.launcher")

Ended = Callable[[JobFolder], None]


def submit_waiting(run: RunFolder, *, running: int = 0) -> list[JobFolder]:
    """Submit waiting jobs, as far as there is room beside the `running` jobs of the sweep; returns the submitted ones.

    A batch that an earlier process had begun to submit comes first. Raises the back end's errors; the rest keeps
    waiting.
    """
    plan = stored_plan(run)
    backend, given = executor_for(plan.settings), list[int]()
    with run_lock(run):
        queue = SweepQueue(run)
        while numbers := queue.unfinished or _fitting(queue, backend, running + len(given)):
            queue.begin(numbers)
            for job in map(run.job, numbers):  # one whose submission failed, and that never ran, is pending again
                if job.state().state == "failed" and not job.has_run:
                    job.transition("pending")
            plans = load_plans(run, numbers)
            if plans[0].dependency:  # runs may have ended since the plans were made
                ids = After.of(plans[0].after).dependency(plans[0])
                plans = [replace(each, dependency=tuple(ids)) for each in plans] if ids is not None else plans
            try:
                backend.submit(run, _after_level(run, queue, backend, plans) if queue.levels else plans)
            except NemotronError as error:
                _record_failure(run, backend, numbers, error)
                raise
            queue.end()
            given += numbers
    return [run.job(number) for number in given]


def _after_level(run: RunFolder, queue: SweepQueue, backend: Executor, plans: list[Plan]) -> list[Plan]:
    """The plans of a level's jobs, which depend on the jobs of the level before that have not succeeded yet. Raises
    NemotronError if one of those has failed."""
    plans = [replace(plan, attempt=attempts(run.job(plan.job))) for plan in plans]
    before = queue.before(plans[0].job)
    if not before:
        return plans
    jobs = [job for job in map(run.job, before) if job.state().state != "succeeded"]
    observed, ids = backend.observe(run, jobs) if jobs else {}, set[str]()
    for job in jobs:
        found = observed.get(job.number)
        if found is not None and found.state == "succeeded":
            continue
        if found is not None and found.state in TERMINAL:
            hint = f"To make what is left: nemotron runs resume {run.id}"
            raise NemotronError(f"{job.reference} {found.state}: what follows it was not submitted.", hint=hint)
        number = backend.dependency_id({**job.state().facts, **(found.facts if found else {})})
        if number is None:
            raise Unreachable(f"{job.reference}: its number in the scheduler isn't known, and other jobs wait for it.")
        ids.add(number)
    return [replace(plan, dependency=tuple(sorted(ids)) or None) for plan in plans]


def attempts(job: JobFolder) -> int:
    """How often a job was resumed."""
    return sum(1 for entry in job.history() if entry.get(RESUMED))


def drop_waiting(run: RunFolder, jobs: Sequence[JobFolder]) -> list[JobFolder]:
    """Cancel those of `jobs` that were never submitted; returns the others. Raises UserError while another process
    submits."""
    if not (run.path / SWEEP_FILE).exists():
        return list(jobs)
    with run_lock(run):
        queue = SweepQueue(run)
        waiting = set(queue.waiting)
        dropped = [job for job in jobs if job.number in waiting]
        queue.drop([job.number for job in dropped])
    for job in dropped:
        job.request_cancel()
        job.finish(130, "cancelled", error="cancelled before it was submitted")
    return [job for job in jobs if job.number not in waiting]


def submit_and_follow(
    run: RunFolder, jobs: Sequence[JobFolder], ended: Ended | None, tick: Callable[[], None] | None = None
) -> None:
    """Submit the jobs and follow them to their ends, calling `ended` with each as it ends, and `tick` every few
    seconds; with `ended` None, submit those that fit and return. Ctrl-C leaves the jobs running and prints the commands
    to get back to them, or cancels them where the profile sets that."""
    plan = stored_plan(run)
    try:
        given = submit_waiting(run)
        if ended is not None:
            _watch(run, jobs, given, ended, tick)
    except (KeyboardInterrupt, Terminated):
        if plan.settings.cancel_on_interrupt:
            executor_for(plan.settings).cancel(run, drop_waiting(run, jobs))
            log.warning("%s: cancelled.", run.id)
        else:
            log.warning("%s goes on: nemotron runs show %s", run.id, run.id)
            log.warning("To stop it: nemotron runs cancel %s", run.id)
        raise
    finally:
        queue = SweepQueue(run)
        open_jobs = len(queue.waiting) + len(queue.unfinished)
        if open_jobs:
            are = "job is" if open_jobs == 1 else "jobs are"
            log.warning("%d %s still to be submitted: nemotron runs resume %s", open_jobs, are, run.id)


def _fitting(queue: SweepQueue, backend: Executor, running: int) -> list[int]:
    """The numbers of the waiting jobs that the executor accepts now."""
    waiting = queue.together(queue.waiting)
    if not waiting:
        return []
    room = backend.capacity(running)
    free = len(waiting) if room is None else room
    return waiting[:free] if free >= min(len(waiting), backend.least) or not running else []


def _record_failure(run: RunFolder, backend: Executor, numbers: Sequence[int], error: NemotronError) -> None:
    """Record the state of jobs whose submission failed: some may be queued, others refused."""
    jobs = [run.job(number) for number in numbers]
    try:
        record(jobs, {n: o for n, o in backend.observe(run, jobs).items() if o.state != "unknown"})
    except NemotronError:
        for job in jobs:
            job.transition("unknown", observed=True, error=error.message)


def _watch(
    run: RunFolder,
    jobs: Sequence[JobFolder],
    given: Sequence[JobFolder],
    ended: Ended,
    tick: Callable[[], None] | None = None,
) -> None:
    """Follow submitted jobs. A target that does not answer ends nothing."""
    plan, pace, lost = stored_plan(run), Pace(0.3, 1.2, 10.0), False
    backend, left = executor_for(plan.settings), {job.number: job for job in given}
    unsubmitted = {job.number for job in jobs} - set(left)
    while left or unsubmitted:
        asked = time.time()
        observed: dict[int, Observation] = {}
        try:
            observed = backend.observe(run, list(left.values()))
            mirror(plan, [left[number] for number, observation in observed.items() if observation.state in TERMINAL])
            lost = False
        except Unreachable as error:
            if not lost:
                log.warning("%s: unreachable, still trying: %s", run.id, error.message)
            observed, lost = {}, True
        except NemotronError as error:  # a record is damaged there: the scheduler's word counts, and the others go on
            if not observed:
                raise
            log.warning("%s: %s", run.id, error.message)
        record(list(left.values()), observed, asked)
        over = [number for number, observation in observed.items() if observation.state in TERMINAL]
        for number in over:
            ended(left.pop(number))
        if unsubmitted and (over or not left):
            with suppress(Unreachable, Busy):  # it is tried again
                more = {job.number: job for job in submit_waiting(run, running=len(left))}
                left.update(more)
                unsubmitted -= set(more)
        queue = SweepQueue(run)
        for number in unsubmitted.difference(queue.waiting, queue.unfinished):
            unsubmitted.discard(number)
            if number in queue.listed:  # another process has submitted it
                left[number] = run.job(number)
            else:  # it was cancelled
                ended(run.job(number))
        if over:
            pace.restart()
        if tick is not None:
            tick()
        if left or unsubmitted:
            pace.wait()


LOG, _WAITER = "waiter.log", "waiter"
_START_SECONDS = 10.0
# Retries become less frequent; after the longest pause, some hours later, it gives up.
_LONGEST_PAUSE = 1800.0


def defer(plan: Plan, run: RunFolder) -> None:
    """Send what the job needs, and start a process of this machine that waits and submits it."""
    executor_for(plan.settings).prepare(run, [plan])
    files.write_text(run.job(plan.job).path / LAUNCH_FILE, to_text(plan))
    SweepQueue(run).add([plan.job])
    start(run)


def start(run: RunFolder) -> None:
    """Start the process that waits for other runs. Returns once it has recorded that it runs. Raises NemotronError if
    it ends before that."""
    (job,) = run.jobs()
    known = len(job.history())
    with FileIO(os.open(run.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        waiter = start_detached(python_module(__name__, str(run.path)), log)
    for _ in polls(0.02, within=_START_SECONDS):
        ended = waiter.poll()
        if len(job.history()) != known or job.exit_record() is not None:
            return
        if ended not in (None, 0):
            raise NemotronError(f"{run.id}: the process that submits it did not start: see {run.path / LOG}.")


def resume(run: RunFolder) -> bool:
    """Restart the waiting process if it has ended; returns False if there is nothing left to wait for. Raises UserError
    if that process is running."""
    (job,) = run.jobs()
    queue = SweepQueue(run)
    try:
        with run_lock(run, _WAITER):
            pass
    except Busy as busy:
        reason = job.state().facts.get("reason") or "other runs"
        raise UserError(f"{run.id} waits for {reason}.", hint="It goes on by itself.") from busy
    if job.cancel_requested or job.number not in {*queue.waiting, *queue.unfinished}:
        return False
    (plan,) = load_plans(run, [job.number])
    for problem in missing_secrets(plan.secrets):
        raise UserError(f"{run.id}: {problem}")
    start(run)
    return True


def main(argv: list[str] | None = None) -> int:
    """Wait for the other runs, then submit the job; every step is written to the job's record."""
    (folder,) = map(Path, sys.argv[1:] if argv is None else argv)
    run = RunFolder(folder)
    (job,) = run.jobs()
    try:
        with run_lock(run, _WAITER):
            return _wait(run, job)
    except Busy:  # two were started at once
        return 0


def _wait(run: RunFolder, job: JobFolder) -> int:
    first = stored_plan(run).wait_first or ()
    job.transition("pending", process=process_facts(), reason=", ".join(first))
    try:
        wait_for(job, first)
        # From here on its state comes from the scheduler, not from this process.
        job.transition("pending", reason="its submission")
        _submit(run, job)
    except NemotronError as error:
        if not run.path.is_dir() or job.state().state == "cancelled":
            return error.exit_code  # `runs rm`, or `runs cancel`, which has reported it
        if isinstance(error, Unreachable) and not isinstance(error, NotSent):
            return error.exit_code  # it may be queued: its scheduler decides the state
        job.finish(error.exit_code, "cancelled" if isinstance(error, Cancelled) else "failed", error=error.message)
        SweepQueue(run).drop([job.number])
        return error.exit_code
    return 0


def _submit(run: RunFolder, job: JobFolder) -> None:
    pace, sent = Pace(2.0, 2.0), False
    while not job.cancel_requested:
        try:
            submit_waiting(run)
            return
        except (Unreachable, Busy) as error:
            sent = sent or not isinstance(error, NotSent | Busy)
            pause = pace.seconds()
            print(f"{error}\nnext try in {pause:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
            if pause > _LONGEST_PAUSE:
                raise
        time.sleep(pause)
    if not sent:  # otherwise its scheduler decides the state
        raise Cancelled(f"{run.id}: cancelled before it was submitted.")


if __name__ == "__main__":
    sys.exit(main())
