"""The trained model as a folder of its own, in transformers' format, with the data's tokenizer beside it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.manifest import METADATA, read_checksummed, render_checksummed
from nemotron_kit.artifacts.weights import check_weights
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import fsync_dir, write_text
from nemotron_kit.training.checkpoint import export_model, remove, sync_and_hash
from nemotron_kit.training.config import PretrainConfig

# In a model's folder: the run that made it.
RECORD = "training.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def output_folder(config: PretrainConfig) -> Path:
    """Where models and metrics go: checkpoint.save, else the job's folder. UserError when there is neither."""
    if config.checkpoint.save:
        return Path(config.checkpoint.save).absolute()
    if os.environ.get("NEMO_RUN_DIR"):
        return Path(os.environ["NEMO_RUN_DIR"], "pretrain").absolute()
    raise UserError(
        "checkpoint.save is not set: the trained model has nowhere to go.", hint="Set checkpoint.save=<folder>."
    )


def prepare_output(folder: Path) -> None:
    """Make the folder and see that it can be written to, before any work is done. UserError when it can't."""
    probe = folder / f".probe.{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as error:
        raise UserError(
            f"checkpoint.save: {folder} can't be written to: {error.strerror}.", hint="Set another checkpoint.save."
        ) from error
    with contextlib.suppress(OSError):  # what can be written to will do
        probe.unlink()


def model_folder(folder: Path, step: int) -> Path:
    """Where the model of `step` goes."""
    return folder / f"model-{step:08d}"


def require_place(path: Path, identity: Mapping[str, Any]) -> None:
    """UserError when `path`, where this run will write its model, holds the model of another run."""
    if not path.exists():
        return
    hint = f"Remove {path} if nobody needs that model, or set another checkpoint.save for this run."
    try:
        made_by = read_checksummed(path / RECORD, "record")["identity"]
    except (OSError, KeyError, NemotronError):
        raise UserError(
            f"{path} is there already, and no {RECORD} in it says which run made it: this run would replace it.",
            hint=hint,
        ) from None
    different = [
        name
        for name in dict.fromkeys([*identity, *made_by])
        if _without_length(made_by.get(name)) != _without_length(identity.get(name))
    ]
    if different:
        raise UserError(
            f"{path} is there already, the model of another run (other {', '.join(different)}): this run would replace "
            "it.",
            hint=hint,
        )


def _without_length(block: Any) -> Any:
    return {key: value for key, value in block.items() if key != "train_iters"} if isinstance(block, Mapping) else block


def export(model: Any, path: Path, data: Path, record: Mapping[str, Any]) -> None:
    """Write the model to `path`, whole or not at all, with a `record` of the run that made it. Where the very same
    model is there already it stays; anything else there is replaced."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    old = aside.with_suffix(".old.tmp")
    try:
        aside.mkdir(parents=True)
        export_model(model, aside)
        _copy_tokenizer(data, aside)
        check_weights(aside)
        write_text(aside / RECORD, render_checksummed(json.loads(json.dumps(record, sort_keys=True))), mode=0o666)
        files = sync_and_hash(aside)
        if path.exists():
            if _is_same(path, files):
                return
            path.rename(old)
        aside.rename(path)
        fsync_dir(path.parent)
    except OSError as error:
        raise NemotronError(f"{path}: the model can't be written: {error.strerror or error}.") from error
    finally:
        remove(aside)
        if old.exists():
            remove(old)


def _is_same(path: Path, files: Mapping[str, Any]) -> bool:
    """Whether the model at `path` is whole, with these files; the record may be that of an equal model's own run."""
    beside = {RECORD, METADATA}  # registering adds the latter
    try:
        if (path / RECORD).exists():
            read_checksummed(path / RECORD, "record")
        there = sync_and_hash(path)
    except (OSError, NemotronError):
        return False
    return {k: v for k, v in there.items() if k not in beside} == {k: v for k, v in files.items() if k not in beside}


def _copy_tokenizer(data: Path, folder: Path) -> None:
    for place in (data / "tokenizer", data):
        for name in _TOKENIZER:
            if (place / name).is_file() and not (folder / name).exists():
                shutil.copyfile(place / name, folder / name)
