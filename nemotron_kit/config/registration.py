"""The command tree in Hydra's ConfigStore: groups recipe, stage, config, schema and job."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from nemotron_kit.app import App, Command
from nemotron_kit.config import foreign
from nemotron_kit.config.config_files import (
    Spot,
    config_files,
    group_files,
    keep_text_spelling,
    key_location,
    load_with_spelling,
    other_command_of,
    package_of,
    read_job_file,
    with_wandb,
)
from nemotron_kit.config.convert import means_text
from nemotron_kit.config.resolvers import register_resolvers
from nemotron_kit.config.schema import schema_node
from nemotron_kit.discovery import discover
from nemotron_kit.envfile import EnvFile, read_env_file
from nemotron_kit.errors import UserError

PROVIDER = "nemotron_kit"
# An option whose file can't be read refers to an option of this group that does not exist, so that its error is raised
# only when it is chosen.
BROKEN = "broken_file"
_broken: list[UserError] = []


@dataclass(eq=False, repr=False)
class RegisteredCommand:
    """What was put into the ConfigStore for one command: its files by option name, those of the groups that these name
    by group and option (`optimizer/adam`), and notes for the user. `named_groups` are, for each config, the groups in
    its defaults list and in those of the files that it names."""

    files: dict[str, Path] = field(default_factory=dict)
    groups: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    named_groups: dict[str, set[str]] = field(default_factory=dict)


def conf_dir() -> Path:
    """Hydra's config tree, the package `nemotron_kit.conf`: in a checkout a link to its conf/."""
    return Path(__file__).resolve().parents[1] / "conf"


@contextmanager
def main_hydra(config_dir: str | None = None) -> Iterator[Any]:
    """Within the block, Hydra as `@hydra.main` makes it, over our config tree and `config_dir` in front of it. Raises
    UserError if that is no folder."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    path = create_config_search_path(str(conf_dir()))
    if config_dir:
        if not os.path.isdir(config_dir):  # noqa: PTH112 — pathlib's raises for a name that is too long
            raise UserError(f"--config-dir {config_dir}: no such folder.")
        path.prepend(provider="command-line", path=f"file://{Path(config_dir).absolute()}")
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("nemotron", path)
    finally:
        GlobalHydra.instance().clear()


def register_recipes(apps: Iterable[App] | None = None, env: EnvFile | None = None) -> None:
    """Register every command of every recipe in Hydra's ConfigStore, so that any program can compose them.

    For each command, `recipe/<recipe>/<stage>` has an option for each of its configs: the command's schema with that
    config over it. `+recipe/nano3/pretrain=tiny` puts it under that name, `@_global_` at the top.

    `apps` defaults to all recipes that can be found. A broken one is left out.
    """
    from hydra.core.config_store import ConfigStore

    env = env if env is not None else read_env_file()
    register_resolvers()
    for app in apps if apps is not None else discover(env).apps.values():
        commands = list(app.commands())
        for command in commands:
            try:
                register(command, commands, env)
            except UserError as error:  # concerns this command only
                for stage in command.stages:
                    _store(f"schema/{command.recipe}/{stage}", _broken_option(error))
                    for name in [*config_files(command), "default"]:
                        _store(f"job/{command.recipe}/{stage}/{name}", {})
            stage = f"{command.recipe}/{command.stage}"
            group, _, leaf = stage.rpartition("/")
            for name in {"default", *config_files(command)}:
                node = {"defaults": [{f"/schema/{group}@_here_": leaf}, {f"/job/{stage}@_here_": name}]}
                ConfigStore.instance().store(group=f"recipe/{stage}", name=name, node=node, provider=PROVIDER)


@cache
def recipes_store() -> Any:
    """A ConfigStore with what `register_recipes` registers, beside the program's, which is not changed."""
    from hydra.core.config_store import ConfigStore

    program = ConfigStore.instance()
    found, before = copy(program), program.repo
    program.repo = found.repo = {}
    try:
        register_recipes()
    finally:
        program.repo = before
    return found


def register(
    command: Command,
    siblings: list[Command],
    env: EnvFile,
    only: dict[str, Path] | None = None,
    stages: Sequence[str] = (),
    asked: str | None = None,
) -> RegisteredCommand:
    """Register one command and its config files.

    `only`: these files (option name → file) instead of all. `stages`: its stage and aliases to register it under, all
    by default. A file that can't be read is an error at once if it is the one `asked` for, else when it is chosen."""
    result = RegisteredCommand()
    # `name` is an alias of `run_name`.
    wandb = {("run_name" if key == "name" else key): value for key, value in env.table("wandb").items()}
    for stage in stages or command.stages:
        group, schema = f"{command.recipe}/{stage}", schema_node(command, wandb)
        _store(f"recipe/{command.recipe}", {})
        _store(f"stage/{stage}", {})
        _store(f"schema/{group}", schema)
        files = dict(config_files(command) if only is None else only)
        for name in [*files, "default"]:
            _store(f"config/{name}", {})
        if "default" not in files:
            _store(f"job/{group}/default", {})
        for name, path in files.items():
            try:
                _register_file(f"job/{group}", name, path, command, siblings, result)
            except UserError as error:
                if name == asked:
                    raise
                _store(f"job/{group}/{name}", _broken_option(error))
                result.files[name] = path
    return result


