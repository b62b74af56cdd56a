"""From a blend's dataset to its files."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from nemotron_kit.data_prep import store
from nemotron_kit.data_prep.blend import Dataset
from nemotron_kit.data_prep.cpython import SCHEME as CPYTHON
from nemotron_kit.data_prep.cpython import write_corpus
from nemotron_kit.data_prep.store import Found
from nemotron_kit.errors import UserError, nearest

KINDS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "gz",
    ".json.gz": "gz",
    ".jsonl.zst": "zst",
    ".json.zst": "zst",
    ".jsonl.zstd": "zst",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
_SPLIT_WORDS = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "validation", "val", "dev"), "valid")


def kind_of(path: str) -> str | None:
    """The reader for a file by its ending: jsonl, gz, zst, parquet, text; None for all others."""
    name = path.rsplit("/", 1)[-1].lower()
    return next((kind for ending, kind in KINDS.items() if name.endswith(ending)), None)


def list_files(dataset: Dataset, *, folder: Path, corpora: Path) -> list[Found]:
    """The dataset's files, in an order that depends on their names only.

    Relative paths are looked for in the working folder, then in `folder` (the blend file's). `corpora` is where
    generated text goes. Raises UserError when there is nothing to read.
    """
    where = f"dataset {dataset.name!r}"
    if dataset.path.startswith(CPYTHON):
        return _local(str(write_corpus(dataset.path, corpora)), dataset, where)
    if dataset.path.startswith("hf://"):
        from nemotron_kit.data_prep.hub import list_hub

        return list_hub(dataset, where)
    if store.is_remote(dataset.path):
        return _remote(dataset, where)
    return _local(find_local(dataset.path, folder), dataset, where)


def find_local(path: str, folder: Path) -> str:
    """An absolute path for a local path or glob: in the working folder, else in `folder`."""
    given = Path(path).expanduser()
    places = [given] if given.is_absolute() else [Path.cwd() / given, folder / given]
    return str(next((place for place in places if place.exists() or globbed(place)), places[-1]))


def globbed(pattern: Path) -> list[Path]:
    """The files that match, sorted; `**` goes down any number of folders."""
    return [Path(p) for p in sorted(glob.glob(str(pattern), recursive=True)) if Path(p).is_file()]  # noqa: PTH207


def _local(path: str, dataset: Dataset, where: str) -> list[Found]:
    root = Path(path)
    if root.is_file():
        return _readable([root.absolute()], where)
    if root.is_dir():
        if dataset.subset:
            root = root / dataset.subset
        names = {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file() and not _hidden(p, root)}
        taken = by_split(main_files(names), dataset.split, where)
        return _readable([names[name].absolute() for name in sorted(taken)], where, root)
    found = globbed(root)
    if not found:
        raise UserError(f"{where}: no file matches {dataset.path}.", hint=f"Looked in {root.parent}.")
    return _readable([Path(name).absolute() for name in main_files(map(str, found))], where, root)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _readable(paths: Sequence[Path], where: str, root: Path | None = None) -> list[Found]:
    if not paths:
        raise UserError(f"{where}: no file with a known ending in {root}.", hint=f"Known: {', '.join(KINDS)}.")
    for path in paths:
        if kind_of(path.name) is None:
            raise UserError(f"{where}: {path} has no known ending.", hint=f"Known: {', '.join(KINDS)}.")
    return [Found(str(path), path.stat().st_size) for path in paths]


def _remote(dataset: Dataset, where: str) -> list[Found]:
    fs, inner = store.filesystem(dataset.path)
    try:
        if any(letter in inner for letter in "*?["):
            matches = {p: i for p, i in fs.glob(inner, detail=True).items() if i["type"] == "file"}
            below = {p: store.found_at(fs, p, i) for p, i in matches.items() if "/." not in p}
        else:
            below = store.files_below(fs, inner)
    except Exception as error:  # each store raises its own
        raise store.unlistable(dataset.path, where, error) from error
    return chosen(below, dataset, where)


def chosen(below: dict[str, Found], dataset: Dataset, where: str) -> list[Found]:
    """Of a remote folder's files (relative path → file), those of the dataset's split that can be read."""
    names = main_files(below)
    if not names:
        raise UserError(f"{where}: nothing to read in {dataset.path}.", hint=f"Known endings: {', '.join(KINDS)}.")
    return [below[name] for name in sorted(by_split(names, dataset.split, where))]


def main_files(names: Iterable[str]) -> list[str]:
    """Of a folder's files those with rows; without any the .json ones (else: metadata); without any plain text (else:
    a README)."""
    tiers: dict[int, list[str]] = {}
    for name in names:
        kind = kind_of(name)
        if kind is not None:
            tiers.setdefault(2 if kind == "text" else int(name.lower().endswith(".json")), []).append(name)
    return tiers[min(tiers)] if tiers else []


def by_split(paths: list[str], split: str | None, where: str) -> list[str]:
    """The paths of a split, told by the words in their names; where no name has such a word, all are "train"."""
    words = {path: _split_word(path) for path in paths}
    if split is None or len(paths) <= 1 or (split == "train" and not any(words.values())):
        return paths
    wanted = _SPLIT_WORDS.get(split, split)
    chosen = [path for path, word in words.items() if word == wanted]
    if not chosen:
        known = sorted({word for word in words.values() if word}) or ["train"]
        raise UserError(f"{where}: no split {split!r}: {nearest(split, known)}.")
    return chosen


def _split_word(path: str) -> str | None:
    return next((_SPLIT_WORDS[w] for w in re.split(r"[^a-z]+", path.lower()) if w in _SPLIT_WORDS), None)
