"""The corpora that come with Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_kit.data_prep.cpython import write_corpus


@pytest.mark.parametrize(("name", "least"), [("topics", 200_000), ("source", 1_000_000)])
def test_a_corpus_is_real_text_and_always_the_same(tmp_path: Path, name: str, least: int) -> None:
    path = write_corpus(f"cpython://{name}", tmp_path)
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert write_corpus(f"cpython://{name}", tmp_path) == path
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(len(row["text"]) for row in rows) > least
    assert len({row["id"] for row in rows}) == len(rows)


def test_no_long_paragraph_comes_twice(tmp_path: Path) -> None:
    lines = write_corpus("cpython://topics", tmp_path).read_text(encoding="utf-8").splitlines()
    paragraphs = [" ".join(p.split()) for line in lines for p in json.loads(line)["text"].split("\n\n") if len(p) >= 40]
    assert len(paragraphs) == len(set(paragraphs))
