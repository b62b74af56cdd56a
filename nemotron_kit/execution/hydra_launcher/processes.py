"""Workers as plain processes of this machine: what a sweep uses where NeMo-Run is not installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from nemotron_kit.runs.job import JobFolder


class Processes:
    """A worker for each job."""

    def __init__(self) -> None:
        self._workers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, jobs: Sequence[JobFolder]) -> None:
        for job in jobs:
            with job.open_log("worker") as log:
                self._workers[job.number] = subprocess.Popen(
                    [sys.executable, "-P", "-m", "nemotron_kit.worker", str(job.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # what the job prints is in its own log
                    stderr=log,
                    start_new_session=True,
                )

    def alive(self, job: JobFolder) -> bool:
        return self._workers[job.number].poll() is None
