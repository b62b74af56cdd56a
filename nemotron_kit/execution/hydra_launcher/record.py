"""The record of a sweep: one folder with its plan, whatever its sweeper asks for."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from nemotron_kit import files
from nemotron_kit.config.secrets import masked_words
from nemotron_kit.execution.hydra_launcher import stored
from nemotron_kit.execution.hydra_launcher.point import Point
from nemotron_kit.execution.hydra_launcher.recipe import RecipeTask
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.ids import new_run_id
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.process import process_facts

# What a plan says of one job alone.
_ONE_JOBS = frozenset(
    ("files", "config", "launch_command", "job_folder", "environment", "problems", "notes", "captured_at_launch")
)
_WRITERS = 16
_MANY = 256


def sweep_record(config: Any, task: Callable[..., Any]) -> RunFolder:
    """The sweep's folder. A recipe's is Hydra's sweep.dir, and there already; another app's files stay its own."""
    if isinstance(task, RecipeTask):
        return RunFolder(task.folder)
    name = str(config.hydra.job.name)
    plan = {"kind": "sweep", "recipe": name, "stage": "", "command_line": shlex.join(masked_words(_command_line()))}
    return create_run(new_run_id(name, ""), plan, [])


def _command_line() -> list[str]:
    """This process's, as it can be typed again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]
    return ["python", *program, *sys.argv[1:]]


def write_plan(run: RunFolder, point: Point, hydra: Sequence[str]) -> None:
    """Complete plan.json by what the jobs have in common: where they run, and how they were asked for."""
    shared = {key: value for key, value in point.plan.to_dict().items() if key not in _ONE_JOBS}
    own = {"kind": "sweep", "hydra": ["-m", *masked_words(hydra)], "launcher": process_facts()}
    files.write_json(run.path / "plan.json", {**run.plan(), **shared, **own})


class JobWriter:
    """Makes jobs' folders, each whole or not at all. A few are made while the next ones are planned, since most of that
    is waiting for the disk; with many, the disk is asked once, at the end. Left by an exception, it takes back what it
    has made."""

    def __init__(self, run: RunFolder, count: int) -> None:
        self.run = run
        # A sync of the whole file system waits for everybody's data: worth it where each job's own would take longer.
        self._pool = ThreadPoolExecutor(_WRITERS) if count <= _MANY else None
        self._futures: list[Future[tuple[Point, JobFolder]]] = []
        self._made: list[tuple[Point, JobFolder]] = []

    def __enter__(self) -> JobWriter:
        return self

    def add(self, point: Point, *, attached: bool) -> None:
        if self._pool:
            self._futures.append(self._pool.submit(self._write, point, attached))
            return
        with files.synced_later():
            self._made.append(self._write(point, attached))

    def done(self) -> list[tuple[Point, JobFolder]]:
        """Every job, in the order that they were added, once all are there."""
        if self._pool:
            return [future.result() for future in self._futures]
        files.sync_file_system(self.run.path)
        return self._made

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=kind is not None)
        if kind is not None:
            ended = [f for f in self._futures if not f.cancelled() and f.exception() is None]
            for _, job in [*self._made, *(future.result() for future in ended)]:
                shutil.rmtree(job.path, ignore_errors=True)

    def _write(self, point: Point, attached: bool) -> tuple[Point, JobFolder]:
        texts = {**point.plan.files, **point.texts, stored.FILE: stored.to_text(point.plan)}
        job = self.run.add_job(point.plan.job, texts, attached=attached)
        # What is on disk by now need not stay in memory: a sweep may have very many jobs.
        return Point(replace(point.plan, files={}, config={}, place={}), point.words), job
