"""An artifact: a path with typed, validated metadata. How it is saved; how it is loaded from a folder, a reference, or
another step's output."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator
from pydantic_core import PydanticSerializationError, to_jsonable_python

from nemotron_kit import artifacts
from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.commit import require_registered
from nemotron_kit.artifacts.manifest import (
    METADATA,
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
from nemotron_kit.artifacts.registry import get_config, open_registry
from nemotron_kit.artifacts.store import ArtifactVersion, Draft
from nemotron_kit.errors import DamagedRecordError, UserError
from nemotron_kit.files import plain
from nemotron_kit.home import expand_user, user_folder
from nemotron_kit.masking import MASK, mask, masked_by_name, secret_in

logger = logging.getLogger(__name__)


class TrackingInfo(BaseModel):
    """The address of the artifact in a tracker (W&B)."""

    artifact_id: str | None = None
    artifact_type: str | None = None
    run_id: str | None = None
    url: str | None = None
    used_artifacts: list[str] = Field(default_factory=list)


class Artifact(BaseModel):
    """A folder (or file) with a type and typed metadata, described by a metadata.json in it (or beside it).

    Subclass it to add typed fields: they are validated on construction and on assignment, repeated under `metadata`,
    and belong to the artifact's identity unless their names are in `volatile`.
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), ser_json_inf_nan="constants"
    )

    # Fields that describe how the artifact was made, not its content: left out of the identity.
    volatile: ClassVar[frozenset[str]] = frozenset()
    # Another name of a field, as in {"final_loss": "loss"}: taken on construction, written to metadata.json too.
    field_aliases: ClassVar[Mapping[str, str]] = {}

    path: Path
    type: str = "artifact"
    metadata: dict[str, Any] = Field(default_factory=dict)
    created_at: str = Field(default_factory=lambda: datetime.now().astimezone().isoformat())
    producer: str | None = None
    tracking: TrackingInfo | None = None
    name: str | None = None

    _pin: Pin | None = PrivateAttr(default=None)
    _loaded: bool = PrivateAttr(default=False)
    _used_artifacts: list[str] = PrivateAttr(default_factory=list)
    # Path in the folder → (size, sha256) of files that were hashed when they were written: saving does not read them.
    _sums: dict[str, tuple[int, str]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, given: Any) -> Any:
        """Complete the constructor's arguments: the type's name, typed fields found in `metadata`, a field's other
        names."""
        if not isinstance(given, dict):
            return given
        try:
            data = dict(plain(given))
        except RecursionError:
            raise UserError(f"{cls.__name__}: a value is nested too deeply, or contains itself.") from None
        for name, value in data.items():
            if value is ... or (isinstance(value, list | tuple | set) and ... in value):
                hint = f"Write {name}'s real value in its place."
                raise UserError(f"{name}={value!r}: '...' is a placeholder.", hint=hint)
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
                raise ValueError(f"{alias} and {name} are one field, but {value!r} and {data[name]!r} were given")
        return data

    @field_validator("path", mode="after")
    @classmethod
    def _expand(cls, path: Path) -> Path:
        return expand_user(path) if path.parts[:1] and path.parts[0].startswith("~") else path

    @model_validator(mode="after")
    def _repeat_in_metadata(self) -> Self:
        self.metadata.update(self._set_fields())
        return self

    def _set_fields(self) -> dict[str, Any]:
        """The typed fields that have a value, under each of their names."""
        names = {**{name: name for name in self.typed_fields()}, **self.field_aliases}
        values = {key: getattr(self, field) for key, field in names.items()}
        return {key: value for key, value in values.items() if value is not None}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, plain(value) if name in type(self).model_fields else value)
        if value is None:
            for key in (name, *(alias for alias, field in self.field_aliases.items() if name in (alias, field))):
                self.metadata.pop(key, None)

    @classmethod
    def typed_fields(cls) -> tuple[str, ...]:
        """The names of the fields that subclasses added."""
        return tuple(name for name in cls.model_fields if name not in Artifact.model_fields)

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers in `metadata`, as floats."""
        numbers = {key: value for key, value in self.metadata.items() if isinstance(value, int | float)}
        return {key: float(value) for key, value in numbers.items() if not isinstance(value, bool)}

    @property
    def uri(self) -> str | None:
        """`art://Name:vN` once it is registered, else None."""
        return self._pin.uri if self._pin is not None and self._pin.version is not None else None

    @property
    def art_path(self) -> str:
        """The reference to it for a later step: `art://Name:vN`, else `art://<name>`, else `art://<absolute path>`."""
        return self.uri or f"art://{self.name or self.path.resolve()}"

    def get_input_uris(self) -> list[str]:
        """The references of its inputs: the artifacts that the job which saved it had read."""
        return list(self.tracking.used_artifacts) if self.tracking is not None else []

    def get_wandb_files(self) -> list[tuple[str, str]]:
        """(local path, name) of the small files that W&B stores: metadata.json, and an index file if there is one."""
        folder = self._get_output_dir()
        names = dict.fromkeys([METADATA, *([self.path.name] if self.path.is_file() else [])])
        return [(str(folder / name), name) for name in names if (folder / name).is_file()]

    def get_wandb_references(self) -> list[tuple[str, str]]:
        """(uri, name) of the files that W&B stores by reference: the folder, as `output`."""
        return [(f"file://{self._get_output_dir().resolve()}", "output")]

    def _get_output_dir(self) -> Path:
        return folder_of(self.path)

    def _check_files(self) -> None:
        """Check, before registration, that the files are what the class requires. Raises UserError if they are not."""

    def save(self, name: str | None = None) -> None:
        """Write metadata.json; with a name (the argument, else `self.name`) also register a version and report it to
        the tracker.

        Raises UserError for an invalid name, NemotronError if something can't be written.
        """
        announce_step()  # a script that saves an artifact will print it, and saving may take long
        lineage.require_job_folder()
        config = get_config()
        by_type = config is not None and config.backend != "wandb"
        stored, registry = name or self.name or (self.type if by_type else None), None
        if stored is not None:
            stored, registry = registry_name(stored), open_registry()
            _ = registry.uuid  # read first: a registry that is moved meanwhile must not be created again
        folder = absolute(self._get_output_dir())
        _check_folder(self, folder, owned=stored is not None)
        if stored is not None:
            self._check_files()
            self.name = self.name or name or stored
        _mask_fields(self, folder)
        if self.producer is None or self._loaded:
            self.producer = _current_run()
            self._loaded = False
        inputs = lineage.inputs()
        # An input that came through a tracker is named as the tracker names it, not by its path.
        own_path = str(absolute(self.path)) if self._used_artifacts else None
        read = [pin.uri for pin in inputs if pin.version is not None or pin.path != own_path]
        used = list(dict.fromkeys([*read, *self._used_artifacts]))
        if used:
            known = self.tracking.model_dump() if self.tracking is not None else {}
            self.tracking = {**known, "used_artifacts": used}  # type: ignore[assignment]
        document = self._document()
        write_document(folder, document)
        self._pin = Pin(self.name or "", None, None, self.type, str(absolute(self.path)))
        if registry is not None and stored is not None:
            self._pin = registry.commit(self._draft(stored, document, inputs))
        lineage.record_output(self._pin)
        _track(self, stored or self.type, folder, used)
        if registry is not None:  # after everything is written: the version must exist when save() returns
            require_registered(registry, self._pin)

    def _document(self) -> dict[str, Any]:
        """The content of metadata.json: all fields at the top level, and the typed ones also in `metadata`."""
        self.metadata.update(self._set_fields())
        # The caller may have added values since the construction.
        for key, value in self.metadata.items():
            self.metadata[key] = plain(value)
            _as_json(key, self.metadata[key])
        return {**self.model_dump(mode="json"), "path": str(absolute(self.path))}

    def _draft(self, name: str, document: dict[str, Any], inputs: tuple[Pin, ...]) -> Draft:
        """The version that it would become under `name`, with this metadata.json and these inputs.

        Its identity has the typed fields that differ from their defaults, without volatile ones, and with paths
        relative to the folder, so that a copy in another folder is the same artifact.
        """
        cls, given = type(self), self._get_output_dir()
        volatile = {name for base in cls.__mro__ for name in getattr(base, "volatile", ())}
        names = [
            name
            for name in sorted(cls.typed_fields())
            if name not in volatile
            and getattr(self, name) != cls.model_fields[name].get_default(call_default_factory=True)
        ]
        dumped = self.model_dump(mode="json", include=set(names))
        folder = absolute(given)
        roots = {str(folder), str(folder.resolve()), *([str(given)] if str(given) != "." else [])}
        return Draft(
            name=name,
            type=self.type,
            path=absolute(self.path),
            root=folder,
            fields={name: relative_to(dumped[name], dict.fromkeys(roots, ".")) for name in names},
            document=document,
            created_at=self.created_at,
            producer=self.producer or "local",
            inputs=inputs,
            sums=self._sums,
        )

    @classmethod
    def load(cls, path: str | Path | None = None, tracked_artifact: str | None = None) -> Self:
        """The artifact at `path` (a folder, its metadata.json, or the file it points at); `tracked_artifact` asks the
        tracker; with neither, the JSON that a step printed is read from standard input.

        Raises UserError where there is none, or where metadata.json is cut off, changed, or another class's.
        """
        if tracked_artifact:
            return _from_tracker(cls, tracked_artifact)
        if path is not None:
            return _from_path(cls, absolute(path))
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError(
                f"{cls.__name__}.load() has nothing to read.",
                hint="Give it a path, or pipe another step's output into it.",
            )
        pin = piped_pin(pick(parse_piped(sys.stdin.read()), types=_names(cls) if cls.typed_fields() else None))
        registry = open_registry()
        record = registry.verify(pin) if pin.registry == registry.uuid else None
        return _from_record(cls, record) if record is not None else _from_path(cls, absolute(pin.path))

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """The artifact that a reference names (`art://Name[:version|alias]`), its files checked to be as saved."""
        ref = Reference.parse(uri)
        if ref.path is not None:
            return _from_path(cls, absolute(ref.path))
        registry = open_registry()
        if ref.entity and not registry.versions(ref.slug) and lineage.active_tracker() is not None:
            return _from_tracker(cls, str(ref))
        return _from_record(cls, registry.record_of(registry.resolve(ref)))

    def to_json(self) -> str:
        """One line of JSON that describes it to another step: path, type, name, and for a registered one version,
        digest and registry."""
        pin = self._pin
        found: dict[str, Any] = {"path": str(absolute(self.path)), "type": self.type}
        if pin is not None and pin.version is not None:
            found |= {"name": pin.name, "version": pin.version, "digest": pin.digest, "registry": pin.registry}
        elif self.name:
            found["name"] = self.name
        return json.dumps(found)

    def __str__(self) -> str:
        return self.to_json()


def _check_folder(artifact: Artifact, folder: Path, *, owned: bool) -> None:
    """Raise UserError if the artifact's path does not exist, or if its folder has a metadata.json of another program.
    `owned`: the artifact is to be registered, so it owns its whole folder, and can't be a file among other files."""
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
    shared = {Path("/"), user_folder(), Path(tempfile.gettempdir())}
    if owned and artifact.path.is_file() and (folder in shared or (folder / ".git").exists()):
        raise UserError(
            f"{artifact.path} can't be registered in its folder: all files of {folder} would belong to it.",
            hint="Put the file into a separate folder.",
        )


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


