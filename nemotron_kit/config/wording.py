"""Translates Hydra's and OmegaConf's exceptions to UserErrors: what was wrong, where, and what would be right."""

from __future__ import annotations

import dataclasses
import re
import shlex
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from nemotron_kit.app import Command
from nemotron_kit.config.config_files import group_files, key_location, load_mapping
from nemotron_kit.config.convert import (
    MAPPINGS,
    SEQUENCES,
    fields_below,
    fits_type,
    input_fields,
    members_of,
    type_at,
    type_inside,
    type_name,
)
from nemotron_kit.config.foreign import RUN_ENV
from nemotron_kit.config.freeze import omegaconf_message, user_error
from nemotron_kit.config.registration import broken_choice
from nemotron_kit.errors import NemotronError, UserError, causes, near, nearest, sentence

if TYPE_CHECKING:
    from nemotron_kit.config.compose import PreparedCommand


_RUN_BLOCKS = ("env", "recipe", "wandb")
# Names that other launchers have for a field of the profile.
_PROFILE_FIELDS = {
    **dict.fromkeys(("gpu", "gpus", "num_gpus", "n_gpus", "ngpus", "nproc"), "gpus_per_node"),
    **dict.fromkeys(("num_nodes", "n_nodes", "nnodes", "num_machines"), "nodes"),
    **dict.fromkeys(("num_processes", "nprocs", "devices", "processes"), "nproc_per_node"),
    **dict.fromkeys(("time_limit", "walltime"), "time"),
    **dict.fromkeys(("image", "container", "container_image"), "container_image"),
    "cpus": "cpus_per_task",
    "memory": "mem",
}

# optuna 2 is the one that hydra-optuna-sweeper takes.
STORAGE_FIX = "pip install 'SQLAlchemy<2' 'alembic<1.14'"

# A value that is no text, for one of the groups that every command has.
_NO_CHOICE = r"\+?(recipe|stage|config|schema|job)=([-+0-9.]|(true|false|null)\Z)"


