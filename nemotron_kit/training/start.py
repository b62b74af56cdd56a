"""Where a run starts from: its own last checkpoint, another folder's, given weights, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.training import checkpoint, ranks
from nemotron_kit.training.config import PretrainConfig
from nemotron_kit.training.identity import require_same
from nemotron_kit.training.model import load_model, model_config, new_model, require_model
from nemotron_kit.training.state import MODEL, OPTIMIZER, Progress

if TYPE_CHECKING:
    from transformers import NemotronHConfig, NemotronHForCausalLM


@dataclass(frozen=True)
class Start:
    """`weights`: a model's folder, None for fresh ones. `optimizer`: its state, None for a fresh one."""

    weights: Path | None = None
    optimizer: Path | None = None
    progress: Progress | None = None

    def describe(self) -> str:
        if self.progress is not None and self.optimizer is not None:
            return f"Resuming from {self.optimizer.parent} (step {self.progress.step})."
        return f"Starting from the weights in {self.weights}." if self.weights else "Starting with fresh weights."


def find_start(config: PretrainConfig, identity: dict[str, Any]) -> Start:
    """Where this run starts. UserError for a damaged checkpoint, another run's, or one that isn't there."""
    block = config.checkpoint
    own = checkpoint.latest(Path(block.save)) if block.save else None
    if own is not None:
        return _resume(own, identity)
    if block.load:
        loaded = checkpoint.latest(Path(block.load))
        if loaded is None:
            raise UserError(
                f"checkpoint.load: {block.load} holds no checkpoint.", hint="Its folders are step-00000000."
            )
        if not block.finetune:
            return _resume(loaded, identity)
        checkpoint.read(loaded, verify=ranks.rank() == 0)
        return Start(weights=loaded / MODEL)
    if block.pretrained_checkpoint:
        require_model(Path(block.pretrained_checkpoint))
        return Start(weights=Path(block.pretrained_checkpoint))
    return Start()


def _resume(path: Path, identity: dict[str, Any]) -> Start:
    record = checkpoint.read(path, verify=ranks.rank() == 0)  # one process reads the bytes, not each
    try:
        progress = Progress(**record["progress"])
        there = record["identity"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / checkpoint.RECORD}: not a record of pretraining ({error}).") from error
    require_same(path, there, identity)
    return Start(path / MODEL, path / OPTIMIZER, progress)


def start_model(start: Start, model: Mapping[str, Any], seed: int) -> NemotronHForCausalLM:
    """The model that the run starts with: given weights, or those of `model` (the block) and `seed`.

    UserError when given weights are of another shape than the block's.
    """
    wanted = model_config(model)
    if start.weights is None:
        return new_model(wanted, seed)
    loaded = load_model(start.weights)
    _require_shape(start.weights, loaded.config, wanted)
    return loaded


def _require_shape(folder: Path, there: NemotronHConfig, here: NemotronHConfig) -> None:
    for name in ("vocab_size", "hidden_size", "layers_block_type"):
        old, new = getattr(there, name), getattr(here, name)
        if old != new:
            raise UserError(
                f"{folder} is a different model: model.{name} is {old!r} there and {new!r} here.",
                hint="Give the model block of those weights, or other weights.",
            )
