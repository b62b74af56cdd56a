"""CSV, nested fields, compressions; bad rows stop or are counted; no file takes more memory or time than is stated."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from nemotron_kit.data_prep import DataPrepConfig, line_streams, parquet, readers, run_data_prep
from nemotron_kit.data_prep.config import RowCounts
from nemotron_kit.data_prep.shard_plan import SMALL, FilePart, PlannedSource, SourceFile
from nemotron_kit.errors import UserError

Config = Callable[..., DataPrepConfig]


def read(path: Path, rows: RowCounts | None = None, *, field: str = "text", of: int = 3) -> list[str]:
    """All texts of a file, in the order of its parts."""
    file = SourceFile(str(path), path.stat().st_size, "x")
    source, rows = PlannedSource("s", str(path), "all", 1.0, field, (file,)), rows or RowCounts()
    return [text for part in range(of) for text in readers.texts(source, FilePart(0, (part,), of), rows)]


def jsonl(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CSV = 'id,text,n\r\n1,"two\r\nlines, ""quoted""",3\r\n\r\n2,plain é,4\r\n3,,5\r\n4,last,6'
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_csv_and_every_compression(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.csv{ending}"
    path.write_bytes(COMPRESSORS[ending](b"\xef\xbb\xbf" + CSV.encode()))
    rows = RowCounts()
    # The text keeps its line ends as they are, but that a compressed file's \r\n may not lose its \r either.
    assert sorted(read(path, rows)) == sorted(['two\r\nlines, "quoted"', "plain é", "last"])
    assert (rows.rows, rows.empty) == (4, 1)
    assert readers.count_rows(SourceFile(str(path), path.stat().st_size, "x"), 100) == 4
    lines = tmp_path / f"a.jsonl{ending}"
    lines.write_bytes(COMPRESSORS[ending](jsonl([{"text": f"row {n}"} for n in range(500)])))
    assert sorted(read(lines)) == sorted(f"row {n}" for n in range(500))


def test_tsv_and_what_is_wrong_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf"text"\r\n"a"\r\n')
    assert read(path) == ["a"]
    path.write_bytes("text\na\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"no column 'text'.*it looks like UTF-16"):
        read(path)
    path.write_text("id;text\n1;a\n")
    with pytest.raises(UserError, match=r"no column 'text'.*\n.*set apart by ';'"):
        read(path)
    path = tmp_path / "a.tsv"
    path.write_text("id\ttext\n1\ta, b\n")
    assert read(path) == ["a, b"]
    with pytest.raises(UserError, match=r"a\.tsv: there is no column 'body'; it has id, text"):
        read(path, field="body")
    path.write_bytes(
        b'id\ttext\n1\tx\ty\n2\tok\n3\t"open"x\n4\t\xff\n5\t"' + b"z" * 300 + b'"\n6\tok\n7\t"never closed\n'
    )
    rows = RowCounts(skip=True, max_size=100)
    assert read(path, rows, of=1) == ["ok", "ok"]
    assert [row.partition(", ")[2].partition(":")[0] for row in rows.bad_rows] == [f"line {n}" for n in (2, 4, 5, 6, 8)]
    assert "3 fields, where the header has 2" in rows.bad_rows[0]
    assert "more than 100 B (max_doc_size)" in rows.bad_rows[3]


def test_compressed_plain_text_is_cut_as_other_text_is(tmp_path: Path) -> None:
    content = "\n\n".join(f"Paragraph {n}. " + "é" * (n * 37 % 2000) for n in range(1000))
    for ending, compress in COMPRESSORS.items():
        path = tmp_path / f"a.txt{ending}"
        path.write_bytes(compress(content.encode()))
        found = read(path, of=3)
        assert len(found) > 5
        assert all(text.startswith("Paragraph") for text in found)
        assert "".join(sorted(found, key=lambda text: int(text.split()[1].rstrip(".")))) == content
        assert readers.count_rows(SourceFile(str(path), path.stat().st_size, "x"), 99) == len(found)
    path.write_bytes(lzma.compress(b"text\0"))
    with pytest.raises(UserError, match=r"a null character \(byte 4\)"):
        read(path)


def test_a_text_inside_other_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"doc": {"body": {"text": "deep"}}}, {"doc.body.text": "flat"}, {"doc": None}]))
    rows = RowCounts()
    assert sorted(read(path, rows, field="doc.body.text")) == ["deep", "flat"]
    assert rows.empty == 1
    path.write_bytes(jsonl([{"doc": {"body": {"title": "x"}}}]))
    with pytest.raises(
        UserError, match=r"there is no field 'doc.body.text' \(no 'text' on the way to it\); it has doc"
    ):
        read(path, field="doc.body.text")
    path.write_bytes(jsonl([{"doc": "no object"}]))
    with pytest.raises(UserError, match="line 1: a field on the way to the text is no object"):
        read(path, field="doc.body.text")