@contextmanager
def translated(prepared: PreparedCommand) -> Iterator[None]:
    """Turn what Hydra raises while composing `prepared` into a UserError; the original stays as its cause."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except NemotronError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        if broken := broken_choice(str(error)):
            raise broken from error
        files = {**prepared.registered.files, **prepared.registered.groups}
        raise translate(error, prepared.command, files, prepared.typed) from error
    except RecursionError as error:
        raise UserError(f"The defaults lists form a circle (given in {' '.join(prepared.typed)}).") from error
    except (ValueError, TypeError, AssertionError) as error:  # Hydra's checks of a choice raise these
        import hydra.core.utils as jobs

        callers = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        if jobs.__file__ in callers:  # from a job of a sweep, passed on by a launcher: no mistake of the composition
            raise
        reason = str(error).rstrip(".")
        # By a sweeper's own package, and not by Hydra while it composed a job for it.
        if any("/hydra_plugins/" in file for file in callers) and not any("/config_loader" in file for file in callers):
            reason = reason or f"{type(error).__name__} in {callers[-1]}"
            stores = any("/optuna/storages/_rdb/" in file for file in callers)
            hint = f"optuna 2 can't store studies with SQLAlchemy 2: {STORAGE_FIX}" if stores else None
            raise UserError(f"The sweeper stopped: {reason}.", hint=hint) from error
        if "group override must be a string" in reason and (
            given := [t for t in prepared.typed if re.match(_NO_CHOICE, t)]
        ):
            name = given[-1].partition("=")[0].lstrip("+")
            raise UserError(
                f"{given[-1]}: {name} is a group of configs, which takes the name of one, and no field.",
                hint=f"A field of the recipe that is called {name} has to have another name."
                if name == "job"
                else None,
            ) from error
        raise UserError(f"Hydra can't compose {' '.join(prepared.typed)}: {reason}.") from error


def translate(error: Exception, command: Command, files: dict[str, Path], typed: Sequence[str] = ()) -> UserError:
    """The UserError for an exception of Hydra's; `typed` are the overrides given."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, KeyValidationError, ValidationError

    if isinstance(error, OverrideParseException):
        return unreadable(error)
    # The deepest cause that knows its key (0 is an item of a list).
    origin = [error, *(each for each in causes(error) if getattr(each, "full_key", None) not in (None, ""))][-1]
    key = str("" if (full_key := getattr(origin, "full_key", None)) is None else full_key)
    given = _given(str(error), key, files)
    if isinstance(origin, ConfigAttributeError | ConfigKeyError) and "not in" in str(origin):
        added = re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", str(error))
        unknown = (added and added[1]) or key or "''"
        if unknown.startswith("hydra."):
            return _unknown_setting(unknown, given, getattr(origin, "parent_node", None))
        found = list(_unknown_keys(_given_values(str(error), files, unknown, typed), command.load_config_cls(), ""))
        inside = [each for each in found if each.startswith((f"{unknown}.", f"{unknown}["))]
        return _unknown_key(_from_top(unknown, found) or next(iter(inside), unknown), given, command, typed)
    if isinstance(origin, KeyValidationError):
        return _wrong_key(key, given, command)
    if isinstance(origin, ValidationError):
        found = list(_misfits(_given_values(str(error), files, key, typed), command.load_config_cls(), ""))
        return _wrong_type(origin, _from_top(key, found) or key, given, command)
    if nested := user_error(error):
        return nested
    text = str(error).split("\nConfig search path:")[0].strip()
    if composing := re.match(_COMPOSING, text):
        return _misfit(composing[1], str(error), files, command)
    if several := re.match(r"(?s)Ambiguous value for argument '\+?(.*?)'\n", text):
        key = several[1].partition("=")[0]
        return UserError(
            f"Ambiguous value for argument '{several[1]}': a bare comma means several values, for several jobs.",
            hint=f"Add -m to sweep over them. A list is {key}=[1,2]; a text, {_quoted(key, 'a,b')}.",
        )
    if twice := re.match(
        r"(?:Multiple values for )?(\S+)(?:\. To override| appears more than once in the final)", text
    ):
        return UserError(
            f"{twice[1]}: chosen twice, one of them in a defaults list.",
            hint=f"To choose another there: {twice[1]}=…, without a +.",
        )
    if absent := re.match(_ABSENT, text):
        options = getattr(error, "options", None) or ()
        return _no_such_choice(absent[2], files.get(absent[1].rpartition("/")[2]), command, typed, options)
    if swept := re.match(r"(?s)Sweeping over Hydra's configuration is not supported : '(.*)'", text):
        key, _, value = swept[1].partition("=")
        return UserError(
            f"{swept[1]}: Hydra's own settings can't be swept over.",
            hint=f"A text with a comma is quoted: {_quoted(key, value)}",
        )
    if text.startswith("Error merging override") and origin is not error:
        key = given.lstrip("+~").partition("=")[0]
        if str(origin).startswith("Cannot merge") and (expected := _expected(command, key)):
            return UserError(f"{key}: expected {expected} (given in {given}).", hint=_of_block(command, key))
        text = f"{given}: {str(origin).splitlines()[0]}"
    if "BasicSweeper does not support sweep type" in text:
        text += "\nA sweeper that takes it: hydra/sweeper=optuna (pip install hydra-optuna-sweeper)"
    lines = [line for line in text.splitlines() if line.strip()] or [f"{type(error).__name__} while composing"]
    return UserError(lines[0] + ("" if lines[0].endswith(".") else "."), hint="\n".join(lines[1:]) or None)


# In a config's list of defaults, or on the command line.
_ABSENT = r"In '([^']*)': Could not find '([^']*)'"


# The packages that bring Hydra's other launchers and sweepers.
_PLUGINS = {
    "hydra/launcher/submitit_slurm": "nemotron-kit[submitit]",
    "hydra/launcher/submitit_local": "nemotron-kit[submitit]",
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/ray_aws": "hydra-ray-launcher",
    "hydra/launcher/rq": "hydra-rq-launcher",
    "hydra/sweeper/optuna": "hydra-optuna-sweeper",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
}


def _no_such_choice(
    choice: str, file: Path | None, command: Command, typed: Sequence[str], known: Sequence[str]
) -> UserError:
    """The error for a group's config that is not there, such as `lora/big`. `known`: those of the group that Hydra has
    found, as of its own groups."""
    group, _, name = choice.rpartition("/")
    given = next((each for each in typed if each.lstrip("+~").startswith((f"{group}=", f"{group}@"))), None)
    where = given or (f"{key_location(file, 'defaults')}: defaults" if file else "defaults")
    folders = [folder / group for folder in (file.parent if file else None, command.config_folder) if folder]
    options = [option for folder in folders if folder.is_dir() for _, option, _ in group_files("", folder)] or known
    if package := _PLUGINS.get(choice):
        return UserError(
            f"{where}: there is no config {choice!r}.", hint=f"It comes with a package: pip install '{package}'."
        )
    nothing = (
        f"There is no folder {group} of configs. Leave that entry out of the defaults list, and set the values in the "
        "file itself."
    )
    return UserError(f"{where}: there is no config {choice!r}.", hint=near(name, options) if options else nothing)


