"""From a blend's dataset to its files."""

from __future__ import annotations

import glob
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nemotron_kit.data_prep import store
from nemotron_kit.data_prep.blend import Dataset
from nemotron_kit.data_prep.cpython import SCHEME as CPYTHON
from nemotron_kit.data_prep.cpython import write_corpus
from nemotron_kit.data_prep.local_files import LeftOut, files_below, is_pattern, matching
from nemotron_kit.data_prep.store import LOCAL, Found
from nemotron_kit.errors import UserError, nearest
from nemotron_kit.files import kind_of_file

KINDS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
_COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
# JSON lines under a compression are named after it alone.
KINDS |= {
    base + ending: kind if KINDS[base] == "jsonl" else f"{KINDS[base]}+{kind}"
    for base in [base for base in KINDS if base != ".parquet"]
    for ending, kind in _COMPRESSIONS.items()
}
_KNOWN = ".parquet; .jsonl, .json, .ndjson, .csv, .tsv, .txt, .md, .rst, each also with .gz, .zst, .bz2, .xz"
_SPLIT_WORDS = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "validation", "val", "dev"), "valid")


def kind_of(path: str) -> str | None:
    """The reader for a file by its ending: jsonl, csv, parquet, text; a compression's name (gz, zst, bz2, xz) for JSON
    lines under it, csv+gz, text+gz and so on for the others; None for what is not read."""
    name = path.rsplit("/", 1)[-1].lower()
    return next((kind for ending, kind in KINDS.items() if name.endswith(ending)), None)


def compression_of(kind: str) -> str:
    """gz, zst, bz2, xz, or "" for a kind that is not compressed as a whole."""
    name = kind.rpartition("+")[2]
    return name if name in _COMPRESSIONS.values() else ""


def list_files(dataset: Dataset, *, folder: Path, corpora: Path, left: LeftOut | None = None) -> list[Found]:
    """The dataset's files, in an order that depends on their names only; `left` hears of what is not among them.

    Relative paths are looked for in the working folder, then in `folder` (the blend file's). `corpora` is where
    generated text goes. Raises UserError when there is nothing to read.
    """
    where = f"dataset {dataset.name!r}"
    left = LeftOut() if left is None else left
    if dataset.path.startswith(CPYTHON):
        return _local(str(write_corpus(dataset.path, corpora)), dataset, where, left)
    if dataset.path.startswith("hf://"):
        from nemotron_kit.data_prep.hub import list_hub

        return list_hub(dataset, where, left)
    if store.is_remote(dataset.path):
        return _remote(dataset, where, left)
    return _local(find_local(dataset.path, folder), dataset, where, left)


def find_local(path: str, folder: Path) -> str:
    """An absolute path for a local path or pattern: in the working folder, else in `folder`."""
    given = Path(path.removeprefix(LOCAL)).expanduser()
    places = [given] if given.is_absolute() else [Path.cwd() / given, folder / given]
    return str(next((place for place in places if place.exists() or matching(place)), places[-1]))


def _local(path: str, dataset: Dataset, where: str, left: LeftOut) -> list[Found]:
    root = Path(path)
    if root.is_dir():
        if dataset.subset:
            root = root / dataset.subset
            if not root.is_dir():
                raise UserError(f"{where}: there is no folder {root} for the subset {dataset.subset!r}.")
        names = files_below(root, left)
        taken = by_split(main_files(names, left), dataset.split, where, left)
        return _readable([names[name].absolute() for name in sorted(taken)], where, root)
    if root.exists():  # a file, or something that can't be read as one
        return _readable([root.absolute()], where)
    found = matching(root, left)
    if not found:
        raise UserError(f"{where}: no file matches {dataset.path}.", hint=f"Looked in {root.parent}.")
    return _readable([Path(name).absolute() for name in main_files(map(str, found), left)], where, root)


