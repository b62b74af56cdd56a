"""Implements `Artifact.save()`, and loading an artifact from a folder, a reference, or another step's output."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.manifest import METADATA
from nemotron_kit.artifacts.metadata import (
    absolute,
    folder_of,
    is_ours,
    located_in,
    read_document,
    relative_to,
    write_document,
)
from nemotron_kit.artifacts.pipe import announce_step, parse_piped, pick, piped_pin
from nemotron_kit.artifacts.reference import ArtifactNotFoundError, Pin, Reference, registry_name
from nemotron_kit.artifacts.registry import Registry, open_registry
from nemotron_kit.artifacts.store import ArtifactVersion, Draft
from nemotron_kit.artifacts.tracking import get_config, get_lineage_tracker
from nemotron_kit.errors import DamagedRecordError, UserError
from nemotron_kit.files import plain
from nemotron_kit.masking import MASK, mask, masked_by_name, secret_in

if TYPE_CHECKING:
    from nemotron_kit.artifacts.models import Artifact


logger = logging.getLogger(__name__)


def save(artifact: Artifact, name: str | None) -> None:
    """See `Artifact.save`."""
    announce_step()  # a script that saves an artifact will print it, and saving may take long
    lineage.require_job_folder()
    stored = _stored_name(artifact, name)
    registry = open_registry() if stored is not None else None
    if registry is not None:
        _ = registry.uuid  # read first: a registry that is moved meanwhile must not be created again
    folder = absolute(artifact._get_output_dir())
    require_saveable(artifact, folder)
    if stored is not None:
        _refuse_shared_folder(artifact, folder)
        artifact._check_files()
        artifact.name = artifact.name or name or stored
    _mask_fields(artifact, folder)
    if artifact.producer is None or artifact._loaded:
        artifact.producer = _current_run()
        artifact._loaded = False
    inputs = lineage.inputs()
    used = _used(artifact, inputs)
    if used:
        known = artifact.tracking.model_dump() if artifact.tracking is not None else {}
        artifact.tracking = {**known, "used_artifacts": used}  # type: ignore[assignment]
    document = document_of(artifact)
    write_document(folder, document)
    artifact._pin = Pin(artifact.name or "", None, None, artifact.type, str(absolute(artifact.path)))
    if registry is not None and stored is not None:
        artifact._pin = registry.commit(draft_of(artifact, stored, document, inputs))
        artifact._name, artifact._version = artifact._pin.name, artifact._pin.version
    lineage.record_output(artifact._pin)
    _track(artifact, stored or artifact.type, folder, used)
    if registry is not None:  # after everything is written: the version must exist when save() returns
        registry.require_registered(artifact._pin)


def _mask_fields(artifact: Artifact, folder: Path) -> None:
    """Mask secrets in the artifact's fields before metadata.json, the identity, the registry's record and the tracker's
    copy are made from them. The artifact's path and names are not masked, since it is found by them."""
    roots = {str(folder): ".", str(folder.resolve()): "."}
    typed = type(artifact).typed_fields()
    for key, value in list(artifact.metadata.items()):
        if key in typed or key in artifact.field_aliases:  # replaced by the field's value
            continue
        # As it will be written: a secret may be in a set, a dataclass, bytes, which are texts only then.
        written = _as_json(key, plain(value))
        masked_value = _masked(written, roots, key, f"metadata.{key}")
        if masked_value is not None:
            artifact.metadata[key] = masked_value
        elif isinstance(value, Iterator):  # can be read once
            artifact.metadata[key] = written
        if mask(key) != key:
            artifact.metadata[mask(key)] = artifact.metadata.pop(key)
    dumped = artifact.model_dump(mode="json", include=set(typed))
    for name, value in dumped.items():
        masked_value = _masked(value, roots, name, name)
        if masked_value is None:
            continue
        try:
            setattr(artifact, name, masked_value)
        except ValueError as error:
            raise UserError(
                f"{name} contains the value of a secret, and can't be set to {MASK}.",
                hint="Save the artifact without it: every reader of the registry can read the artifact's fields.",
            ) from error


