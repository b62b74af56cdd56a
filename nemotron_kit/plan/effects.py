"""Which fields of a profile a job on each executor reads. One that is set and not read is named in the plan."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from nemotron_kit.plan.plan import DETACHED
from nemotron_kit.plan.runconfig import DEFAULTS, RunConfig, field_name

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


def label_of(settings: RunConfig | Mapping[str, Any], recipe: str, stage: str) -> str:
    """What a job is called on a cluster, besides the kit's own mark: the profile's `job_name`, else the command."""
    named = settings.job_name if isinstance(settings, RunConfig) else settings.get("job_name")
    return str(named) if named and named != DEFAULTS["job_name"] else f"{recipe}-{stage}"


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
