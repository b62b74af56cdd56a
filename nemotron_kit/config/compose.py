"""One composition path: a list of Hydra overrides in, one composed config out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_origin

from nemotron_kit.app import Command
from nemotron_kit.config.config_files import TAKEN, config_files, find_config_file, group_choices
from nemotron_kit.config.convert import MAPPINGS, input_fields, members_of, type_at
from nemotron_kit.config.limits import faster_omegaconf
from nemotron_kit.config.registration import (
    RegisteredCommand,
    add_file,
    main_hydra,
    means_text_of,
    register,
    register_empty,
    register_group,
)
from nemotron_kit.config.resolvers import register_resolvers
from nemotron_kit.config.secrets import refuse_literal_secrets
from nemotron_kit.config.wording import translated, unreadable
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import UserError, near, nearest
from nemotron_kit.quoting import hydra_quoted, hydra_text, hydra_unquoted

if TYPE_CHECKING:
    from omegaconf import DictConfig

CHOICES = ("recipe", "stage", "config")


@dataclass(eq=False, repr=False)
class Composed:
    """A composed job: `config` is the job's config, `hydra` the section `hydra`, split off it. `env`: the env.toml that
    it was composed with, where it is known."""

    command: Command
    config: DictConfig
    hydra: DictConfig
    overrides: list[str]
    config_name: str
    config_file: Path | None
    notes: list[str] = field(default_factory=list)
    env: EnvFile | None = None


@dataclass(eq=False, repr=False)
class PreparedCommand:
    """A command line prepared for Hydra: its command registered, a config file given by path registered as an option.

    `typed` are the given overrides, `overrides` those passed to Hydra.
    """

    command: Command
    typed: list[str]
    overrides: list[str]
    registered: RegisteredCommand
    env: EnvFile


def compose(tree: Tree, overrides: Sequence[str], env: EnvFile, config_dir: str | None = None) -> Composed:
    """Compose one job. Raises UserError, with the nearest names and the location, for any mistake in it."""
    return compose_prepared(prepare(tree, overrides, env), config_dir)


def compose_prepared(prepared: PreparedCommand, config_dir: str | None = None) -> Composed:
    """The job of a prepared command line. Raises UserError, as `compose` does."""
    from hydra.types import RunMode
    from omegaconf import flag_override, read_write

    with faster_omegaconf(), translated(prepared), main_hydra(config_dir) as loaded:
        config = loaded.compose_config("config", prepared.overrides, RunMode.RUN, with_log_configuration=False)
    # As @hydra.main does before it calls the task (there, off a copy).
    hydra = config._get_node("hydra")
    with flag_override(config, ["readonly", "struct"], [False, False]):
        del config["hydra"]
    if hydra.mode is None:  # as Hydra's run() does
        with read_write(hydra):
            hydra.mode = RunMode.RUN
    name, registered = str(hydra.runtime.choices.get("config")), prepared.registered
    file = registered.files.get(name)
    return Composed(prepared.command, config, hydra, prepared.typed, name, file, registered.notes, prepared.env)


def from_hydra(tree: Tree, config: DictConfig, hydra: DictConfig) -> Composed:
    """The config that one of Hydra's launchers passes to a task function, in the form that `compose` returns."""
    choices, overrides = hydra.runtime.choices, [str(o) for o in hydra.overrides.task]
    command, name = find_command(tree, choices.recipe, choices.stage), str(choices.get("config"))
    return Composed(command, config, hydra, overrides, name, config_files(command).get(name))


@contextmanager
def hydra_visible(node: Any) -> Iterator[None]:
    """Within the block `${hydra:…}` means this composition's node."""
    from hydra.core.hydra_config import HydraConfig

    instance: Any = HydraConfig.instance()
    before = instance.cfg
    instance.cfg = SimpleNamespace(hydra=node)  # set_config would copy it
    try:
        yield
    finally:
        instance.cfg = before


def prepare(tree: Tree, overrides: Sequence[str], env: EnvFile, *, sweep: bool = False) -> PreparedCommand:
    """Find the command that `recipe=` and `stage=` name, register it, and turn `config=PATH` into an option's name."""
    register_resolvers()
    refuse_literal_secrets(overrides)
    stage = _choice(overrides, "stage")
    command = find_command(tree, _choice(overrides, "recipe"), stage)
    siblings = list(tree.apps[command.recipe].commands())
    files = config_files(command)
    value = _choice(overrides, "config", quoted=True)
    several = expand_choice("config", value, files)
    needed = files if sweep or len(several) > 1 else {k: v for k, v in files.items() if k == _plain(value or "default")}
    with faster_omegaconf():
        registered = register(
            command, siblings, env, only=needed, stages=[str(stage)], asked=several[0] if len(several) == 1 else None
        )
    # The listing of choices stays complete, without reading each file.
    names = []
    for option in several:
        if option != "default" or "default" in files:
            path = find_config_file(option, command.config_folder, command.full_name)
            if registered.files.get(option) != path:
                option = add_file(command, str(stage), path, registered, siblings)
        names.append(option)
    rewritten = [f"config={','.join(map(hydra_text, names))}" if o.startswith("config=") else o for o in overrides]
    rewritten = _with_groups(command, siblings, rewritten, names or ["default"], registered)
    refuse_deleted_fields(command, rewritten, {each for named in registered.named_groups.values() for each in named})
    rewritten = keep_texts(command, rewritten, sweep=sweep)
    return PreparedCommand(command, list(overrides), rewritten, registered, env)


