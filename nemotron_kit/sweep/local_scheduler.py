"""Runs the jobs of a sweep on this machine, a limited number at a time, in a separate process beside the launch, which
talks to it through LocalSchedulerClient."""

from __future__ import annotations

import json
import os
import runpy
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from threading import Thread
from typing import IO, Any

from nemotron_kit.errors import NemotronError
from nemotron_kit.executors.nemo_run import import_partially
from nemotron_kit.polling import Pace, until
from nemotron_kit.runs.cancel import cancel_jobs
from nemotron_kit.runs.folder import RunFolder, open_job
from nemotron_kit.runs.job import ORPHANED, JobFolder
from nemotron_kit.worker import python_module
from nemotron_kit.worker.process import start_detached, start_worker

LOG = "local_scheduler.log"
# The time that a job has to end, SIGKILL included, when the sweep is stopped.
_GRACE_SECONDS = 20.0


class LocalSchedulerClient:
    """Starts the local scheduler of one sweep and talks to it over pipes, in JSON lines.

    The scheduler imports NeMo-Run while the launch composes, and runs every batch of the sweep. Its errors go to
    `local_scheduler.log` in the run's folder. `kind` is "nemo_run" or "kit" (see sweep_job.VIA).
    """

    def __init__(self, run: RunFolder, kind: str, *, detached: bool = False) -> None:
        self.run, self._idle = run, True
        flags = ["--detached"] if detached else []
        log = os.open(run.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with FileIO(log, "ab") as errors:
            python, *rest = python_module(f"{__package__}.local_scheduler", str(run.path), kind, *flags)
            # NeMo-Run writes this file's source, in the locale's encoding.
            command = [python, "-X", "utf8", *rest]
            self._process = start_detached(command, errors, talks=True, answers=not detached)

    def submit(self, jobs: Sequence[int], parallel: int, secrets: Iterable[str] = ()) -> None:
        """Queue the jobs, at most `parallel` of them at a time, with the variables `secrets` of this process, some of
        which may have been set after the scheduler started. Raises NemotronError if the scheduler has ended."""
        assert self._process.stdin is not None  # noqa: S101 — Popen was given a pipe
        self._idle = False
        environment = {name: os.environ[name] for name in secrets if name in os.environ}
        batch = {"jobs": list(jobs), "parallel": parallel, "environment": environment}
        try:
            self._process.stdin.write(json.dumps(batch) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._gone() from error

    def wait(self, jobs: Sequence[int], ended: Callable[[JobFolder], None]) -> None:
        """Wait until the jobs have ended, and call `ended` with each. An interrupt stops all of them first.

        Raises NemotronError if the scheduler ends before its jobs.
        """
        assert self._process.stdout is not None  # noqa: S101
        left = set(jobs)
        try:
            while left:
                line = self._process.stdout.readline()
                if not line:
                    raise self._gone()
                number = int(json.loads(line)["ended"])
                left.discard(number)
                ended(self.run.job(number))
        except BaseException:
            self.stop()
            raise

    def leave(self) -> None:
        """Close the connection to a detached scheduler, which continues to run."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()

    def stop(self) -> None:
        """Stop the scheduler, and with it every job that has not ended."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        if self._idle:  # it runs no job, and may still be importing
            self._process.kill()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> NemotronError:
        return NemotronError(f"{self.run.id}: the scheduler of its jobs has ended: see {self.run.path / LOG}")


class Processes:
    """Starts each job's worker as a child process."""

    def __init__(self) -> None:
        self._workers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, jobs: Sequence[JobFolder]) -> None:
        """Start a worker for each job."""
        for job in jobs:
            self._workers[job.number] = start_worker(job)

    def alive(self, job: JobFolder) -> bool:
        """Whether the process of a started job still exists."""
        return self._workers[job.number].poll() is None


_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
_POLL_SECONDS = 0.1
_TASK = "task"


class NemoRun:
    """Starts the workers as NeMo-Run experiments. NeMo-Run is imported in __init__; its files go to the working folder,
    which is the run's."""

    def __init__(self) -> None:
        os.environ["NEMORUN_HOME"] = str(Path.cwd() / "nemo_run")
        self._nemo_run: Any = import_partially()
        self._threads: dict[int, Thread] = {}
        self._over: set[int] = set()

    def start(self, jobs: Sequence[JobFolder]) -> None:
        # NeMo-Run finds its current experiment by a context variable, so each thread needs its own context.
        thread = Thread(target=self._run_experiment, args=(list(jobs),), daemon=True)
        self._threads.update(dict.fromkeys((job.number for job in jobs), thread))
        thread.start()

    def alive(self, job: JobFolder) -> bool:
        return job.number not in self._over and self._threads[job.number].is_alive()

    def _run_experiment(self, jobs: list[JobFolder]) -> None:
        """Run the jobs' workers as one experiment of NeMo-Run; returns when all have ended."""
        run = self._nemo_run
        experiment = run.Experiment(
            "sweep",
            id=f"from-{jobs[0].number}",
            log_level="WARNING",
            clean_mode=True,
            enable_goodbye_message=False,
            skip_status_at_exit=True,
            serialize_metadata_for_scripts=False,
        )
        with experiment:
            for job in jobs:
                # The folder is relative to the working folder, since TorchX expands `$` in arguments.
                arguments = ["-m", f"{__package__}.local_scheduler", f"jobs/{job.number}", _TASK]
                worker = run.Script(path="-P", args=arguments, entrypoint=sys.executable)
                experiment.add(worker, executor=run.LocalExecutor(), name=f"job-{job.number}")
            experiment.run()
            numbers = {f"job-{job.number}": job.number for job in jobs}
            # Leaving the block with a job still running would wait in steps of two seconds.
            while not self._over.issuperset(numbers.values()):
                for name, task in experiment.status(return_dict=True).items():
                    if task["status"].name in _OVER:
                        self._over.add(numbers[name])
                time.sleep(_POLL_SECONDS)


class LocalScheduler:
    """The waiting and running jobs of a sweep."""

    def __init__(self, run: RunFolder, starter: Processes | NemoRun, output: IO[str]) -> None:
        self.run, self.starter, self.output = run, starter, output
        self.waiting: deque[int] = deque()
        self.running: dict[int, JobFolder] = {}
        self.parallel = 1

    @property
    def busy(self) -> bool:
        """Whether any job is waiting or running."""
        return bool(self.waiting or self.running)

    def take(self, batch: dict[str, Any]) -> None:
        """Queue a batch: its job numbers (`jobs`), the limit of jobs at a time (`parallel`), and its variables."""
        self.waiting.extend(int(number) for number in batch["jobs"])
        self.parallel = int(batch["parallel"])
        os.environ.update(batch.get("environment") or {})

    def turn(self) -> bool:
        """Record the jobs that have ended and start waiting ones, up to the limit; returns whether anything changed."""
        over = [job for job in self.running.values() if self._is_over(job)]
        for job in over:
            del self.running[job.number]
            self._report(job.number)
        room = min(self.parallel - len(self.running), len(self.waiting))
        jobs = [self.run.job(self.waiting.popleft()) for _ in range(room)]
        if jobs:
            self.running.update({job.number: job for job in jobs})
            self.starter.start(jobs)
        return bool(over or jobs)

    def stop(self) -> None:
        """Stop the running jobs, and mark the waiting ones as cancelled."""
        waiting, running = [self.run.job(number) for number in self.waiting], list(self.running.values())
        self.waiting.clear()
        for job in waiting:
            job.request_cancel()
            job.finish(130, "cancelled", error="the sweep was stopped before it ran")
        for job in running:
            job.request_cancel()
        # A job that is just being started has no recorded process yet.
        until(lambda: all(job.state().state != "pending" for job in running), 0.05, within=2)
        cancel_jobs([job for job in running if job.state().state != "pending"])
        for job in [*waiting, *running]:
            self._report(job.number)

    def _is_over(self, job: JobFolder) -> bool:
        """Whether the job has ended; writes the exit record of a job whose worker ended without one. Its program may
        outlive the worker, and has recorded its own exit code."""
        if (job.path / "exit.json").exists():
            return True
        if self.starter.alive(job) or (job.path / "exit.json").exists():
            return False
        state = job.state()
        if state.error == ORPHANED:
            return False
        if state.terminal and state.code is not None:
            job.finish(state.code, state.state, error=state.error)
        else:
            job.finish(1, "failed", error=f"its process ended without a record: see {job.log_path('worker')}")
        return True

    def _report(self, number: int) -> None:
        with suppress(BrokenPipeError):  # the launch may have ended
            self.output.write(json.dumps({"ended": number}) + "\n")
            self.output.flush()


class Batches:
    """Reads JSON lines from a descriptor without blocking. `over` is set at the end of input."""

    def __init__(self, source: int) -> None:
        self.source, self.over, self._rest = source, False, b""

    def poll(self, seconds: float | None) -> list[dict[str, Any]]:
        """The objects received; waits for input for this many seconds, or (None) until some arrives."""
        if self.over:
            time.sleep(seconds or 0)
            return []
        if not select.select([self.source], [], [], seconds)[0]:
            return []
        data = os.read(self.source, 1 << 16)
        self.over = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker of a job folder; the worker's errors go to logs/worker.log."""
    folder, kind, *flags = sys.argv[1:] if argv is None else argv
    if kind == _TASK:
        return _run_silently(Path(folder))
    detached = "--detached" in flags
    batches, output = _own_streams()
    os.chdir(folder)
    starter = NemoRun() if kind == "nemo_run" else Processes()
    scheduler = LocalScheduler(RunFolder(Path(folder)), starter, output)
    pace = Pace(0.01, 1.3, 0.2)
    while True:
        for batch in batches.poll(pace.seconds() if scheduler.busy else None):
            scheduler.take(batch)
        if batches.over and not detached:
            scheduler.stop()
            return 0
        if scheduler.turn():
            pace.restart()
        if batches.over and not scheduler.busy:
            return 0


def _run_silently(folder: Path) -> int:
    """Run the worker of a job folder and print nothing: NeMo-Run would keep two more copies of the job's log. The
    worker's errors go to logs/worker.log."""
    with open_job(folder).open_log("worker") as log:
        os.dup2(log.fileno(), 2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    sys.argv = [sys.argv[0], str(folder)]
    runpy.run_module("nemotron_kit.worker", run_name="__main__", alter_sys=True)
    return 0


def _own_streams() -> tuple[Batches, IO[str]]:
    """(reader, writer) on this process's standard input and output, reserved for the launch. For all other code in the
    process, standard input is at its end, and standard output is the log."""
    source, output = os.dup(0), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return Batches(source), output


if __name__ == "__main__":
    sys.exit(main())