_JOB_FILE = r"'job/[^']*?([^/']+)'"
# Hydra's prefix of OmegaConf's message.
_COMPOSING = r"(?s)In '[^']*': \w+ raised while composing config:\s*\n(.*)"


def _misfit(text: str, whole: str, files: dict[str, Path], command: Command) -> UserError:
    """The error for a value of another shape than its field's (such as a list for a block), or with an invalid
    reference."""
    found = re.search(r"full_key: *(\S+)", text)
    path = files.get(named[1]) if (named := re.search(_JOB_FILE, whole)) else None
    values = load_mapping(path) if path and not found else {}
    run = values.get("run") or {}
    if found:
        key = found[1]
    elif not isinstance(run, Mapping):
        key = "run"
    elif wrong := next((name for name in _RUN_BLOCKS if not isinstance(run.get(name) or {}, Mapping)), None):
        key = f"run.{wrong}"
    else:
        key = _other_shape(values, command.load_config_cls())
    given = _given(whole, key or "", files)
    expected = _expected(command, key) if key else ""
    if expected and re.match(r"Cannot merge|Merge error", text):
        return UserError(f"{key}: expected {expected} (given in {given or 'the config'}).")
    return UserError(
        f"{key or 'config'}: {omegaconf_message(text).rstrip('.')}{f' (given in {given})' if given else ''}.",
        hint=f"Expected is {expected}." if expected else None,
    )


def _other_shape(values: Mapping[str, Any], cls: Any, above: tuple[str, ...] = ()) -> str | None:
    """The first key of a config whose value is a block, list or scalar where the dataclass has another kind."""
    for key, value in values.items():
        spot = (*above, str(key))
        kind = type_at(cls, spot)
        if kind is None or value is None:
            continue
        bases = [get_origin(each) or each for each in members_of(kind)]
        blocks = [each for each in bases if dataclasses.is_dataclass(each) or each in MAPPINGS]
        lists = [each for each in bases if each in SEQUENCES]
        if (blocks and not lists and not isinstance(value, Mapping)) or (lists and not isinstance(value, list)):
            return ".".join(spot)
        if blocks and isinstance(value, Mapping) and (inner := _other_shape(value, cls, spot)):
            return inner
    return None


def unreadable(error: Any) -> UserError:
    """The error for an override that Hydra's grammar refuses, with a hint how to quote it."""
    text = str(error.override)
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\+{0,2}[A-Za-z_][\w./@-]*", key):
        return UserError(f"{text!r}: no override that Hydra reads.", hint="One is key=value, +key=value or ~key.")
    hint = "Brackets and quotes must be closed; a text that contains one has to be quoted: key='\"a (b\"'."
    if not set(value) & set("[]{}()'\"\\$"):
        hint = f"Such a text has to be quoted: {_quoted(key, value)}"
    return UserError(f"{text}: Hydra's grammar can't read the value.", hint=hint)


def _quoted(key: str, text: str) -> str:
    """`key=text` as a shell's word in which Hydra reads a text."""
    return shlex.quote(f'{key}="{text}"')


def _given(text: str, key: str, files: dict[str, Path]) -> str:
    """Where the value came from: the override as typed, or file:line."""
    override = re.search(r"Error merging override (.*)", text, re.DOTALL)
    if override:
        return override[1].strip()
    job = re.search(_JOB_FILE, text)
    group = re.search(r"In '([^']+)'", text)
    path = files.get(job[1]) if job else files.get(group[1]) if group else None
    if path is None:
        return ""
    # A group's file holds the keys below its package.
    parts = key.split(".")
    locations = [key_location(path, ".".join(parts[at:])) for at in range(len(parts) if group and not job else 1)]
    return next((where for where in locations if where != str(path)), str(path))


def profile_field(name: str) -> str | None:
    """The field of the profile that an option or key of this name most likely means (`gpus`: gpus_per_node)."""
    return _PROFILE_FIELDS.get(name, name if name in RUN_ENV else None)


