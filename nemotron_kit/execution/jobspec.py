"""job.json: what a job needs besides its config, read by whoever runs the job folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemotron_kit.app import add_import_folders, load_object
from nemotron_kit.config.files import load_mapping
from nemotron_kit.config.freeze import secrets_used
from nemotron_kit.errors import NemotronError
from nemotron_kit.files import read_regular
from nemotron_kit.masking import note_secrets

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
