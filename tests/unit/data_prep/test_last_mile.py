"""last_mile_process: the page's examples as they stand there, and what is not built."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from nemotron_kit.errors import UserError

from .conftest import check_row

WORDS = [f"The {n}th document says {n * n}." for n in range(60)]


@pytest.fixture
def blend(tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    from nemotron.data_prep import DataBlend

    write_jsonl("a.jsonl", WORDS)
    (tmp_path / "data_blend.json").write_text('{"datasets": [{"name": "a", "path": "a.jsonl"}]}')
    monkeypatch.chdir(tmp_path)
    return DataBlend.load("data_blend.json")


def tokenizer() -> Any:
    from nemotron.data_prep.config import TokenizerConfig

    return TokenizerConfig(model=str(Path(__file__).parents[3] / "recipes" / "nano3" / "tokenizers" / "tiny"))


@pytest.mark.parametrize(
    ("dtype", "code", "size", "workers"),
    [("int32", 4, 4, 1), ("int64", 5, 8, 1), ("uint16", 8, 2, 1), (None, 8, 2, None)],
)
def test_binidx(blend: Any, dtype: Any, code: int, size: int, workers: int | None) -> None:
    from nemotron.data_prep import BinIdxOutputConfig, OutputConfig, PipelineConfig, PipelineResult, last_mile_process

    config = PipelineConfig(
        tokenizer=tokenizer(),
        output=OutputConfig(dir=Path("./tokenized"), format=BinIdxOutputConfig(num_shards=2, dtype=dtype)),
        num_workers=workers,
    )
    result = last_mile_process(blend, config)
    assert isinstance(result, PipelineResult)
    assert (result.total_sequences, list(result.splits), result.is_per_split) == (60, ["train"], False)
    train = result.splits["train"]
    assert (train.num_shards, len(train.data_paths), result.from_cache) == (2, 4, False)
    assert json.loads(result.blend_path.read_text())["train"] == train.data_paths
    prefix = train.data_paths[1]
    assert Path(f"{prefix}.idx").read_bytes()[17] == code
    total = sum(Path(f"{path}.bin").stat().st_size for path in train.data_paths[1::2])
    assert total == result.total_tokens * size
    assert last_mile_process(blend, config).from_cache


@pytest.mark.parametrize("form", ["BinIdxOutputConfig", "JsonlOutputConfig"])
def test_two_datasets_of_one_name_keep_their_weights(blend: Any, form: str) -> None:
    """A blend file with such names is refused; one that a program makes is not."""
    import nemotron.data_prep as prep

    (first,) = blend.datasets
    Path("b.jsonl").write_text('{"text": "another"}\n')
    two = prep.DataBlend({"all": (first, replace(first, path="b.jsonl", weight=2.5))})
    output = prep.OutputConfig(dir=Path("two"), format=getattr(prep, form)(num_shards=1))
    made = prep.last_mile_process(two, prep.PipelineConfig(tokenizer=tokenizer(), output=output, num_workers=1))
    assert made.splits["train"].data_paths[::2] == ["1", "2.5"]


def test_into_an_object_store(blend: Any, tmp_path: Path) -> None:
    from nemotron.data_prep import (
        BinIdxOutputConfig,
        JsonlOutputConfig,
        OutputConfig,
        PackedOutputConfig,
        PipelineConfig,
        last_mile_process,
    )

    store = fsspec.filesystem("memory")
    for form in (BinIdxOutputConfig(num_shards=1), PackedOutputConfig(num_shards=1)):
        url = f"memory://last/{type(form).__name__}"
        output = OutputConfig(Path(url), form)  # one worker: other processes have a memory:// of their own
        last_mile_process(blend, PipelineConfig(tokenizer=tokenizer(), output=output, num_workers=1))
        prefixes = json.loads(store.cat_file(f"{url}/blend.json"))["train"][1::2]
        ending = ".bin" if isinstance(form, BinIdxOutputConfig) else ".parquet"
        assert prefixes and {f"{prefix}{ending}" for prefix in prefixes} <= {
            f"memory:/{p}" for p in store.find("/last")
        }
    with pytest.raises(UserError, match="memory://last/x is an object store"):
        last_mile_process(blend, PipelineConfig(output=OutputConfig(Path("memory://last/x"), JsonlOutputConfig())))
    assert not list(Path.cwd().glob("memory:*"))


def test_splits_and_the_older_name(blend: Any) -> None:
    from nemotron.data_prep import OutputConfig, PerSplitConfig, PipelineConfig, tokenize

    output = OutputConfig(dir=Path("out"))
    config = PipelineConfig(tokenizer=tokenizer(), output=output, per_split=PerSplitConfig(), num_workers=1)
    with pytest.warns(DeprecationWarning, match="last_mile_process"):
        result = tokenize(blend, config)
    assert (list(result.splits), result.is_per_split) == (["train", "valid", "test"], True)
    assert result.total_sequences == 60


@pytest.fixture
def chats(tmp_path: Path, blend: Any) -> Any:
    from nemotron.data_prep import DataBlend

    rows = [
        {"turns": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n * n}."}]}
        for n in range(200)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "chats.json").write_text('{"datasets": [{"name": "chats", "path": "chats.jsonl"}]}')
    return DataBlend.load("chats.json")


@pytest.mark.parametrize("held_out", [False, True])
def test_chat_sft(chats: Any, tmp_path: Path, held_out: bool) -> None:
    import pyarrow.parquet as pq
    from nemotron.data_prep import ChatSftOutputConfig, OutputConfig, PerSplitConfig, PipelineConfig, last_mile_process

    form = ChatSftOutputConfig(chat_template="nano3", messages_field="turns", pack_size=128, num_shards=2)
    config = PipelineConfig(
        tokenizer=tokenizer(),
        output=OutputConfig(dir=Path("./chat_sft"), format=form),
        per_split=PerSplitConfig(valid_shards=1, test_shards=1) if held_out else None,
        num_workers=1,
    )
    result = last_mile_process(chats, config)
    names = ["train", "valid", "test"] if held_out else ["train"]
    assert (list(result.splits), result.is_per_split, result.from_cache) == (names, held_out, False)
    assert (result.total_sequences, result.output_dir) == (200, tmp_path / "chat_sft")
    train = result.splits["train"]
    assert 80 < train.total_sequences < 120 if held_out else train.total_sequences == 200
    assert json.loads(result.blend_path.read_text())["train"] == train.data_paths
    tables = [pq.read_table(f"{prefix}.parquet") for prefix in train.data_paths[1::2]]
    rows = [row for table in tables for row in table.to_pylist()]
    assert sum(len(row["input_ids"]) for row in rows) == train.total_tokens
    assert all(len(row["input_ids"]) <= 128 and 0 < sum(row["loss_mask"]) < len(row["input_ids"]) for row in rows)
    again = last_mile_process(chats, config)
    assert again.from_cache and again.splits == result.splits


@pytest.mark.parametrize(
    ("output", "model", "says"),
    [
        ({"min_doc_chars": 3}, {}, "min_doc_chars=3: it is for documents"),
        ({}, {"model": None}, "chat SFT output needs a tokenizer"),
    ],
)
def test_what_chat_sft_does_not_take(
    chats: Any, tmp_path: Path, output: dict[str, Any], model: dict[str, Any], says: str
) -> None:
    from nemotron.data_prep import ChatSftOutputConfig, OutputConfig, PipelineConfig, TokenizerConfig, last_mile_process

    given = OutputConfig(dir=tmp_path / "x", format=ChatSftOutputConfig(), **output)
    config = PipelineConfig(tokenizer=TokenizerConfig(**{"model": tokenizer().model, **model}), output=given)
    with pytest.raises(UserError, match=says):
        last_mile_process(chats, config)
    assert not (tmp_path / "x").exists()


def lines_of(paths: list[str]) -> list[list[dict[str, Any]]]:
    import zstandard

    def text(path: str) -> bytes:
        data = Path(path).read_bytes()
        return zstandard.ZstdDecompressor().decompressobj().decompress(data) if path.endswith(".zst") else data

    return [[json.loads(line) for line in text(path).splitlines()] for path in paths]


@pytest.mark.parametrize(
    ("form", "shards"), [({"num_shards": 3}, 3), ({"shard_size": 600, "compression": "zstd"}, 4), ({}, 1)]
)
def test_json_lines(chats: Any, tmp_path: Path, form: dict[str, Any], shards: int) -> None:
    from nemotron.data_prep import JsonlOutputConfig, OutputConfig, PipelineConfig, last_mile_process

    def odd(row: dict[str, Any]) -> dict[str, Any] | None:
        number = int(row["turns"][0]["content"].split()[2].strip("?"))
        return {"n": number, "q": "é"} if number % 2 else None

    config = PipelineConfig(
        output=OutputConfig(dir=Path("lines"), format=JsonlOutputConfig(transform=odd, **form)), sample=180
    )
    result = last_mile_process(chats, config)
    assert (result.total_sequences, result.total_tokens, list(result.splits)) == (90, 0, ["train"])
    train = result.splits["train"]
    assert json.loads(result.blend_path.read_text())["train"] == train.data_paths
    assert (train.num_shards, len(train.data_paths), result.from_cache) == (shards, 2 * shards, False)
    found = lines_of(train.data_paths[1::2])
    assert sorted(row["n"] for rows in found for row in rows) == list(range(1, 180, 2))
    assert {row["q"] for rows in found for row in rows} == {"é"}
    assert [float(weight) for weight in train.data_paths[::2]] == pytest.approx([len(rows) / 90 for rows in found])
    before = {path: path.read_bytes() for path in (tmp_path / "lines").rglob("*") if path.is_file()}
    assert len(before) == shards + 1
    with pytest.raises(UserError, match="holds data already"):
        last_mile_process(chats, config)
    again = last_mile_process(chats, replace(config, force=True))
    assert again.splits == result.splits
    assert {path: path.read_bytes() for path in (tmp_path / "lines").rglob("*") if path.is_file()} == before


def test_json_lines_by_split_and_weight(chats: Any, tmp_path: Path, blend: Any) -> None:
    import nemotron.data_prep as prep

    (tmp_path / "two.json").write_text(
        '{"datasets": [{"name": "a", "path": "a.jsonl", "weight": 3}, {"name": "c", "path": "chats.jsonl"}]}'
    )
    form = prep.JsonlOutputConfig(num_shards=4)
    config = prep.PipelineConfig(
        output=prep.OutputConfig(dir=Path("lines"), format=form),
        per_split=prep.PerSplitConfig(valid_shards=1, test_shards=1),
    )
    result = prep.last_mile_process(prep.DataBlend.load("two.json"), config)
    assert (result.total_sequences, list(result.splits), result.is_per_split) == (260, ["train", "valid", "test"], True)
    assert 140 < result.splits["train"].total_sequences < 210
    assert [result.splits[split].num_shards for split in ("train", "valid", "test")] == [4, 2, 2]
    for split in result.splits.values():
        assert sum(map(float, split.data_paths[::2])) == pytest.approx(4)
    rows = [
        json.dumps(row) for split in result.splits.values() for ls in lines_of(split.data_paths[1::2]) for row in ls
    ]
    assert len(set(rows)) == 260


@pytest.mark.parametrize(
    ("form", "output", "says"),
    [
        ({"transform": lambda row: row["no"]}, {}, r"chats\.jsonl, line 1: the transform failed: KeyError: 'no'"),
        ({"transform": lambda row: [row]}, {}, r"chats\.jsonl, line 1: the transform gave a list"),
        ({"transform": lambda row: {"a": {1}}}, {}, r"chats\.jsonl, line 1: it can't be represented in JSON"),
        ({"transform": lambda row: None}, {}, "the transform leaves all out"),
        ({"compression": "gzip"}, {}, "compression='gzip'. "),
        ({"num_shards": 0}, {}, "num_shards=0"),
        ({"num_shards": 2, "shard_size": "1MB"}, {}, "exclude each other"),
        ({}, {"max_doc_tokens": 5}, "max_doc_tokens: it is for documents"),
    ],
)
def test_json_lines_that_cannot_be_written_leave_nothing(
    chats: Any, tmp_path: Path, form: dict[str, Any], output: dict[str, Any], says: str
) -> None:
    import nemotron.data_prep as prep

    given = prep.OutputConfig(dir=tmp_path / "x", format=prep.JsonlOutputConfig(**form), **output)
    with pytest.raises(UserError, match=says):
        prep.last_mile_process(chats, prep.PipelineConfig(output=given))
    assert [path for path in (tmp_path / "x").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("algorithm", ["first_fit_shuffle", "first_fit_decreasing", "concatenative"])
def test_packed_documents_have_every_token_that_binidx_has(
    blend: Any, tmp_path: Path, write_jsonl: Callable[..., Path], algorithm: str
) -> None:
    import nemotron.data_prep as prep
    import numpy as np
    import pyarrow.parquet as pq

    texts = [*WORDS, " ".join(WORDS[:9]), "", "short"]
    write_jsonl("a.jsonl", texts)

    def made(name: str, form: Any) -> Any:
        output = prep.OutputConfig(dir=tmp_path / name, format=form, min_doc_chars=6)
        return prep.last_mile_process(blend, prep.PipelineConfig(tokenizer=tokenizer(), output=output, num_workers=1))

    form = prep.PackedOutputConfig(pack_size=64, algorithm=algorithm, num_shards=2)
    packed, plain = made("packed", form), made("plain", prep.BinIdxOutputConfig(num_shards=2, dtype="int32"))
    train = packed.splits["train"]
    assert json.loads(packed.blend_path.read_text())["train"] == train.data_paths
    tables = [pq.read_table(f"{prefix}.parquet") for prefix in train.data_paths[1::2]]
    rows = [row for table in tables for row in table.to_pylist()]
    parts = []
    for row in rows:
        check_row(row["input_ids"], row["loss_mask"], row["seq_start_id"], 64)
        bounds = [*row["seq_start_id"], len(row["input_ids"])]
        assert row["loss_mask"] == [int(n + 1 not in bounds) for n in range(len(row["input_ids"]))]
        parts += [row["input_ids"][start:end] for start, end in itertools.pairwise(bounds)]
    files = [np.fromfile(f"{prefix}.bin", dtype=np.int32) for prefix in plain.splits["train"].data_paths[1::2]]
    assert sorted(np.concatenate(files).tolist()) == sorted(token for part in parts for token in part)
    assert packed.total_tokens == plain.total_tokens and packed.total_sequences == len(parts) > 61
    # A document's end is where its EOS is; the long one is several sequences, of whole rows but the last.
    assert sum(part[-1] == parts[0][-1] for part in parts if len(part) < 64) == 61
    report = json.loads((tmp_path / "packed" / "report.json").read_text())["total"]
    assert (report["records"], report["used"], report["filtered"]) == (63, 61, {"empty": 1, "too_short": 1, "bad": 0})
    assert made("packed", form).from_cache


def test_packed_documents_by_split_cut_and_refused(blend: Any, tmp_path: Path) -> None:
    import nemotron.data_prep as prep

    def made(**given: Any) -> Any:
        form = prep.PackedOutputConfig(num_shards=2, **given.pop("form", {}))
        output = prep.OutputConfig(dir=tmp_path / "x", format=form, max_doc_tokens=5)
        given = {"tokenizer": tokenizer(), "num_workers": 1, **given}
        return prep.last_mile_process(blend, prep.PipelineConfig(output=output, **given))

    for form, says in (
        ({"dtype": "uint16"}, "PackedOutputConfig.dtype='uint16': packed rows have int32"),
        ({"algorithm": "best_fit"}, "algorithm='best_fit'"),
        ({"pack_size": 1}, "pack_size=1"),
    ):
        with pytest.raises(UserError, match=says):
            made(form=form)
    with pytest.raises(UserError, match="packed output needs a tokenizer"):
        made(tokenizer=None)
    assert not (tmp_path / "x").exists()
    result = made(per_split=prep.PerSplitConfig(valid_shards=1, test_shards=1))
    assert list(result.splits) == ["train", "valid", "test"] and result.is_per_split
    assert (result.total_sequences, result.total_tokens) == (60, 300)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"shard_size": "1MB", "num_shards": 2}, "exclude each other"),
        ({"dtype": "float8"}, "it is int32, int64 or uint16"),
        ({"num_shards": 0}, "num_shards=0: must be at least 1"),
    ],
)
def test_values_that_make_no_sense(blend: Any, form: dict[str, Any], says: str) -> None:
    from nemotron.data_prep import BinIdxOutputConfig, OutputConfig, PipelineConfig, last_mile_process

    output = OutputConfig(dir=Path("out"), format=BinIdxOutputConfig(**form))
    with pytest.raises(UserError, match=says):
        last_mile_process(blend, PipelineConfig(tokenizer=tokenizer(), output=output))
    with pytest.raises(UserError, match="binidx output needs a tokenizer"):
        last_mile_process(blend, PipelineConfig(output=OutputConfig(dir=Path("out"))))
