"""The settings of a job's profile with all overrides, and what they request: nodes, processes, CPUs, GPUs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.quoting import omegaconf_unescaped
from nemotron_kit.spec.plan import DETACHED
from nemotron_kit.spec.runconfig import DEFAULTS, RunConfig, field_name

MODES = ("local", "run", "batch")


def effective_settings(
    run: Mapping[str, Any], overrides: Sequence[str], recorded: RunConfig | None = None
) -> RunConfig:
    """The RunConfig of a composed `run` section. Raises UserError for a wrong mode, profile, field or type.

    `recorded` stands in the profile's place: what an earlier launch of the same job had.
    """
    mode, profile = run.get("mode"), run.get("profile")
    if mode not in MODES:
        raise UserError(f"run.mode: expected one of {', '.join(MODES)}, got {mode!r}.")
    if mode != "local" and not profile:
        option = "--run" if mode == "run" else "--batch"
        raise UserError(f"run.mode={mode} needs a profile.", hint=f"Give run.profile=NAME, or {option} NAME.")
    environment = {key: _unescaped(value) for key, value in (run.get("env") or {}).items()}
    if recorded is not None:
        from nemotron_kit.spec.runconfig import with_overrides

        typed = {key: value for key, value in environment.items() if _on_command_line(key, overrides)}
        return with_overrides(recorded, typed, prefix="run.env.")
    if not profile and not environment:
        from nemotron_kit.spec.runconfig import RunConfig

        return RunConfig()
    from nemotron_kit.spec.profiles import effective_profile

    given = {key for key in environment if _on_command_line(key, overrides)}
    return effective_profile(
        profile,
        file_env={key: value for key, value in environment.items() if key not in given},
        command_line={key: value for key, value in environment.items() if key in given},
    ).config


def _unescaped(value: Any) -> Any:
    """A frozen value as text says it: `\\${` stands for `${` there, so that the job does not read an interpolation."""
    if isinstance(value, Mapping):
        return {key: _unescaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unescaped(item) for item in value]
    if not isinstance(value, str):
        return value
    return omegaconf_unescaped(value)


def _on_command_line(key: str, overrides: Sequence[str]) -> bool:
    return any(o.lstrip("+").startswith((f"run.env.{key}=", f"run.env.{key}.")) for o in overrides)


@dataclass(frozen=True)
class Resources:
    """`processes` are those on one node; more than one, or more than one node, is torchrun. `notes` say what was
    understood, where it isn't what was written."""

    nodes: int
    processes: int
    torchrun: bool
    cpus_per_task: int | None = None
    gpus_per_task: int | None = None
    notes: tuple[str, ...] = ()


def resources_of(config: RunConfig, torchrun: bool | None) -> Resources:
    """`torchrun` is what the command says of itself; None where it says nothing: then the numbers decide."""
    nodes, tasks = config.nodes or 1, config.ntasks_per_node or 1
    processes = config.nproc_per_node or (tasks if tasks > 1 else (config.gpus_per_node or 1))
    if torchrun is False:
        return _plain(config, nodes, tasks, processes)
    if config.executor == "local":  # this machine, whatever a scheduler would be asked for
        processes = config.nproc_per_node or 1
        return Resources(nodes=1, processes=processes, torchrun=processes > 1)
    notes = []
    if processes > 1 and not config.nproc_per_node:
        name = "ntasks_per_node" if tasks > 1 else "gpus_per_node"
        notes.append(f"{name}={processes}: one torchrun a node, which starts {processes} processes.")
    return Resources(
        nodes=nodes,
        processes=processes,
        torchrun=processes > 1 or nodes > 1,
        cpus_per_task=_cpus(config, processes if not config.nproc_per_node or tasks > 1 else 1),
        gpus_per_task=config.gpus_per_task * tasks if config.gpus_per_task else None,
        notes=tuple(notes),
    )


def _plain(config: RunConfig, nodes: int, tasks: int, processes: int) -> Resources:
    asked = {"nodes": nodes, "ntasks_per_node": tasks, "nproc_per_node": config.nproc_per_node or 1}
    if config.executor != "local" and processes == config.gpus_per_node:
        asked["gpus_per_node"] = processes
    said = [f"{name}={count}" for name, count in asked.items() if count > 1]
    notes = [f"{', '.join(said)}: this command is one process on one node."] if said else []
    return Resources(
        nodes=1,
        processes=1,
        torchrun=False,
        cpus_per_task=_cpus(config, tasks),
        gpus_per_task=config.gpus_per_task,
        notes=tuple(notes),
    )


def _cpus(config: RunConfig, tasks: int) -> int | None:
    """The CPUs of `tasks` tasks for the one that stands for them. Whole nodes have all of theirs anyhow."""
    if config.exclusive and config.cpus_per_task is None:
        return None
    if config.cpus_per_gpu is not None and config.cpus_per_task is None:
        return None
    count = (config.cpus_per_task or 1) * max(1, tasks)
    return count if count > 1 else config.cpus_per_task


