"""What is known of a planned job, for its command's check: where it runs, its disk, and the speed of runs like it."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.app import Command
from nemotron_kit.errors import UserError
from nemotron_kit.executors.base import Executor
from nemotron_kit.launch.placing import ResolvedJob, TransportFactory
from nemotron_kit.lazy import Value
from nemotron_kit.runs.job import DamagedRecord
from nemotron_kit.runs.progress import steps_per_second
from nemotron_kit.spec.resources import Resources, gpu_of

# How many of the newest runs of a command are searched for one with the same size and settings, whose speed a job is
# expected to have; and of how many of its last rows of metrics that speed is the median.
_EARLIER_RUNS, _EARLIER_ROWS = 30, 9


@dataclass(frozen=True, eq=False, repr=False)
class PlannedJob(Value):
    """What is known of a planned job, for the command's check, which documents it: training.cost.JobFacts."""

    resolved: ResolvedJob
    command: Command
    resources: Resources
    transports: TransportFactory | None
    seconds: float | None
    segments: int | None

    @property
    def home(self) -> str | None:
        return self.resolved.home

    @property
    def root(self) -> str | None:
        return self.resolved.paths.root if self.resolved.settings.remote_job_dir else None

    def free(self, folder: str) -> int | None:
        resolved = self.resolved
        if resolved.paths.is_remote:  # a dry-run connects to nothing
            if self.transports is None:
                return None
            return int(self.transports(resolved.settings).call("writable", folder=folder)[0]["free"])
        path = Path(folder)
        existing = next((each for each in (path, *path.parents) if each.exists()), None)
        return shutil.disk_usage(existing).free if existing else None

    def earlier_rate(self, keys: Sequence[str], of: str = "tokens") -> tuple[float, str] | None:
        config, command = self.resolved.config, self.command
        from nemotron_kit.runs.ledger import list_runs, open_run  # few commands ask for it

        size = (self.resources.nodes, self.resources.processes)
        settings = [_at(config, key) for key in keys]
        for run in list_runs(recipe=command.recipe, stage=command.stage, limit=_EARLIER_RUNS):
            if run.profile != config["run"]["profile"]:
                continue
            with contextlib.suppress(DamagedRecord, UserError):  # removed meanwhile, or its jobs are lost
                folder = open_run(run.id)
                plan = folder.plan()
                given = plan.get("resources") or {}
                if size != (given.get("nodes"), given.get("processes")):
                    continue
                if settings != [_at(plan.get("config") or {}, key) for key in keys]:
                    continue
                rate = _RATES[of](folder.job().metrics(_EARLIER_ROWS))
                if rate is not None:
                    return rate, run.id
        return None


def _tokens_a_second(rows: Sequence[Mapping[str, Any]]) -> float | None:
    rates = [row.get("tokens_per_second") for row in rows]
    found = sorted(rate for rate in rates if isinstance(rate, int | float) and 0 < rate < math.inf)
    return found[len(found) // 2] if found else None


def _steps_a_second(rows: Sequence[Mapping[str, Any]]) -> float | None:
    # Where the last rows are of one step: from the start of training.
    return steps_per_second(rows) or steps_per_second([{"step": 0, "elapsed": 0.0}, *rows])


_RATES = {"tokens": _tokens_a_second, "steps": _steps_a_second}


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def facts_of(
    resolved: ResolvedJob,
    command: Command,
    resources: Resources,
    executor: Executor,
    transports: TransportFactory | None,
) -> dict[str, Any]:
    """Facts about where a job runs, by the names of a check's parameters."""
    limit = executor.variables().get("NEMOTRON_TIME_LIMIT")
    job = PlannedJob(resolved, command, resources, transports, float(limit) if limit else None, executor.segments())
    return {
        "processes": resources.nodes * resources.processes,
        "gpu": gpu_of(resolved.settings),
        "home": job.home,
        "free": job.free,
        "job": job,
    }