def _as_json(key: str, value: Any) -> Any:
    """A value of `metadata` as JSON data. Raises UserError if it has no such form."""
    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise UserError(
            f"metadata.{key}: {value!r:.80} ({type(value).__name__}) can't be saved: {error}.",
            hint="metadata.json takes numbers, texts, lists and dicts.",
        ) from error


def _current_run() -> str:
    found = lineage.run_id()
    try:
        if found is None and (tracker := lineage.active_tracker()) is not None:
            found = tracker.get_run_id()
    except (Exception, SystemExit) as error:  # noqa: BLE001 — as in _track
        logger.warning("The tracker can't return the id of this run: %s", error)
    return found if isinstance(found, str) and found else "local"


def _track(artifact: Artifact, name: str, folder: Path, used: list[str]) -> None:
    """Report the artifact to the tracker. If the tracker fails in any way (no answer, an invalid one, an exit), the
    artifact stays saved and the job continues."""
    try:
        tracker = lineage.active_tracker()
        if tracker is None:
            config = get_config()
            if config is not None and config.backend == "wandb":
                logger.warning("No W&B run is active: %s is not logged to W&B.", name)
            return
        info = tracker.log_artifact(artifact, name, used)
        known = {
            key: value for key, value in info.items() if key in TrackingInfo.model_fields and isinstance(value, str)
        }
        reported = info.get("used_artifacts")
        all_texts = isinstance(reported, list) and all(isinstance(ref, str) for ref in reported)
        artifact.tracking = {**known, "used_artifacts": reported if all_texts else used}  # type: ignore[assignment]
        write_document(folder, artifact._document())
    # Some clients raise SystemExit for errors.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        logger.warning("%s is saved, but the tracker failed to log it: %s", name, error)