def test_a_text_inside_structs_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    rows = [{"body": {"text": f"row {n}", "n": n}} if n else None for n in range(600)]
    pq.write_table(pa.table({"doc": rows, "n": range(600)}), path)
    counted = RowCounts(max_size=6)
    assert sorted(read(path, RowCounts(), field="doc.body.text")) == sorted(f"row {n}" for n in range(1, 600))
    with pytest.raises(UserError, match=r"a\.parquet: there is no column 'doc\.body\.txt': 'txt' is not in struct"):
        read(path, field="doc.body.txt")
    counted.skip = True
    assert len(read(path, counted, field="doc.body.text", of=1)) == 99
    assert (counted.rows, counted.empty, counted.bad) == (600, 1, 500)
    assert "row 101: a text of more than 6 B" in counted.bad_rows[0]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_line_that_is_too_long_is_named_and_passed_over(tmp_path: Path, ending: str, large: bool) -> None:
    good = [{"text": f"row {n} " + "x" * (900 if large else 9)} for n in range(SMALL // 400 if large else 9)]
    lines = jsonl(good[:5]) + b'{"text": "' + b"y" * 50_000 + b'"}\n' + jsonl(good[5:])
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESSORS[ending](lines))
    with pytest.raises(UserError, match=r"a\.jsonl.*, line 6: a line of more than 20\.0 kB \(max_doc_size\)"):
        read(path, RowCounts(max_size=20_000), of=7)
    rows = RowCounts(max_size=20_000, skip=True)
    assert sorted(read(path, rows, of=7)) == sorted(row["text"] for row in good)
    assert (rows.rows, rows.bad) == (len(good) + 1, 1)


def test_a_file_with_a_hole_and_one_that_is_no_text(tmp_path: Path) -> None:
    began = time.monotonic()
    for name, says in {
        "a.jsonl": "line 1: a line of more than 67.1 MB",
        "a.csv": "line 1: its header can't be read: a row of more than 67.1 MB",
        "a.txt": r"not plain text: a null character \(byte 0\)",
        "a.jsonl.gz": "not a valid .gz file",
        "a.jsonl.zst": "not a valid .zst file",
    }.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(UserError, match=says):
            read(tmp_path / name)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "content", [b"\n", b"x", jsonl([{"text": " " * 500}])], ids=["blank lines", "one line", "rows"]
)
def test_a_decompression_bomb_is_refused_with_the_bound(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_streams, "EXPANDED", 2 << 20)
    path = tmp_path / "a.jsonl.zst"
    packer = zstandard.ZstdCompressor().compressobj()
    piece = content * ((1 << 20) // len(content))
    path.write_bytes(b"".join(packer.compress(piece) for _ in range(5)) + packer.flush())
    assert path.stat().st_size < 4_000
    with pytest.raises(UserError, match=r"hold .* MB, over 1000 times as much|a line of more than"):
        read(path, of=1)


def test_a_parquet_file_grows_no_more_than_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, text = tmp_path / "a.parquet", "ab" * (4 << 20)
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"text": once}), path, compression="zstd", store_schema=False)
    with path.open("rb") as file:  # as many rows at a time as have space if each is the dictionary's text
        chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
        assert parquet._batch_rows(file, chunk, "a", "text", 1 << 30) == 7
    with pytest.raises(
        UserError, match=r"a\.parquet: column 'text' gives 25\.2 MB by row 3 out of \d+ B, over 1000 times"
    ):
        read(path, of=1)
    tight = RowCounts(max_size=1 << 20)
    with pytest.raises(UserError, match=r"a\.parquet: row group 0 column 'text' holds 8\.4 MB in \d+ B"):
        read(path, tight)
    monkeypatch.setattr(parquet, "_check_footer", lambda *_: None)  # as where the footer lies
    with pytest.raises(UserError, match=r"a\.parquet: the dictionary of column 'text' holds 8\.4 MB in \d+ B"):
        read(path, tight)
    monkeypatch.undo()
    pq.write_table(pa.table({"text": ["ab" * 300_000] * 4}), path, row_group_size=1, compression="zstd")
    with pytest.raises(UserError, match=r"a\.parquet: column 'text' holds 2\.4 MB in \d+ B, over 1000 times"):
        read(path, tight)


