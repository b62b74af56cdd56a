"""The artifact classes: a path with typed, validated metadata. No other module of this package imports pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, computed_field, field_validator, model_validator

from nemotron_kit.artifacts import lineage, saving
from nemotron_kit.artifacts.datasets import InputDatasetInfo
from nemotron_kit.artifacts.manifest import METADATA
from nemotron_kit.artifacts.metadata import folder_of
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.artifacts.store import Draft
from nemotron_kit.artifacts.weights import check_weights
from nemotron_kit.errors import UserError
from nemotron_kit.files import plain
from nemotron_kit.home import expand_user


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

    _name: str | None = PrivateAttr(default=None)
    _version: int | None = PrivateAttr(default=None)
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
        return None if self._version is None else f"art://{self._name}:v{self._version}"

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
        saving.save(self, name)

    @classmethod
    def load(cls, path: str | Path | None = None, tracked_artifact: str | None = None) -> Self:
        """The artifact at `path` (a folder, its metadata.json, or the file it points at); `tracked_artifact` asks the
        tracker; with neither, the JSON that a step printed is read from standard input.

        Raises UserError where there is none, or where metadata.json is cut off, changed, or another class's.
        """
        return saving.load(cls, path, tracked_artifact)

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """The artifact that a reference names (`art://Name[:version|alias]`), its files checked to be as saved."""
        return saving.from_uri(cls, uri)

    def to_json(self) -> str:
        """One line of JSON that describes it to another step: path, type, name, and version if it is registered."""
        return saving.to_json(self)

    def _document(self) -> dict[str, Any]:
        """The content of its metadata.json, for trackers."""
        return saving.document_of(self)

    def _draft(self, name: str) -> Draft:
        """The version that it would become under `name`."""
        return saving.draft_of(self, name, saving.document_of(self), lineage.inputs())

    def __str__(self) -> str:
        return self.to_json()


class _Sourced(Artifact):
    volatile: ClassVar[frozenset[str]] = frozenset({"elapsed_sec"})

    total_sequences: int | None = Field(default=None, ge=0)
    elapsed_sec: float = Field(default=0.0, ge=0)
    source_datasets: list[InputDatasetInfo | str] = Field(default_factory=list)
    tokenizer_uri: str | None = None

    def get_input_uris(self) -> list[str]:
        sources = [source if isinstance(source, str) else source.uri for source in self.source_datasets]
        return [*sources, *([self.tokenizer_uri] if self.tokenizer_uri else []), *super().get_input_uris()]


class _Tokenized(_Sourced):
    total_tokens: int | None = Field(default=None, ge=0)


class DataBlendsArtifact(_Tokenized):
    """Tokenized data; `path` may be its blend.json."""

    train_tokens: int | None = Field(default=None, ge=0)
    valid_tokens: int | None = Field(default=None, ge=0)
    test_tokens: int | None = Field(default=None, ge=0)


def _blend_file(path: str | None) -> list[tuple[str, str]]:
    return [(path, "blend.json")] if path and Path(path).is_file() else []


class PretrainBlendsArtifact(DataBlendsArtifact):
    """Megatron shards by split, with blend.json. `path` is always the folder: a blend.json given becomes its parent."""

    num_shards: int | None = Field(default=None, ge=1)
    blend_path: str | None = None
    train_path: str | None = None
    valid_path: str | None = None
    test_path: str | None = None

    @field_validator("path", mode="after")
    @classmethod
    def _to_folder(cls, path: Path) -> Path:
        return folder_of(path)

    def get_wandb_files(self) -> list[tuple[str, str]]:
        return super().get_wandb_files() + _blend_file(self.blend_path or str(self.path / "blend.json"))


class PretrainDataArtifact(_Tokenized):
    """Megatron shards without splits."""

    num_shards: int | None = Field(default=None, ge=1)


class SFTDataArtifact(_Tokenized):
    """Chat data packed into rows of at most `pack_size` tokens; `path` has a folder for each split."""

    pack_size: int | None = Field(default=None, ge=1)
    num_shards: int | None = Field(default=None, ge=1)
    data_format: str = "packed_sft_parquet"
    blend_path: str | None = None
    training_path: str | None = None
    validation_path: str | None = None
    test_path: str | None = None
    metadata_path: str | None = None

    def get_wandb_files(self) -> list[tuple[str, str]]:
        return super().get_wandb_files() + _blend_file(self.blend_path)


class SplitJsonlDataArtifact(_Sourced):
    """JSONL files by split, for reinforcement learning; `path` may be its manifest.json. `train`, `val`, `test` and
    `valid_path` are other names of its three files."""

    field_aliases: ClassVar[Mapping[str, str]] = {
        "valid_path": "val_path",
        "train": "train_path",
        "val": "val_path",
        "test": "test_path",
    }

    train_path: str | None = None
    val_path: str | None = None
    test_path: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def valid_path(self) -> str | None:
        """The same as `val_path`."""
        return self.val_path

    @valid_path.setter
    def valid_path(self, value: str | None) -> None:
        self.val_path = value

    @computed_field  # type: ignore[prop-decorator]
    @property
    def train(self) -> str | None:
        """The same as `train_path`."""
        return self.train_path

    @train.setter
    def train(self, value: str | None) -> None:
        self.train_path = value

    @computed_field  # type: ignore[prop-decorator]
    @property
    def val(self) -> str | None:
        """The same as `val_path`."""
        return self.val_path

    @val.setter
    def val(self, value: str | None) -> None:
        self.val_path = value

    @computed_field  # type: ignore[prop-decorator]
    @property
    def test(self) -> str | None:
        """The same as `test_path`."""
        return self.test_path

    @test.setter
    def test(self, value: str | None) -> None:
        self.test_path = value


class ModelArtifact(Artifact):
    """A checkpoint folder. `final_loss` is another name of `loss`."""

    volatile: ClassVar[frozenset[str]] = frozenset({"loss"})
    field_aliases: ClassVar[Mapping[str, str]] = {"final_loss": "loss"}

    step: int | None = Field(default=None, ge=0)
    loss: float | None = None
    iteration: int | None = Field(default=None, ge=0)

    def _check_files(self) -> None:
        check_weights(self._get_output_dir())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def final_loss(self) -> float | None:
        """The same as `loss`."""
        return self.loss

    @final_loss.setter
    def final_loss(self, value: float | None) -> None:
        self.loss = value


class EvalArtifact(Artifact):
    """The results of an evaluation; `path` is the folder that holds results.json.

    `results` is {what was measured: {metric: number}}, `tasks` the names in the order in which they were requested,
    `model` the address of the model.
    """

    results: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    tasks: list[str] = Field(default_factory=list)
    model: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Each result as `what.metric`, with the other numbers in `metadata`."""
        found = {
            f"{what}.{metric}": float(value)
            for what, values in self.results.items()
            for metric, value in values.items()
            if value is not None
        }
        return {**super().metrics, **found}
