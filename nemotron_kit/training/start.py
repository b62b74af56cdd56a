"""Where a run starts from: its own last checkpoint, another folder's, given weights, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.training import checkpoint, ranks
from nemotron_kit.training.config import PretrainConfig
from nemotron_kit.training.identity import Difference, differences, require_same
from nemotron_kit.training.model import load_model, model_config, new_model, require_model, settings_of
from nemotron_kit.training.state import MODEL, OPTIMIZER, Progress

if TYPE_CHECKING:
    from transformers import NemotronHForCausalLM


@dataclass(frozen=True)
class Start:
    """`weights`: a model's folder, None for fresh ones. `optimizer`: its state, None for a fresh one.

    `identity`: what the run is from here on (the other processes than rank 0 don't know all of it). `notes`: what a
    person should know of the start. `valid_on` stands for the content of the held-out data, on rank 0.
    """

    weights: Path | None = None
    optimizer: Path | None = None
    progress: Progress | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    valid_on: str | None = None

    def describe(self) -> str:
        if self.progress is not None and self.optimizer is not None:
            return f"Resuming from {self.optimizer.parent} (step {self.progress.step})."
        return f"Starting from the weights in {self.weights}." if self.weights else "Starting with fresh weights."


def find_start(config: PretrainConfig, identity: dict[str, Any]) -> Start:
    """Where this run starts. UserError for a damaged checkpoint, another run's, or one that isn't there."""
    block = config.checkpoint
    own = checkpoint.latest(Path(block.save)) if block.save else None
    if own is not None:
        return _resume(own, config, identity)
    if block.load:
        loaded = checkpoint.latest(Path(block.load))
        if loaded is None:
            raise UserError(
                f"checkpoint.load: {block.load} holds no checkpoint.", hint="Its folders are step-00000000."
            )
        if not block.finetune:
            return _resume(loaded, config, identity)
        checkpoint.read(loaded, verify=ranks.rank() == 0, unsealed=_takes_unsealed(config))
        return Start(weights=loaded / MODEL, identity=identity)
    if block.pretrained_checkpoint:
        require_model(Path(block.pretrained_checkpoint))
        return Start(weights=Path(block.pretrained_checkpoint), identity=identity)
    return Start(identity=identity)


def _takes_unsealed(config: PretrainConfig) -> bool:
    return checkpoint.UNSEALED in config.checkpoint.may_differ


def _resume(path: Path, config: PretrainConfig, here: dict[str, Any]) -> Start:
    first = ranks.rank() == 0  # one process reads the bytes and compares, not each
    record = checkpoint.read(path, verify=first, unsealed=_takes_unsealed(config))
    try:
        progress = Progress(**record["progress"])
        there = dict(record["identity"])
        if progress.step != record["step"] or record["step"] < 1:
            raise ValueError(f"step {progress.step} in the checkpoint of step {record['step']}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / checkpoint.RECORD}: not a record of pretraining ({error}).") from error
    if not first:
        return Start(path / MODEL, path / OPTIMIZER, progress)
    different = differences(there, here, config, progress.step)
    notes = []
    if record.get("unsealed"):
        _require_files(path, record["files"])
        notes.append(
            f"{path / checkpoint.RECORD} has no seal: what it doesn't tell of its run is taken to be the same."
        )
        different = [one for one in different if one.there is not None and one.name != "train.precision"]
    changes = require_same(path, different, config.checkpoint.may_differ)
    if record.get("unsealed"):
        changes.append(Difference(checkpoint.UNSEALED, "without a seal", "sealed"))
    notes += [f"Going on although {change} (checkpoint.may_differ)." for change in changes]
    progress.changes = [*progress.changes, *({"step": progress.step, **change._asdict()} for change in changes)]
    return Start(
        path / MODEL,
        path / OPTIMIZER,
        progress,
        {**here, "checkpoint": here.get("checkpoint", there.get("checkpoint"))},
        tuple(notes),
    )


def _require_files(path: Path, files: Mapping[str, Any]) -> None:
    for name in (f"{MODEL}/config.json", OPTIMIZER):
        if name not in files:
            raise UserError(f"{path / checkpoint.RECORD}: it doesn't list {name}: the checkpoint is not whole.")


def start_model(start: Start, model: Mapping[str, Any], seed: int) -> NemotronHForCausalLM:
    """The model that the run starts with: given weights, or those of `model` (the block) and `seed`.

    What the block sets holds for given weights too. UserError when they are of another shape.
    """
    wanted = model_config(model)
    if start.weights is None:
        return new_model(wanted, seed)
    return load_model(start.weights, {name: getattr(wanted, name) for name in settings_of(model)})