_EVERYWHERE = (
    *("executor", "nproc_per_node", "nodes", "env_vars", "secrets", "tunnel", "artifacts_root"),
    *("dry_run", "detach", "max_parallel"),
)
# Wherever code is sent to a job in a place of its own.
_SENT = (
    *("python", "workdir", "remote_job_dir", "packager", "packager_include_pattern", "subpath", "include_submodules"),
    *("allow_dirty", "extra", "cancel_on_interrupt"),
)
_SHELL = ("startup_commands", "setup")
_CLOUD = tuple(name for name in _SENT if name not in ("remote_job_dir", "cancel_on_interrupt"))
READ: dict[str, frozenset[str]] = {
    "local": frozenset({*_EVERYWHERE, "python"}),
    "docker": frozenset(
        {*_EVERYWHERE, *_SENT, *_SHELL, "container_image", "mounts", "runtime", "ipc_mode", "shm_size"}
        | {"ntasks_per_node", "gpus_per_node", "retries", "max_segments"}
    ),
    "slurm": frozenset(
        {*_EVERYWHERE, *_SENT, *_SHELL, "container_image", "mounts", "account", "partition", "run_partition"}
        | {"batch_partition", "time", "job_name", "ntasks_per_node", "gpus_per_node", "mem", "exclusive"}
        | {"cpus_per_task", "cpus_per_gpu", "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "qos", "constraint"}
        | {"exclude", "gres", "array", "host", "user", "identity", "retries", "max_segments"}
    ),
    "skypilot": frozenset(
        {*_EVERYWHERE, *_CLOUD, *_SHELL, "container_image", "cloud", "gpus", "gpus_per_node", "cluster_name"}
        | {"retries"}
    ),
    "dgxcloud": frozenset(
        {*_EVERYWHERE, *_CLOUD, "container_image", "base_url", "app_id", "app_secret", "project_name", "nemo_run_dir"}
        | {"gpus_per_node", "pvcs", "retries"}
    ),
    "lepton": frozenset(
        {*_EVERYWHERE, *_CLOUD, *_SHELL, "container_image", "mounts", "nemo_run_dir", "gpus_per_node"}
        | {"resource_shape", "node_group", "retries"}
    ),
    "kubeflow": frozenset({*_EVERYWHERE, *_CLOUD, "container_image", "gpus_per_node", "retries"}),
}  # fmt: skip
# A field that is read only where another one says so.
_PACKAGERS = {
    "packager_include_pattern": ("pattern", "hybrid"),
    "include_submodules": ("worktree", "git", "hybrid"),
    "allow_dirty": ("git",),
}
_WITH_SSH = ("host", "user", "identity")


def label_of(settings: RunConfig, recipe: str, stage: str) -> str:
    """What a job is called on a cluster, besides the kit's own mark: the profile's `job_name`, else the command."""
    return settings.job_name if settings.job_name != DEFAULTS["job_name"] else f"{recipe}-{stage}"


def without_effect(settings: RunConfig, launch: str, run: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[str]:
    """A sentence for the fields of the profile and the command line that this job does not read. What a config file
    gives in `run.env` is for whichever executor has a use for it."""
    given = {name for name, default in DEFAULTS.items() if getattr(settings, name) not in (default, [], {})}
    from_file = {field_name(key, key) for key in run.get("env") or {} if not _typed(key, overrides)}
    yield from _sentences(settings, launch, sorted(given - from_file))


def _typed(key: str, overrides: Sequence[str]) -> bool:
    return any(word.lstrip("+").startswith((f"run.env.{key}=", f"run.env.{key}.")) for word in overrides)


def _sentences(settings: RunConfig, launch: str, given: Collection[str]) -> Iterator[str]:
    executor = settings.executor
    unread = [name for name in given if name not in READ[executor]]
    if unread:
        yield f"{', '.join(unread)}: no effect on a job with executor {executor!r}."
    packager = settings.packager or "worktree"
    for name, packagers in _PACKAGERS.items():
        if name in given and name not in unread and packager not in packagers:
            yield f"{name}: no effect with packager {packager!r}, only with {' and '.join(packagers)}."
    if settings.tunnel != "ssh" and (names := [name for name in _WITH_SSH if name in given and name not in unread]):
        yield f'{", ".join(names)}: no effect without tunnel = "ssh".'
    if executor == "slurm" and "mounts" in given and not settings.container_image:
        yield "mounts: no effect without container_image: a job on Slurm sees the node's own folders."
    if executor == "local" and "python" in given and launch != DETACHED:
        yield "python: no effect on a job in this process; --batch starts the profile's Python."
