"""The artifact: a path with typed metadata. Only this module and `kinds` import pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from nemotron_kit.artifacts import loading, saving
from nemotron_kit.artifacts.metadata import folder_of
from nemotron_kit.artifacts.pin import Pin
from nemotron_kit.artifacts.walk import METADATA
from nemotron_kit.files import plain


class TrackingInfo(BaseModel):
    """Where a tracker (W&B) keeps the artifact."""

    artifact_id: str | None = None
    artifact_type: str | None = None
    run_id: str | None = None
    url: str | None = None
    used_artifacts: list[str] = Field(default_factory=list)


class Artifact(BaseModel):
    """A folder (or file) with a type and typed metadata, described by a metadata.json in it (or beside it).

    Subclass it to add typed fields: they are validated on construction and on assignment, repeated under `metadata`,
    and belong to the artifact's identity unless their names stand in `volatile`.
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), ser_json_inf_nan="constants"
    )

    # Fields that say how it was made rather than what it is: left out of the identity.
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

    _name: str | None = PrivateAttr(default=None)
    _version: int | None = PrivateAttr(default=None)
    _pin: Pin | None = PrivateAttr(default=None)
    _loaded: bool = PrivateAttr(default=False)
    _used_artifacts: list[str] = PrivateAttr(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any) -> Any:
        return loading.prepare_fields(cls, data) if isinstance(data, dict) else data

    @field_validator("path", mode="after")
    @classmethod
    def _expand(cls, path: Path) -> Path:
        return path.expanduser() if path.parts[:1] and path.parts[0].startswith("~") else path

    @model_validator(mode="after")
    def _repeat_in_metadata(self) -> Self:
        self.metadata.update(saving.set_fields(self))
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, plain(value))
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
        return None if self._version is None else f"art://{self._name}:v{self._version}"

    @property
    def art_path(self) -> str:
        """How a later step names it: `art://Name:vN`, else `art://<name>`, else `art://<absolute path>`."""
        return self.uri or f"art://{self.name or self.path.resolve()}"

    def get_input_uris(self) -> list[str]:
        """The addresses of what it was made from: what the job that saved it had read."""
        return list(self.tracking.used_artifacts) if self.tracking is not None else []

    def get_wandb_files(self) -> list[tuple[str, str]]:
        """(local path, name) of the small files that W&B stores: metadata.json, and an index file if there is one."""
        folder = self._get_output_dir()
        names = dict.fromkeys([METADATA, *([self.path.name] if self.path.is_file() else [])])
        return [(str(folder / name), name) for name in names if (folder / name).is_file()]

    def get_wandb_references(self) -> list[tuple[str, str]]:
        """(uri, name) of what W&B only refers to: the folder, as `output`."""
        return [(f"file://{self._get_output_dir().resolve()}", "output")]

    def _get_output_dir(self) -> Path:
        return folder_of(self.path)

    def _check_files(self) -> None:
        """Open what is going to be registered; UserError for files that can't be what the class says."""

    def save(self, name: str | None = None) -> None:
        """Write metadata.json; under a name (this one, else `self.name`) also register a version; tell the tracker.

        Raises UserError for a name that is none, NemotronError if something can't be written.
        """
        saving.save(self, name)

    @classmethod
    def load(cls, path: str | Path | None = None, tracked_artifact: str | None = None) -> Self:
        """The artifact at `path` (a folder, its metadata.json, or the file it points at); `tracked_artifact` asks the
        tracker; with neither, the JSON that a step printed is read from standard input.

        Raises UserError where there is none, or where metadata.json is cut off, changed, or another class's.
        """
        return loading.load(cls, path, tracked_artifact)

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """The artifact that a reference names (`art://Name[:version|alias]`), its files checked to be as saved."""
        return loading.from_uri(cls, uri)

    def to_json(self) -> str:
        """One line of JSON by which another step finds it."""
        return saving.to_json(self)

    def __str__(self) -> str:
        return self.to_json()
