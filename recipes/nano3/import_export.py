"""What comes in from elsewhere and what goes out.

`nemotron nano3 data import …` and `model import …` register what was made elsewhere, where it lies.
`nemotron nano3 model export --to DIR|hf://USER/NAME` puts a model's weights where others find them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.files import read_regular

if TYPE_CHECKING:
    from nemotron.kit import Artifact

_NAME = {"short": "-n", "help": "the artifact's name; slashes become dashes"}
_PROJECT = {"short": "-p", "help": "W&B project to log it to as well"}
_ENTITY = {"short": "-e", "help": "W&B entity of the project"}


@dataclass
class ImportData:
    """The config of `data import`."""

    path: Path = field(metadata={"positional": True, "help": "the file or folder to register"})
    name: str = field(default="nano3/pretrain/data", metadata=_NAME)
    project: str | None = field(default=None, metadata=_PROJECT)
    entity: str | None = field(default=None, metadata=_ENTITY)


@dataclass
class ImportSFTData(ImportData):
    name: str = field(default="nano3/sft/data", metadata=_NAME)


@dataclass
class ImportRLData(ImportData):
    name: str = field(default="nano3/rl/data", metadata=_NAME)


@dataclass
class ImportModel:
    """The config of `model import`."""

    path: Path = field(metadata={"positional": True, "help": "the checkpoint's folder"})
    step: int | None = field(default=None, metadata={"short": "-s", "help": "the training step that it was saved at"})
    name: str = field(default="nano3/pretrain/model", metadata=_NAME)
    project: str | None = field(default=None, metadata=_PROJECT)
    entity: str | None = field(default=None, metadata=_ENTITY)


@dataclass
class ImportSFTModel(ImportModel):
    name: str = field(default="nano3/sft/model", metadata=_NAME)


@dataclass
class ImportRLModel(ImportModel):
    name: str = field(default="nano3/rl/model", metadata=_NAME)


def import_pretrain_data(cfg: ImportData) -> Artifact:
    """Register the folder of a blend.json, given by either path."""
    from nemotron.kit import PretrainBlendsArtifact

    folder = _folder(cfg)
    print(_opened(folder), file=sys.stderr)
    return _saved(_described(PretrainBlendsArtifact, folder), cfg)


def import_sft_data(cfg: ImportSFTData) -> Artifact:
    """Register a folder of packed SFT data, with its blend.json."""
    from nemotron.kit import SFTDataArtifact

    folder = _folder(cfg)
    splits = folder / "splits" if (folder / "splits").is_dir() else folder  # data prep's artifact is that folder
    artifact = _described(SFTDataArtifact, splits)
    if not (splits / "metadata.json").is_file():
        artifact.blend_path = str(folder / "blend.json")
        for split, field in (("train", "training_path"), ("valid", "validation_path"), ("test", "test_path")):
            if (splits / split).is_dir():
                setattr(artifact, field, str(splits / split))
    return _saved(artifact, cfg)


def import_rl_data(cfg: ImportRLData) -> Artifact:
    """Register RL splits by their manifest.json, which names the splits' files."""
    from nemotron.kit import SplitJsonlDataArtifact

    folder = _folder(cfg)
    if (folder / "metadata.json").is_file():
        return _saved(SplitJsonlDataArtifact.load(folder), cfg)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    named = manifest if isinstance(manifest, dict) else {}
    splits = [split for split in ("train", "val", "test") if isinstance(named.get(split), str)]
    files = {split: str(folder / named[split]) for split in splits}  # a relative path is one beside the manifest
    return _saved(SplitJsonlDataArtifact(path=folder / "manifest.json", **files), cfg)


def import_model(cfg: ImportModel) -> Artifact:
    """Register a checkpoint's folder."""
    from nemotron.kit import ModelArtifact

    model = _described(ModelArtifact, _folder(cfg))
    if cfg.step is not None:
        model.step = cfg.step
    return _saved(model, cfg)


def preflight(cfg: ImportData | ImportModel, *, connect: bool) -> list[str]:
    """The problems of the path, found before there is a run."""
    del connect
    try:
        _folder(cfg)
    except UserError as error:
        return [str(error)]
    return []


