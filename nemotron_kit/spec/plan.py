"""The plan of one job, and job.json, which tells its worker what to do. Executing is a function of the plan alone."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import add_import_folders, load_object
from nemotron_kit.config.files import load_mapping
from nemotron_kit.config.freeze import secrets_used
from nemotron_kit.config.secrets import masked_overrides
from nemotron_kit.errors import NemotronError
from nemotron_kit.files import read_regular
from nemotron_kit.masking import note_secrets

if TYPE_CHECKING:
    from nemotron_kit.artifacts.reference import Pin


WAIT_FIRST = "wait_first"  # in a plan's `extra`
IN_PROCESS, TORCHRUN, DETACHED = "in-process", "torchrun", "detached"


@dataclass(frozen=True)
class Plan:
    """One job and where it runs. `files`: name in the job folder → text. `problems`: what would stop it.

    `folder` is the launch's record on this machine; `place` (paths.RemotePaths): where the job's files lie.
    """

    run_id: str
    recipe: str
    stage: str
    folder: str
    argv: tuple[str, ...]
    hydra: tuple[str, ...]
    mode: str
    profile: str | None
    executor: str
    settings: Mapping[str, Any]
    launch: str
    config_name: str
    config_file: str | None
    config: Mapping[str, Any]
    inputs: Mapping[str, Pin | None]
    references: Mapping[str, str]
    launch_command: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: tuple[str, ...]
    captured: Mapping[str, str]
    files: Mapping[str, str]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    job: int = 0
    place: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def job_folder(self) -> str:
        return f"{self.folder}/jobs/{self.job}"

    @property
    def wait_first(self) -> list[str]:
        """The runs that must have succeeded before it is submitted."""
        return list(self.extra.get(WAIT_FIRST) or ())

    @property
    def deferred(self) -> bool:
        """Whether the launch does not stay until the job can be submitted."""
        return bool(self.wait_first) and self.mode == "batch"

    @property
    def hydra_command(self) -> str:
        """The same job as a shell command in Hydra's syntax."""
        return shlex.join(["python", "-m", "nemotron_kit", *masked_overrides(self.hydra)])

    def to_dict(self) -> dict[str, Any]:
        """JSON data: what `--dry-run --json` prints and plan.json holds."""
        return {
            "run_id": self.run_id,
            "recipe": self.recipe,
            "stage": self.stage,
            "command_line": shlex.join(masked_overrides(self.argv)),
            "hydra": self.hydra_command,
            "mode": self.mode,
            "profile": self.profile,
            "executor": self.executor,
            "settings": dict(self.settings),
            "launch": self.launch,
            "launch_command": list(self.launch_command),
            "config_name": self.config_name,
            "config_file": self.config_file,
            "config": dict(self.config),
            "inputs": {slot: pin.to_dict() if pin else None for slot, pin in self.inputs.items()},
            "references": dict(self.references),
            "environment": dict(self.environment),
            "secrets": list(self.secrets),
            "captured_at_launch": dict(self.captured),
            "job_folder": self.job_folder,
            "place": dict(self.place),
            "files": dict(self.files),
            "problems": list(self.problems),
            "notes": list(self.notes),
            **self.extra,
        }


# Executors that start the worker themselves, away from the launch: it only supervises, and prints into the job's log.
SCHEDULED = ("slurm", "docker")


@dataclass(frozen=True)
class JobSpec:
    """One job as the worker sees it. `sys_path` is the launch's, so that the recipe's modules are found.

    `after` are runs that must have succeeded before it starts, `late` its inputs (slot → reference) that they save.
    `expand` are the variables of `environment` that refer to others.
    `module` is a module of the kit's that runs the job as `python -m module FOLDER`; config.yaml is then for people.
    """

    kit: str
    command: str
    handler: str
    config_cls: str
    script: str | None
    nproc_per_node: int
    cwd: str
    sys_path: list[str]
    environment: dict[str, str]
    secrets: list[str] = field(default_factory=list)
    module: str | None = None
    executor: str = ""
    torchrun: bool = False
    retries: int = 0
    max_segments: int | None = None
    code: str | None = None
    after: list[str] = field(default_factory=list)
    late: dict[str, str] = field(default_factory=dict)
    expand: list[str] = field(default_factory=list)

    @property
    def scheduled(self) -> bool:
        """Whether a scheduler starts the worker, on each of the job's nodes."""
        return (self.executor or self.environment.get("NEMOTRON_EXECUTOR")) in SCHEDULED

    def load_handler(self) -> Callable[..., Any]:
        return load_object(self.handler)  # type: ignore[no-any-return]

    def load_config_cls(self) -> type:
        return load_object(self.config_cls)  # type: ignore[no-any-return]

    def prepare_imports(self) -> None:
        """Have the launch's modules found here."""
        add_import_folders(self.sys_path)


def read_spec(folder: Path) -> JobSpec:
    """The spec in a job folder. Raises NemotronError when it is missing or damaged."""
    path = folder / "job.json"
    try:
        values = json.loads(read_regular(path))
        spec = JobSpec(**{f.name: values[f.name] for f in fields(JobSpec) if f.name in values})
        return replace(spec, script=_script(spec.script))
    except FileNotFoundError as error:
        raise NemotronError(f"{path}: no such file. Is {folder} a job folder?") from error
    except OSError as error:
        raise NemotronError(f"{path}: {error.strerror or error}.") from error
    except (ValueError, TypeError) as error:
        raise NemotronError(f"{path}: damaged: {error}.") from error


def _script(name: str | None) -> str | None:
    """The script's path; `@module` is that of a package which is installed here as it was where the launch was made."""
    if name is None or not name.startswith("@"):
        return name
    try:
        found = find_spec(name[1:])
    except ImportError:
        found = None
    if found is None or not found.origin:
        raise NemotronError(
            f"The recipe's module {name[1:]} is not installed on this machine.",
            hint=f"Install its package for {sys.executable}, as it is where you launch.",
        )
    return found.origin


def read_config(folder: Path) -> Mapping[str, Any]:
    """The frozen config in a job folder. What it refers to as a secret is masked from now on."""
    values = load_mapping(folder / "config.yaml")
    note_secrets(name for _, name in secrets_used(values))
    return values


def rank() -> int:
    """This process's global rank, 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))
