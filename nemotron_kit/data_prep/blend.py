"""A blend file: which sources, and how much each weighs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError, nearest
from nemotron_kit.files import read_regular

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Dataset:
    """One source: a file, folder, glob or URL (hf://, s3://, gs://, any of fsspec's; cpython:// for text Python ships).

    Of a folder, files with rows (JSON lines, parquet) are read; where there are none, .json; where there are none,
    plain text. `split` and `subset` pick from a folder or a Hugging Face repository. `text_field` None is the caller's.
    """

    name: str
    path: str
    weight: float = 1.0
    split: str | None = None
    subset: str | None = None
    text_field: str | None = None


@dataclass(frozen=True)
class DataBlend:
    """Sources by split: {"all": …} from `datasets`, to be split into train, valid and test; or those three by name.

    `folder` is where the blend file lies (relative paths are looked for there too); `tokens` is what its author
    published as its size, for estimates only.
    """

    splits: dict[str, tuple[Dataset, ...]]
    folder: Path = field(default_factory=Path.cwd)
    tokens: int | None = None

    @property
    def datasets(self) -> list[Dataset]:
        return [dataset for datasets in self.splits.values() for dataset in datasets]

    @classmethod
    def load(cls, path: str | Path) -> DataBlend:
        """Read a blend file. Raises UserError with file, key and (for broken JSON) line."""
        path = Path(path).expanduser()
        try:
            content = json.loads(read_regular(path).decode("utf-8"), object_pairs_hook=_no_duplicates)
        except FileNotFoundError:
            raise UserError(f"blend_path: there is no file {path}.", hint=_EXAMPLE) from None
        except IsADirectoryError:
            raise UserError(f"blend_path: {path} is a folder, not a blend file.", hint=_EXAMPLE) from None
        except OSError as error:  # a FIFO, which would be waited for; a file that can't be read
            raise UserError(f"blend_path: {path}: {error.strerror}.", hint=_EXAMPLE) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text (byte {error.start}).") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from error
        except (_Duplicate, RecursionError) as error:
            raise UserError(f"{path}: {error}.") from error
        return _blend(content, path)


_EXAMPLE = 'A blend file is JSON: {"datasets": [{"name": "docs", "path": "docs/*.jsonl", "weight": 1.0}]}'


def _blend(content: Any, path: Path) -> DataBlend:
    if not isinstance(content, dict):
        raise UserError(f"{path}: a blend file holds one JSON object.", hint=_EXAMPLE)
    for key in content:
        if key not in ("datasets", "tokens", *SPLITS):
            raise UserError(f"{path}: unknown key {key!r}: {nearest(key, ('datasets', 'tokens', *SPLITS))}.")
    named = [split for split in SPLITS if content.get(split)]
    whole = content.get("datasets") is not None
    if whole and named:
        raise UserError(f"{path}: 'datasets' and {named[0]!r} exclude each other.", hint="Keep one of the two forms.")
    if not whole and "train" not in named:
        raise UserError(f"{path}: neither 'datasets' nor 'train' is there.", hint=_EXAMPLE)
    tokens = content.get("tokens")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool)):
        raise UserError(f"{path}, tokens: expected a whole number, got {tokens!r}.")
    keys = {"all": "datasets"} if whole else {split: split for split in named}
    splits = {split: _datasets(content[key], f"{path}, {key}") for split, key in keys.items()}
    return DataBlend(splits, path.absolute().parent, tokens)


def _datasets(entries: Any, where: str) -> tuple[Dataset, ...]:
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where}: expected a list with at least one dataset.", hint=_EXAMPLE)
    datasets = tuple(_dataset(entry, f"{where}[{number}]") for number, entry in enumerate(entries))
    names = [dataset.name for dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: two datasets are called {name!r}.", hint="Give each a name of its own.")
    if not any(dataset.weight for dataset in datasets):
        raise UserError(f"{where}: every weight is 0.")
    return datasets


def _dataset(entry: Any, where: str) -> Dataset:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object, got {entry!r}.", hint=_EXAMPLE)
    known = [f.name for f in fields(Dataset)]
    for key in entry:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}: {nearest(key, known)}.")
    for key in ("name", "path"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise UserError(f"{where}.{key}: expected text, got {entry.get(key)!r}.")
    for key in ("split", "subset", "text_field"):
        if not isinstance(entry.get(key), str | None):
            raise UserError(f"{where}.{key}: expected text, got {entry[key]!r}.")
    weight = entry.get("weight", 1.0)
    numeric = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not numeric or not math.isfinite(weight) or weight < 0:
        raise UserError(f"{where}.weight: expected a number of 0 or more, got {weight!r}.")
    return Dataset(**{**entry, "weight": float(weight)})


class _Duplicate(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets the last of two equal keys win in silence; a blend must not lose a source that way."""
    seen = dict(pairs)
    if len(seen) < len(pairs):
        key = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise _Duplicate(f"the key {key!r} stands twice in one object")
    return seen
