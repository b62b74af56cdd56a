"""Shards written by the test itself, byte by byte: reader and writer can't share a mistake. And a small model."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CODES = {np.uint8: 1, np.int8: 2, np.int16: 3, np.int32: 4, np.int64: 5, np.uint16: 8}
WriteShard = Callable[..., str]
# The smallest Nemotron-H that has one layer of each kind.
MODEL: dict[str, Any] = {
    "hybrid_override_pattern": "ME*",
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "mamba_num_heads": 2,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
}


def write_shard(prefix: Path, documents: Sequence[Sequence[int]], dtype: Any = np.uint16) -> str:
    """Write `<prefix>.bin/.idx`; the prefix."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    size, count = np.dtype(dtype).itemsize, len(documents)
    lengths = [len(document) for document in documents]
    pointers = [sum(lengths[:n]) * size for n in range(count)]
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[dtype], count, count + 1)
    arrays = struct.pack(f"<{count}i{count}q{count + 1}q", *lengths, *pointers, *range(count + 1))
    prefix.with_name(f"{prefix.name}.idx").write_bytes(header + arrays)
    prefix.with_name(f"{prefix.name}.bin").write_bytes(b"".join(np.array(d, dtype).tobytes() for d in documents))
    return str(prefix)


@pytest.fixture(name="write_shard")
def write_shard_fixture() -> WriteShard:
    return write_shard


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    return write_tiny_data(tmp_path)


def write_tiny_data(place: Path) -> Path:
    """Write a prepared folder: two train shards and a valid one over a vocabulary of 64; its blend.json."""
    random = np.random.default_rng(0)

    def documents(count: int) -> list[list[int]]:
        # A noisy cycle through the vocabulary: there is something to learn.
        return [
            list((np.arange(80) + start + random.integers(0, 2, 80)) % 64) for start in random.integers(0, 64, count)
        ]

    folder = place / "data"
    blend = {
        "train": [
            "2",
            write_shard(folder / "train/a", documents(40)),
            "1",
            write_shard(folder / "train/b", documents(20)),
        ],
        "valid": ["1", write_shard(folder / "valid/a", documents(10))],
    }
    (folder / "blend.json").write_text(json.dumps(blend))
    (folder / "metadata.json").write_text(json.dumps({"metadata": {"vocab_size": 64, "eos_id": 0, "bos_id": None}}))
    return folder / "blend.json"


def write_chat_model(folder: Path) -> Path:
    """Write a model with fresh weights, the tiny tokenizer and nano3's chat template to `folder`."""
    from nemotron_kit.training.model import model_config, new_model

    root = Path(__file__).parents[1]
    new_model(model_config({**MODEL, "vocab_size": 4096, "eos_token_id": 2}), seed=3).save_pretrained(folder)
    for file in (root / "recipes/nano3/tokenizers/tiny").iterdir():
        shutil.copyfile(file, folder / file.name)
    shutil.copyfile(root / "nemotron_kit/data_prep/templates/nano3.jinja", folder / "chat_template.jinja")
    return folder