def abbreviated(name: str, fields: Iterable[str]) -> list[str]:
    """The fields whose last part abbreviates `name`, or is abbreviated by it: `optimizer.lr` for `learning_rate`."""

    def initials(text: str) -> str:
        return "".join(word[:1] for word in text.split("_")) if "_" in text else ""

    ends = {field: field.rpartition(".")[2] for field in fields}
    return [field for field, end in ends.items() if end == initials(name) or name == initials(end)]


def _unknown_setting(key: str, given: str, block: Any) -> UserError:
    """The error for an unknown key of the section `hydra`; `block` is the node that lacks it."""
    from hydra.core.config_store import ConfigStore

    above, _, leaf = key.rpartition(".")
    ours = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {}).get("nemo_run.yaml")
    names = [str(name) for name in block or () if name != "_target_"]
    if above == "hydra.launcher" and ours is not None and leaf in ours.node and "profile" not in names:
        hint = f"{leaf} is a setting of nemotron_kit's launcher: add hydra/launcher=nemo_run."
    elif above == "hydra.sweeper" and leaf in ("n_trials", "n_jobs", "direction", "sampler", "storage", "study_name"):
        hint = f"{leaf} is a setting of Optuna's sweeper: add hydra/sweeper=optuna (pip install hydra-optuna-sweeper)."
    else:
        hint = near(leaf, names)
    where = f"in {given}" if given and given != key else "on the command line"
    return UserError(f"{key}: Hydra's config has no such field (given {where}).", hint=hint or None)


def _other_meaning(key: str, command: Command, typed: Sequence[str]) -> str:
    """What to write where an unknown key names an artifact input or a field of the profile; "" where it doesn't."""
    assignments = (override.lstrip("+").partition("=") for override in typed)
    text = next(
        (re.sub(r"\\(.)", r"\1", value) for name, _, value in assignments if name == key), None
    )  # a sweep escapes
    if key in command.artifacts:
        return f"did you mean {f'--art.{key} {shlex.quote(text)}' if text else f'run.{key}'}?"
    field = profile_field(key)
    return f"did you mean {f'--run.{field}={shlex.quote(text)}' if text else f'run.env.{field}'}?" if field else ""


