"""The defaults list of a config file: what it names is found beside the file, as in a primary config of Hydra's.

A job file is an option of the group `job/<recipe>/<stage>`, where Hydra would look for what the list names. So a
sibling (`- base`) is named as an option of that group, and a group (`- optimizer: adam`, for `optimizer/adam.yaml`
beside the file) as one at the root, where `optimizer=sgd` on the command line finds it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_kit.config.files import ENDINGS, Spelled, load_spelled
from nemotron_kit.errors import UserError, nearest, sentence

# `recipe=`, `stage=` and `config=` choose the job; the others are where Hydra finds it.
TAKEN = ("recipe", "stage", "config", "schema", "job")
_ENTRY = re.compile(r"(?P<words>(?:(?:override|optional)\s+)*)(?P<group>[^@\s]+)(?P<package>@\S*)?\Z")
_HEADER = re.compile(r"\A(?:\s*(?:#.*)?\n)*?\s*#\s*@package\s+(\S+)")


@dataclass
class JobFile:
    """A config file as it goes into the ConfigStore, and what it stands on: siblings, and folders of groups by name."""

    values: dict[str, Any]
    spelled: Spelled
    siblings: list[Path] = field(default_factory=list)
    groups: dict[str, Path] = field(default_factory=dict)


def read_job_file(path: Path, group: str, own: Mapping[str, Path] | None = None) -> JobFile:
    """Read a job file. `own` are the command's own configs, which `/job/<recipe>/<stage>/NAME` means from anywhere.

    Raises UserError for what is no mapping or has no list of defaults.
    """
    result = JobFile(*load_spelled(path))
    defaults = result.values.get("defaults")
    if defaults is None:
        return result
    if not isinstance(defaults, list):
        raise UserError(f"{path}: defaults must be a list.", hint="For instance: defaults: [default, _self_]")
    entries = [_rewritten(entry, path, group, own or {}, result) for entry in defaults]
    if "_self_" not in entries:
        # Hydra's own default for version_base 1.3, written out so that the order is plain.
        entries.append("_self_")
    result.values = {**result.values, "defaults": entries}
    return result


def group_files(name: str, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(group, option, file) of every config in a group's folder and the folders in it."""
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.is_symlink():  # a link may lead back
            yield from group_files(f"{name}/{place.name}", place)
        elif place.suffix in ENDINGS and place.is_file():
            yield name, place.stem, place


def package_of(path: Path) -> str | None:
    """What a YAML file's `# @package` header says; None without one."""
    found = _HEADER.match(path.read_text(encoding="utf-8-sig")) if path.suffix in (".yaml", ".yml") else None
    return found[1] if found else None


def _rewritten(entry: Any, path: Path, group: str, own: Mapping[str, Path], result: JobFile) -> Any:
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, option),) = entry.items()
        return {_group(str(name), path, result): option}
    if not isinstance(entry, str) or not entry.strip():
        raise UserError(f"{path}: defaults: {entry!r} is no entry.", hint="One is NAME, or GROUP: NAME.")
    sibling = _sibling(path, entry)
    if sibling is not None:
        result.siblings.append(sibling)
        return f"/{group}/{sibling.stem}@{entry.partition('@')[2] or '_here_'}"
    name = entry.removeprefix(f"/{group}/").partition("@")[0]
    if entry.startswith(f"/{group}/"):
        result.siblings += [own[name]] if name in own else []
        return entry
    if "/" in name or " " in entry:
        return _group(entry, path, result)
    if entry == "_self_":
        return entry
    there = [place.stem for place in path.parent.iterdir() if place.suffix in ENDINGS and place != path]
    raise UserError(f"{path}: defaults: there is no config {name!r} beside it.", hint=sentence(nearest(name, there)))


def _sibling(path: Path, entry: str) -> Path | None:
    name = entry.partition("@")[0]
    if name == "_self_" or name.startswith("/"):
        return None
    for candidate in (name, *(name + ending for ending in ENDINGS)):
        place = path.parent / candidate
        if place.suffix in ENDINGS and place.is_file() and place.parent == path.parent:
            return place
    return None


def _group(text: str, path: Path, result: JobFile) -> str:
    """A relative group (`override optimizer@opt`, or `optimizer/adam`) as one at the root; its folder is noted."""
    match = _ENTRY.match(text.strip())
    if match is None or {"", ".", ".."} & set(match["group"].removeprefix("/").split("/")):
        raise UserError(
            f"{path}: defaults: {text!r} is no group, nor a config in one.", hint="Groups lie beside the file."
        )
    if "override" in match["words"]:
        # Hydra's own rule for whatever hangs on an interpolated group, which the job's config does.
        raise UserError(
            f"{path}: defaults: {text!r}: a job's config can't override the choice of another file.",
            hint=f"Choose on the command line ({match['group'].lstrip('/')}=…), or name the group in this file only.",
        )
    if match["group"].startswith("/"):
        return text
    first = match["group"].partition("/")[0]
    if first in TAKEN:
        raise UserError(f"{path}: defaults: a group can't be called {first!r} here.", hint="Rename its folder.")
    if (path.parent / first).is_dir() and first != "hydra":
        result.groups[first] = path.parent / first
    return f"{match['words']}/{match['group']}{match['package'] or ''}"
