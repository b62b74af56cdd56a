"""One job of a sweep: the launcher's settings, its plan, and the JobReturn that Hydra gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.spec.plan import Plan
from nemotron_kit.worker.result import JobFailed, TaskResult, read_task_result

VIA = ("nemo_run", "kit")


@dataclass(frozen=True)
class Settings:
    """The fields of `hydra.launcher`; None leaves it to the profile or the launcher."""

    profile: str | None = None
    env: Mapping[str, Any] = field(default_factory=dict)
    max_parallel: int | None = None
    via: str | None = None
    detach: bool = False
    objective: str | None = None

    def __post_init__(self) -> None:
        if self.max_parallel is not None and self.max_parallel < 1:
            raise UserError(f"hydra.launcher.max_parallel: expected at least 1, got {self.max_parallel}.")
        if self.via is not None and self.via not in VIA:
            raise UserError(f"hydra.launcher.via: expected one of {', '.join(VIA)}, got {self.via!r}.")


def starter_kind(settings: Settings) -> str:
    """What starts the jobs of this machine: NeMo-Run where it is installed, unless the settings name one."""
    from importlib.util import find_spec

    there = find_spec("nemo_run") is not None
    if settings.via == "nemo_run" and not there:
        raise UserError(
            "hydra.launcher.via=nemo_run: NeMo-Run is not installed.", hint="pip install 'nemotron-kit[nemo-run]'"
        )
    return settings.via or ("nemo_run" if there else "kit")


log = logging.getLogger("nemotron_kit.launcher")

# The job's config and Hydra's own node, which was a part of it.
Composed = tuple[Any, Any]


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep: its plan, its overrides as Hydra has them, and `texts`, files of its folder besides the
    plan's (name → content)."""

    plan: Plan
    overrides: tuple[str, ...]
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return " ".join(self.overrides)


def returned(
    sweep_job: SweepJob, job: JobFolder, compose: Callable[[], Composed], *, objective: str | None, detached: bool
) -> Any:
    """Hydra's JobReturn, whose configs are composed when they are asked for. A sweeper that asks for the value of a
    failed job gets its exception; a detached job has no value yet."""
    from nemotron_kit.sweep.launcher import Returned

    if detached:
        return Returned(sweep_job.overrides, compose, job, None, value=None)
    task_result = read_task_result(job)
    error = None if job.state().state == "succeeded" else _error(sweep_job, job, task_result)
    value = None
    try:
        value = _value(job, task_result, objective) if error is None else None
    except (JobFailed, ValueError) as missing:
        error = missing
    return Returned(sweep_job.overrides, compose, job, task_result, value=value, error=error)


def _value(job: JobFolder, task_result: TaskResult | None, objective: str | None) -> Any:
    if objective is not None:
        return _metric(job, objective)
    if task_result is None:  # a recipe's
        record = job.exit_record() or {}
        task_result = TaskResult(
            value=record.get("value"), types=record.get("types") or {}, left_out=record.get("left_out")
        )
    if task_result.left_out:
        log.warning("#%d %s: the sweep gets None.", job.number, task_result.left_out)
    return task_result.result


def _metric(job: JobFolder, name: str) -> Any:
    """The last value of a metric that the job wrote."""
    for record in reversed(job.metrics(100_000)):
        if name in record:
            return record[name]
    raise JobFailed(f"Job {job.number} wrote no metric {name!r} (hydra.launcher.objective) into metrics.jsonl.", 0)


def _error(sweep_job: SweepJob, job: JobFolder, task_result: TaskResult | None) -> Exception:
    state = job.state()
    code = (task_result and task_result.code) or state.code or 1
    failure = task_result.failure if task_result else None
    if failure is not None and failure.type != "builtins.SystemExit":
        return failure.rebuild(code)
    why = state.error or f"exit code {code}"
    where = f"its log: nemotron runs logs {job.run_id} --job {job.number}"
    return JobFailed(f"Job {job.number} ({sweep_job.label}) {state.state}: {why}; {where}", code)


def overrides_of(hydra: Any, kind: str = "task") -> list[str]:
    """The overrides of a composition as they were typed, with `${…}` unresolved."""
    from omegaconf import OmegaConf

    overrides: list[str] = OmegaConf.to_container(hydra.overrides[kind], resolve=False)  # type: ignore[assignment]
    return overrides
