"""Shards that are not what data prep wrote are named before a token is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training import content
from nemotron_kit.training.content import fingerprint, shard_contents


@pytest.fixture
def prefix(tmp_path: Path, write_shard) -> str:
    return str(write_shard(tmp_path / "shard", [[1, 2, 3], [4, 5]]))


def record(prefix: str) -> None:
    seals = {}
    for suffix in ("bin", "idx"):
        data = Path(f"{prefix}.{suffix}").read_bytes()
        seals[suffix] = [len(data), hashlib.sha256(data).hexdigest()]
    Path(f"{prefix}.json").write_text(json.dumps({"plan": "p", "documents": 2, **seals}))


def test_every_flipped_byte_is_found(prefix: str) -> None:
    record(prefix)
    whole = shard_contents([prefix], None)
    assert whole.summary == "Data: 1 of 1 shards read, their sha256 is that of their records."
    for suffix in ("bin", "idx"):
        path = Path(f"{prefix}.{suffix}")
        data = path.read_bytes()
        for position in range(len(data)):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            with pytest.raises(UserError, match=rf"shard\.{suffix}: not the content that was .*shard\.json says"):
                shard_contents([prefix], None)
        path.write_bytes(data)
    assert shard_contents([prefix], None) == whole


def test_without_a_record_it_says_that_nothing_was_checked(prefix: str) -> None:
    unrecorded = shard_contents([prefix], None)
    assert "none of 1 shards has a record of its content beside it: only sizes and indices" in unrecorded.summary
    assert "as registered (D:v1)" in shard_contents([prefix], None, "D:v1").summary
    Path(f"{prefix}.json").write_text('{"another": "tool"}')
    assert shard_contents([prefix], None) == unrecorded
    record(prefix)
    assert shard_contents([prefix], None).digests == unrecorded.digests  # the same content, however it is known
    Path(f"{prefix}.json").write_text('{"plan"')
    with pytest.raises(UserError, match=r"shard\.json: the shard's record can't be read"):
        shard_contents([prefix], None)


def test_what_is_large_is_read_when_asked_for(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record(prefix)
    monkeypatch.setattr(content, "READ_LIMIT", 10)
    Path(f"{prefix}.bin").write_bytes(b"\x09" * 10)
    assert "were not read through; dataset.verify=true does that" in shard_contents([prefix], None).summary
    with pytest.raises(UserError, match="not the content"):
        shard_contents([prefix], True)
    monkeypatch.setattr(content, "READ_LIMIT", 1 << 30)
    assert "were not read through" in shard_contents([prefix], False).summary


def test_a_large_file_has_a_fingerprint_of_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_WHOLE", 1 << 20)
    path = tmp_path / "large"
    path.write_bytes(bytes(5 << 20))
    before = fingerprint(path)
    assert before.startswith("pieces:") and before == fingerprint(path)
    for position in (0, (5 << 20) - 1):
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"x")
        assert fingerprint(path) != before
        before = fingerprint(path)