def _folder(cfg: ImportData | ImportModel) -> Path:
    """The folder to register. Raises UserError if a required file is missing in it."""
    if isinstance(cfg, ImportModel):
        if not cfg.path.is_dir():
            raise UserError(f"{cfg.path}: no such folder.", hint="Give the folder that holds the checkpoint.")
        return cfg.path.resolve()
    name = "manifest.json" if isinstance(cfg, ImportRLData) else "blend.json"
    file = cfg.path if cfg.path.name == name else cfg.path / name
    try:
        json.loads(read_regular(file))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file.", hint=f"Give {name}, or the folder that holds it.") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}.", hint=f"Give {name}, or the folder that holds it.") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}.") from error
    return file.resolve().parent


def _opened(folder: Path) -> str:
    """Metadata from the shards that the folder's blend.json names. Raises UserError for a shard that is incomplete, or
    differs from its record; shards that are not on this machine give a note only."""
    from importlib.util import find_spec

    if find_spec("numpy") is None:
        return "The shards were not opened: numpy is not installed."
    from nemotron_kit.training.content import shard_contents
    from nemotron_kit.training.data import TokenShard, read_blend

    named = [source.prefix for sources in read_blend(folder / "blend.json").values() for source in sources]
    there = [
        TokenShard(prefix).prefix
        for prefix in named
        if Path(f"{prefix}.idx").exists() or Path(f"{prefix}.bin").exists()
    ]
    notes = [shard_contents(there, verify=None).summary] if there else []
    missing = [prefix for prefix in named if prefix not in there]
    if missing:
        notes.append(
            f"Warning: {len(missing)} of {len(named)} shards that blend.json names are not here: {missing[0]}."
        )
    return "\n".join(notes)


def _described(kind: Any, folder: Path) -> Any:
    """The description in the folder's own metadata.json, if it has one; else only the path."""
    return kind.load(folder) if (folder / "metadata.json").is_file() else kind(path=folder)


def _saved(artifact: Any, cfg: ImportData | ImportModel) -> Artifact:
    from nemotron.kit import WandbConfig, finish_wandb, init_wandb_if_configured, print_step_complete

    if cfg.project:
        init_wandb_if_configured(WandbConfig(project=cfg.project, entity=cfg.entity))
    artifact.save(name=cfg.name)
    if cfg.project:
        finish_wandb(exit_code=0)
    print_step_complete(title="Imported", **{"model" if isinstance(cfg, ImportModel) else "data": artifact})
    return artifact  # type: ignore[no-any-return]


@dataclass
class ExportModel:
    """The model and its destination."""

    to: str = field(metadata={"help": "a folder, which must be new or empty, or hf://USER/NAME"})
    private: bool = field(default=True, metadata={"help": "on the hub: make a new repository a private one"})
    path: Path = field(default=Path(), metadata={"help": "the model's folder, in place of run.model"})


def export_model(cfg: ExportModel) -> int:
    """Copy or upload the model and print where it is."""
    from nemotron_kit.artifacts import open_registry
    from nemotron_kit.artifacts.lineage import job_inputs
    from nemotron_kit.artifacts.manifest import path_pin
    from nemotron_kit.training.publish import Place, copy_model, upload_model

    for problem in export_problems(cfg, connect=False):
        raise UserError(problem)
    pin, place, registry = job_inputs().get("model"), Place.parse(cfg.to), open_registry()
    if pin is None or Path(pin.path).resolve() != cfg.path.resolve():
        pin = path_pin(cfg.path)
    if place.repository is not None:
        where = upload_model(pin, registry, place.repository, private=cfg.private)
    elif place.folder is not None:
        copy_model(pin, registry, place.folder)
        where = str(place.folder)
    print(f"{pin.label} → {where}", file=sys.stderr)
    print(where)
    return 0


def export_problems(cfg: ExportModel, *, connect: bool) -> list[str]:
    """What is in the way, before there is a run."""
    from nemotron_kit.training.publish import Place

    del connect
    try:
        return Place.parse(cfg.to).problems()
    except UserError as error:
        return [str(error)]
