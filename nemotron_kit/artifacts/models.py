"""The artifact classes of the recipes: data, checkpoints, results of evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

from pydantic import Field, computed_field, field_validator

from nemotron_kit.artifacts.datasets import InputDatasetInfo
from nemotron_kit.artifacts.manifest import folder_of
from nemotron_kit.artifacts.saving import Artifact
from nemotron_kit.artifacts.weights import check_weights

T = TypeVar("T")


class _OtherName(Protocol[T]):
    """What a type checker sees of a property that may be None."""

    def __get__(self, artifact: Any, cls: Any = None, /) -> T | None: ...

    def __set__(self, artifact: Any, value: T | None, /) -> None: ...


def _other_name(field: str, kind: type[T]) -> _OtherName[T]:
    """A property that reads and sets `field`, of this type or None, and stands in metadata.json too: one of
    `field_aliases`."""

    def get(self: Artifact) -> Any:
        return getattr(self, field)

    def set_to(self: Artifact, value: Any) -> None:
        setattr(self, field, value)

    doc = f"The same as `{field}`."
    made = computed_field(return_type=kind | None, description=doc)(property(get, set_to, doc=doc))
    return cast(_OtherName[T], made)


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

    valid_path = _other_name("val_path", str)
    train = _other_name("train_path", str)
    val = _other_name("val_path", str)
    test = _other_name("test_path", str)


class ModelArtifact(Artifact):
    """A checkpoint folder. `final_loss` is another name of `loss`."""

    volatile: ClassVar[frozenset[str]] = frozenset({"loss"})
    field_aliases: ClassVar[Mapping[str, str]] = {"final_loss": "loss"}

    step: int | None = Field(default=None, ge=0)
    loss: float | None = None
    iteration: int | None = Field(default=None, ge=0)

    final_loss = _other_name("loss", float)

    def _check_files(self) -> None:
        check_weights(self._get_output_dir())


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