def prepare_without_files(tree: Tree, recipe: str, stage: str, name: str, env: EnvFile) -> PreparedCommand:
    """A command without its config files: with an empty config called `name` instead."""
    register_resolvers()
    command = find_command(tree, recipe, stage)
    registered = register(command, list(tree.apps[recipe].commands()), env, only={}, stages=[stage])
    register_empty(command, stage, name)
    overrides = [f"recipe={hydra_text(recipe)}", f"stage={hydra_text(stage)}", f"config={hydra_text(name)}"]
    return PreparedCommand(command, overrides, overrides, registered, env)


_ASSIGNED = re.compile(r"(\+{0,2}([A-Za-z_][\w.]*)=)([\w.+-]+(?:,[\w.+-]+)*)", re.ASCII)


def keep_texts(command: Command, overrides: Sequence[str], *, sweep: bool = False) -> list[str]:
    """The overrides with quotes around what Hydra's grammar would read as a number or boolean whose text is another,
    for fields that are texts: `name=1.10` is not "1.1". In a `sweep`, each of several values is quoted."""
    result = []
    for override in overrides:
        match = _ASSIGNED.fullmatch(override)
        if match is not None and (sweep or "," not in match[3]) and match[2] not in CHOICES:
            values, spot = match[3].split(","), tuple(match[2].split("."))
            quoted = [hydra_quoted(value) if _changes_as_number(value) else value for value in values]
            if quoted != values and spot[:3] != ("run", "env", "extra") and means_text_of(command, spot):
                override = match[1] + ",".join(quoted)
        result.append(override)
    return result


def _changes_as_number(text: str) -> bool:
    """Whether a value is a number or a boolean in Hydra's grammar, and becomes another text when it is made text."""
    if text.lower() in ("true", "false"):
        return True
    with suppress(ValueError):
        return str(int(text)) != text
    with suppress(ValueError):
        return str(float(text)) != text
    return False


def find_command(tree: Tree, recipe: str | None, stage: str | None) -> Command:
    """The command of a recipe and a stage, by name or alias."""
    if not recipe:
        raise UserError("No recipe was given.", hint=f"Give recipe=…; {nearest('', tree.apps)}.")
    if recipe in tree.broken and recipe not in tree.apps:
        raise UserError(f"The recipe {recipe!r} is broken: {tree.broken[recipe].rstrip('.')}.")
    if recipe not in tree.apps:
        raise UserError(f"No recipe is called {recipe!r}.", hint=near(recipe, tree.apps))
    stages = stages_of(tree, recipe)
    if not stage:
        raise UserError(f"No stage was given for {recipe}.", hint=f"Give stage=…; {nearest('', stages)}.")
    if stage not in stages:
        raise UserError(f"{recipe} has no stage {stage!r}.", hint=near(stage, stages))
    return stages[stage]


def stages_of(tree: Tree, recipe: str) -> dict[str, Command]:
    """The commands of a recipe by their stages, aliases among them."""
    return {stage: command for command in tree.apps[recipe].commands() for stage in command.stages}


def _choice(overrides: Sequence[str], name: str, *, quoted: bool = False) -> str | None:
    """The last value given for one of the primary config's choices, as it is written on the command line."""
    found = [o.partition("=")[2] for o in overrides if o.startswith(f"{name}=")]
    return None if not found else found[-1] if quoted else _plain(found[-1])


def expand_choice(key: str, value: str | None, names: Collection[str]) -> list[str]:
    """The options of a choice: `tiny,default`, `choice(tiny,default)`, `glob(t*)` out of `names`. A comma inside of
    quotes belongs to a file's name. Raises UserError for an invalid choice."""
    if not re.match(r"[a-z]+\(", value or ""):
        parts = re.findall(r"""(?:[^,'"]|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")+""", value or "")
        return [_plain(part) for part in parts]
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    # What Hydra's grammar asks for the options of a group.
    loader: Any = SimpleNamespace(get_group_options=lambda group, results_filter=None: sorted(names))
    try:
        (choice,) = OverridesParser.create(config_loader=loader).parse_overrides([f"{key}={value}"])
    except OverrideParseException as error:
        raise unreadable(error) from error
    found = [_plain(text) for text in choice.sweep_string_iterator()] if choice.is_discrete_sweep() else []
    if not found:
        raise UserError(f"{key}={value}: chooses nothing.", hint=f"There are: {', '.join(names)}.")
    return found


