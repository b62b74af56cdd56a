"""Fixtures that write shards."""

from __future__ import annotations

from ...shards import tiny_data, write_shard_fixture

__all__ = ["tiny_data", "write_shard_fixture"]
