"""What a job's profile says in the end, taken from the composed `run` section."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig

_ESCAPED = re.compile(r"(\\+)\$\{")
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
        from nemotron_kit.plan.runconfig import with_overrides

        typed = {key: value for key, value in environment.items() if _on_command_line(key, overrides)}
        return with_overrides(recorded, typed, prefix="run.env.")
    if not profile and not environment:
        from nemotron_kit.plan.runconfig import RunConfig

        return RunConfig()
    from nemotron_kit.plan.profiles import effective_profile

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
    return _ESCAPED.sub(lambda m: "\\" * (len(m[1]) // 2) + "${" if len(m[1]) % 2 else m[0], value)


def settings_dict(config: RunConfig) -> dict[str, Any]:
    """The fields that are set, as JSON data."""
    return {key: value for key, value in asdict(config).items() if value not in (None, [], {})}


def _on_command_line(key: str, overrides: Sequence[str]) -> bool:
    return any(o.lstrip("+").startswith((f"run.env.{key}=", f"run.env.{key}.")) for o in overrides)