def test_what_is_wrong_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    texts = pa.array([b"ok", b"\xff\xfe", None, b"", b"long" * 9, "é".encode()]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), path, row_group_size=4)
    with pytest.raises(UserError, match=r"a\.parquet, row 2: 'text' is not UTF-8 \(byte 1\)"):
        read(path)
    rows = RowCounts(skip=True, max_size=9)
    assert sorted(read(path, rows)) == ["ok", "é"]
    assert (rows.rows, rows.empty, rows.bad) == (6, 2, 2)
    pq.write_table(pa.table([texts, texts], names=["text", "text"]), path)
    with pytest.raises(UserError, match=r"a\.parquet: there is more than one column 'text'; it has text, text"):
        read(path)


def test_zstd_frames_are_read_as_the_library_does(tmp_path: Path) -> None:
    path, content = tmp_path / "a.jsonl.zst", jsonl([{"text": f"{n} " * (n % 97)} for n in range(6000)])
    kinds = [
        {"write_checksum": True},
        {"write_content_size": False, "level": 19},
        {"threads": 2, "write_checksum": True, "write_content_size": True},
    ]
    frames = [zstandard.ZstdCompressor(**kind).compress(content) for kind in kinds]
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"skip!"
    empty = zstandard.compress(b"")
    path.write_bytes(b"".join([frames[0], skipped, frames[1], empty, b"\0" * 8, frames[2]]))
    assert b"\n".join(line_streams.all_lines(str(path), "zst", 1 << 20)) == (content * 3)[:-1]
    damaged = bytearray(frames[0])
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match=r"not a valid \.zst file"):
        list(line_streams.all_lines(str(path), "zst", 1 << 20))


@pytest.mark.parametrize("ending", [ending for ending in COMPRESSORS if ending])
def test_the_content_of_a_compressed_file_comes_in_bounded_pieces(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(COMPRESSORS[ending](bytes(3_500_000)))
    sizes = list(map(len, line_streams.content(str(path), ending[1:])))
    assert sum(sizes) == 3_500_000
    assert max(sizes) <= 1 << 20


def bad_source(tmp_path: Path, bad: int = 7) -> Path:
    path = tmp_path / "src" / "a.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = [json.dumps({"text": f"row {n}"}) for n in range(60)] + ["{broken", '{"body": 1}'] * (bad // 2)
    path.write_text("\n".join([*rows, '{"text": ""}', '{"text": "x"}', *["[]"] * (bad % 2)]) + "\n")
    (path.parent / "notes.md").write_text("not a row")
    return path.parent


@pytest.mark.parametrize("workers", [1, 4])
def test_bad_rows_are_skipped_counted_and_named(
    tmp_path: Path, make_config: Config, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    folder = bad_source(tmp_path)
    with pytest.raises(UserError, match=r"a\.jsonl, line 6[1-7]: "):
        run_data_prep(make_config([(folder, 1.0)], min_doc_chars=2))
    # The same plan goes on under the other rule: whole shards stay.
    config = make_config([(folder, 1.0)], min_doc_chars=2, on_bad_row="skip", num_workers=workers, max_doc_tokens=4)
    config.max_doc_tokens = None
    assert run_data_prep(config).total_sequences == 60
    told = capsys.readouterr().err
    assert "data prep: dataset 'source-0': 1 left out: notes.md (plain text beside files with rows)" in told
    assert "read 1 files (" in told
    assert "69 rows, 60 documents; skipped 1 without text, 1 shorter than min_doc_chars, 7 bad" in told
    assert f"7 bad rows, the first: {folder}/a.jsonl, line 6" in told
    report = json.loads((config.output_dir / "report.json").read_text())
    assert report["total"]["skipped"] == {"empty": 1, "short": 1, "bad": 7}
    assert report["datasets"][0]["left_out"][0]["names"] == ["notes.md"]
    assert len(report["datasets"][0]["bad_rows"]) == 5
    # Asked to stop at bad rows again, what was made without them does not pass for whole.
    with pytest.raises(UserError, match=r"a\.jsonl, line 6"):
        run_data_prep(make_config([(folder, 1.0)], min_doc_chars=2))


def test_too_many_bad_rows_stop_it(tmp_path: Path, make_config: Config) -> None:
    config = make_config([(bad_source(tmp_path), 1.0)], on_bad_row="skip", max_bad_rows=6)
    with pytest.raises(UserError, match=r"More than 6 bad rows \(max_bad_rows\)\. The first: .*line 6\d"):
        run_data_prep(config)
    assert not (config.output_dir / "blend.json").exists()
    config.max_bad_rows = None
    assert run_data_prep(config).total_sequences == 61


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"on_bad_row": "skp"}, "on_bad_row='skp'. Did you mean skip"),
        ({"max_doc_size": "much"}, "max_doc_size='much' is not a size"),
        ({"max_bad_rows": -1}, "max_bad_rows=-1: must be at least 0"),
    ],
)
def test_values_that_make_no_sense(make_config: Config, values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run_data_prep(make_config([], **values))
