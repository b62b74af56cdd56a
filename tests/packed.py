"""Packed rows written by the test itself, and a base model with a chat tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron_kit.training.checkpoint import export_model
from nemotron_kit.training.model import model_config, new_model

from .shards import MODEL

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 64
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]


def write_rows(path: Path, rows: Sequence[Sequences], row_group_size: int = 4) -> Path:
    """One file: each row a list of (ids, mask of the next token)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "input_ids": pa.array([[t for ids, _ in row for t in ids] for row in rows], pa.list_(pa.int32())),
        "loss_mask": pa.array([[m for _, mask in row for m in mask] for row in rows], pa.list_(pa.uint8())),
        "seq_start_id": pa.array(
            [np.cumsum([0, *(len(ids) for ids, _ in row)])[:-1].tolist() for row in rows], pa.list_(pa.int32())
        ),
    }
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def conversation(rng: np.random.Generator, length: int) -> tuple[list[int], list[int]]:
    """Ids that count up from a random one, whose second half is the answer and ends the turn."""
    start = int(rng.integers(0, VOCABULARY - 6))
    ids = [6 + (start + step) % (VOCABULARY - 6) for step in range(length - 1)] + [5]
    asked = length // 2
    return ids, [0] * (asked - 1) + [1] * (length - asked) + [0]


def random_rows(count: int, seed: int = 0) -> list[Sequences]:
    rng = np.random.default_rng(seed)
    return [[conversation(rng, int(n)) for n in rng.integers(4, 20, 4)] for _ in range(count)]


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: number for number, token in enumerate([*SPECIAL, *(f"w{n}" for n in range(VOCABULARY - 6))])}
    special = [
        {"id": n, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for n, token in enumerate(SPECIAL)
    ]
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    tokenizer = {"version": "1.0", **rest, "added_tokens": special, "model": model}
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model's folder, with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    export_model(new_model(model_config({**MODEL, "vocab_size": VOCABULARY, "eos_token_id": 2}), 7), folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def packed_data(tmp_path: Path) -> Path:
    return write_packed_data(tmp_path)


def write_packed_data(place: Path) -> Path:
    """Write a folder as data prep leaves it: train/ of two files, valid/ of one, the tokenizer with its template."""
    folder = place / "splits"
    write_rows(folder / "train/a.parquet", random_rows(10))
    write_rows(folder / "train/b.parquet", random_rows(6, seed=1))
    write_rows(folder / "valid/a.parquet", random_rows(3, seed=2))
    write_tokenizer(folder / "tokenizer")
    (folder / "tokenizer/chat_template.jinja").write_text(TEMPLATE)
    return folder


def write_questions(folder: Path, **counts: int) -> dict[str, str]:
    """Write the rows of RL, so many for each split, for the judge `odd`; split → file."""
    for split, count in counts.items():
        rows = [
            {
                "responses_create_params": {"input": [{"role": "user", "content": f"{split} {'x' * n}?"}]},
                "agent_ref": {"type": "responses_api_agents", "name": "odd"},
            }
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {split: str(folder / f"{split}.jsonl") for split in counts}