def _readable(paths: Sequence[Path], where: str, root: Path | None = None) -> list[Found]:
    if not paths:
        raise UserError(f"{where}: no file with a known ending in {root}.", hint=f"Known: {_KNOWN}.")
    for path in paths:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{where}: {path} is {kind_of_file(mode)}, not a regular file.")
        if kind_of(path.name) is None:
            raise UserError(f"{where}: {path} has no known ending.", hint=f"Known: {_KNOWN}.")
    return [Found(str(path), path.stat().st_size) for path in paths]


def _remote(dataset: Dataset, where: str, left: LeftOut) -> list[Found]:
    fs, inner = store.filesystem(dataset.path)
    try:
        below = remote_files(fs, inner, left)
    except Exception as error:  # each store raises its own
        raise store.unlistable(dataset.path, where, error) from error
    return chosen(below, dataset, where, left)


def remote_files(fs: Any, inner: str, left: LeftOut) -> dict[str, Found]:
    """Relative path → file, of what lies below a path of a remote store, or matches it where it does not exist."""
    if not is_pattern(inner) or fs.exists(inner):
        below = store.files_below(fs, inner, left)
        if not below and not left.counts:
            fs.info(
                inner
            )  # some stores list nothing where there is nothing, or where they were not reached: this says so
        return below
    # The part that exists is taken as it is: its brackets are no pattern.
    parts = inner.split("/")
    folders = ["/".join(parts[:n]) for n in range(len(parts))]
    literal = max((n for n, folder in enumerate(folders) if is_pattern(folder) and fs.exists(folder)), default=0)
    pattern = "/".join([*(glob.escape(part) for part in parts[:literal]), *parts[literal:]])
    matches = {p: i for p, i in fs.glob(pattern, detail=True).items() if i["type"] == "file"}
    return {p: store.found_at(fs, p, i) for p, i in matches.items() if "/." not in p}


def chosen(below: dict[str, Found], dataset: Dataset, where: str, left: LeftOut) -> list[Found]:
    """Of a remote folder's files (relative path → file), those of the dataset's split that can be read."""
    names = main_files(below, left)
    if not names:
        raise UserError(f"{where}: nothing to read in {dataset.path}.", hint=f"Known endings: {_KNOWN}.")
    return [below[name] for name in sorted(by_split(names, dataset.split, where, left))]


_TIERS = ("files with rows", ".json files", "plain text")


def main_files(names: Iterable[str], left: LeftOut) -> list[str]:
    """Of a folder's files those with rows; without any the .json ones (else: metadata); without any plain text (else:
    a README)."""
    tiers: dict[int, list[str]] = {}
    for name in names:
        kind = kind_of(name)
        if kind is None:
            left.add(name, "no known ending")
        else:
            tiers.setdefault(2 if kind.startswith("text") else int(name.lower().endswith(".json")), []).append(name)
    if not tiers:
        return []
    best = min(tiers)
    for tier in sorted(tiers.keys() - {best}):
        for name in tiers[tier]:
            left.add(name, f"{_TIERS[tier]} beside {_TIERS[best]}")
    return tiers[best]


def by_split(paths: list[str], split: str | None, where: str, left: LeftOut) -> list[str]:
    """The paths of a split, told by the words in their names; where no name has such a word, all are "train"."""
    words = {path: _split_word(path) for path in paths}
    if split is None or len(paths) <= 1 or (split == "train" and not any(words.values())):
        return paths
    wanted = _SPLIT_WORDS.get(split, split)
    chosen = [path for path, word in words.items() if word == wanted]
    if not chosen:
        known = sorted({word for word in words.values() if word}) or ["train"]
        raise UserError(f"{where}: no split {split!r}: {nearest(split, known)}.")
    for path, word in words.items():
        if word != wanted:
            left.add(path, f"not of split {split}")
    return chosen


def _split_word(path: str) -> str | None:
    return next((_SPLIT_WORDS[w] for w in re.split(r"[^a-z]+", path.lower()) if w in _SPLIT_WORDS), None)
