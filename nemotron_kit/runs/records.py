"""Reading what a run left: JSON objects that are whole, or a named error."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import Any

from nemotron_kit.errors import NemotronError
from nemotron_kit.files import decoded, open_regular, read_regular

_MAX_BYTES = 64 * 1024 * 1024
_TAIL_BYTES = 1024 * 1024


class DamagedRecord(NemotronError):
    """A record is there but can't be read as what it should be."""

    exit_code = 3


# What may stand under a key (null, and nothing, always may): a type, or one of several; {key: …} for an object with
# these keys and any others, {None: …} for one whose keys are names of something; [kind] for a list.
Shape = Any
_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}


def read_object(path: Path, shape: Shape = None) -> dict[str, Any]:
    """The JSON object in `path`. Raises FileNotFoundError, or DamagedRecord when the file holds no whole object, or one
    that has not this shape."""
    try:
        value = json.loads(read_regular(path, limit=_MAX_BYTES))
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedRecord(f"{path}: not valid JSON: {error}.") from error
    except OSError as error:
        raise DamagedRecord(f"{path}: {error.strerror or error}.") from error
    if not isinstance(value, dict):
        raise DamagedRecord(f"{path}: expected a JSON object, got {type(value).__name__}.")
    value = decoded(value)
    if shape is not None and (wrong := _misshapen(value, shape, "")):
        raise DamagedRecord(f"{path}: {wrong}.")
    return value


def _misshapen(value: Any, shape: Shape, key: str) -> str | None:
    """The first thing in a value that has not its shape; None if all has."""
    if value is None:
        return None
    kinds = shape if isinstance(shape, tuple) else (type(shape) if isinstance(shape, dict | list) else shape,)
    # To Python, true is a whole number.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(_WORDS[kind] for kind in kinds)
        said = json.dumps(value, default=str) if len(repr(value)) < 60 else f"{repr(value)[:57]}…"
        return f"{key} is {said}, not {expected}"
    if isinstance(shape, dict):
        pairs = [(k, shape.get(k, shape.get(None))) for k in value]
        found = (_misshapen(value[k], kind, f"{key}.{k}".lstrip(".")) for k, kind in pairs if kind is not None)
        return next(filter(None, found), None)
    if isinstance(shape, list):
        return next(filter(None, (_misshapen(item, shape[0], f"{key}[{n}]") for n, item in enumerate(value))), None)
    return None


def tail(path: Path, count: int, *, limit: int = _TAIL_BYTES) -> list[bytes]:
    """The last `count` lines of a file, without reading more than `limit` bytes of it; [] when there is no file."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            if size > limit:
                file.readline()  # the first of what is left is a part of a line
            return list(deque(file, maxlen=count)) if count > 0 else []
    except FileNotFoundError:
        return []


def tail_objects(path: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` whole JSON objects, one a line; a line that is still being written is left out."""
    found = []
    for line in tail(path, count + 1):
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found[-count:] if count > 0 else []
