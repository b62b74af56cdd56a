"""One job of a sweep: the launcher's settings, its plan, and its overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.spec.plan import Plan

VIA = ("nemo_run", "kit")


@dataclass(frozen=True)
class Settings:
    """The fields of `hydra.launcher`; None leaves a field to the profile or the launcher."""

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


def starter_kind(settings: Settings) -> str:
    """How jobs on this machine are started, `nemo_run` or `kit` (plain processes): as the settings say, else by
    NeMo-Run if it is installed. Raises UserError if it is asked for and missing."""
    from importlib.util import find_spec

    installed = find_spec("nemo_run") is not None
    if settings.via == "nemo_run" and not installed:
        raise UserError(
            "hydra.launcher.via=nemo_run: NeMo-Run is not installed.", hint="pip install 'nemotron-kit[nemo-run]'"
        )
    return settings.via or ("nemo_run" if installed else "kit")


# (the job's config, its node hydra, taken out of it)
Composed = tuple[Any, Any]


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep: its plan, its overrides in Hydra's form, and `texts`, files of its folder besides the plan's
    (name → content)."""

    plan: Plan
    overrides: tuple[str, ...]
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The job's overrides, as one line."""
        return " ".join(self.overrides)


def overrides_of(hydra: Any, kind: str = "task") -> list[str]:
    """The overrides of a composition as they were typed, with `${…}` unresolved."""
    from omegaconf import OmegaConf

    overrides: list[str] = OmegaConf.to_container(hydra.overrides[kind], resolve=False)  # type: ignore[assignment]
    return overrides
