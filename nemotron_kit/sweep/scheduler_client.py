"""The launch's client of the local scheduler, the process that runs a sweep's jobs on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from io import FileIO

from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.worker import python_module
from nemotron_kit.worker.process import start_detached

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
            command = python_module(f"{__package__}.local_scheduler", str(run.path), kind, *flags)
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
