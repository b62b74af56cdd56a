"""The plan of one job, as a value. Printing it is the dry-run; executing is a function of it alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemotron_kit.config.secrets import masked_words

if TYPE_CHECKING:
    from nemotron_kit.artifacts.pin import Pin

WAIT_FIRST = "wait_first"  # in a plan's `extra`
IN_PROCESS, TORCHRUN, DETACHED = "in-process", "torchrun", "detached"


@dataclass(frozen=True)
class Plan:
    """One job and where it runs. `files`: name in the job folder → text. `problems`: what would stop it.

    `folder` is the launch's record on this machine; `place` (plan.paths.Place) says where the job's own files lie.
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
        """The same job in Hydra's own words, ready to be typed into a shell."""
        return shlex.join(["python", "-m", "nemotron_kit", *masked_words(self.hydra)])

    def to_dict(self) -> dict[str, Any]:
        """JSON data: what `--dry-run --json` prints and plan.json holds."""
        return {
            "run_id": self.run_id,
            "recipe": self.recipe,
            "stage": self.stage,
            "command_line": shlex.join(masked_words(self.argv)),
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
