"""Relative paths of a job's config, fixed at launch to what they mean there."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from nemotron_kit.config.hints import type_hints


def anchored(values: Mapping[str, Any], cls: type, folder: str) -> dict[str, Any]:
    """`values`, a frozen config of the dataclass `cls`, with each relative path that is there in the working folder
    as one below `folder`, which the working folder is called where the job runs.

    Only what a field of type Path holds is taken for a path. One that isn't there may be a result, or a file that the
    job's own code finds in its own way: it stays relative, to where the job starts.
    """
    return {key: _anchored(value, type_hints(cls).get(key), folder) for key, value in values.items()}


def _anchored(value: Any, annotation: Any, folder: str) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _anchored(value, args[0], folder)
    if origin in (Union, types.UnionType):
        members = [each for each in args if each is not type(None)]
        return _anchored(value, members[0], folder) if len(members) == 1 else value
    if isinstance(value, Mapping):
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return anchored(value, annotation, folder)
        return {key: _anchored(item, args[1], folder) for key, item in value.items()} if len(args) == 2 else value
    if isinstance(value, list):
        return [_anchored(item, args[0], folder) for item in value] if args else value
    is_path = isinstance(annotation, type) and issubclass(annotation, Path) and isinstance(value, str)
    return posixpath.normpath(posixpath.join(folder, value)) if is_path and _is_here(value) else value


def _is_here(text: str) -> bool:
    return not text.startswith(("/", "~")) and text not in ("", ".") and os.path.exists(text)  # noqa: PTH110 — any text
