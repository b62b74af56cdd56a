"""Fixtures that write shards, and a small model that can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...packed import base_model, packed_data
from ...shards import tiny_data, write_chat_model, write_shard_fixture

if TYPE_CHECKING:
    from nemotron_kit.training.generate import TextGenerator

__all__ = ["base_model", "packed_data", "tiny_data", "write_shard_fixture"]


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that knows nothing, with a tokenizer and a chat template."""
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def generator(chat_model: Path) -> TextGenerator:
    from nemotron_kit.training.generate import TextGenerator

    return TextGenerator(chat_model)
