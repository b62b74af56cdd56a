"""Readers: whatever the kind and however it is cut, each row comes once; what is broken is named."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_kit.data_prep import readers
from nemotron_kit.data_prep.config import RowCounts
from nemotron_kit.data_prep.shard_plan import SMALL, FilePart, PlannedSource, SourceFile
from nemotron_kit.errors import UserError

SMALL_TEXTS = [f"text number {n} é" for n in range(57)]
RANDOM = random.Random(7)
LARGE_TEXTS = [f"{n} " + "word " * RANDOM.randrange(1, 400) for n in range(2_500)]


def as_jsonl(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(texts)).encode()


def write_parquet(path: Path, texts: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), path, row_group_size=700, compression="none")


WRITERS: dict[str, Callable[[Path, Sequence[str]], object]] = {
    "a.jsonl": lambda path, texts: path.write_bytes(as_jsonl(texts)),
    "a.jsonl.gz": lambda path, texts: path.write_bytes(gzip.compress(as_jsonl(texts))),
    "a.jsonl.zst": lambda path, texts: path.write_bytes(zstandard.compress(as_jsonl(texts))),
    "a.parquet": write_parquet,
}


def read(path: Path, of: int, parts: Sequence[int], rows: int | None = None, field: str = "text") -> list[str]:
    file = SourceFile(str(path), path.stat().st_size, "x", rows)
    source = PlannedSource("s", str(path), "all", 1.0, field, (file,))
    return list(readers.texts(source, FilePart(0, tuple(parts), of), RowCounts()))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("texts", [SMALL_TEXTS, LARGE_TEXTS], ids=["small", "large"])
@pytest.mark.parametrize("of", [1, 2, 7, 100])
def test_the_parts_of_a_file_hold_each_row_once(tmp_path: Path, name: str, texts: list[str], of: int) -> None:
    path = tmp_path / name
    WRITERS[name](path, texts)
    dealt = [read(path, of, [part]) for part in range(of)]
    assert sorted(text for part in dealt for text in part) == sorted(texts)
    assert sorted(read(path, of, range(of))) == sorted(texts)


@pytest.mark.parametrize("name", WRITERS)
def test_sample_reads_the_first_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, LARGE_TEXTS)
    assert sorted(t for part in range(3) for t in read(path, 3, [part], rows=100)) == sorted(LARGE_TEXTS[:100])
    file = SourceFile(str(path), path.stat().st_size, "x")
    assert readers.count_rows(file, 100) == 100
    assert readers.count_rows(file, 10_000) == len(LARGE_TEXTS)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 60_000), min_size=1, max_size=60), of=st.integers(1, 40))
def test_byte_ranges_lose_and_repeat_no_line(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], of: int
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    texts = [f"{n}:" + "x" * length for n, length in enumerate(lengths)] + ["y" * SMALL]
    path.write_bytes(as_jsonl(texts))
    assert [t for part in range(of) for t in read(path, of, [part])] == texts


def test_blank_lines_nulls_and_empty_texts_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n  \n{"text": null}\n{"text": ""}\n{"text": "b"}')
    assert read(path, 1, [0]) == ["a", "b"]
    assert read(path, 1, [0], rows=2) == ["a"]  # blank lines are no rows


def test_what_only_a_patient_parser_takes_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    odd = (
        '\ufeff{"text": "bom"}\n{"x": NaN, "text": "nan"}\n{"text": "a\\ud800b"}\n{"x": 1'
        + "0" * 5000
        + ', "text": "big"}\n{"type":"text","text": "once"}\n'
    )
    path.write_text(odd, encoding="utf-8")
    assert read(path, 1, [0]) == ["bom", "nan", "a\ufffdb", "big", "once"]


BROKEN = [
    (b'{"text": "a", "text" : "b"}\n', "the key 'text' is given twice in one object"),
    (b"\x1f\x8b\x08", "not UTF-8 (byte 2 of the line); it looks like gzip: name it .gz"),
    (
        b"\xff\xfe\0\0{",
        "not UTF-8 (byte 1 of the line); it looks like UTF-32: convert it, as with iconv -f UTF-32 -t UTF-8",
    ),
    (b'{"text": "a"\n', "malformed JSON"),
    (b'["text"]\n', "expected a JSON object, got a list"),
    (b'{"body": "a", "id": 3}\n', "there is no field 'text'; it has body, id"),
    (b'{"text": 3}\n', "'text' is a int, not text"),
    (b'{"text": "\xff"}\n', "not UTF-8"),
]


@pytest.mark.parametrize(("line", "says"), BROKEN)
@pytest.mark.parametrize("large", [False, True], ids=["rows", "ranges"])
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, line: bytes, says: str, large: bool) -> None:
    good = as_jsonl(LARGE_TEXTS if large else SMALL_TEXTS)
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + line + good)
    number = good.count(b"\n") + 1
    with pytest.raises(UserError) as error:
        [read(path, 4, [part]) for part in range(4)]
    assert f"{path}, line {number}: {says}" in error.value.message


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_stream_cut_short_is_never_its_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, LARGE_TEXTS)
    whole = path.read_bytes()
    for keep in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match="cut short"):
            read(path, 1, [0])
    path.write_bytes(b"not compressed at all")
    with pytest.raises(UserError, match=f"{name}: not a valid"):
        read(path, 1, [0])


def test_members_and_frames_follow_each_other(tmp_path: Path) -> None:
    first, second = as_jsonl(["a", "b"]), as_jsonl(["c"])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(first) + gzip.compress(second) + b"\0" * 512)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(first) + zstandard.compress(second))
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        assert read(tmp_path / name, 1, [0]) == ["a", "b", "c"]


def test_a_parquet_file_without_any_text_has_rows_without_text(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", 1, [0]) == []


def test_parquet_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, SMALL_TEXTS)
    with pytest.raises(UserError, match="there is no column 'body'; it has n, text"):
        read(path, 1, [0], field="body")
    with pytest.raises(UserError, match="column 'n' is int64, not text"):
        read(path, 1, [0], field="n")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a valid parquet file"):
        read(path, 1, [0])


def test_plain_text_is_one_document_and_a_large_one_is_cut_at_paragraphs(tmp_path: Path) -> None:
    small = tmp_path / "a.txt"
    small.write_text("one\n\ndocument\n")
    assert read(small, 1, [0]) == ["one\n\ndocument\n"]
    large = tmp_path / "b.md"
    content = "\n\n".join(f"Paragraph {n}. " + "é" * RANDOM.randrange(2000) for n in range(1000))
    large.write_text(content, encoding="utf-8")
    documents = [text for part in range(5) for text in read(large, 5, [part])]
    assert len(documents) > 5
    assert all(text.startswith("Paragraph") for text in documents)
    in_order = sorted(documents, key=lambda text: int(text.split()[1].rstrip(".")))
    assert "".join(in_order) == content


def test_text_without_any_break_is_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("日" * 400_000, encoding="utf-8")
    assert "".join(read(path, 1, [0])) == "日" * 400_000
    path.write_bytes(b"good\n\xff\n")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 5\)"):
        read(path, 1, [0])
