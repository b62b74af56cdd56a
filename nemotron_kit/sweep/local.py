"""A sweep's jobs on this machine, seen from the launch: a carrier process starts them, and says which have ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from io import FileIO

from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder

LOG = "carrier.log"
# The longest that a job gets to end by itself, KILL included, when the sweep is stopped.
_GRACE_SECONDS = 20.0


class Carried:
    """The carrier of one sweep. It imports NeMo-Run while the launch composes, and serves every batch of the sweep."""

    def __init__(self, run: RunFolder, kind: str, *, detached: bool = False) -> None:
        self.run, self._idle = run, True
        flags = ["--detached"] if detached else []
        log = os.open(run.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with FileIO(log, "ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.carrier", str(run.path), kind, *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL if detached else subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # Ctrl-C is for the launch, which then ends this in order
                text=True,
            )

    def submit(self, jobs: Sequence[int], parallel: int) -> None:
        """Have the jobs run, so many at a time. Raises NemotronError when the carrier is gone."""
        assert self._process.stdin is not None  # noqa: S101 — Popen was given a pipe
        self._idle = False
        try:
            self._process.stdin.write(json.dumps({"jobs": list(jobs), "parallel": parallel}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._gone() from error

    def wait(self, jobs: Sequence[int], ended: Callable[[JobFolder], None]) -> None:
        """Until the jobs have ended; `ended` hears of each as it does. Interrupted, it stops them all first."""
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
        """Let a detached carrier go on by itself."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()

    def stop(self) -> None:
        """End the carrier, and with it every job that has not ended."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        if self._idle:  # it may still be importing, and has nothing to put in order
            self._process.kill()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> NemotronError:
        return NemotronError(f"{self.run.id}: what starts its jobs has ended: see {self.run.path / LOG}")
