"""What is known of a planned job, for its command's check: where it runs, its disk, and the speed of runs like it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.app import Command
from nemotron_kit.executors.base import Executor
from nemotron_kit.launch.placing import ResolvedJob, TransportFactory
from nemotron_kit.lazy import Value
from nemotron_kit.spec.resources import Resources, gpu_of


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
        from nemotron_kit.runs.progress import rate_of_earlier_run  # few commands ask for it

        size = (self.resources.nodes, self.resources.processes)
        return rate_of_earlier_run(command.recipe, command.stage, config, size=size, keys=keys, of=of)


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
