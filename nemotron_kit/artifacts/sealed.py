"""JSON that knows whether it is whole: a document carries the sha256 of its own content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.errors import DamagedRecordError
from nemotron_kit.errors import NemotronError
from nemotron_kit.files import decoded, encoded, read_regular

SEAL = "sha256"
# Where documents of other tools are read too: a document that says this and has no seal has lost it.
MARK = {"sealed_by": "nemotron_kit"}


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def sha256_of(value: Any) -> str:
    """Hex digest of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(canonical(value)).hexdigest()


def render_sealed(document: dict[str, Any]) -> str:
    """The file's text. It ends with its last brace, so that no cut-off file is still a document."""
    return _text(encoded({key: value for key, value in document.items() if key != SEAL}))


def _text(body: dict[str, Any]) -> str:
    return json.dumps({**body, SEAL: sha256_of(body)}, indent=1)


def read_json(path: Path, what: str) -> Any:
    """The JSON in `path`. FileNotFoundError if there is none, DamagedRecordError if it isn't JSON."""
    found = _parse(_read(path, what), path, what)
    return decoded(found) if isinstance(found, dict) else found


def read_sealed(path: Path, what: str, *, strict: bool = True) -> dict[str, Any]:
    """A document without its seal, or a DamagedRecordError that names the file.

    `strict` also refuses a file whose text is not the very one that was written. Without it, a document with neither
    seal nor MARK is taken as it is: another tool wrote it.
    """
    text = _read(path, what)
    document = _parse(text, path, what)
    if not isinstance(document, dict):
        raise DamagedRecordError(f"{path}: this {what} is damaged: not a JSON object.")
    seal = document.pop(SEAL, None)
    if seal is None and not strict and not MARK.keys() & document.keys():
        return decoded(document)
    if seal != sha256_of(document) or (strict and text != _text(document)):
        raise DamagedRecordError(f"{path}: this {what} is damaged or was changed by hand: its sha256 does not match.")
    return decoded({key: value for key, value in document.items() if key not in MARK})


def _read(path: Path, what: str) -> str:
    try:
        return read_regular(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedRecordError(f"{path}: this {what} is damaged: not UTF-8 ({error}).") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except OSError as error:
        raise NemotronError(f"{path}: can't be read: {error.strerror}.") from error


def _parse(text: str, path: Path, what: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DamagedRecordError(f"{path}: this {what} is damaged: not valid JSON ({error}).") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice")
    return document
