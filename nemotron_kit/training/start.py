"""The starting point of a run: fresh, from given weights, or from a checkpoint, which must belong to a run of the same
identity.

The identity is every setting that determines the weights at a step: model, data, seed, batch sizes, schedule,
precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nemotron_kit.errors import UserError
from nemotron_kit.files import sha256_of
from nemotron_kit.training import checkpoint, processes, sharded
from nemotron_kit.training.checkpoint import MODEL, OPTIMIZER, TrainingProgress
from nemotron_kit.training.config_blocks import FREE_SETTINGS
from nemotron_kit.training.content import recorded_digest, weights_digest
from nemotron_kit.training.export import without_folders
from nemotron_kit.training.loop import learning_rate
from nemotron_kit.training.model import (
    LAYER_NAMES,
    layer_types,
    load_model,
    model_config,
    new_model,
    require_model,
    settings_of,
)
from nemotron_kit.training.model_size import expert_count
from nemotron_kit.training.parallel import Layout
from nemotron_kit.training.pretrain_config import PretrainConfig
from nemotron_kit.training.processes import StopRequest

if TYPE_CHECKING:
    from transformers import NemotronHForCausalLM

    from nemotron_kit.training.config_blocks import CheckpointConfig
    from nemotron_kit.training.data import BlendSamples
    from nemotron_kit.training.grpo_config import GRPOConfig
    from nemotron_kit.training.sft_config import SFTConfig

    Resumable = PretrainConfig | SFTConfig | GRPOConfig


T = TypeVar("T")
_STEPS = ("train.train_iters", "grpo.max_num_steps")


class SettingDifference(NamedTuple):
    """A setting, by its dotted name, with its value in the checkpoint (`there`) and in this run (`here`)."""

    name: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.name} is {_short(self.there)} there and {_short(self.here)} here"


def identity(
    config: PretrainConfig, model: Mapping[str, Any], samples: BlendSamples, digests: Mapping[str, str], precision: str
) -> dict[str, Any]:
    """The run's identity. `model` is the model block completed with the settings from the data, `digests` the content
    of each shard, `precision` the precision that the setting of that name gives on this machine."""
    train = {name: value for name, value in asdict(config.train).items() if name not in FREE_SETTINGS}
    shape = {name: value for name, value in model.items() if name not in LAYER_NAMES}
    content = sha256_of([digests[shard.prefix] for shard in samples.shards])
    found = {
        "model": {**shape, "layers": layer_types(model)},
        "dataset": {
            "seq_length": config.seq_length,
            "seed": config.data_seed,
            "shards": samples.describe(),
            "content": content,
        },
        "train": {**train, "precision": precision},
        "scheduler": asdict(config.scheduler),
        **given_weights(config.checkpoint),
    }
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # as it is read back


def given_weights(block: CheckpointConfig) -> dict[str, Any]:
    """The weights that a new run starts from. A run that continues from `load` has those of the run that it continues,
    which its own settings don't name."""
    if block.pretrained_checkpoint:
        folder = Path(block.pretrained_checkpoint).absolute()
        given = {"path": str(folder), "sha256": weights_digest(folder)}
        return {"checkpoint": {"pretrained_checkpoint": given, "load": None}}
    if block.load and block.finetune:
        latest = checkpoint.latest(Path(block.load))
        files = checkpoint.read(latest, verify=False)["files"] if latest is not None else {}
        weights = sharded.SHARDS if sharded.INDEX in files else MODEL
        given = {"path": str(Path(block.load).absolute()), "sha256": recorded_digest(files, weights) if files else None}
        return {"checkpoint": {"pretrained_checkpoint": None, "load": given}}
    return {} if block.load else {"checkpoint": {"pretrained_checkpoint": None, "load": None}}


