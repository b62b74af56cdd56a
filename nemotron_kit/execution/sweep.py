"""The engine of `hydra/launcher=nemo_run`: each job of a sweep in a worker process of its own, a few at a time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.config.compose import Composed, find_command, from_hydra
from nemotron_kit.discovery import Tree, tree_in_use
from nemotron_kit.errors import UserError
from nemotron_kit.execution.hydra_files import hydra_files
from nemotron_kit.execution.launch import refuse_problems
from nemotron_kit.plan.build import build_plan
from nemotron_kit.plan.plan import Plan
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import JobFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """`hydra.launcher.*`."""

    profile: str | None = None
    max_parallel: int | None = None


class JobFailed(RuntimeError):
    """A job of a sweep failed in its own process. `exit_code` is that process's."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def launch(
    config: Any, context: Any, settings: Settings, job_overrides: Sequence[Sequence[str]], first: int
) -> list[Any]:
    """Run the jobs; Hydra's JobReturn for each, in order. A plan with problems stops all before the first."""
    from hydra.core.utils import configure_log, setup_globals

    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    tree = tree_in_use()
    run = _run_folder(Path(str(config.hydra.sweep.dir)))
    points = [_point(config, context, settings, list(o), first + i, run, tree) for i, o in enumerate(job_overrides)]
    for _, plan in points:
        refuse_problems(plan)
    log.info("Launching %d jobs, %d at a time", len(points), _parallel(settings, len(points)))
    jobs = [run.add_job(plan.job, {**plan.files, **hydra_files(composed)}, attached=True) for composed, plan in points]
    with ThreadPoolExecutor(_parallel(settings, len(points))) as pool:
        list(pool.map(_work, jobs, [plan for _, plan in points]))
    return [_returned(composed, plan, job) for (composed, plan), job in zip(points, jobs, strict=True)]


def _run_folder(path: Path) -> RunFolder:
    if (path / "plan.json").exists():
        return RunFolder(path)
    return create_run(path.name, {"kind": "sweep"}, [], root=path.parent)


def _point(
    config: Any, context: Any, settings: Settings, overrides: list[str], number: int, run: RunFolder, tree: Tree
) -> tuple[Composed, Plan]:
    from omegaconf import open_dict

    full = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(full):
        full.hydra.job.id = f"job_{number}"
        full.hydra.job.num = number
    if "recipe" not in full.hydra.runtime.choices or "stage" not in full.hydra.runtime.choices:
        raise UserError(
            "hydra/launcher=nemo_run runs nemotron recipes in this version, not other @hydra.main apps.",
            hint="Use hydra/launcher=basic, or submitit_local.",
        )
    job_config = full.copy()
    with open_dict(job_config):
        del job_config["hydra"]
        _set_profile(job_config.run, settings.profile)
    choices = full.hydra.runtime.choices
    composed = from_hydra(find_command(tree, choices.recipe, choices.stage), job_config, full.hydra)
    app = tree.apps[composed.command.recipe]
    return composed, build_plan(composed, app, run_id=run.id, argv=sys.argv, job=number)


def _set_profile(run: Any, profile: str | None) -> None:
    if profile and run.profile and run.profile != profile:
        raise UserError(
            f"run.profile={run.profile} and hydra.launcher.profile={profile} differ.", hint="Give one of them."
        )
    run.profile = run.profile or profile


def _parallel(settings: Settings, jobs: int) -> int:
    return max(1, min(jobs, settings.max_parallel or os.cpu_count() or 1))


def _work(job: JobFolder, plan: Plan) -> None:
    with job.open_log("worker") as out:
        subprocess.run(
            [sys.executable, "-m", "nemotron_kit.worker", str(job.path)],
            env={**os.environ, **plan.environment},
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    log.info("#%d %s", job.number, job.state().state)


def _returned(composed: Composed, plan: Plan, job: JobFolder) -> Any:
    from hydra.core.utils import JobReturn, JobStatus
    from omegaconf import OmegaConf

    state, record = job.state(), job.exit_record() or {}
    done = state.state == "succeeded"
    failure = JobFailed(f"{plan.run_id} job {plan.job}: {state.error or state.state}", int(state.code or 1))
    return JobReturn(
        overrides=composed.overrides,
        cfg=composed.config,
        hydra_cfg=OmegaConf.create({"hydra": composed.hydra}),
        working_dir=str(job.path),
        task_name="nemotron",
        status=JobStatus.COMPLETED if done else JobStatus.FAILED,
        _return_value=record.get("value") if done else failure,
    )
