"""RunConfig: where and how a job runs. One field for each key of a profile, with its type and what may stand in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nemotron_kit.errors import UserError, nearest


class ProfileError(UserError, ValueError):
    """A profile, or a value given for one, is wrong."""


@dataclass
class RunConfig:
    """Where and how a job runs: the fields of a profile in env.toml. None: not set, the executor's own default holds.

    `load_run_profile` gives one with its `extends` resolved (`extends` itself is None then).
    """

    executor: str = "local"
    # what runs
    nproc_per_node: int | None = None
    nodes: int | None = None
    python: str | None = None
    workdir: str | None = None
    startup_commands: list[str] | None = None
    setup: str | None = None
    env_vars: list[str] | None = None
    secrets: list[str] | None = None
    # code
    packager: str | None = None
    packager_include_pattern: list[str] | None = None
    subpath: str | None = None
    include_submodules: bool | None = None
    allow_dirty: bool | None = None
    # container
    container_image: str | None = None
    mounts: list[str] | None = None
    runtime: str | None = None
    ipc_mode: str | None = None
    shm_size: str | None = None
    # Slurm
    account: str | None = None
    partition: str | None = None
    run_partition: str | None = None
    batch_partition: str | None = None
    time: str = "04:00:00"
    job_name: str = "nemo-run"
    ntasks_per_node: int | None = None
    gpus_per_node: int | None = None
    mem: str | None = None
    exclusive: bool | None = None
    cpus_per_task: int | None = None
    cpus_per_gpu: int | None = None
    gpus_per_task: int | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    array: str | None = None
    # the way there, and where things lie there
    tunnel: str = "local"
    host: str | None = None
    user: str | None = None
    identity: str | None = None
    remote_job_dir: str | None = None
    artifacts_root: str | None = None
    # clouds
    cloud: str | None = None
    gpus: str | None = None
    cluster_name: str | None = None
    base_url: str | None = None
    app_id: str | None = None
    app_secret: str | None = None
    project_name: str | None = None
    pvcs: list[Any] | None = None
    resource_shape: str | None = None
    node_group: str | None = None
    nemo_run_dir: str | None = None
    # Ray
    ray_working_dir: str | None = None
    ray_mode: str | None = None
    # the launch
    dry_run: bool | None = None
    detach: bool | None = None
    cancel_on_interrupt: bool | None = None
    retries: int | None = None
    max_segments: int | None = None
    max_parallel: int | None = None
    extends: str | None = None
    extra: dict[str, Any] | None = None


FIELDS = tuple(field.name for field in fields(RunConfig))
DEFAULTS = {field.name: field.default for field in fields(RunConfig)}
ALIASES = {"container": "container_image"}


def field_name(key: str, where: str) -> str:
    """The field that `key` means (`container`, `gpus-per-node`); ProfileError with the nearest names for none."""
    name = key.replace("-", "_")
    name = ALIASES.get(name, name)
    if name not in DEFAULTS:
        raise ProfileError(f"{where}: no such field.", hint=_hint(nearest(name, [*FIELDS, *ALIASES])))
    return name


def with_overrides(config: RunConfig, values: Mapping[str, Any], *, prefix: str = "--run.") -> RunConfig:
    """A copy of `config` with `values` in it: text (`--run.nodes 4`) or typed values (`run.env.nodes=4`).

    Each is converted to its field's type; None, or the text `null`, unsets it. `prefix` is what errors put before the
    key. Raises ProfileError for an unknown key (with the nearest ones) and for a value that isn't of the field's type.
    """
    from nemotron_kit.plan.values import convert

    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = field_name(key, f"{prefix}{key}")
        if name == "extends":
            raise ProfileError(f"{prefix}{key}: a launch can't change what a profile extends.")
        if name in changes:
            raise ProfileError(f"{prefix}{key}: {name} is given twice.")
        changes[name] = convert(name, value, f"{prefix}{key}")
    return replace(config, **changes)


def resolve_partition(config: RunConfig, is_launch: bool) -> str | None:
    """The partition of a detached launch (`--batch`: `is_launch`) or of an attached one (`--run`)."""
    chosen = config.batch_partition if is_launch else config.run_partition
    return chosen if chosen is not None else config.partition


def env_dict(config: RunConfig) -> dict[str, str]:
    """`env_vars` as a mapping; a later entry of the same name wins."""
    from nemotron_kit.plan.values import check_value

    checked = check_value("env_vars", config.env_vars, "env_vars") if config.env_vars is not None else []
    return dict(entry.split("=", 1) for entry in checked)


def _hint(text: str) -> str | None:
    return text[:1].upper() + text[1:] if text else None
