"""The interface of an executor, one class for each back end: plan jobs, submit them once, observe, cancel, read
logs."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nemotron_kit import remote
from nemotron_kit.artifacts.manifest import folder_of
from nemotron_kit.artifacts.registry import artifact_settings
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import Problem, Unreachable, UserError, near
from nemotron_kit.lazy import Value
from nemotron_kit.runs.job import JobFolder, JobState
from nemotron_kit.spec.paths import RemotePaths, sent_paths
from nemotron_kit.spec.plan import Container, Plan, stored_plan
from nemotron_kit.spec.resources import Resources, label_of, resources_of
from nemotron_kit.spec.runconfig import EXECUTORS, ProfileError, RunConfig, installed_executors

if TYPE_CHECKING:
    from nemotron_kit.artifacts.reference import Pin
    from nemotron_kit.executors.checks import Check
    from nemotron_kit.remote.agent.operations import Piece
    from nemotron_kit.runs.folder import RunFolder


# Fields of a profile by what reads them: every executor, those that send code, those with a run folder of their own,
# those that run shell lines before a job.
EVERYWHERE = frozenset({
    *("executor", "nproc_per_node", "nodes", "env_vars", "secrets", "tunnel", "artifacts_root"),
    *("dry_run", "detach", "max_parallel", "gpu_memory"),
})  # fmt: skip
SENT = frozenset({
    *("python", "workdir", "packager", "packager_include_pattern", "subpath", "include_submodules", "allow_dirty"),
    *("extra", "container_image", "gpus_per_node", "retries"),
})  # fmt: skip
HELD = frozenset(("remote_job_dir", "cancel_on_interrupt"))
SHELL = frozenset(("startup_commands", "setup"))
# A field that is read only if another one has one of these values.
_PACKAGERS = {
    "packager_include_pattern": ("pattern", "hybrid"),
    "include_submodules": ("worktree", "git", "hybrid"),
    "allow_dirty": ("git",),
}
_WITH_SSH = ("host", "user", "identity")


@dataclass(frozen=True, eq=False, repr=False)
class PlanContext(Value):
    """What an executor plans a job from.

    `inputs` is slot → pin, `job` the number in the run, `label` a name for the scheduler, `mode` local, run or batch,
    `secrets` names of environment variables, `torchrun` the command's setting. `single` is false for the jobs of a
    sweep, which may share a submission. `folders` must be available to the job at the same paths.
    """

    resources: Resources
    paths: RemotePaths
    inputs: Mapping[str, Pin | None]
    run_id: str
    job: int
    label: str
    mode: str
    secrets: Sequence[str] = ()
    torchrun: bool | None = None
    single: bool = True
    folders: Sequence[str] = ()


@dataclass(frozen=True, eq=False, repr=False)
class ExecutorPlan(Value):
    """What an executor contributes to a plan: `files` (name → text) for the job's folder, problems and notes for the
    user, and the plan's fields of the same names."""

    files: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    resources: Resources | None = None
    mounts: tuple[str, ...] | None = None
    container: Container | None = None
    request: Mapping[str, Any] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that are copied to the plan unchanged."""
        return {name: getattr(self, name) for name in ("resources", "mounts", "container", "request")}


@dataclass(frozen=True, eq=False, repr=False)
class Observation(Value):
    """A job's state as its back end reports it now. `state` is one of runs.states; `code` is the job's exit code once
    it has ended.

    `reason` and `estimated_start` come from the scheduler while the job is pending. `facts` is stored in the record.
    """

    state: str
    code: int | None = None
    error: str | None = None
    reason: str | None = None
    estimated_start: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Executor(ABC):
    """An executor for the settings of one profile. Creating one opens no connection.

    A launch is one run with its jobs. `submit` may be called again after a crash and never submits a job twice. Methods
    that are not abstract have defaults for a back end that shares this machine's file system and starts its workers by
    itself. Executors are registered by name in EXECUTORS; those of other packages by an entry point in the group
    `nemotron_kit.executors`.
    """

    # The fields of a profile that it reads; a plan has a note for any other one that is set.
    reads: ClassVar[frozenset[str]] = EVERYWHERE | SENT | HELD
    # Whether it supports `tunnel = "ssh"`.
    over_ssh: ClassVar[bool] = False
    # The client program that a launch needs on its PATH; "" for none.
    client: ClassVar[str] = ""
    # Whether a launch needs NeMo-Run.
    by_nemo_run: ClassVar[bool] = False
    # Polling interval of a job that is followed, in seconds: the first, the longest.
    pace: ClassVar[tuple[float, float]] = (0.3, 10.0)
    # The smallest number of jobs of a sweep that are submitted at a time while others run.
    least: ClassVar[int] = 1
    # Whether the processes of a job on several nodes can reach each other: a Ray cluster over nodes needs that.
    joins_nodes: ClassVar[bool] = False
    # Whether its scheduler holds jobs back until others have succeeded (see dependency_id).
    holds_back: ClassVar[bool] = False

    def __init__(self, settings: RunConfig) -> None:
        self.settings = settings

    @cached_property
    def transport(self) -> remote.Transport:
        """The transport to the machine that holds the jobs' folders."""
        return remote.transport_for(self.settings)

    # --- planning: nothing is written, no connection is opened

    def paths(self, run_id: str, job: int, *, registry: str | None = None) -> RemotePaths:
        """The paths of a job's files. `registry` is this machine's registry. Raises UserError for a missing profile
        setting."""
        if self.settings.tunnel == "ssh" and not self.over_ssh:
            raise UserError(
                f"tunnel 'ssh' leads to a Slurm cluster; executor {self.settings.executor!r} connects by itself.",
                hint='Set executor = "slurm", or leave tunnel out.',
            )
        return self._paths(run_id, job, registry)

    def _paths(self, run_id: str, job: int, registry: str | None) -> RemotePaths:
        image = self.settings.container_image is not None
        return sent_paths(self.settings, run_id, job, registry=registry, image=image)

    def resources(self, torchrun: bool | None) -> Resources:
        """The resources that a job requests. `torchrun` is the command's setting, None if it has none."""
        return resources_of(self.settings, torchrun)

    def variables(self) -> dict[str, str]:
        """Variables that each of its jobs gets: NEMOTRON_TIME_LIMIT, in seconds, and NEMOTRON_SIGNAL_LEAD, how many
        seconds before that it gets the signal to save; {} without a limit."""
        return {}

    def segments(self) -> int | None:
        """How many times a job gets its time limit, each time going on from its last checkpoint; None: without end."""
        return 1

    @abstractmethod
    def plan(self, context: PlanContext) -> ExecutorPlan:
        """The executor's part of a job's plan, including any problems that would prevent the job from running."""

    def with_folders(self, plan: Plan, folders: Sequence[str]) -> Plan:
        """The plan with `folders` available to the job at the same paths; unchanged if no mount is needed for that."""
        if not folders or plan.problems or not self.settings.container_image:
            return plan
        context = PlanContext(
            resources=plan.resources or self.resources(None),
            paths=plan.paths,
            inputs=plan.inputs,
            run_id=plan.run_id,
            job=plan.job,
            label=label_of(plan.settings, plan.recipe, plan.stage),
            mode=plan.mode,
            secrets=plan.secrets,
            single=plan.single,
            folders=folders,
        )
        added = self.plan(context)
        return replace(plan, files={**plan.files, **added.files}, problems=added.problems, **added.fields)

    def without_effect(self, given: Collection[str], launch: str) -> Iterator[str]:
        """A sentence for each of the `given` settings that a job of this executor ignores."""
        del launch
        unread = [name for name in given if name not in self.reads]
        if unread:
            yield f"{', '.join(unread)}: no effect on a job with executor {self.settings.executor!r}."
        read, packager = [name for name in given if name in self.reads], self.settings.packager or "worktree"
        for name, packagers in _PACKAGERS.items():
            if name in read and packager not in packagers:
                yield f"{name}: no effect with packager {packager!r}, only with {' and '.join(packagers)}."
        if self.settings.tunnel != "ssh" and (names := [name for name in _WITH_SSH if name in read]):
            yield f'{", ".join(names)}: no effect without tunnel = "ssh".'

    def nemo_run(self, run: Any, env: Mapping[str, str]) -> Any:
        """NeMo-Run's executor for the settings, with the variables `env`. `run` is the package nemo_run. Raises
        ProfileError for a missing or wrong setting."""
        raise ProfileError(f"executor {self.settings.executor!r} has no counterpart in NeMo-Run.")

    @classmethod
    def warm_up(cls) -> None:
        """Start slow preparations for a launch of many jobs in the background."""
        return

    # --- jobs

    def prepare(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        """Bring to the target what the jobs need: the code as it is now, folders, nemotron_kit. `submit` does the same
        for whatever is missing. Raises Unreachable."""
        paths = plans[0].paths
        texts = remote.provide_code(self.transport, paths, self.settings)
        if paths.package and not paths.is_remote:  # over ssh it is sent with the first request
            remote.provide_package(paths.package)
        if plans[0].has_separate_folder:
            for plan in plans:
                texts.update({f"jobs/{plan.job}/{name}": text for name, text in plan.files.items()})
        # Each repository once; the target may have it already.
        wanted: dict[str, Mapping[str, Any]] = {each["folder"]: each for plan in plans for each in plan.repositories}
        for repository in wanted.values():
            self.transport.call("fetch_repository", **repository)
        self.transport.call("make_run", remote.packed(texts), folder=paths.run)
        if self.settings.container_image:  # a first launch has to create what every container mounts
            mode = artifact_settings(read_env_file())["mode"]
            self.transport.call("make_mounted", root=paths.root, registry=paths.artifacts, mode=mode)

    @abstractmethod
    def submit(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        """Start the jobs of `plans`, whose folders are in `run`. Raises Unreachable if it is not known whether they
        were submitted, NemotronError if they were not."""

    @abstractmethod
    def observe_many(self, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]) -> dict[str, dict[int, Observation]]:
        """Run id → job number → its current state, with as few queries as possible; `unreachable` for a job of which
        nothing could be learnt. Raises Unreachable if the back end does not answer."""

    def observe(self, run: RunFolder, jobs: Sequence[JobFolder]) -> dict[int, Observation]:
        """Job number → its current state. Raises Unreachable if nothing could be learnt of any of them."""
        observations = self.observe_many([(run, jobs)])[run.id]
        lost = [each.error for each in observations.values() if each.state == "unreachable"]
        if lost and len(lost) == len(observations):
            raise Unreachable(str(lost[0]))
        return observations

    @abstractmethod
    def cancel(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        """Request the cancellation of jobs, and return once the request has been accepted."""

    def job_folder(self, job: JobFolder) -> str:
        """The folder on the target that a job writes. With a remote_job_dir it is not the one of the record."""
        from nemotron_kit.runs.folder import RunFolder  # which a dry-run has no use for

        return f"{run_on_target(RunFolder(job.path.parent.parent))}/jobs/{job.number}"

    def read_logs(
        self, job: JobFolder, offsets: Mapping[str, int], limit: int, *, only: bool = False, skip: Sequence[str] = ()
    ) -> list[Piece]:
        """The bytes of each of a job's logs beyond `offsets` (log → bytes), at most `limit` bytes in all; [] when there
        are none.

        Logs not in `offsets` are read from their beginning, unless `only` is set or their names begin with one of
        `skip`.
        """
        asked: dict[str, Any] = {"job": self.job_folder(job), "offsets": dict(offsets), "limit": limit}
        return remote.pieces(*self.transport.call("read_logs", **asked, only=only, skip=list(skip)))

    def capacity(self, running: int) -> int | None:
        """How many more jobs of a sweep, of which `running` run, can be submitted now; None: no limit."""
        del running
        return None

    def dependency_id(self, facts: Mapping[str, Any]) -> str | None:
        """The scheduler's id by which another job can depend on the job with these facts; None if it has none."""
        del facts
        return None

    def shell(self, plan: Plan, job: JobFolder, state: JobState, command: list[str], node: str | None) -> list[str]:
        """The command line, as a list of arguments, that starts a shell or `command` beside a running job. Raises
        UserError if that is impossible."""
        del plan, state, command, node
        raise UserError(f"{job.run_id} runs through {self.settings.executor}, for which there is no shell.")

    def checks(self) -> Sequence[str | Check]:
        """The checks of `nemotron profiles check`, in this order; the first one is the connection. A name is that of a
        function of `nemotron_kit.executors.checks`."""
        return ("connection", "python", "mounts", "storage", "registry", "secrets")


def executor_class(name: str) -> type[Executor]:
    """The class registered under a name; only its module is imported. Raises UserError for an unknown name."""
    target = EXECUTORS.get(name) or installed_executors().get(name)
    if target is None:
        known = [*EXECUTORS, *installed_executors()]
        raise UserError(f"executor {name!r} is not known.", hint=near(name, known))
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # third-party code may raise any exception
        if name in EXECUTORS:
            raise
        raise UserError(f"executor {name!r} ({target}) can't be loaded: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Executor)):
        raise UserError(f"executor {name!r}: {target} is no subclass of {Executor.__module__}.Executor.")
    if lacking := sorted(found.__abstractmethods__):
        raise UserError(f"executor {name!r}: {target} lacks {', '.join(lacking)}.")
    return found


def executor_for(settings: RunConfig) -> Executor:
    """The executor of a profile's settings. Raises UserError for an executor that is not installed."""
    return executor_class(settings.executor)(settings)


def missing_secrets(names: Iterable[str]) -> Iterator[Problem]:
    """A problem for each of the variables `names` that the launch's environment lacks."""
    for name in names:
        if name not in os.environ:
            yield Problem(f"{name} is not set in this environment.", field="secrets", hint=f"export {name}=…")


@lru_cache
def run_on_target(run: RunFolder) -> str:
    """The run's folder on the target. Cached: it is needed for each piece of a log and never changes."""
    return stored_plan(run).paths.run


def mounted_folders(paths: RemotePaths, inputs: Mapping[str, Pin | None]) -> list[str]:
    """The folders that a job's container needs at the same path: its run, the registry, the code, the package, its
    inputs. Of an input that is a file it is the folder, which holds the metadata; of one on another machine the path
    is a folder's."""
    found = [paths.run, paths.artifacts, f"{paths.root}/code", *filter(None, [paths.package])]
    pins = [pin.path for pin in inputs.values() if pin is not None]
    return list(dict.fromkeys([*found, *(pins if paths.is_remote else (str(folder_of(Path(path))) for path in pins))]))
