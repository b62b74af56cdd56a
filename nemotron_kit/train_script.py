"""What a script needs when it is started directly, by the worker or by torchrun: its config, its overrides, W&B.

config_path, overrides = parse_config_and_overrides(DEFAULT_CONFIG)
config = load_omegaconf_yaml(config_path)
config = apply_hydra_overrides(config, overrides)   # optional: the path carries the overrides along
cfg = omegaconf_to_dataclass(config, TrainConfig)
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from nemotron_kit.errors import NemotronError, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")
CONFIG_OPTIONS = ("--config", "-c", "--config-file", "--config_file")


class ConfigPath(type(Path())):  # type: ignore[misc]
    """A config file's path that carries the overrides given beside it, so that none is dropped in silence."""

    overrides: tuple[str, ...] = ()


def parse_config_and_overrides(
    default_config: str | Path, argv: Sequence[str] | None = None
) -> tuple[ConfigPath, list[str]]:
    """`--config FILE key=value --flag …` → (config path, Hydra overrides); `sys.argv[1:]` when `argv` is None.

    A relative path is looked for in the working folder, then beside the script's own config folder. `--force` and
    `--no-force` set booleans, `--num-shards 4` a value. Raises UserError for anything else.
    """
    if argv is None:
        argv = sys.argv[1:]
        _print_errors_plainly()
    default = Path(default_config)
    config: str | None = None
    overrides: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, joined, value = word.partition("=")
        if name in CONFIG_OPTIONS:
            if not joined and not words:
                raise UserError(f"{name} needs a file.", hint=f"For instance {name} {default}.")
            config = value if joined else words.pop(0)
        elif word in ("-h", "--help"):
            print(_usage(default))  # noqa: T201
            raise SystemExit(0)
        elif word.startswith("--"):
            overrides.append(_flag(word, words))
        elif _is_override(word):
            overrides.append(word)
        else:
            raise UserError(f"{word!r} is neither an option nor an override.", hint="Overrides are key=value.")
    path = ConfigPath(_find(config, default))
    path.overrides = tuple(overrides)
    return path, overrides


def load_omegaconf_yaml(path: str | Path) -> DictConfig:
    """A config file (YAML, TOML or JSON, with its own `defaults:` list) as an OmegaConf config, resolvers registered.

    Overrides that the path carries (see `parse_config_and_overrides`) are applied.
    """
    from omegaconf import OmegaConf

    from nemotron_kit.config.resolvers import register_resolvers

    register_resolvers()
    config: Any = OmegaConf.create(_load(Path(path)))
    return apply_hydra_overrides(config, getattr(path, "overrides", ()))


