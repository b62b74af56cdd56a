"""Functions for a script that is started directly, by the worker or by torchrun: its config, its overrides, W&B.

config_path, overrides = parse_config_and_overrides(DEFAULT_CONFIG)
config = load_omegaconf_yaml(config_path)
config = apply_hydra_overrides(config, overrides)   # optional: the path carries the overrides along
cfg = omegaconf_to_dataclass(config, TrainConfig)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nemotron_kit import artifacts
from nemotron_kit.artifacts.pipe import pins_from_step
from nemotron_kit.config.config_files import keep_text_spelling, key_location, load_with_spelling, with_wandb
from nemotron_kit.config.convert import means_text, to_dataclass
from nemotron_kit.config.freeze import omegaconf_message, resolve, slots_used, walk_strings
from nemotron_kit.config.resolvers import pinned, register_resolvers
from nemotron_kit.config.schema import with_defaults
from nemotron_kit.config.scripts import ConfigPath, compose_file, composes, parse_config_and_overrides
from nemotron_kit.config.secrets import refuse_literal_secrets
from nemotron_kit.config.wording import unreadable
from nemotron_kit.errors import UserError
from nemotron_kit.home import is_run_id, located

if TYPE_CHECKING:
    from omegaconf import DictConfig


__all__ = [
    "ConfigManager",
    "ConfigPath",
    "apply_hydra_overrides",
    "cli",
    "init_wandb_from_env",
    "load_omegaconf_yaml",
    "omegaconf_to_dataclass",
    "parse_config_and_overrides",
]

T = TypeVar("T")


def load_omegaconf_yaml(path: str | Path) -> DictConfig:
    """A config file (YAML, TOML or JSON, with its own `defaults:` list) as an OmegaConf config, resolvers registered.

    Overrides that the path carries (see `parse_config_and_overrides`) are applied.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    overrides = list(getattr(path, "overrides", ()))
    values, spelled = load_with_spelling(Path(path))
    chosen: list[str] = []  # the overrides that chose options of its groups
    if composes(Path(path), values, overrides):
        values, chosen, spelled = compose_file(Path(path), overrides)
    else:
        values = {key: value for key, value in values.items() if key != "hydra"}
    above = Path(path).absolute().parents
    recorded = len(above) > 3 and is_run_id(above[2].name)  # a job's own config, in its folder
    if recorded:
        values = located(values, above[2])
    try:
        config: Any = OmegaConf.create(values)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "config")
        raise UserError(f"{key_location(Path(path), key)}: {key}: {omegaconf_message(error)}") from error
    config.__dict__.update(_spelled=spelled, _recorded=recorded)
    apply_hydra_overrides(config, [override for override in overrides if override not in chosen])
    config.__dict__["_applied"] = tuple(overrides)
    return config  # type: ignore[no-any-return]