def _given_values(text: str, files: dict[str, Path], key: str, typed: Sequence[str]) -> Mapping[str, Any]:
    """The values of the config file or the override (else, of `typed`, the one of `key`) that an error of Hydra's is
    about, from the top."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    job = re.search(_JOB_FILE, text)
    if job and job[1] in files:
        return load_mapping(files[job[1]])
    merged = re.search(r"Error merging override (.*)", text, re.DOTALL)
    override = merged[1].strip() if merged else next((o for o in typed if o.lstrip("+").startswith(f"{key}=")), None)
    if override is None:
        return {}
    parsed = OverridesParser.create().parse_override(override)
    nested: Any = None if parsed.is_sweep_override() else parsed.value()
    for part in reversed(parsed.key_or_group.split(".")):
        nested = {part: nested}
    return nested  # type: ignore[no-any-return]


def _from_top(key: str, candidates: Iterable[str]) -> str | None:
    """The one of `candidates` that OmegaConf calls `key`: it names what is in an item of a list without the list."""
    return next((each for each in candidates if each == key or each.endswith((f".{key}", f"[{key}]"))), None)


def _unknown_keys(values: Any, kind: Any, above: str) -> Iterator[str]:
    """The keys below `values`, of the type `kind`, that its dataclasses have no fields for."""
    if isinstance(values, list):
        for index, item in enumerate(values):
            yield from _unknown_keys(item, type_inside(kind, str(index)), f"{above}[{index}]")
    elif isinstance(values, Mapping):
        members = members_of(kind)
        kind = members[0] if len(members) == 1 else kind
        names = input_fields(kind) if dataclasses.is_dataclass(kind) else None
        for name, item in values.items():
            key = f"{above}.{name}" if above else str(name)
            if names is not None and name not in names:
                yield key
            else:
                yield from _unknown_keys(item, type_inside(kind, str(name)), key)


def _misfits(values: Any, kind: Any, above: str) -> Iterator[str]:
    """The keys below `values`, of the type `kind`, whose values do not fit their types; the innermost first."""
    if isinstance(values, list | Mapping):
        for name, item in values.items() if isinstance(values, Mapping) else enumerate(values):
            key = f"{above}[{name}]" if isinstance(values, list) else f"{above}.{name}" if above else str(name)
            yield from _misfits(item, type_inside(kind, str(name)), key)
    if above and kind is not None and not fits_type(values, kind):
        yield above


def _unknown_key(key: str, given: str, command: Command, typed: Sequence[str]) -> UserError:
    names = [name for name, _ in fields_below(command.load_config_cls())]
    where = f"in {given}" if given and given != key else "on the command line"
    if key in names and "." in key:  # a name with a dot, which a file's reader splits no more than YAML does
        above, _, leaf = key.rpartition(".")
        hint = f"In a file, a block has its keys below it: {above}: {{{leaf}: …}}"
        return UserError(
            f"{key}: `{command.full_name}` has no field with a dot in its name (given {where}).", hint=hint
        )
    parent, _, leaf = key.rpartition(".")
    block = type_at(command.load_config_cls(), re.findall(r"[^.\[\]]+", parent))
    block = next((each for each in (block, *get_args(block)) if dataclasses.is_dataclass(each)), None)
    local = list(input_fields(block)) if block is not None else []
    same_leaf = [n for n in names if n.rpartition(".")[2] == leaf and n != key] or abbreviated(leaf, names)
    hint = f"did you mean {', '.join(same_leaf[:3])}?" if same_leaf else _other_meaning(key, command, typed)
    hint = sentence(hint or nearest(leaf, local))
    if "[" not in key:  # no override adds to an item of a list
        hint = f"{hint} Add a new one with +{key}=…".strip()
    return UserError(f"{key}: `{command.full_name}` has no such field (given {where}).", hint=hint or None)


def _wrong_key(key: str, given: str, command: Command) -> UserError:
    """The error for a key of a dict of another type than the dict's keys."""
    above, _, leaf = key.rpartition(".")
    kind = type_at(command.load_config_cls(), re.findall(r"[^.\[\]]+", above))
    block = next((each for each in (kind, *get_args(kind)) if get_origin(each) in MAPPINGS), None)
    of = str if block is None else get_args(block)[0]
    where, typed = f"(given in {given or 'the config'})", given.lstrip("+")
    if of is str:
        hint = f"Give it by itself: {above}.{leaf}=…" if typed.startswith(f"{above}=") else f'Quote it: "{leaf}".'
        return UserError(f"{above or 'config'}: {leaf} is no text, and the keys of this block are {where}.", hint=hint)
    whole = f"On a command line the whole block gives a key that is no text: {above}={{{leaf}: …}}"
    return UserError(
        f"{above}: expected {type_name(of)} as a key, got {leaf!r} {where}.",
        hint=whole if typed.startswith(f"{above}.") and of in (int, float, bool) else None,
    )


def _wrong_type(error: Any, key: str, given: str, command: Command) -> UserError:
    first = str(error).splitlines()[0]
    if re.match(r"Invalid (?:type|value) assigned", first):
        return UserError(
            f"{key}: expected {_expected(command, key) or 'another type'} (given in {given or 'the config'}).",
            hint=_of_block(command, key) if given.lstrip("+").startswith(f"{key}=") else None,
        )
    first = re.sub(r"field '.*' is not Optional|Incompatible value 'None'.*", "it can't be null", first)
    value = re.search(r"[Vv]alue '(.*?)'", first, re.DOTALL)
    expected = _expected(command, key)
    shown = f", got {value[1]!r}" if value else f": {first}"
    where = f" (given in {given})" if given else ""
    return UserError(f"{key}: expected {expected or 'another type'}{shown}{where}.")


def _of_block(command: Command, key: str) -> str | None:
    """What to write on the command line for a field that is a block; None for another one."""
    kind = type_at(command.load_config_cls(), key.split("."))
    block = next((each for each in members_of(kind) if dataclasses.is_dataclass(each)), None)
    if block is None:
        return None
    first = next((field.name for field in dataclasses.fields(block)), "FIELD")
    group = key.replace(".", "/")
    return f"Set its fields: {key}.{first}=… A file {group}/NAME.yaml beside the configs makes {group}=NAME a choice."


def _expected(command: Command, key: str) -> str:
    """The declared type of `a.b[0].c`; "" where it is not known."""
    parts = re.findall(r"[^.\[\]]+", key)
    if parts[:1] == ["run"]:  # the launcher's section
        return "a block" if not parts[1:] or ".".join(parts[1:]) in _RUN_BLOCKS else "a text"
    found = type_at(command.load_config_cls(), parts)
    return type_name(found) if found is not None else ""