def _masked(value: Any, roots: dict[str, str], key: str, field: str) -> Any:
    """`value` with secrets masked, by the names of keys at every depth and by themselves, except inside the path of the
    artifact's folder; None if it contains no secret."""
    inner = relative_to(value, roots)
    masked_value = masked_by_name(inner, key)
    if masked_value is inner or masked_value == inner:  # NaN equals nothing
        return None
    variable = secret_in(str(inner))
    what = f"the value of {variable}" if variable else "a secret"
    logger.warning("%s contains %s: it is saved as %s.", field, what, MASK)
    return masked_value if inner == value else masked_by_name(value, key)


def _used(artifact: Artifact, inputs: Sequence[Pin]) -> list[str]:
    """The addresses of the job's inputs. An input that came through a tracker has the tracker's name."""
    artifact_path = str(absolute(artifact.path)) if artifact._used_artifacts else None
    pins = [pin.uri for pin in inputs if pin.version is not None or pin.path != artifact_path]
    return list(dict.fromkeys([*pins, *artifact._used_artifacts]))


def require_saveable(artifact: Artifact, folder: Path) -> None:
    """Raise UserError if the artifact's path does not exist, or if its folder has a metadata.json of another
    program."""
    path = absolute(artifact.path)
    if not path.exists():
        raise UserError(
            f"There is no file or folder {path}, the artifact's path.",
            hint="Write the files first, then save the artifact.",
        )
    if not is_ours(folder):
        raise UserError(
            f"{folder / METADATA} is not an artifact's file, and save() would overwrite it.",
            hint="Rename it, or put the artifact's files into a separate folder.",
        )


def document_of(artifact: Artifact) -> dict[str, Any]:
    """The content of metadata.json: all fields at the top level, and the typed ones also in `metadata`."""
    artifact.metadata.update(artifact._set_fields())
    # The caller may have added values since the construction.
    for key, value in artifact.metadata.items():
        artifact.metadata[key] = plain(value)
        _as_json(key, artifact.metadata[key])
    return {**artifact.model_dump(mode="json"), "path": str(absolute(artifact.path))}


def _as_json(key: str, value: Any) -> Any:
    """A value of `metadata` as JSON data. Raises UserError if it has no such form."""
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise UserError(
            f"metadata.{key}: {value!r:.80} ({type(value).__name__}) can't be saved: {error}.",
            hint="metadata.json takes numbers, texts, lists and dicts.",
        ) from error