def portable(same: Mapping[str, Any]) -> dict[str, Any]:
    """The identity without the paths of given weights and other files: equal for equal weights, wherever a run was
    made."""
    given = same.get("checkpoint") or {}
    without = {name: value["sha256"] if isinstance(value, Mapping) else value for name, value in given.items()}
    portable: dict[str, Any] = without_folders({**same, "checkpoint": without})
    return portable


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], config: Resumable, done: int
) -> list[SettingDifference]:
    """The settings that differ between the run that did `done` steps and this one, as far as they determine the
    weights."""
    block, lr = config.scheduler, config.peak_lr
    found = []
    for name, before, now in _differing(there, here):
        if name.startswith("checkpoint") and "checkpoint" not in here:
            continue
        # How long a run goes on is free, as long as the steps that are done would have been the same.
        if (
            name in _STEPS
            and isinstance(before, int)
            and all(learning_rate(block, lr, n, before) == learning_rate(block, lr, n, now) for n in range(done))
        ):
            continue
        found.append(SettingDifference(name, before, now))
    return found


def require_same(
    path: Path, different: Sequence[SettingDifference], may_differ: Sequence[str]
) -> list[SettingDifference]:
    """The differences, if `may_differ` names all of them. Raises UserError for any other: the checkpoint is another
    run's."""
    blocks = tuple(f"{name}." for name in may_differ)
    refused = [one for one in different if one.name not in may_differ and not one.name.startswith(blocks)]
    if not refused:
        return list(different)
    names = [difference.name for difference in refused]
    what = "a different model" if names[0].startswith("model.") else "a run with another configuration"
    shown = "; ".join(map(str, refused[:4]))
    more = f" (and {len(refused) - 4} more)" if len(refused) > 4 else ""
    asked = ",".join(dict.fromkeys([*may_differ, *names]))
    raise UserError(
        f"{path} is a checkpoint of {what}: {shown}{more}.",
        hint="Set another checkpoint.save for this run, or give the values of that run to go on with it. To go on with "
        f"what differs all the same: 'checkpoint.may_differ=[{asked}]'.",
    )


