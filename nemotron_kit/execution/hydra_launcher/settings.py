"""`hydra.launcher.*`, as the engine takes it. The plugin's config dataclass documents the same fields for Hydra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_kit.errors import UserError

VIA = ("nemo_run", "kit")


@dataclass(frozen=True)
class Settings:
    """What a sweep may say about its launch; null where the profile, or the launcher, decides."""

    profile: str | None = None
    env: Mapping[str, Any] = field(default_factory=dict)
    max_parallel: int | None = None
    via: str | None = None
    detach: bool = False
    objective: str | None = None

    def __post_init__(self) -> None:
        if self.max_parallel is not None and self.max_parallel < 1:
            raise UserError(f"hydra.launcher.max_parallel: expected at least 1, got {self.max_parallel}.")
        if self.via is not None and self.via not in VIA:
            raise UserError(f"hydra.launcher.via: expected one of {', '.join(VIA)}, got {self.via!r}.")


def carried_by(settings: Settings) -> str:
    """What starts the jobs of this machine: NeMo-Run where it is installed, unless the settings name one."""
    from importlib.util import find_spec

    there = find_spec("nemo_run") is not None
    if settings.via == "nemo_run" and not there:
        raise UserError(
            "hydra.launcher.via=nemo_run: NeMo-Run is not installed.", hint="pip install 'nemotron-kit[nemo-run]'"
        )
    return settings.via or ("nemo_run" if there else "kit")
