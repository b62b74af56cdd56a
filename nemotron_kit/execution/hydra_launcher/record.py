"""The record of a sweep: one folder with its plan, whatever its sweeper asks for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nemotron_kit import files
from nemotron_kit.execution.hydra_launcher.point import Point, overrides_of
from nemotron_kit.execution.hydra_launcher.recipe import RecipeTask
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.ids import new_run_id
from nemotron_kit.runs.job import JobFolder

# What a plan says of one job alone.
_ONE_JOBS = frozenset(
    ("files", "config", "launch_command", "job_folder", "environment", "problems", "notes", "captured_at_launch")
)
# Most of the time goes into waiting for the disk.
_WRITERS = 16


def sweep_record(config: Any, task: Callable[..., Any]) -> RunFolder:
    """The sweep's folder. A recipe's is Hydra's sweep.dir, and there already; another app's files stay its own."""
    if isinstance(task, RecipeTask):
        return RunFolder(task.folder)
    name = str(config.hydra.job.name)
    plan = {"kind": "sweep", "recipe": name, "stage": "", "command_line": shlex.join(sys.argv)}
    return create_run(new_run_id(name, ""), plan, [])


def write_plan(run: RunFolder, points: Sequence[Point], config: Any) -> None:
    """Complete plan.json by what the jobs have in common: where they run, and how they were asked for."""
    shared = {key: value for key, value in points[0].plan.to_dict().items() if key not in _ONE_JOBS}
    hydra = [*overrides_of(config.hydra, "hydra"), *overrides_of(config.hydra)]
    files.write_json(run.path / "plan.json", {**run.plan(), **shared, "kind": "sweep", "hydra": ["-m", *hydra]})


def add_jobs(run: RunFolder, points: Sequence[Point], *, attached: bool) -> list[JobFolder]:
    """Make the jobs' folders, each whole or not at all."""

    def add(point: Point) -> JobFolder:
        return run.add_job(point.plan.job, {**point.plan.files, **point.texts}, attached=attached)

    with ThreadPoolExecutor(_WRITERS) as pool:
        return list(pool.map(add, points))