def _differing(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if name in ("checkpoint.pretrained_checkpoint", "checkpoint.load"):
        if not _same_weights(there, here, moving=name == "checkpoint.load"):
            yield name, there, here
    elif isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*here, *(key for key in there if key not in here)]:
            yield from _differing(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif isinstance(here, Mapping) and here:
        yield from _differing({}, here, name)
    elif there != here:
        yield name, there, here


def _same_weights(there: Any, here: Any, *, moving: bool) -> bool:
    """Whether two records of given weights mean the same weights: compared by content digest; by path if a digest is
    missing, or with `moving` (a run's folder whose newest checkpoint may have changed)."""
    if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        return bool(there == here)
    if here.get("sha256") is not None and here["sha256"] == there.get("sha256"):
        return True
    return (moving or here.get("sha256") is None) and there.get("path") == here.get("path")


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "path" in value:
        return f"{value['path']} ({str(value.get('sha256'))[:12]})"
    if isinstance(value, str) and len(value) == 64:  # a sha256
        return f"{value[:12]}…"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


@dataclass(frozen=True)
class StartingPoint:
    """The starting point of a run.

    `weights`: a model's folder, None for random initialization. `optimizer`: the file of its state, None for a new one.
    `progress`: that of the checkpoint, None for a new run. `identity`: the run's identity (complete on rank 0 only).
    `notes`: sentences to print at the start. `valid_on`: digest of the held-out data, on rank 0.
    """

    weights: Path | None = None
    optimizer: Path | None = None
    progress: TrainingProgress | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    valid_on: str | None = None

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.progress.step if self.progress is not None else 0

    def describe(self) -> str:
        """A sentence on where the run starts, for its log."""
        if self.progress is not None and self.optimizer is not None:
            return f"Resuming from {self.optimizer.parent} (step {self.progress.step})."
        return f"Starting from the weights in {self.weights}." if self.weights else "Starting with fresh weights."


def find_start(config: Resumable, identity: dict[str, Any]) -> StartingPoint:
    """The starting point of this run. Raises UserError for a checkpoint that is damaged, belongs to another run, or
    does not exist."""
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
        checkpoint.read(loaded, verify=sharded.verifies, allow_unchecked=_allows_unchecked(config))
        return StartingPoint(weights=loaded / MODEL, identity=identity)
    if block.pretrained_checkpoint:
        require_model(Path(block.pretrained_checkpoint))
        return StartingPoint(weights=Path(block.pretrained_checkpoint), identity=identity)
    return StartingPoint(identity=identity)


def require_agreement(start: StartingPoint) -> None:
    """Raises UserError, on all ranks, unless all of them start from the same step. All ranks must call it, after
    `processes.join`: each has looked for a checkpoint by itself, and a folder that is not shared has it on one node."""
    steps = processes.on_all_ranks(lambda: start.step)
    for number, step in enumerate(steps):
        if step != steps[0]:
            raise UserError(
                f"Process 0 starts at step {steps[0]}, and process {number} at step {step}: they do not see the same "
                "checkpoints.",
                hint="checkpoint.save (and checkpoint.load) must be a folder that the processes of all nodes share.",
            )


def on_ranks(start: StartingPoint, hang_minutes: float | None, train: Callable[[StopRequest], T]) -> T:
    """Join the processes that torchrun started, and `train` once they agree on the start. Raises what `train` and
    `require_agreement` do."""
    # Before signals are caught: who waits for a peer that never comes can still be stopped.
    processes.join(hang_minutes)
    try:
        require_agreement(start)
        with StopRequest() as stop:
            return train(stop)
    finally:
        processes.leave()


def _allows_unchecked(config: Resumable) -> bool:
    return checkpoint.UNCHECKED_RECORD in config.checkpoint.may_differ


def _resume(path: Path, config: Resumable, here: dict[str, Any]) -> StartingPoint:
    first = processes.rank() == 0
    record = checkpoint.read(path, verify=sharded.verifies, allow_unchecked=_allows_unchecked(config))
    try:
        progress = TrainingProgress(**record["progress"])
        there = dict(record["identity"])
        if progress.step != record["step"] or record["step"] < 1:
            raise ValueError(f"step {progress.step} in the checkpoint of step {record['step']}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / checkpoint.RECORD}: not a record of training ({error}).") from error
    if not first:
        return StartingPoint(path / MODEL, path / OPTIMIZER, progress)
    different = differences(there, here, config, progress.step)
    notes = []
    if record.get("unchecked"):
        for name in (f"{MODEL}/config.json", OPTIMIZER):
            if name not in record["files"]:
                raise UserError(f"{path / checkpoint.RECORD}: it doesn't list {name}: the checkpoint is not whole.")
        notes.append(
            f"{path / checkpoint.RECORD} has no checksum: settings that it does not name are taken to be the same."
        )
        different = [one for one in different if one.there is not None and one.name != "train.precision"]
    changes = require_same(path, different, config.checkpoint.may_differ)
    if record.get("unchecked"):
        changes.append(SettingDifference(checkpoint.UNCHECKED_RECORD, "without a checksum", "with a checksum"))
    for name, _, last in _differing(there, here):
        if name in _STEPS and isinstance(last, int) and last < progress.step:
            notes.append(f"The checkpoint is of step {progress.step}, and {name} is {last}: nothing is trained.")
    notes += [f"Going on although {change} (checkpoint.may_differ)." for change in changes]
    progress.changes = [*progress.changes, *({"step": progress.step, **change._asdict()} for change in changes)]
    return StartingPoint(
        path / MODEL,
        path / OPTIMIZER,
        progress,
        {**here, "checkpoint": here.get("checkpoint", there.get("checkpoint"))},
        tuple(notes),
    )


def start_model(
    start: StartingPoint, model: Mapping[str, Any], seed: int, layout: Layout | None = None, *, bf16: bool = False
) -> NemotronHForCausalLM:
    """The model that the run starts with, in its layout: given weights, or those of `model` (the block) and `seed`.

    The block's settings apply to given weights too. Raises UserError if these are of another shape.
    """
    wanted, layout = model_config(model), layout or Layout()
    layout.check_experts(expert_count(model))
    if start.weights is None:
        return new_model(wanted, seed, layout, bf16=bf16)
    return load_model(start.weights, {name: getattr(wanted, name) for name in settings_of(model)}, layout, bf16=bf16)