def apply_hydra_overrides(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Apply `key=value`, `+key=value`, `++key=value` and `~key` in place and return `config`.

    What was applied to this config already is not applied again. A key that the file does not have is added: whether
    the config may have it is for `omegaconf_to_dataclass` to say.
    """
    if not overrides or config.__dict__.get("_applied") == tuple(overrides):
        return config  # a job's script, for one: where it runs there need not be a hydra

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    refuse_literal_secrets(overrides)
    added = config.__dict__.setdefault("_added", set())
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise unreadable(error) from error
    for override in parsed:
        try:
            _apply(config, override, added)
        except (HydraException, OmegaConfBaseException, TypeError, ValueError) as error:
            # The last two for a key below a text or a list.
            raise UserError(f"{override.input_line}: {omegaconf_message(error)}.") from error
    config.__dict__["_applied"] = tuple(overrides)
    return config


def omegaconf_to_dataclass(config: Any, cls: type[T]) -> T:
    """A config as an instance of the dataclass `cls`: nested dataclasses, Path, X | None, Literal, lists and dicts.

    `run`, the launcher's section, is skipped. Unknown keys are refused with the nearest names, unless `+key=` added
    them. Artifact inputs (`${art:…}`) are resolved here.
    """
    from omegaconf import OmegaConf

    raw: Any = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else dict(config)
    if spelled := getattr(config, "__dict__", {}).get("_spelled"):
        raw = keep_text_spelling(raw, spelled, partial(means_text, cls))
    raw = _without_wandb(raw, cls)
    piped: dict[str, Any] = {}
    if not os.environ.get("NEMOTRON_RUN_ID"):  # a job's inputs were pinned at its launch
        # What the previous step pipes in, for the inputs that the command line does not set.
        applied = getattr(config, "__dict__", {}).get("_applied", ())
        given = {override.lstrip("+").partition("=")[0] for override in applied}
        piped = pins_from_step([slot for slot in sorted(slots_used(raw)) if f"run.{slot}" not in given])
    with pinned(piped) if piped else nullcontext():
        values = {key: value for key, value in _resolved(raw, config, cls).items() if key != "run"}
    added: set[str] = config.__dict__.get("_added", set()) if OmegaConf.is_config(config) else set()
    # Those of the launcher's command line are in the file already: the worker passes their names.
    added = added | set(filter(None, os.environ.get("NEMOTRON_ADDED_KEYS", "").split(",")))
    # `+block.key=1` adds the block, too.
    blocks = {key.rsplit(".", depth)[0] for key in added for depth in range(1, key.count(".") + 1)}
    return to_dataclass(values, cls, extras=added | blocks)


def _resolved(raw: dict[str, Any], config: Any, cls: type) -> dict[str, Any]:
    """`raw` over the defaults of `cls`, interpolations resolved; without the fields that keep their default."""
    if getattr(config, "__dict__", {}).get("_recorded"):  # a launch has put the defaults into it
        return resolve(raw)
    complete = with_defaults(raw, cls)
    computed = {key.partition(".")[0].partition("[")[0] for key, text in walk_strings(complete) if "${" in text}
    return {key: value for key, value in resolve(complete).items() if key in raw or key in computed}


@dataclass
class ConfigManager(Generic[T]):
    """A config dataclass and the file that fills it (YAML, TOML or JSON; None: the dataclass's defaults)."""

    config_cls: type[T]
    config_file: str | Path | None = None

    def read(self, overrides: Sequence[str] = ()) -> DictConfig:
        """The file's values with `overrides` applied, interpolations unresolved."""
        from omegaconf import OmegaConf

        config = OmegaConf.create({}) if self.config_file is None else load_omegaconf_yaml(self.config_file)
        return apply_hydra_overrides(config, list(overrides))

    def load(self, overrides: Sequence[str] = ()) -> T:
        """The typed config. UserError for a missing file, unknown ending, unknown field or wrong type."""
        return omegaconf_to_dataclass(self.read(overrides), self.config_cls)


def cli(config_cls: type[T], config_file: str | Path | None = None, argv: Sequence[str] | None = None) -> T:
    """A `config_cls` from `config_file` and the command line (`--config FILE`, `key=value`, `--flag`).

    `argv` defaults to `sys.argv[1:]`. Raises UserError as `ConfigManager.load` does.
    """
    path, overrides = parse_config_and_overrides(config_file or "", argv)
    given = Path(path) if str(path) not in ("", ".") else None
    return ConfigManager(config_cls, given).load(overrides)


def init_wandb_from_env() -> Any:
    """Start a W&B run if the environment says so (WANDB_PROJECT, set by the launcher from `run.wandb`), or the `wandb`
    block of the config that this process was started with; else None."""
    project = os.environ.get("WANDB_PROJECT") or _wandb.get("project")
    if not project:
        return None
    tags = tuple(filter(None, map(str.strip, os.environ.get("WANDB_TAGS", "").split(",")))) or _wandb.get("tags") or ()
    return artifacts.init_wandb_if_configured(
        artifacts.WandbConfig(
            project=project,
            entity=os.environ.get("WANDB_ENTITY") or _wandb.get("entity"),
            run_name=os.environ.get("WANDB_NAME") or _wandb.get("run_name"),
            tags=tags,
            notes=os.environ.get("WANDB_NOTES") or _wandb.get("notes"),
            enabled=_wandb.get("enabled"),
        )
    )


# The `wandb` block of the config file of a script that was started by hand: a launch puts it into the environment.
_wandb: dict[str, Any] = {}


def _without_wandb(raw: dict[str, Any], cls: type) -> dict[str, Any]:
    """The config without its `wandb` block, unless the dataclass has a field of that name: it is about tracking."""
    from omegaconf import OmegaConf

    moved = with_wandb(raw, cls)
    if moved is not raw and not os.environ.get("NEMOTRON_RUN_ID"):
        block: Any = OmegaConf.to_container(OmegaConf.create(moved).run.wandb, resolve=True)
        _wandb.clear()
        _wandb.update(block)
    return moved


def _apply(config: Any, override: Any, added: set[str]) -> None:
    from omegaconf import OmegaConf, open_dict

    if override.is_sweep_override():
        raise UserError(f"{override.input_line}: several values need a sweep.", hint="Quote a value that has a comma.")
    key = override.key_or_group
    with open_dict(config):
        if override.is_delete():
            parent_key, _, leaf = key.rpartition(".")
            parent = OmegaConf.select(config, parent_key) if parent_key else config
            if not OmegaConf.is_config(parent) or leaf not in parent:
                raise UserError(f"~{key}: the config has no {key}.")
            del parent[leaf]
            return
        if override.is_add() or override.is_force_add():
            added.add(key)
        value = override.value()
        spelled = config.__dict__.setdefault("_spelled", {})
        spot = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        spelled.pop(spot, None)
        text = override.input_line.partition("=")[2]
        if isinstance(value, bool | int | float) and str(value) != text:
            spelled[spot] = (value, text)
        OmegaConf.update(config, key, value, merge=True, force_add=True)