def broken_choice(text: str) -> UserError | None:
    """The error of the broken option that a message of Hydra's is about."""
    found = re.search(rf"'{BROKEN}/(\d+)'", text)
    return _broken[int(found[1])] if found else None


def _broken_option(error: UserError) -> dict[str, Any]:
    """The node of an option that raises `error` when it is chosen."""
    _broken.append(error)
    return {"defaults": [{f"/{BROKEN}": str(len(_broken) - 1)}]}


def add_file(command: Command, stage: str, path: Path, result: RegisteredCommand, siblings: list[Command]) -> str:
    """Register a config file from anywhere as a further option of the command; returns the option's name: the file's
    stem, with a hash if the command has another config of that name."""
    name, named = path.stem, config_files(command).get(path.stem)
    if named is not None and named.resolve() != path.resolve():
        name = f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    _store(f"config/{name}", {})
    _register_file(f"job/{command.recipe}/{stage}", name, path, command, siblings, result)
    return name


def register_empty(command: Command, stage: str, name: str) -> None:
    """Register `name` as a config of the command that sets nothing."""
    _store(f"config/{name}", {})
    _store(f"job/{command.recipe}/{stage}/{name}", {})
    foreign.forget_file(command, name)


def _register_file(
    group: str, name: str, path: Path, command: Command, siblings: list[Command], result: RegisteredCommand
) -> None:
    from omegaconf.errors import OmegaConfBaseException

    found = read_job_file(path, group, config_files(command))
    found.values = with_wandb(found.values, command.load_config_cls())
    if name == "default" and (other := other_command_of(found.values, command, siblings)):
        note = (
            f"{path} is the config of `{other.full_name}`; `{command.full_name}` starts from its dataclass's defaults."
        )
        if note not in result.notes:
            result.notes.append(note)
        _store(f"{group}/{name}", {})
        return
    result.files[name] = path
    foreign.check_file(path, found.values, command, name=name)
    try:
        _store(f"{group}/{name}", keep_text_spelling(found.values, found.spelled, partial(means_text_of, command)))
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "")
        raise UserError(f"{key_location(path, key)}: {key}: {str(error).splitlines()[0]}.") from error
    named = result.named_groups.setdefault(name, set())
    named |= found.named_groups()
    for each, folder in found.groups.items():
        result.groups.update(register_group(each, folder, command))
    for sibling in found.siblings:
        if result.files.get(sibling.stem) != sibling:
            _register_file(group, sibling.stem, sibling, command, siblings, result)
        named |= result.named_groups.get(sibling.stem, set())


def means_text_of(command: Command, spot: Spot, above: Sequence[str] = ()) -> bool:
    """Whether a config's value is a text: by the command's dataclass, and below `run` everything that is no boolean
    there. `above` is the package of the file in which it is at `spot`."""
    spot = (*above, *spot)
    if spot[0] != "run":
        return means_text(command.load_config_cls(), spot)
    return len(spot) > 1 and spot[1] != "recipe" and spot[1:] != ("wandb", "enabled")


def register_group(name: str, folder: Path, command: Command | None = None) -> dict[str, Path]:
    """Register the configs in a group's folder, for a command where its types are known; returns the files by group and
    option."""
    from hydra.core.config_store import ConfigStore

    files = {}
    for group, option, path in group_files(name, folder):
        try:
            (values, spelled), package = load_with_spelling(path), package_of(path)
            if command is not None:
                foreign.check_file(path, values, command, package or group.replace("/", "."))
        except UserError as error:
            values, package, spelled = _broken_option(error), None, None
        if command is not None and spelled is not None:
            names = [] if package == "_global_" else (package or group.replace("/", ".")).split(".")
            values = keep_text_spelling(values, spelled, partial(means_text_of, command, above=names))
        ConfigStore.instance().store(group=group, name=option, node=values, package=package, provider=PROVIDER)
        files[f"{group}/{option}"] = path
    return files


def _store(path: str, node: Any) -> None:
    """Store an option: `path` is its group and name."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig

    group, _, name = path.rpartition("/")
    store: Any = ConfigStore.instance()
    made = isinstance(node, DictConfig)  # of which `store` would copy each value
    # Package _global_: an empty `recipe: {}` must not show up in every config.
    store.store(group=group, name=name, node={} if made else node, package="_global_", provider=PROVIDER)
    if made:
        store._open(f"{path}.yaml").node = node
