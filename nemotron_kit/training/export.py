"""The trained model as a folder of its own, in transformers' format, with the data's tokenizer beside it."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import fsync_dir
from nemotron_kit.training.checkpoint import seal
from nemotron_kit.training.config import PretrainConfig
from nemotron_kit.training.state import export_model

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
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"checkpoint.save: {folder} can't be written to: {error.strerror}.", hint="Set another checkpoint.save."
        ) from error


def export(model: Any, path: Path, data: Path) -> None:
    """Write the model to `path`, whole or not at all; what is there already is this very model, and stays."""
    if path.is_dir():
        return
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        aside.mkdir(parents=True)
        export_model(model, aside)
        _copy_tokenizer(data, aside)
        seal(aside)
        aside.rename(path)
        fsync_dir(path.parent)
    except OSError as error:
        raise NemotronError(f"{path}: the model can't be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _copy_tokenizer(data: Path, folder: Path) -> None:
    for place in (data / "tokenizer", data):
        for name in _TOKENIZER:
            if (place / name).is_file() and not (folder / name).exists():
                shutil.copyfile(place / name, folder / name)
