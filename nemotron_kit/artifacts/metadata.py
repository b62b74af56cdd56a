"""metadata.json: the description of an artifact, in its folder, or beside it if the artifact is a file.

It has `path`, `type` (the class), `metadata` (typed fields and free entries), `created_at`, `producer` (a run id, or
local), `tracking` (W&B's ids), `name` once it has been registered, the typed fields again at the top level, `sealed_by`
(nemotron_kit), and `sha256` of the document without this key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.manifest import METADATA
from nemotron_kit.artifacts.reference import ArtifactNotFoundError, Pin
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.files import WRITER, collect_leftovers, read_checksummed, read_regular, render_checksummed, write_text

_KINDS = {"type": str, "path": str, "metadata": dict}
# Bytes by which an incomplete metadata.json of ours is recognised: its beginning, and a field.
_BEGINS, _MARKED = b'{\n "path": "', b'"sealed_by": "nemotron_kit"'


def folder_of(path: Path) -> Path:
    """The folder that an artifact at `path` owns: `path`, or the folder of a file (of a .json not written yet, too)."""
    # pathlib's is_file raises for a name that is too long, and a record may hold any text.
    is_file = os.path.isfile(path) or (path.suffix == ".json" and not os.path.exists(path))  # noqa: PTH110, PTH113
    return path.parent if is_file else path


def read_document(folder: Path) -> dict[str, Any] | None:
    """The metadata.json in `folder`, None without one; DamagedRecordError if it is cut off or was changed."""
    try:
        document = read_checksummed(folder / METADATA, METADATA, strict=False)
    except FileNotFoundError:
        return None
    for key, kind in _KINDS.items():
        if not isinstance(document.get(key, kind()), kind):
            raise DamagedRecordError(f"{folder / METADATA}: this {METADATA} is damaged: {key} is {document[key]!r}.")
    return document


def is_ours(folder: Path) -> bool:
    """Whether a save may replace metadata.json in `folder`: it does not exist, or was written by nemotron_kit (also if
    damaged) or by the reference implementation."""
    try:
        document = read_document(folder)
    except DamagedRecordError:
        text = read_regular(folder / METADATA)
        return text.startswith(_BEGINS) or _MARKED in text
    return document is None or all(isinstance(document.get(key), kind) for key, kind in _KINDS.items())


def write_document(folder: Path, document: dict[str, Any]) -> None:
    """Write metadata.json atomically, with the permissions of the user's umask."""
    try:
        collect_leftovers(folder)
        write_text(folder / METADATA, render_checksummed({**document, **WRITER}), mode=0o666)
    except OSError as error:
        raise NemotronError(f"{folder / METADATA} can't be written: {error.strerror or error}.") from error


def absolute(path: str | os.PathLike[str]) -> Path:
    """`path` as an absolute path without `~` and `..`; links are not resolved. Raises UserError for an invalid path."""
    try:
        full = Path(path).expanduser().absolute()
        return full.resolve() if ".." in full.parts else full
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{os.fspath(path)!r} is no path on this machine: {error}.") from error


def path_pin(text: str | os.PathLike[str]) -> Pin:
    """The pin of a plain path, with type and name from its metadata.json if there is one. Raises
    ArtifactNotFoundError."""
    path = absolute(text)
    try:
        exists = os.path.exists(path)  # noqa: PTH110
    except ValueError:
        exists = False
    if not exists:
        raise ArtifactNotFoundError(str(path), f"There is no file or folder {path}.")
    document = read_document(folder_of(path)) or {}
    name = document.get("name")
    return Pin(name if isinstance(name, str) else "", None, None, document.get("type", ""), str(path))


def located_in(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The document with its paths changed to the folder where it was found: the artifact may have been moved."""
    old = Path(document.get("path") or folder)
    # A file in a folder of its name is told from the folder by the path alone.
    is_file = (old.parent == folder or old.name != folder.name) and (folder / old.name).is_file()
    root = old.parent if is_file else old
    values = document if root == folder else relative_to(document, {str(root): str(folder)})
    return {**values, "path": folder / old.name if is_file else folder}


def relative_to(value: Any, roots: dict[str, str]) -> Any:
    """`value` with every path that is one of the folders `roots`, or inside one, replaced by the path that the folder
    maps to."""
    if isinstance(value, dict):
        return {key: relative_to(item, roots) for key, item in value.items()}
    if isinstance(value, list):
        return [relative_to(item, roots) for item in value]
    if isinstance(value, str):
        for root in sorted(roots, key=len, reverse=True):
            if value == root or value.startswith(root + "/"):
                return roots[root] + value[len(root) :]
    return value