_GROUP = re.compile(r"(?P<added>\+{0,2})(?P<group>[A-Za-z_][\w/]*)(?P<package>@[\w.]*)?=(?P<value>.+)", re.DOTALL)
_BLOCKS = (*MAPPINGS, Any, None)


def _with_groups(
    command: Command,
    commands: Sequence[Command],
    overrides: Sequence[str],
    configs: Sequence[str],
    registered: RegisteredCommand,
) -> list[str]:
    """The overrides, with those that choose from a group in the command's config folder in Hydra's form.

    `model=big` adds `config/model/big.yaml` after the config, or replaces the choice in its defaults list.

    Raises UserError for an unknown option, and where only some of the `configs` that are swept over name the group.
    """
    matches = [_GROUP.fullmatch(override) for override in overrides]
    if not any(match is not None and match["group"] not in TAKEN for match in matches):
        return list(overrides)
    groups, result = group_choices(command, commands), []
    chosen: dict[tuple[str, str | None], str] = {}  # as for a field, the last of several wins; Hydra refuses two
    for override, match in zip(overrides, matches, strict=True):
        group = match["group"] if match is not None else ""
        naming = [name for name in configs if group in registered.named_groups.get(name, ())]
        if match is None or group not in groups or len(naming) == len(configs):
            result.append(override)  # a value, or the choice of a group that Hydra knows from the defaults list
        elif not (options := _chosen(group, match["value"], groups, command)):
            result.append(override)
        elif naming:
            raise UserError(
                f"{override}: the defaults list of {', '.join(naming)} names the group {group}, the others' doesn't.",
                hint="Sweep over those configs one by one.",
            )
        else:
            first = group.partition("/")[0]
            registered.groups.update(register_group(first, (command.config_folder or Path()) / first, command))
            spot = (group, match["package"])
            if spot in chosen:
                result.remove(chosen[spot])
            # A file may be called 1e3, which Hydra's grammar reads as a number.
            value = hydra_text(options[0]) if len(options) == 1 else match["value"]
            chosen[spot] = f"{match['added'] or '+'}{group}{match['package'] or ''}={value}"
            result.append(chosen[spot])
    return result


def refuse_deleted_fields(command: Command, overrides: Sequence[str], groups: Collection[str] = ()) -> None:
    """Raise UserError for `~FIELD`: the config would lack the field, and the job would get its default all the same.

    `groups`: those of the defaults lists, whose choice `~GROUP` takes back.
    """
    cls = command.load_config_cls()
    for override in overrides:
        key = override[1:].partition("=")[0].partition("@")[0]
        if not override.startswith("~") or key in groups:
            continue
        *above, name = key.split(".")
        for each in members_of(type_at(cls, above)):
            if is_dataclass(each) and name in input_fields(each):
                raise UserError(
                    f"{override}: {key} is a field of {command.full_name}, which can't be taken out of its config.",
                    hint=f"Leave it out for the default, or set it: {key}=…",
                )


def refuse_group_choices(command: Command, overrides: Sequence[str]) -> None:
    """Raise UserError for a choice from a group of config files: a recorded config takes values only."""
    groups = group_choices(command, ())
    for override in overrides:
        match = _GROUP.fullmatch(override)
        if match is not None and match["group"] in groups and _chosen(match["group"], match["value"], groups, command):
            raise UserError(
                f"{override} chooses a config file, and a rerun has the recorded config.",
                hint=f"Set its values ({match['group'].replace('/', '.')}.KEY=…), or launch {command.full_name} anew.",
            )


def _chosen(group: str, value: str, groups: Mapping[str, Collection[str]], command: Command) -> list[str]:
    """The options of a group that a value chooses; [] if it is the value of a field of that name. Raises UserError for
    an option that isn't there, where the field is a block."""
    if value.lstrip()[:1] in ("{", "[", "$") or value.strip() in ("null", "???", "''", '""'):
        return []
    annotation = type_at(command.load_config_cls(), group.split("/"))
    if not any(is_dataclass(each) or (get_origin(each) or each) in _BLOCKS for each in members_of(annotation)):
        return []
    options = groups[group]
    found = expand_choice(group, value, options)
    unknown = next((each for each in found if each not in options), None)
    if unknown is not None:
        raise UserError(f"{group}={value}: {group} has no option {unknown!r}.", hint=near(unknown, options))
    return found


def _plain(value: str) -> str:
    text = hydra_unquoted(value.strip())
    return value.strip() if text is None else text
