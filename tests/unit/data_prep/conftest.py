"""Small sources and settings for data prep's tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemotron_kit.data_prep import DataPrepConfig
from nemotron_kit.errors import UserError

TOKENIZER = Path(__file__).parents[3] / "recipes" / "nano3" / "tokenizers" / "tiny"


@pytest.fixture(autouse=True)
def own_home(home: Path) -> Path:
    return home


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write texts as {"text": …} lines to a file in the test's folder."""

    def write(name: str, texts: Sequence[str], field: str = "text") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., DataPrepConfig]:
    """A config for datasets given as (path, weight), or as entries of a blend file, on one worker."""

    def make(datasets: Sequence[Any], **values: Any) -> DataPrepConfig:
        entries = [
            d if isinstance(d, dict) else {"name": f"source-{n}", "path": str(d[0]), "weight": d[1]}
            for n, d in enumerate(datasets)
        ]
        blend = tmp_path / "blend.json"
        blend.write_text(json.dumps({"datasets": entries}), encoding="utf-8")
        defaults = {
            "num_shards": 2,
            "num_workers": 1,
            "output_dir": tmp_path / "out",
            "tokenizer_model": str(TOKENIZER),
        }
        return DataPrepConfig(blend_path=blend, **{**defaults, **values})

    return make


def check_row(ids: Any, mask: Any, starts: Any, pack_size: int) -> None:
    """Raise UserError, naming the fault, for a row that violates the format of packed rows."""
    ids, mask, starts = np.asarray(ids), np.asarray(mask), np.asarray(starts)
    last = np.append(starts[1:], len(ids)) - 1 if len(starts) else starts
    wrong = (
        (not len(ids) or not len(starts), "it is empty"),
        (len(ids) != len(mask), f"{len(ids)} tokens, {len(mask)} mask values"),
        (len(ids) > pack_size, f"{len(ids)} tokens, where pack_size is {pack_size}"),
        (len(starts) and starts[0] != 0, "its first sequence does not begin at 0"),
        (np.any(np.diff(starts) <= 0), "its sequences' starts do not grow"),
        (len(starts) and starts[-1] >= len(ids), "a sequence begins behind its end"),
        (len(ids) == len(mask) and np.any(mask > 1), "loss_mask is not of 0 and 1"),
    )
    for is_wrong, what in wrong:
        if is_wrong:
            raise UserError(f"not a packed row: {what}.")
    if np.any(mask[last]):
        raise UserError("not a packed row: loss_mask is not 0 at the end of each sequence.")
