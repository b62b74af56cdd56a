"""What an executor must do: submit jobs whose folders are there, observe them, cancel them, read their logs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nemotron_kit.artifacts.registry import artifact_settings
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import Problem, UserError, nearest, sentence
from nemotron_kit.remote.agent.operations import Piece
from nemotron_kit.remote.ssh import Transport
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.spec.paths import RemotePaths
from nemotron_kit.spec.plan import Container, Plan
from nemotron_kit.spec.resources import Resources


def fetch_repositories(transport: Transport, plans: Iterable[Plan]) -> None:
    """Each repository once; nothing where it is there already."""
    wanted: dict[str, Mapping[str, Any]] = {record["folder"]: record for plan in plans for record in plan.repositories}
    for record in wanted.values():
        transport.call("fetch_repository", **record)


def make_mounted(transport: Transport, place: RemotePaths) -> None:
    """The code's folder and the registry, which every container is given: on a first launch they aren't there yet."""
    mode = artifact_settings(read_env_file())["mode"]
    transport.call("make_mounted", root=place.root, registry=place.artifacts, mode=mode)


@dataclass(frozen=True)
class ExecutorPlan:
    """What an executor adds to a plan: `files` (name → text) to the job's folder, problems and notes for the user, and
    the plan's fields of the same names."""

    files: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    resources: Resources | None = None
    mounts: tuple[str, ...] | None = None
    container: Container | None = None
    request: Mapping[str, Any] | None = None


def missing_secrets(names: Sequence[str]) -> Iterator[Problem]:
    """A problem for each name that the launch's environment lacks."""
    for name in names:
        if name not in os.environ:
            yield Problem(f"{name} is not set in this environment.", field="secrets", hint=f"export {name}=…")


def folder_of(path: str) -> str:
    """The folder that a container needs for an input of this machine: what describes a file lies beside it."""
    return str(Path(path).parent) if Path(path).is_file() else path


@dataclass(frozen=True)
class Observation:
    """A job as its back end sees it now. `state` is one of runs.states; `code` its own exit code once it has ended.

    `reason` and `estimated_start` are the scheduler's, while it is pending. `facts` goes into the record as it is.
    """

    state: str
    code: int | None = None
    error: str | None = None
    reason: str | None = None
    estimated_start: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """What every executor implements. A launch is one run with its jobs; `submit` may be called again after a crash and
    never submits a job twice.
    """

    def prepare(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        """Bring to the target what the jobs need: the code as it is now, folders, nemotron_kit. `submit` does what is
        missing of it, too. Raises Unreachable.
        """

    def submit(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        """Start the jobs of `plans`, whose folders are in `run`. Raises Unreachable when it is not known whether they
        were submitted, NemotronError when they were not.
        """

    def observe(self, run: RunFolder, jobs: Sequence[JobFolder]) -> dict[int, Observation]:
        """Job number → its current state, with as few questions as possible. Raises Unreachable when the back end does
        not answer.
        """

    def cancel(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        """Ask for the jobs to be stopped, and return once that has been accepted."""

    def read_logs(
        self, job: JobFolder, offsets: Mapping[str, int], limit: int, *, only: bool = False, skip: Sequence[str] = ()
    ) -> list[Piece]:
        """The bytes of each of a job's logs beyond `offsets` (log → bytes), at most `limit` bytes in all; [] when there
        are none.

        Logs not in `offsets` are read from their beginning, unless `only` is set or their names begin with one of
        `skip`.
        """


def backend_for(plan: Plan) -> Backend:
    """The back end of a plan. Raises UserError for an executor that this version lacks."""
    from importlib import import_module

    if plan.executor not in BACKENDS:
        raise UserError(f"executor {plan.executor!r} is not known.", hint=sentence(nearest(plan.executor, BACKENDS)))
    made: Backend = import_module(BACKENDS[plan.executor]).make(plan.settings)
    return made


# executor → module with `make(settings: Mapping) -> Backend`. A new executor is a new file and a line here.
BACKENDS: dict[str, str] = {
    "local": "nemotron_kit.executors.local",
    "slurm": "nemotron_kit.executors.slurm.client",
    "docker": "nemotron_kit.executors.docker",
}
