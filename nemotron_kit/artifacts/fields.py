"""The engine of `${art:slot,field}`: one field of a pinned artifact, with its type kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.metadata import absolute, folder_of, read_document
from nemotron_kit.artifacts.pin import Pin
from nemotron_kit.artifacts.registry import Registry, open_registry
from nemotron_kit.errors import UserError, nearest, sentence


def artifact_field(pin: Pin, field: str = "path", *, registry: Registry | None = None) -> Any:
    """`path` (also ""), `version` (int), `name`, `type`, `qualified_name`, `iteration` (else the step), any field of
    metadata.json, or `metadata.F` for a free one.

    A registered version's fields come from its record in `registry` (the default one if None), which must be the one
    that the pin was made in. UserError for an unknown field, with the nearest names.
    """
    key = field.strip() or "path"
    if key in ("path", "qualified_name"):
        return pin.path if key == "path" else pin.label
    if key == "version":
        return _version(pin)
    document = _document(pin, registry)
    if key in ("name", "type") and (getattr(pin, key) or key not in document):
        return getattr(pin, key)
    metadata = document.get("metadata", {})
    if key.startswith("metadata."):
        return _lookup(metadata, key.removeprefix("metadata."), pin, prefix="metadata.")
    if key == "iteration" and document.get(key, metadata.get(key)) is None:
        key = "step"
    return _lookup({**metadata, **document}, key, pin, asked=field)


def _version(pin: Pin) -> int:
    if pin.version is None:
        raise UserError(
            f"{pin.path} has no version: it was given as a path.", hint="Name a registered artifact instead."
        )
    return pin.version


def _document(pin: Pin, registry: Registry | None) -> dict[str, Any]:
    if pin.version is not None:
        found = (registry or open_registry()).record_of(pin)
        return found.document
    return read_document(folder_of(absolute(Path(pin.path)))) or {}


def _lookup(values: dict[str, Any], key: str, pin: Pin, *, prefix: str = "", asked: str | None = None) -> Any:
    if key in values:
        return values[key]
    head, _, rest = key.partition(".")
    if rest and isinstance(values.get(head), dict):
        return _lookup(values[head], rest, pin, prefix=f"{prefix}{head}.")
    known = [prefix + name for name in values] + ([] if prefix else ["path", "version", "qualified_name"])
    raise UserError(
        f"{pin.label} ({pin.type or 'untyped'}) has no field {asked or prefix + key!r}.",
        hint=sentence(nearest(prefix + key, known)),
    )
