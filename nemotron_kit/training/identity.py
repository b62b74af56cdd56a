"""What makes two runs the same run: everything that decides the weights at a given step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.training.model import LAYER_NAMES, layer_types

if TYPE_CHECKING:
    from nemotron_kit.training.config import PretrainConfig
    from nemotron_kit.training.samples import BlendSamples

# How the work is cut into pieces, how long it goes on and how it is watched: free to change when a run is resumed.
_FREE = {"train_iters", "micro_batch_size", "eval_interval", "eval_iters", "fsdp"}


def identity(config: PretrainConfig, model: Mapping[str, Any], samples: BlendSamples) -> dict[str, Any]:
    """The run's identity; `model` is the model block with what the data decides."""
    train = {name: value for name, value in asdict(config.train).items() if name not in _FREE}
    shape = {name: value for name, value in model.items() if name not in LAYER_NAMES}
    return {
        "model": {**shape, "layers": layer_types(model)},
        "dataset": {"seq_length": config.seq_length, "seed": config.data_seed, "shards": samples.describe()},
        "train": train,
        "scheduler": asdict(config.scheduler),
    }


def require_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """UserError when the checkpoint at `path` is another run's, naming what differs."""
    differences = list(_differences(there, here))
    if not differences:
        return
    field = differences[0][0]
    what = "a different model" if field.startswith("model.") else "a run with another configuration"
    shown = "; ".join(f"{name} is {old!r} there and {new!r} here" for name, old, new in differences[:3])
    more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
    raise UserError(
        f"{path} is a checkpoint of {what}: {shown}{more}.",
        hint="Set another checkpoint.save for this run, or give the values of that run to go on with it.",
    )


def _differences(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*here, *(key for key in there if key not in here)]:
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif _plain(there) != _plain(here):
        yield name, there, here


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
