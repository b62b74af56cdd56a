"""blend.json: per split, a flat list of weights and shard prefixes, as Megatron reads it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError, nearest

SPLITS = ("train", "valid", "test")
_FORM = '{"train": ["0.7", "/data/a", "0.3", "/data/b"], "valid": ["1.0", "/data/v"]}'


@dataclass(frozen=True)
class Source:
    """A shard prefix and its share of the split; `weight` None: in proportion to the shard's size."""

    weight: float | None
    prefix: str


def read_blend(path: str | Path) -> dict[str, list[Source]]:
    """The sources of each split that the file names; relative prefixes count from the file's folder.

    Raises UserError for a missing or broken file, an unknown split, or a list that isn't weight, prefix, weight, …
    """
    path = Path(path)
    splits = _load(path)
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"{path}: unknown split {split!r}; {nearest(split, SPLITS)}")
    return {split: _sources(path, split, entries) for split, entries in splits.items() if entries}


def _load(path: Path) -> dict[str, Any]:
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}.", hint="Prepare the data first: nemotron nano3 data prep pretrain -c tiny"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}", hint=f"A blend file looks like {_FORM}") from error
    if not isinstance(splits, dict) or not all(isinstance(entries, list | None) for entries in splits.values()):
        raise UserError(f"{path}: not an object of lists.", hint=f"A blend file looks like {_FORM}")
    return splits


def _sources(path: Path, split: str, entries: list[Any]) -> list[Source]:
    weights = [_number(entry) for entry in entries[::2]]
    if len(entries) % 2 == 0 and all(weight is not None for weight in weights):
        pairs = list(zip(weights, entries[1::2], strict=True))
    elif all(isinstance(entry, str) and _number(entry) is None for entry in entries):
        pairs = [(None, entry) for entry in entries]
    else:
        raise UserError(f"{path}: {split} is not weight, prefix, weight, prefix, …", hint=f"It looks like {_FORM}")
    for weight, prefix in pairs:
        if not isinstance(prefix, str) or (weight is not None and not 0 <= weight < math.inf):
            raise UserError(f"{path}: {split} has the weight {weight!r} for {prefix!r}; it must be 0 or more.")
    return [Source(weight, str(path.parent / prefix)) for weight, prefix in pairs if weight != 0]


def _number(entry: Any) -> float | None:
    if isinstance(entry, bool) or not isinstance(entry, str | int | float):
        return None
    try:
        return float(entry)
    except ValueError:
        return None
