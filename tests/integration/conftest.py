"""Fixtures that write shards."""

from __future__ import annotations

from ..packed import base_model, packed_data
from ..shards import tiny_data, write_shard_fixture

__all__ = ["base_model", "packed_data", "tiny_data", "write_shard_fixture"]
