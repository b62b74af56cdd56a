"""How artifacts come back: from a folder, from a reference, from another step's output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.errors import ArtifactNotFoundError, DamagedRecordError
from nemotron_kit.artifacts.metadata import absolute, folder_of, read_document
from nemotron_kit.artifacts.pin import Pin
from nemotron_kit.artifacts.piped import parse_piped, pick, piped_pin
from nemotron_kit.artifacts.records import ArtifactVersion
from nemotron_kit.artifacts.reference import Reference
from nemotron_kit.artifacts.registry import Registry, open_registry
from nemotron_kit.artifacts.saving import relative_to
from nemotron_kit.artifacts.trackers import get_lineage_tracker
from nemotron_kit.artifacts.walk import METADATA
from nemotron_kit.errors import UserError
from nemotron_kit.files import plain

if TYPE_CHECKING:
    from nemotron_kit.artifacts.models import Artifact

A = TypeVar("A", bound="Artifact")


def load(cls: type[A], path: str | Path | None, tracked_artifact: str | None) -> A:
    """See `Artifact.load`."""
    if tracked_artifact:
        return _from_tracker(cls, tracked_artifact)
    return _from_stdin(cls) if path is None else _from_path(cls, absolute(path))


def from_uri(cls: type[A], uri: str) -> A:
    """See `Artifact.from_uri`."""
    ref = Reference.parse(uri)
    if ref.path is not None:
        return _from_path(cls, absolute(ref.path))
    registry: Registry = open_registry()
    if ref.entity and not registry.versions(ref.slug) and get_lineage_tracker().is_active():
        return _from_tracker(cls, str(ref))
    pin = registry.resolve(ref)
    return _from_record(cls, registry.record_of(pin))


def prepare_fields(cls: type[Artifact], given: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments made complete: the type's name, typed fields found in `metadata`, a field's other name."""
    data = dict(plain(given))
    for name, value in data.items():
        _refuse_ellipsis(name, value)
    if data.get("type", "artifact") == "artifact":
        data["type"] = cls.__name__
    metadata = data.get("metadata", {})
    if isinstance(metadata, dict):
        metrics = data.pop("metrics", None) if "metrics" not in cls.model_fields else None
        data["metadata"] = metadata = {**metadata, **(metrics or {})}
        for name in cls.typed_fields():
            if name in metadata:
                data.setdefault(name, metadata[name])
        for alias, name in cls.field_aliases.items():
            if alias in metadata and name not in data:
                data.setdefault(alias, metadata[alias])
    for alias, name in cls.field_aliases.items():
        value = data.pop(alias, None)
        if value is not None and data.setdefault(name, value) not in (value, None):
            raise ValueError(f"{alias} and {name} are one thing, but {value!r} and {data[name]!r} were given")
    return data


def _refuse_ellipsis(name: str, value: Any) -> None:
    if value is ... or (isinstance(value, list | tuple | set) and ... in value):
        raise UserError(f"{name}={value!r}: '...' stands for a value.", hint=f"Write {name}'s real value in its place.")


def _from_path(cls: type[A], path: Path) -> A:
    folder = path.parent if path.name == METADATA else folder_of(path)
    document = read_document(folder)
    if document is None:
        raise ArtifactNotFoundError(
            str(path),
            f"There is no {METADATA} in {folder}.",
            hint="That is no saved artifact, or saving it was cut short: save it again.",
        )
    artifact = _build(cls, document, folder)
    artifact._pin = Pin(artifact.name or "", None, None, artifact.type, str(absolute(artifact.path)))
    lineage.record_input(artifact._pin)
    return artifact


def _from_record(cls: type[A], record: ArtifactVersion) -> A:
    document = record.document if "type" in record.document else {**record.document, "path": record.path}
    artifact = _build(cls, document, Path(record.root))
    artifact._pin, artifact._name, artifact._version = record.pin, record.name, record.version
    if artifact.tracking is None and record.inputs:  # saved before the document named them, too
        artifact.tracking = {"used_artifacts": [pin.uri for pin in record.inputs]}  # type: ignore[assignment]
    lineage.record_input(record.pin)
    return artifact


def _from_stdin(cls: type[A]) -> A:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            f"{cls.__name__}.load() has nothing to read.", hint="Give it a path, or pipe another step's output into it."
        )
    pin = piped_pin(pick(parse_piped(sys.stdin.read()), types=_names(cls) if cls.typed_fields() else None))
    registry: Registry = open_registry()
    record = registry.verify(pin) if pin.registry == registry.uuid else None
    return _from_record(cls, record) if record is not None else _from_path(cls, absolute(pin.path))


def _from_tracker(cls: type[A], reference: str) -> A:
    tracker = get_lineage_tracker()
    if not tracker.is_active():
        raise UserError(
            f"{reference} can't be fetched: no tracker is active.",
            hint='Start a W&B run and call init(backend="wandb"), or set_lineage_tracker(…).',
        )
    artifact = _from_path(cls, tracker.use_artifact(reference, cls.__name__.lower()))
    artifact._used_artifacts.append(reference)
    return artifact


def _build(cls: type[A], document: dict[str, Any], folder: Path) -> A:
    where = folder / METADATA
    _check_type(cls, document.get("type"), where)
    values = _moved_to(folder, document)
    known = {*cls.model_fields, *cls.field_aliases}
    metadata = {**{key: value for key, value in values.items() if key not in known}, **values.get("metadata", {})}
    fields = {key: value for key, value in values.items() if key in known}
    try:
        artifact = cls(**{**fields, "metadata": metadata})
    except ValueError as error:
        raise DamagedRecordError(f"{where}: not the {METADATA} of a {cls.__name__}: {error}") from error
    artifact._loaded = True
    return artifact


def _moved_to(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The document with its paths in the folder where it was found: an artifact may have been moved."""
    old = Path(document.get("path") or folder)
    is_file = old.name != folder.name and (folder / old.name).is_file()
    root = old.parent if is_file else old
    values = document if root == folder else relative_to(document, {str(root): str(folder)})
    return {**values, "path": folder / old.name if is_file else folder}


def _check_type(cls: type[Artifact], kind: Any, where: Path) -> None:
    """Refuse another known class's artifact; a type that no class here has is a free word."""
    related = _names(cls) | {base.__name__ for base in cls.__mro__}
    known = _names(next(base for base in reversed(cls.__mro__) if base.__name__ == "Artifact"))
    if cls.typed_fields() and kind in known - related:
        raise UserError(f"{where}: this is a {kind}, not a {cls.__name__}.", hint=f"Load it as {kind}.load(…).")


def _names(cls: type[Artifact]) -> set[str]:
    return {cls.__name__, *(name for child in cls.__subclasses__() for name in _names(child))}
