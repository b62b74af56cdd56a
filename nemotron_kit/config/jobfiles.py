"""The config files of a command as options of the group `job/<recipe>/<stage>`, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from nemotron_kit.app import Command
from nemotron_kit.config.files import ENDINGS, is_path
from nemotron_kit.config.hints import input_fields
from nemotron_kit.errors import UserError, nearest, sentence


def config_files(command: Command) -> dict[str, Path]:
    """Config name → file, of the command's own config folder."""
    folder = command.config_folder
    if folder is None or not folder.is_dir():
        return {}
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix in ENDINGS and p.is_file()}


def find_config_file(command: Command, value: str) -> Path:
    """The file that `-c value` names: a name in the command's folder, or a path (from here, then beside the script)."""
    files = config_files(command)
    if not is_path(value):
        if value in files:
            return files[value]
        raise UserError(
            f"{command.words}: no config called {value!r} in {command.config_folder}.",
            hint=sentence(nearest(value, files) or "That folder holds none; -c also takes a path."),
        )
    folder = command.config_folder
    given = Path(value).expanduser()
    places = [given] if given.is_absolute() or folder is None else [given, folder.parent / given, folder / given]
    for place in places:
        if os.path.isfile(place):  # noqa: PTH113 — False, and no exception, for what can be no file's name
            return place.absolute()
    tried = ", ".join(str(p.absolute()) for p in places)
    raise UserError(
        f"-c {value}: no such config file.", hint=f"Looked for {tried}. Configs by name: {', '.join(files) or 'none'}."
    )


def fits(values: dict[str, Any], command: Command) -> bool:
    """Whether every top-level key of a config file is a field of the command (or `run`, or Hydra's `defaults`)."""
    known = {*input_fields(command.load_config_cls()), "run", "defaults", "hydra"}
    return set(values) <= known


def belongs_to_another(values: dict[str, Any], command: Command, others: list[Command]) -> Command | None:
    """The other command of a shared folder whose config this file is, if it doesn't fit `command`."""
    if fits(values, command):
        return None
    folder = command.config_folder
    shared = [c for c in others if c.path != command.path and c.config_folder == folder]
    return next((c for c in shared if _loads(c) and fits(values, c)), None)


def _loads(command: Command) -> bool:
    try:
        command.load_config_cls()
    # Another command's broken module is no business of this one.
    except Exception:  # noqa: BLE001
        return False
    return True


def option_name(command: Command, path: Path) -> str:
    """The name under which a file becomes an option: its stem, made distinct from another file of that name."""
    own = config_files(command).get(path.stem)
    if own is None or own.resolve() == path.resolve():
        return path.stem
    return f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