A = TypeVar("A", bound=Artifact)


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
    artifact._pin = record.pin
    if artifact.tracking is None and record.inputs:  # saved by a version that did not write them into the document
        artifact.tracking = {"used_artifacts": [pin.uri for pin in record.inputs]}  # type: ignore[assignment]
    lineage.record_input(record.pin)
    return artifact


def _from_tracker(cls: type[A], reference: str) -> A:
    tracker = lineage.active_tracker()
    if tracker is None:
        raise UserError(
            f"{reference} can't be fetched: no tracker is active.",
            hint='Start a W&B run and call init(backend="wandb"), or set_lineage_tracker(…).',
        )
    artifact = _from_path(cls, tracker.use_artifact(reference, cls.__name__.lower()))
    artifact._used_artifacts.append(reference)
    return artifact


def _build(cls: type[A], document: dict[str, Any], folder: Path) -> A:
    where = folder / METADATA
    if cls.typed_fields():  # a type that no class declares is accepted
        _ = artifacts.ModelArtifact  # declares the types of this package
        kind, related = document.get("type"), _names(cls) | {base.__name__ for base in cls.__mro__}
        if kind in _names(Artifact) - related:
            raise UserError(f"{where}: this is a {kind}, not a {cls.__name__}.", hint=f"Load it as {kind}.load(…).")
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


def _names(cls: type[Artifact]) -> set[str]:
    return {cls.__name__, *(name for child in cls.__subclasses__() for name in _names(child))}
