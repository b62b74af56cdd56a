"""Workers as tasks of NeMo-Run's Experiment on its LocalExecutor: one experiment for the jobs that start together."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from nemotron_kit.plan.rendering import without_torch
from nemotron_kit.runs.job import JobFolder

_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
_POLL_SECONDS = 0.1


class NemoRun:
    """Imports NeMo-Run when it is made. Its own files lie in the run's folder, which is the working folder here."""

    def __init__(self) -> None:
        os.environ["NEMORUN_HOME"] = str(Path.cwd() / "nemo_run")
        without_torch()
        import nemo_run

        self._nemo_run: Any = nemo_run
        self._threads: dict[int, Thread] = {}
        self._over: set[int] = set()

    def start(self, jobs: Sequence[JobFolder]) -> None:
        # NeMo-Run knows which experiment it is in by a context variable, and each thread has its own.
        thread = Thread(target=self._carry, args=(list(jobs),), daemon=True)
        self._threads.update(dict.fromkeys((job.number for job in jobs), thread))
        thread.start()

    def alive(self, job: JobFolder) -> bool:
        return job.number not in self._over and self._threads[job.number].is_alive()

    def _carry(self, jobs: list[JobFolder]) -> None:
        """Run the jobs' workers as one experiment, and stay until NeMo-Run says that all are over."""
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
                experiment.add(_worker(run, job), executor=run.LocalExecutor(), name=f"job-{job.number}")
            experiment.run()
            numbers = {f"job-{job.number}": job.number for job in jobs}
            # Leaving the block with a job still running would wait in steps of two seconds.
            while not self._over.issuperset(numbers.values()):
                for name, task in experiment.status(return_dict=True).items():
                    if task["status"].name in _OVER:
                        self._over.add(numbers[name])
                time.sleep(_POLL_SECONDS)


def _worker(run: Any, job: JobFolder) -> Any:
    """The constant command. The folder is named relative to the working folder: TorchX expands `$` in arguments."""
    words = ["-m", f"{__package__}.task", f"jobs/{job.number}"]
    return run.Script(path="-P", args=words, entrypoint=sys.executable)
