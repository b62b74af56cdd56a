"""What a job's profile says in the end: the command line beats the profile, the profile beats the config file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig

MODES = ("local", "run", "batch")


def effective_settings(run: Mapping[str, Any], overrides: Sequence[str]) -> RunConfig:
    """The RunConfig of a composed `run` section. Raises UserError for a wrong mode, profile, field or type."""
    from nemotron_kit.plan.profiles import load_run_profile
    from nemotron_kit.plan.runconfig import RunConfig, with_overrides

    mode, profile = run.get("mode"), run.get("profile")
    if mode not in MODES:
        raise UserError(f"run.mode: expected one of {', '.join(MODES)}, got {mode!r}.")
    if mode != "local" and not profile:
        option = "--run" if mode == "run" else "--batch"
        raise UserError(f"run.mode={mode} needs a profile.", hint=f"Give run.profile=NAME, or {option} NAME.")
    typed = {key for key in (run.get("env") or {}) if _on_command_line(key, overrides)}
    environment = dict(run.get("env") or {})
    from_file = with_overrides(RunConfig(), {k: v for k, v in environment.items() if k not in typed})
    config = _over(from_file, load_run_profile(profile)) if profile else from_file
    return with_overrides(config, {k: v for k, v in environment.items() if k in typed})


def settings_dict(config: RunConfig) -> dict[str, Any]:
    """The fields that are set, as JSON data."""
    return {key: value for key, value in asdict(config).items() if value not in (None, [], {})}


def _on_command_line(key: str, overrides: Sequence[str]) -> bool:
    return any(o.lstrip("+").startswith((f"run.env.{key}=", f"run.env.{key}.")) for o in overrides)


def _over(below: RunConfig, above: RunConfig) -> RunConfig:
    """`above`, with `below`'s value wherever it says nothing of its own."""
    from dataclasses import fields, replace

    default = type(above)()
    unset = {
        f.name: getattr(below, f.name)
        for f in fields(above)
        if getattr(above, f.name) == getattr(default, f.name) and getattr(below, f.name) != getattr(default, f.name)
    }
    return replace(above, **unset)
