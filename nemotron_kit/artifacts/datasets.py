"""The sources of a data artifact, and their addresses in the form that W&B takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from nemotron_kit.home import expand_user

_HUB = "https://huggingface.co"


@dataclass
class InputDatasetInfo:
    """One source of a data artifact: its address (hf://, s3://, gs://, https://, a path), and what is known of it.

    `weight` is its share in the blend, `num_rows` rows, `size_bytes` bytes.
    """

    uri: str
    name: str | None = None
    weight: float = 1.0
    split: str | None = None
    subset: str | None = None
    text_field: str = "text"
    num_rows: int | None = None
    size_bytes: int | None = None
    num_files: int | None = None


def to_wandb_uri(path: str) -> str:
    """The address by which W&B can refer to `path`: hf:// as its https page, a path as file://, others unchanged."""
    if path.startswith("hf://"):
        kind, _, rest = path.removeprefix("hf://").partition("/")
        if kind in {"datasets", "spaces"}:
            return f"{_HUB}/{kind}/{rest}"
        return f"{_HUB}/{rest}" if kind == "models" else f"{_HUB}/datasets/{kind}/{rest}".rstrip("/")
    if "://" in path:
        return path
    return f"file://{expand_user(path).resolve()}"


def tokenizer_to_uri(model: str, revision: str | None = None) -> str:
    """The address of a tokenizer: file:// for a folder on this machine, else its page on the Hugging Face hub."""
    if "://" in model and not model.startswith("hf://"):
        return model
    name = model.removeprefix("hf://").removeprefix("models/")
    if name == model and (model.startswith(("/", "./", "../", "~")) or Path(model).exists()):
        return f"file://{expand_user(model).resolve()}"
    page = f"{_HUB}/{quote(name, safe='/')}"
    return f"{page}/tree/{quote(revision, safe='')}" if revision else page


def apply_scale(count: int, scale: str) -> int:
    """A share of `count` for quick runs: tiny 1 % (10,000 at most), small 10 %, medium 30 %, full; never under 1.

    Raises ValueError for another scale.
    """
    percent = {"tiny": 1, "small": 10, "medium": 30, "full": 100}
    if scale not in percent:
        raise ValueError(f"{scale!r} is no scale: use {', '.join(percent)}.")
    scaled = max(1, count * percent[scale] // 100)
    return min(scaled, 10_000) if scale == "tiny" else scaled