def identity_fields(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """The typed fields that are part of the identity: those that differ from their defaults, without volatile ones, and
    with paths relative to the folder, so that a copy in another folder is the same artifact."""
    cls = type(artifact)
    volatile = {name for base in cls.__mro__ for name in getattr(base, "volatile", ())}
    names = [
        name
        for name in sorted(cls.typed_fields())
        if name not in volatile
        and getattr(artifact, name) != cls.model_fields[name].get_default(call_default_factory=True)
    ]
    dumped = artifact.model_dump(mode="json", include=set(names))
    given = artifact._get_output_dir()
    roots = {str(folder), str(folder.resolve()), *([str(given)] if str(given) != "." else [])}
    return {name: relative_to(dumped[name], dict.fromkeys(roots, ".")) for name in names}


def to_json(artifact: Artifact) -> str:
    """See `Artifact.to_json`: path, type, name, and for a registered one version, digest and registry."""
    pin = artifact._pin
    found: dict[str, Any] = {"path": str(absolute(artifact.path)), "type": artifact.type}
    if pin is not None and pin.version is not None:
        found |= {"name": pin.name, "version": pin.version, "digest": pin.digest, "registry": pin.registry}
    elif artifact.name:
        found["name"] = artifact.name
    return json.dumps(found)


def _stored_name(artifact: Artifact, name: str | None) -> str | None:
    config = get_config()
    by_type = config is not None and config.backend != "wandb"
    chosen = name or artifact.name or (artifact.type if by_type else None)
    return None if chosen is None else registry_name(chosen)


def _current_run() -> str:
    tracker, found = get_lineage_tracker(), lineage.run_id()
    try:
        found = found or (tracker.get_run_id() if tracker.is_active() else None)
    except (Exception, SystemExit) as error:  # noqa: BLE001 — as in _track
        logger.warning("The tracker can't return the id of this run: %s", error)
    return found if isinstance(found, str) and found else "local"


def draft_of(artifact: Artifact, name: str, document: dict[str, Any], inputs: tuple[Pin, ...]) -> Draft:
    """The draft of the version that `artifact` would become under `name`, with its metadata.json and its inputs."""
    folder = absolute(artifact._get_output_dir())
    return Draft(
        name=name,
        type=artifact.type,
        path=absolute(artifact.path),
        root=folder,
        fields=identity_fields(artifact, folder),
        document=document,
        created_at=artifact.created_at,
        producer=artifact.producer or "local",
        inputs=inputs,
        sums=artifact._sums,
    )


def _refuse_shared_folder(artifact: Artifact, folder: Path) -> None:
    """Raise UserError for an artifact that is a file in a folder with other files: a registered artifact owns its whole
    folder."""
    shared = {Path("/"), Path.home(), Path(tempfile.gettempdir())}
    if artifact.path.is_file() and (folder in shared or (folder / ".git").exists()):
        raise UserError(
            f"{artifact.path} can't be registered in its folder: all files of {folder} would belong to it.",
            hint="Put the file into a separate folder.",
        )


def _track(artifact: Artifact, name: str, folder: Path, used: list[str]) -> None:
    """Report the artifact to the tracker. If the tracker fails in any way (no answer, an invalid one, an exit), the
    artifact stays saved and the job continues."""
    try:
        tracker = get_lineage_tracker()
        if not tracker.is_active():
            config = get_config()
            if config is not None and config.backend == "wandb":
                logger.warning("No W&B run is active: %s is not logged to W&B.", name)
            return
        info = tracker.log_artifact(artifact, name, used)
        known = {key: value for key, value in info.items() if key in _TRACKED and isinstance(value, str)}
        reported = info.get("used_artifacts")
        all_texts = isinstance(reported, list) and all(isinstance(ref, str) for ref in reported)
        artifact.tracking = {**known, "used_artifacts": reported if all_texts else used}  # type: ignore[assignment]
        write_document(folder, document_of(artifact))
    # Some clients raise SystemExit for errors.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        logger.warning("%s is saved, but the tracker failed to log it: %s", name, error)


_TRACKED = frozenset({"artifact_id", "artifact_type", "run_id", "url"})


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


def _from_path(cls: type[A], path: Path) -> A:
    folder = path.parent if path.name == METADATA else folder_of(path)
    document = read_document(folder)
    if document is None:
        raise ArtifactNotFoundError(
            str(path),
            f"There is no {METADATA} in {folder}.",
            hint="It is no saved artifact, or saving it was interrupted: save it again.",
        )
    artifact = _build(cls, document, folder)
    artifact._pin = Pin(artifact.name or "", None, None, artifact.type, str(absolute(artifact.path)))
    lineage.record_input(artifact._pin)
    return artifact


def _from_record(cls: type[A], record: ArtifactVersion) -> A:
    document = record.document if "type" in record.document else {**record.document, "path": record.path}
    artifact = _build(cls, document, Path(record.root))
    artifact._pin, artifact._name, artifact._version = record.pin, record.name, record.version
    if artifact.tracking is None and record.inputs:  # saved by a version that did not write them into the document
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
    values = located_in(folder, document)
    known = {*cls.model_fields, *cls.field_aliases}
    metadata = {**{key: value for key, value in values.items() if key not in known}, **values.get("metadata", {})}
    fields = {key: value for key, value in values.items() if key in known}
    try:
        artifact = cls(**{**fields, "metadata": metadata})
    except ValueError as error:
        raise DamagedRecordError(f"{where}: not the {METADATA} of a {cls.__name__}: {error}") from error
    artifact._loaded = True
    return artifact


def _check_type(cls: type[Artifact], kind: Any, where: Path) -> None:
    """Raise UserError for an artifact of another known class; a type that no class declares is accepted."""
    related = _names(cls) | {base.__name__ for base in cls.__mro__}
    known = _names(next(base for base in reversed(cls.__mro__) if base.__name__ == "Artifact"))
    if cls.typed_fields() and kind in known - related:
        raise UserError(f"{where}: this is a {kind}, not a {cls.__name__}.", hint=f"Load it as {kind}.load(…).")


def _names(cls: type[Artifact]) -> set[str]:
    return {cls.__name__, *(name for child in cls.__subclasses__() for name in _names(child))}
