"""Restricts config files from untrusted places: they may hold data, but must not decide which code runs or which files
are written.

Trusted are files in the command's config folder (or beside its script), and files in the project of the working
folder that belong to this user and that no other user may write. The project is the nearest folder above with a
pyproject file or .git. Overrides on the command line are not restricted.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.app import Command
from nemotron_kit.config.config_files import config_files, key_location, load_mapping
from nemotron_kit.config.freeze import leaves
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import nemotron_home
from nemotron_kit.ownership import untrusted_reason

TARGET = "_target_"
# What any config file may set in Hydra's node: a name, how much is logged, what is swept over.
_HYDRA = r"hydra\.(?:mode|verbose|job\.(?:name|chdir)|sweeper\.params(?:\..*)?)\Z"
# A profile's fields that any config file may set: how much of a machine, and for how long. The others decide what is
# started, where, and as whom.
RUN_ENV = frozenset(
    [
        "nodes",
        "nproc_per_node",
        "ntasks_per_node",
        "gpus_per_node",
        "gpus_per_task",
        "gpus",
        "cpus_per_task",
        "cpus_per_gpu",
        "mem",
        "mem_per_gpu",
        "mem_per_cpu",
        "exclusive",
        "time",
        "job_name",
        "shm_size",
        "account",
        "partition",
        "run_partition",
        "batch_partition",
        "qos",
        "constraint",
        "exclude",
        "nodelist",
        "reservation",
        "segment",
        "comment",
        "signal_lead",
        "gres",
        "array",
        "retries",
        "max_segments",
        "max_parallel",
    ]
)
_HEADS = ("hydra", "run")

# (command's path, config's name) of the configs from untrusted places that this process has read.
_foreign: set[tuple[tuple[str, ...], str]] = set()


def is_trusted(path: Path, command: Command) -> bool:
    """Whether a config file belongs to the recipe or to this user."""
    real = path.resolve()
    folder = command.config_folder
    # The user who installed the recipe owns its code as well; but whoever may write the folder may add a file.
    if folder is not None and real.is_relative_to(root := folder.resolve()):
        inner = [real, *(root / part for part in real.relative_to(root).parents)]
        if not any(each.stat().st_mode & stat.S_IWOTH for each in inner):
            return True
    cwd = Path.cwd()
    marks = (above / name for above in (cwd, *cwd.parents) for name in ("pyproject.toml", ".git"))
    mark = next((each for each in marks if each.exists()), None)
    project = mark.parent if mark is not None and untrusted_reason(mark) is None else None
    roots = [*([folder.parent] if folder is not None else []), nemotron_home() / "runs", project]
    inside = any(root is not None and real.is_relative_to(root.resolve()) for root in roots)
    return inside and untrusted_reason(path) is None


def check_file(
    path: Path, values: Mapping[str, Any], command: Command, package: str = "", *, name: str | None = None
) -> None:
    """Raise UserError for keys that a config file from an untrusted place may not set. `package` is the dotted key
    below which Hydra puts its content. `name`: it is a config of the command, whose targets `check_targets` checks."""
    if is_trusted(path, command):
        if name is not None:
            forget_file(command, name)
        return
    _check_package(path, package, "the file's package")
    for entry in values.get("defaults") or ():
        for text in entry if isinstance(entry, Mapping) else (entry,):
            group, _, into = str(text).rpartition(" ")[2].partition("@")
            _check_package(path, group.strip("/").replace("/", "."), f"defaults: {text!r}", only=("hydra",))
            _check_package(path, into, f"defaults: {text!r}")
    for key, value in leaves({k: v for k, v in values.items() if k != "defaults"}, _prefix(package)):
        head = key.partition(".")[0]
        if head == "hydra" and not re.match(_HYDRA, key):
            raise _refused(path, key, "it decides what is run, and which files are written")
        if key.startswith("run.env.") and key.split(".")[2].partition("[")[0] not in RUN_ENV:
            raise _refused(path, key, "it decides what is started, and where")
        if key == "run.env" and value is not None:
            raise _refused(path, key, "it decides what is started, and where")
        if key.rpartition(".")[2] == TARGET and not permitted(str(value), allowed_targets(command)):
            raise _refused(path, key, f"{value!r} would be imported and called")
    if name is not None:
        _foreign.add((command.path, name))


def forget_file(command: Command, name: str) -> None:
    """Record that the config that the command has under this name is from no file, or from a trusted one."""
    _foreign.discard((command.path, name))


def check_targets(values: Mapping[str, Any], command: Command, name: str, typed: str) -> None:
    """Raise UserError where a frozen config with a part from an untrusted place has a `_target_` that neither the
    recipe nor the command line (`typed`) names: an interpolation can put a value of that part into one."""
    if (command.path, name) not in _foreign:
        return
    named = [(key, str(value)) for key, value in leaves(values) if key.rpartition(".")[2] == TARGET]
    allowed = allowed_targets(command) if named else ()
    for key, value in named:
        if not permitted(value, allowed) and value not in typed:
            raise UserError(
                f"{key}: {value!r} would be imported and called, because of a config file from an untrusted place.",
                hint="Give it on the command line.",
            )


def permitted(target: str, allowed: Collection[str]) -> bool:
    """Whether `target` is one of `allowed`, of which one that ends in a dot stands for all names below it."""
    named = all(map(str.isidentifier, target.split(".")))
    return any((named and target.startswith(each)) if each.endswith(".") else target == each for each in allowed)


def allowed_targets(command: Command) -> frozenset[str]:
    """The values of `_target_` that are always permitted: those that the recipe registers, and those in its configs
    and class."""
    found = set(command.targets)
    for path in config_files(command).values():
        try:
            found |= set(_texts(load_mapping(path)))
        except NemotronError:  # its mistake is an error when it is chosen
            continue
    return frozenset(found | set(_of_class(command.load_config_cls())))


def _of_class(cls: Any) -> Iterator[str]:
    for each in fields(cls):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if is_dataclass(default) and not isinstance(default, type):
            yield from _of_class(default)
        else:
            yield from _texts(default)


def _texts(value: Any) -> Iterator[str]:
    yield from (text for _, text in leaves(value) if isinstance(text, str) and "${" not in text)


def _prefix(package: str) -> str:
    parts = [part for part in package.split(".") if part not in ("", "_global_", "_here_", "_group_", "_name_")]
    return ".".join(parts)


def _check_package(path: Path, package: str, what: str, only: tuple[str, ...] = _HEADS) -> None:
    head = _prefix(package).partition(".")[0]
    if head in only:
        raise _refused(path, what, f"it sets `{head}`, which decides what is run")


def _refused(path: Path, key: str, why: str) -> UserError:
    location = key_location(path, key)
    return UserError(
        f"{location}: {key} may not be set by a config file from an untrusted place: {why}.",
        hint="Give it on the command line; or put the file into your project (a folder with a pyproject.toml or .git, "
        "in which you work) that only you may write, if you trust it.",
    )
