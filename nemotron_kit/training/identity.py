"""What makes two runs the same run: everything that decides the weights at a given step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nemotron_kit.artifacts.sealed import sha256_of
from nemotron_kit.errors import UserError
from nemotron_kit.training import checkpoint
from nemotron_kit.training.content import recorded_digest, weights_digest
from nemotron_kit.training.model import LAYER_NAMES, layer_types
from nemotron_kit.training.scheduler import learning_rate
from nemotron_kit.training.state import MODEL

if TYPE_CHECKING:
    from nemotron_kit.training.blocks import CheckpointConfig
    from nemotron_kit.training.config import PretrainConfig
    from nemotron_kit.training.samples import BlendSamples

# How the work is cut into pieces and how it is watched: free to change when a run is resumed.
_FREE = {"micro_batch_size", "eval_interval", "eval_iters", "fsdp"}


class Difference(NamedTuple):
    """A setting by its dotted name, as it is in a checkpoint and as it is in this run."""

    name: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.name} is {_short(self.there)} there and {_short(self.here)} here"


def identity(
    config: PretrainConfig, model: Mapping[str, Any], samples: BlendSamples, digests: Mapping[str, str], precision: str
) -> dict[str, Any]:
    """The run's identity. `model` is the model block with what the data decides, `digests` the content of each shard,
    `precision` what the setting of that name comes to on this machine."""
    train = {name: value for name, value in asdict(config.train).items() if name not in _FREE}
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
        **_given_weights(config.checkpoint),
    }
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # as it is read back


def _given_weights(block: CheckpointConfig) -> dict[str, Any]:
    """The weights that a new run starts from. A run that goes on from `load` has those of the run that it goes on with,
    which its own settings don't name."""
    if block.pretrained_checkpoint:
        folder = Path(block.pretrained_checkpoint).absolute()
        given = {"path": str(folder), "sha256": weights_digest(folder)}
        return {"checkpoint": {"pretrained_checkpoint": given, "load": None}}
    if block.load and block.finetune:
        latest = checkpoint.latest(Path(block.load))
        files = checkpoint.read(latest, verify=False)["files"] if latest is not None else {}
        given = {"path": str(Path(block.load).absolute()), "sha256": recorded_digest(files, MODEL) if files else None}
        return {"checkpoint": {"pretrained_checkpoint": None, "load": given}}
    return {} if block.load else {"checkpoint": {"pretrained_checkpoint": None, "load": None}}


def portable(same: Mapping[str, Any]) -> dict[str, Any]:
    """The identity without the places where given weights lay: equal for equal weights, wherever a run was made."""
    given = same.get("checkpoint") or {}
    without = {name: value["sha256"] if isinstance(value, Mapping) else value for name, value in given.items()}
    return {**same, "checkpoint": without}


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], config: PretrainConfig, done: int
) -> list[Difference]:
    """What differs between the run that did `done` steps and this one, as far as it decides the weights."""
    found = [Difference(*found) for found in _differing(there, here)]
    if "checkpoint" not in here:
        found = [difference for difference in found if not difference.name.startswith("checkpoint")]
    return [difference for difference in found if not _changes_nothing(difference, config, done)]


def _changes_nothing(difference: Difference, config: PretrainConfig, done: int) -> bool:
    if difference.name != "train.train_iters" or not isinstance(difference.there, int):
        return False
    # How long a run goes on is free, as long as the steps that are done would have been the same.
    block, lr = config.scheduler, config.train.lr
    before, now = difference.there, difference.here
    return all(learning_rate(block, lr, step, before) == learning_rate(block, lr, step, now) for step in range(done))


def require_same(path: Path, different: Sequence[Difference], may_differ: Sequence[str]) -> list[Difference]:
    """The differences, all of which `may_differ` names; UserError for any other: the checkpoint is another run's."""
    refused = [difference for difference in different if not _named(difference.name, may_differ)]
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


def _named(name: str, may_differ: Sequence[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in may_differ)


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
    """Given weights are told by their content; by their path where they are gone by now, or those of a run that may
    have gone on (`moving`)."""
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