def apply_hydra_overrides(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Apply `key=value`, `+key=value`, `++key=value` and `~key` in place and return `config`.

    What was applied to this config already is not applied again. A key that the file does not have is added: whether
    the config may have it is for `omegaconf_to_dataclass` to say.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from nemotron_kit.config.secrets import refuse_literal_secrets

    if not overrides or config.__dict__.get("_applied") == tuple(overrides):
        return config
    refuse_literal_secrets(overrides)
    added = config.__dict__.setdefault("_added", set())
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            _apply(config, override, added)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{str(error).splitlines()[0]}") from error
    config.__dict__["_applied"] = tuple(overrides)
    return config


def omegaconf_to_dataclass(config: Any, cls: type[T]) -> T:
    """A config as an instance of the dataclass `cls`: nested dataclasses, Path, X | None, Literal, lists and dicts.

    `run`, the launcher's section, is skipped. Unknown keys are refused with the nearest names, unless `+key=` added
    them. Artifact inputs (`${art:…}`) are resolved here.
    """
    from omegaconf import OmegaConf

    from nemotron_kit.config.convert import to_dataclass
    from nemotron_kit.config.job import resolve

    raw: Any = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else dict(config)
    values = {key: value for key, value in resolve(raw).items() if key != "run"}
    extras = config.__dict__.get("_added", set()) if OmegaConf.is_config(config) else set()
    return to_dataclass(values, cls, extras=extras | _from_the_kit())


def init_wandb_from_env() -> Any:
    """Start a W&B run if the environment says so (WANDB_PROJECT, set by the launcher from `run.wandb`); else None."""
    project = os.environ.get("WANDB_PROJECT")
    if not project:
        return None
    from nemotron_kit.artifacts import WandbConfig, init_wandb_if_configured

    tags = [t for t in os.environ.get("WANDB_TAGS", "").split(",") if t]
    return init_wandb_if_configured(
        WandbConfig(
            project=project,
            entity=os.environ.get("WANDB_ENTITY"),
            run_name=os.environ.get("WANDB_NAME"),
            tags=tags,
            notes=os.environ.get("WANDB_NOTES"),
        )
    )


def _load(path: Path) -> dict[str, Any]:
    from nemotron_kit.config.files import load_mapping
    from nemotron_kit.config.script_file import compose_file

    values = load_mapping(path)
    # Composed by Hydra over its siblings only where it asks for that: Hydra's import costs more than the file.
    return compose_file(path) if "defaults" in values else values


def _from_the_kit() -> set[str]:
    """`+key=…` on the launcher's command line: the worker names them, since the config file already holds them."""
    return {key for key in os.environ.get("NEMOTRON_ADDED_KEYS", "").split(",") if key}


def _apply(config: Any, override: Any, added: set[str]) -> None:
    from omegaconf import OmegaConf, open_dict

    if override.is_sweep_override():
        raise UserError(f"{override.input_line}: several values need a sweep.", hint="Quote a value that has a comma.")
    key = override.key_or_group
    with open_dict(config):
        if override.is_delete():
            parent_key, _, leaf = key.rpartition(".")
            parent = OmegaConf.select(config, parent_key) if parent_key else config
            if parent is None or leaf not in parent:
                raise UserError(f"~{key}: the config has no {key}.")
            del parent[leaf]
            return
        if override.is_add() or override.is_force_add():
            added.add(key)
        OmegaConf.update(config, key, override.value(), merge=True, force_add=True)


def _flag(word: str, words: list[str]) -> str:
    name, joined, value = word[2:].partition("=")
    key = name.replace("-", "_")
    if joined:
        return f"{key}={_quoted(value)}"
    if words and not words[0].startswith("-") and not _is_override(words[0]):
        return f"{key}={_quoted(words.pop(0))}"
    return f"{key[3:]}=false" if key.startswith("no_") else f"{key}=true"


def _quoted(value: str) -> str:
    """A flag's value as a Hydra value: quoted, so that a text field gets it exactly, unless it is a list, a dict,
    `null` or a number in its plain spelling. The dataclass's types turn the quoted ones into what they are."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(f"x={value}")
        found = None if parsed.is_sweep_override() else parsed.value()
        number = isinstance(found, int | float) and str(found) == value
        plain = number or isinstance(found, list | dict) or value == "null"
    except HydraException:
        plain = False
    # A backslash run before a quote or at the end is what Hydra un-escapes; elsewhere backslashes stand for themselves.
    return value if plain else "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def _is_override(word: str) -> bool:
    return word.startswith("~") or "=" in word.lstrip("+")[1:]


def _find(config: str | None, default: Path) -> Path:
    from nemotron_kit.config.files import ENDINGS, is_path

    if config is None:
        return default
    given = Path(config).expanduser()
    if given.is_absolute():
        return given
    beside = Path(sys.argv[0]).absolute().parent
    places = [given, default.parent.parent / given, default.parent / given, beside / given]
    if not is_path(config):
        places = [default.parent / f"{config}{ending}" for ending in ENDINGS]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"{config}: no such config file.", hint="Looked for " + ", ".join(str(p.absolute()) for p in places) + "."
        )
    return found


def _usage(default: Path) -> str:
    script = Path(sys.argv[0]).name
    return (
        f"usage: {script} [--config FILE] [key=value …] [--flag | --no-flag | --key VALUE]\n\n"
        f"  --config, -c FILE   YAML, TOML or JSON (default: {default})\n"
        f"  key=value           override a value; +key=value adds one, ~key removes one\n\n"
        f"example: {script} --config config/tiny.yaml train.train_iters=5"
    )


def _print_errors_plainly() -> None:
    """A user's mistake in a script is one clear error and exit code 2, as at the `nemotron` prompt."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # torch.distributed's own hook catches sys.stderr, and loses it when this one raises.
        stream = sys.__stderr__
        if isinstance(error, NemotronError) and os.environ.get("HYDRA_FULL_ERROR") != "1":
            print(f"error: {error}", file=stream)
        else:
            traceback.print_exception(kind, error, trace, file=stream)
        # Python passes a SystemExit raised here on as the exit code.
        raise SystemExit(error.exit_code if isinstance(error, NemotronError) else 1)

    sys.excepthook = hook
