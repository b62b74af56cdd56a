"""Which files of a Hugging Face repository belong to a subset and split, as its dataset card says."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from nemotron_kit.data_prep import store
from nemotron_kit.data_prep.blend import Dataset
from nemotron_kit.data_prep.listing import chosen, remote_files
from nemotron_kit.data_prep.local_files import LeftOut
from nemotron_kit.data_prep.store import Found
from nemotron_kit.errors import UserError, nearest


def list_hub(dataset: Dataset, where: str, left: LeftOut) -> list[Found]:
    """hf://owner/name[@revision][/path], with or without `datasets/` before it."""
    parts = dataset.path.removeprefix("hf://").removeprefix("datasets/").split("/")
    if len(parts) < 2:
        raise UserError(f"{where}: {dataset.path} is not hf://owner/name.")
    url = f"hf://datasets/{parts[0]}/{parts[1]}"
    fs, root = store.filesystem(url)
    try:
        below = remote_files(fs, "/".join([root, *parts[2:]]), left)
        card = f"{root}/README.md"
        # A path inside the repository says which files; the card's patterns are for the whole.
        known = not parts[2:] and fs.exists(card)
        configs = _card_configs(fs.cat_file(card).decode("utf-8", "replace")) if known else {}
    except Exception as error:  # each HTTP library raises its own
        raise store.unlistable(dataset.path, where, error) from error
    return hub_files(below, configs, dataset, where, left)


def hub_files(
    below: dict[str, Found],
    configs: dict[str, list[tuple[str, str]]],
    dataset: Dataset,
    where: str,
    left: LeftOut,
) -> list[Found]:
    """The files of a subset and split of a Hugging Face repository.

    `below` maps paths in the repository to files; `configs` is its card's: subset → (split, pattern) pairs. Without
    a card, a subset is a folder.
    """
    subset = dataset.subset or (next(iter(configs)) if len(configs) == 1 else None)
    subset = subset or ("default" if "default" in configs else None)
    if configs and subset in configs:
        split = dataset.split or "train"
        patterns = [pattern for name, pattern in configs[subset] if name == split]
        if not patterns:
            raise UserError(f"{where}: no split {split!r}: {nearest(split, [s for s, _ in configs[subset]])}.")
        matching = {name: file for name, file in below.items() if any(_matches(name, pattern) for pattern in patterns)}
        _leave(below, matching, f"not of subset {subset}, split {split}", left)
        return chosen(matching, Dataset(dataset.name, dataset.path), where, left)
    if configs:
        raise UserError(f"{where}: no subset {dataset.subset!r}: {nearest(dataset.subset or '', configs)}.")
    inside = {name: f for name, f in below.items() if not subset or f"/{subset.lower()}/" in f"/{name.lower()}"}
    _leave(below, inside, f"not of subset {subset}", left)
    return chosen(inside, dataset, where, left)


def _leave(below: dict[str, Found], taken: dict[str, Found], why: str, left: LeftOut) -> None:
    for name in below:
        if name not in taken:
            left.add(name, why)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern.removeprefix("./").replace("**/", "*"))


def _card_configs(card: str) -> dict[str, list[tuple[str, str]]]:
    """subset → [(split, pattern)] from the YAML head of a dataset card."""
    import yaml

    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    values = yaml.safe_load(head[1]) if head else None
    configs: dict[str, list[tuple[str, str]]] = {}
    for entry in (values or {}).get("configs") or []:
        files = entry.get("data_files") or []
        configs[str(entry.get("config_name", "default"))] = [pair for item in _listed(files) for pair in _pairs(item)]
    return configs


def _pairs(item: Any) -> list[tuple[str, str]]:
    if isinstance(item, str):
        return [("train", item)]
    return [(str(item.get("split", "train")), str(pattern)) for pattern in _listed(item.get("path") or [])]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
