"""The command line of a script that is started directly: `--config FILE key=value`."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nemotron_kit.artifacts.pipe import announce_step
from nemotron_kit.config.config_files import ENDINGS, TAKEN, Spelled, find_config_file, read_job_file
from nemotron_kit.config.registration import main_hydra, register_group
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.quoting import hydra_quoted, hydra_unquoted

CONFIG_OPTIONS = ("--config", "-c", "--config-file", "--config_file")


class ConfigPath(type(Path())):  # type: ignore[misc]
    """A config file's path that also carries the overrides given with it, for a program that passes on only the
    path."""

    overrides: tuple[str, ...] = ()


def parse_config_and_overrides(
    default_config: str | Path, argv: Sequence[str] | None = None
) -> tuple[ConfigPath, list[str]]:
    """`--config FILE key=value --flag …` → (config path, Hydra overrides); `sys.argv[1:]` when `argv` is None.

    A relative path is tried in the working folder, then beside the script's config folder. `--force` and
    `--no-force` set booleans, `--num-shards 4` a value. Raises UserError for anything else.
    """
    if argv is None:
        argv = sys.argv[1:]
        _print_errors_plainly()
        announce_step()
    default = Path(default_config)
    config: str | None = None
    overrides: list[str] = []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        name, joined, value = argument.partition("=")
        if name in CONFIG_OPTIONS:
            if not joined and not arguments:
                raise UserError(f"{name} needs a file.", hint=f"For instance {name} {default}.")
            config = value if joined else arguments.pop(0)
        elif argument in ("-h", "--help"):
            print(_usage(default))  # noqa: T201
            raise SystemExit(0)
        elif argument.startswith("--"):
            key = name[2:].replace("-", "_")
            is_value = bool(arguments) and re.fullmatch(r"-[0-9.].*|[^-].*|", arguments[0], re.DOTALL) is not None
            if joined:
                overrides.append(f"{key}={_hydra_value(value)}")
            elif is_value and not _is_override(arguments[0]):
                overrides.append(f"{key}={_hydra_value(arguments.pop(0))}")
            else:
                overrides.append(f"{key[3:]}=false" if key.startswith("no_") else f"{key}=true")
        elif _is_override(argument):
            overrides.append(argument)
        else:
            raise UserError(f"{argument!r} is neither an option nor an override.", hint="Overrides are key=value.")
    script, folder = Path(sys.argv[0]).absolute(), default.absolute().parent
    path = ConfigPath(default if config is None else find_config_file(config, folder, script.name, script.parent))
    path.overrides = tuple(overrides)
    return path, overrides


def _hydra_value(value: str) -> str:
    """A flag's value as a Hydra value: quoted, so that a text field gets it exactly, unless it is a list, a dict,
    `null` or a number in its plain spelling. Conversion to the dataclass's types makes numbers of the quoted ones."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(f"x={value}")
        found = None if parsed.is_sweep_override() else parsed.value()
        number = isinstance(found, int | float) and str(found) == value
        plain = number or isinstance(found, list | dict) or value == "null"
    except HydraException:
        plain = False
    return value if plain else hydra_quoted(value)


def _is_override(argument: str) -> bool:
    return argument.startswith("~") or "=" in argument.lstrip("+")[1:]


def _usage(default: Path) -> str:
    script = Path(sys.argv[0]).name
    return (
        f"usage: {script} [--config FILE] [key=value …] [--flag | --no-flag | --key VALUE]\n\n"
        f"  --config, -c FILE   YAML, TOML or JSON (default: {default})\n"
        f"  key=value           override a value; +key=value adds one, ~key removes one\n\n"
        f"example: {script} --config config/tiny.yaml train.train_iters=5"
    )


def _print_errors_plainly() -> None:
    """Print a user's mistake in a script as one error, with exit code 2, as `nemotron` does."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # torch.distributed's hook redirects sys.stderr, and does not restore it when this one raises.
        stream = sys.__stderr__
        if isinstance(error, NemotronError) and os.environ.get("HYDRA_FULL_ERROR") != "1":
            print(f"error: {error}", file=stream)
        else:
            traceback.print_exception(kind, error, trace, file=stream)
        # Python passes a SystemExit raised here on as the exit code.
        raise SystemExit(error.exit_code if isinstance(error, NemotronError) else 1)

    sys.excepthook = hook


GROUP = "script_file"


def compose_file(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], list[str], Spelled]:
    """(the mapping that a file and what its defaults list names compose to, interpolations unresolved; the overrides
    that chose an option of its groups, as in `optimizer=sgd`; how the file and its siblings write what may be text)."""
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    groups: set[str] = set()
    spelled: Spelled = {}
    _register(path, set(), groups, spelled)
    chosen = [override for override in overrides if override.lstrip("+~").partition("=")[0].partition("@")[0] in groups]
    # As in a launch, a group needs no entry in the defaults list.
    beside = {override: _group_beside(path, override) for override in overrides if override not in chosen}
    for first in {group.partition("/")[0] for group in beside.values() if group}:
        register_group(first, path.parent / first)
    added = [override for override, group in beside.items() if group]
    choices = [*chosen, *(override if override.startswith("+") else f"+{override}" for override in added)]
    primary = {"defaults": [{f"{GROUP}@_global_": path.stem}]}
    ConfigStore.instance().store(name="script_file_primary", node=primary)
    try:
        with main_hydra() as hydra:
            config = hydra.compose_config("script_file_primary", choices, RunMode.RUN, with_log_configuration=False)
    except RecursionError as error:
        raise UserError(f"{path}: its defaults lists form a circle.") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    values: Any = OmegaConf.to_container(config, resolve=False)
    return {key: value for key, value in values.items() if key != "hydra"}, [*chosen, *added], spelled


def _group_beside(path: Path, override: str) -> str | None:
    """The group that an override chooses an option of, where that is a file in a folder beside the config."""
    key, _, value = override.lstrip("+").partition("=")
    group, option = key.partition("@")[0], hydra_unquoted(value)
    if option is None or not all(part.isidentifier() for part in group.split("/")):
        return None
    folder = path.parent / group
    found = any(os.path.isfile(folder / f"{option}{ending}") for ending in ENDINGS)  # noqa: PTH113
    return group if found and group.partition("/")[0] not in (*TAKEN, "hydra", "run") else None


def composes(path: Path, values: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Whether a script's config has to be composed by Hydra, whose import costs more than reading one file does."""
    return "defaults" in values or any(_group_beside(path, override) for override in overrides)


def _register(path: Path, visited: set[Path], groups: set[str], spelled: Spelled) -> None:
    from hydra.core.config_store import ConfigStore

    if path in visited:
        return
    visited.add(path)
    found = read_job_file(path, GROUP)
    spelled.update({spot: pair for spot, pair in found.spelled.items() if spot not in spelled})
    ConfigStore.instance().store(group=GROUP, name=path.stem, node=found.values, package="_global_")
    for name, folder in found.groups.items():
        groups.update(each.rpartition("/")[0] for each in register_group(name, folder))
    for sibling in found.siblings:
        _register(sibling, visited, groups, spelled)
