"""run_sft_data_prep on one worker: what comes out of records, splits, weights, filters, resume, and bad input."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from nemotron_kit.artifacts import SFTDataArtifact, manifest
from nemotron_kit.data_prep.chat import render
from nemotron_kit.data_prep.config import SftPrepConfig
from nemotron_kit.data_prep.preflight import preflight
from nemotron_kit.data_prep.sft_prep import run_sft_data_prep
from nemotron_kit.errors import UserError

from .conftest import check_row

TINY = Path(__file__).parents[3] / "recipes" / "nano3" / "tokenizers" / "tiny"
Prep = Callable[..., SftPrepConfig]


def asks(number: int, **more: Any) -> dict[str, Any]:
    words = " ".join(f"w{number * k}" for k in range(number % 9 + 1))
    messages = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {words}."}]
    return {"messages": messages, **more}


@pytest.fixture
def prep(tmp_path: Path) -> Prep:
    """A config for datasets of records (a list, or a blend's entry), on one worker."""

    def make(*datasets: Any, **values: Any) -> SftPrepConfig:
        entries = []
        for number, dataset in enumerate(datasets):
            entry = dataset if isinstance(dataset, dict) else {"records": dataset}
            rows = entry.pop("records", None)
            if rows is not None:
                path = tmp_path / f"source-{number}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
                entry["path"] = str(path)
            entries.append({"name": f"source-{number}", **entry})
        blend = tmp_path / "blend.json"
        blend.write_text(json.dumps({"datasets": entries}), encoding="utf-8")
        given = {"num_shards": 2, "pack_size": 256, "num_workers": 1, "tokenizer_model": str(TINY), **values}
        ratios = {"train_ratio": 0.7, "valid_ratio": 0.2, "test_ratio": 0.1}
        return SftPrepConfig(blend_path=blend, output_dir=tmp_path / "out", **{**ratios, **given})

    return make


def rows_in(folder: Path, split: str = "*") -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"splits/{split}/*.parquet")):
        yield from pq.read_table(path).to_pylist()


def sequences_in(folder: Path, split: str = "*") -> list[tuple[str, str]]:
    """(text, what counts in it) of each sequence."""
    decode = Tokenizer.from_file(str(TINY / "tokenizer.json")).decode
    found = []
    for row in rows_in(folder, split):
        ids, mask = row["input_ids"], row["loss_mask"]
        for start, end in zip(row["seq_start_id"], [*row["seq_start_id"][1:], len(ids)], strict=True):
            said = [ids[n + 1] for n in range(start, end - 1) if mask[n]]
            found.append((decode(ids[start:end], skip_special_tokens=False), decode(said, skip_special_tokens=False)))
    return found


def report_of(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "metadata" not in p.name)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_each_record_lands_in_one_split_as_the_template_shows_it(prep: Prep) -> None:
    records = [asks(number) for number in range(80)]
    config = prep(records)
    artifact = run_sft_data_prep(config)
    out = config.output_dir
    expected = {render(r["messages"]): f"{r['messages'][1]['content']}<|im_end|>\n" for r in records}
    assert dict(sequences_in(out)) == expected
    assert len(sequences_in(out)) == 80
    for row in rows_in(out):
        check_row(row["input_ids"], row["loss_mask"], row["seq_start_id"], 256)
    sizes = {split: len(sequences_in(out, split)) for split in ("train", "valid", "test")}
    assert min(sizes.values()) > 0
    assert sizes["train"] > sizes["valid"] > 0
    assert (artifact.path, artifact.pack_size, artifact.num_shards) == (out / "splits", 256, 2)
    assert (artifact.total_sequences, artifact.data_format) == (80, "packed_sft_parquet")
    assert artifact.training_path == str(out / "splits" / "train")
    assert artifact.validation_path == str(out / "splits" / "valid")
    assert artifact.test_path == str(out / "splits" / "test")
    blend = json.loads(Path(artifact.blend_path or "").read_text())
    for split in ("train", "valid", "test"):
        assert sum(map(float, blend[split][::2])) == pytest.approx(1)
        assert all(Path(f"{prefix}.parquet").is_file() for prefix in blend[split][1::2])
    assert SFTDataArtifact.load(out / "splits").total_tokens == artifact.total_tokens
    copied = out / "splits" / artifact.metadata["tokenizer_path"]
    assert sorted(p.name for p in copied.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_every_field_survives_saving_and_a_training_config_reads_them(prep: Prep, home: Path) -> None:
    from omegaconf import OmegaConf

    from nemotron_kit.config.resolvers import register_resolvers

    config = prep([asks(number) for number in range(80)], artifact_name="SFTDataArtifact-here")
    saved = run_sft_data_prep(config)
    loaded = SFTDataArtifact.load(path=saved.path)
    assert loaded.model_dump(exclude={"tracking"}) == saved.model_dump(exclude={"tracking"})
    document = json.loads((saved.path / "metadata.json").read_text())
    assert (document["type"], document["path"]) == ("SFTDataArtifact", str(saved.path))
    register_resolvers()
    fields = ("path", "pack_size", "training_path", "validation_path", "test_path", "metadata_path", "blend_path")
    read = OmegaConf.create(
        {"run": {"data": "SFTDataArtifact-here:latest"}, "dataset": {key: f"${{art:data,{key}}}" for key in fields}}
    )
    splits = config.output_dir / "splits"
    assert OmegaConf.to_container(read.dataset, resolve=True) == {
        "path": str(splits),
        "pack_size": 256,
        "training_path": str(splits / "train"),
        "validation_path": str(splits / "valid"),
        "test_path": str(splits / "test"),
        "metadata_path": None,
        "blend_path": str(config.output_dir / "blend.json"),
    }


def test_all_of_one_record_is_in_one_split_and_so_is_its_copy(prep: Prep) -> None:
    def talk(number: int) -> dict[str, Any]:
        turns = []
        for turn in range(3):
            turns.append({"role": "user", "content": f"talk {number} turn {turn}"})
            turns.append({"role": "assistant", "content": "yes", "reasoning_content": f"since {number}"})
        return {"messages": turns}

    def with_nulls(number: int) -> dict[str, Any]:  # as a table's rows are written
        return {"messages": [{**message, "tool_calls": None} for message in talk(number)["messages"]]}

    config = prep([talk(n) for n in range(40)], [with_nulls(n) for n in range(40)])
    run_sft_data_prep(config)
    found: dict[str, list[str]] = {}
    for split in ("train", "valid", "test"):
        for text, _ in sequences_in(config.output_dir, split):
            found.setdefault(text.split("talk ")[1].split(" ")[0], []).append(split)
    assert {len(splits) for splits in found.values()} == {6}  # three turns, in two sources
    assert {len(set(splits)) for splits in found.values()} == {1}
    assert {split for splits in found.values() for split in splits} == {"train", "valid", "test"}


def test_a_large_integer_of_a_call_stays_as_it_is(prep: Prep) -> None:
    call = {"name": "f", "arguments": {"n": 123456789012345678901234567890}}
    rows = [asks(1), {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}]
    config = prep(rows, train_ratio=1, valid_ratio=0, test_ratio=0)
    run_sft_data_prep(config)
    assert any("\n123456789012345678901234567890\n" in said for _, said in sequences_in(config.output_dir))


def test_what_is_left_out_is_counted_by_reason(prep: Prep, capsys: pytest.CaptureFixture[str]) -> None:
    called = {"role": "assistant", "content": "<tool_call>f</tool_call>"}
    records = [
        asks(1, used_in=["a", "b"], tools=""),
        asks(2, used_in="x, b"),
        asks(3, used_in="x"),
        asks(4),
        {"messages": [], "used_in": "b"},
        {"used_in": "b"},
        {"messages": json.dumps([called]), "used_in": "b", "tools": "[]"},
        {"messages": [{"role": "system", "content": "# Tools\n"}, called], "used_in": "b"},
        {"messages": [called], "used_in": "b", "tools": [{"name": "f"}]},
        {"messages": [{"role": "user", "content": "?"}], "used_in": "b"},
        {"messages": [{"role": "user", "content": "long " * 900}, called | {"content": "a"}], "used_in": "b"},
    ]
    config = prep(records, used_in_filter="b,c", pack_size=768, train_ratio=1.0, valid_ratio=0.0, test_ratio=0.0)
    run_sft_data_prep(config)
    total = report_of(config.output_dir)["total"]
    assert total["filtered"] == {
        "used_in": 2,
        "no_messages": 2,
        "tool_call_without_tools": 1,
        "no_answer": 1,
        "answer_cut_off": 1,
        "bad": 0,
    }
    assert (total["records"], total["used"], total["cut"]) == (11, 4, 1)
    said = capsys.readouterr().err
    assert "11 records, 4 used as 4 sequences; left out 2 not for used_in_filter, 2 without messages" in said


def test_sequences_are_cut_to_max_doc_tokens(prep: Prep) -> None:
    answer = {"role": "assistant", "content": "word " * 100}
    config = prep([{"messages": [{"role": "user", "content": "?"}, answer]}], max_doc_tokens=20, train_ratio=1.0,
                  valid_ratio=0.0, test_ratio=0.0)  # fmt: skip
    run_sft_data_prep(config)
    [row] = rows_in(config.output_dir)
    assert len(row["input_ids"]) == 20
    assert row["loss_mask"][-2:] == [1, 0]


def test_weights_that_differ_decide_the_mix(prep: Prep, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = [asks(number) for number in range(300)], [asks(1000 + number) for number in range(300)]
    even = prep({"records": first, "weight": 2}, {"records": second, "weight": 2}, pack_size=64)
    run_sft_data_prep(even)
    assert len(sequences_in(even.output_dir)) == 600
    config = prep({"records": first, "weight": 3}, {"records": second, "weight": 1}, pack_size=64, num_shards=5)
    config.force = True
    artifact = run_sft_data_prep(config)
    report = report_of(config.output_dir)
    for split in ("train", "valid"):
        tokens = [dataset["splits"][split]["tokens"] for dataset in report["datasets"]]
        assert tokens[0] / tokens[1] == pytest.approx(3, rel=0.15)
    assert artifact.total_sequences == len(sequences_in(config.output_dir))
    assert artifact.total_tokens == sum(len(row["input_ids"]) for row in rows_in(config.output_dir))
    blend = json.loads((config.output_dir / "blend.json").read_text())
    weights = {prefix: float(w) for w, prefix in zip(blend["train"][::2], blend["train"][1::2], strict=True)}
    assert sum(w for prefix, w in weights.items() if "source-0" in prefix) == pytest.approx(0.75, abs=0.03)
    assert "rows kept, by the weights" in capsys.readouterr().err
    config.force = False
    before = bytes_of(config.output_dir)
    assert run_sft_data_prep(config).total_tokens == artifact.total_tokens
    assert bytes_of(config.output_dir) == before


def test_parquet_records_with_null_fields(prep: Prep, tmp_path: Path) -> None:
    records = [asks(number, tools=None, used_in=None, id=number) for number in range(20)]
    records[3]["messages"][1]["reasoning_content"] = "why"
    records[4]["messages"][1]["tool_calls"] = [{"function": {"name": "f", "arguments": '{"k": 1}'}}]
    records[4]["tools"] = [{"type": "function", "function": {"name": "f", "parameters": None}}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "chats.parquet", row_group_size=7)
    config = prep({"path": str(tmp_path / "chats.parquet")}, pack_size=768)
    run_sft_data_prep(config)
    same = prep(records, pack_size=768)
    same.output_dir = tmp_path / "same"
    run_sft_data_prep(same)
    assert sorted(sequences_in(config.output_dir)) == sorted(sequences_in(same.output_dir))
    texts = [text for text, _ in sequences_in(config.output_dir)]
    assert sum("why\n</think>" in text for text in texts) == 1
    assert sum("<function=f>\n<parameter=k>\n1\n" in text for text in texts) == 1
    assert not any("None" in text for text in texts)


def test_a_second_run_keeps_everything_and_a_changed_file_is_made_again(
    prep: Prep, capsys: pytest.CaptureFixture[str]
) -> None:
    config = prep([asks(number) for number in range(60)], artifact_name="SFTDataArtifact-test")
    first = run_sft_data_prep(config)
    before = bytes_of(config.output_dir)
    assert run_sft_data_prep(config).uri == first.uri == "art://SFTDataArtifact-test:v0"
    assert "(2 of them were there already)" in capsys.readouterr().err
    shard = config.output_dir / "shards" / "shard_000001.train.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    run_sft_data_prep(config)
    assert "shard_000001.train.parquet did not have the recorded content; made again" in capsys.readouterr().err
    assert bytes_of(config.output_dir) == before
    config.pack_size = 128
    with pytest.raises(UserError, match="What differs: how rows are made"):
        run_sft_data_prep(config)
    config.force = True
    run_sft_data_prep(config)
    assert max(len(row["input_ids"]) for row in rows_in(config.output_dir)) <= 128


def test_steps_make_the_files_of_one_run_and_hash_none_again(
    prep: Prep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prep([asks(number) for number in range(60)], artifact_name="SFTDataArtifact-test")
    whole = run_sft_data_prep(config)
    before = bytes_of(config.output_dir)
    config.output_dir = tmp_path / "steps"
    for step in ({"step": "plan"}, *({"step": "shards", "task": task, "tasks": 2} for task in (1, 0))):
        assert run_sft_data_prep(replace(config, **step)) is None
    hashed: list[str] = []
    sha256_file = manifest.sha256_file
    monkeypatch.setattr(manifest, "sha256_file", lambda path: (hashed.append(path.suffix), sha256_file(path))[1])
    made = run_sft_data_prep(replace(config, step="finish"))
    assert ".parquet" not in hashed and ".jinja" in hashed
    after = bytes_of(tmp_path / "steps")
    assert before.pop("blend.json") != after.pop("blend.json")  # it has the folder's path
    assert (after, made.total_tokens) == (before, whole.total_tokens)


def test_sample_takes_the_first_rows_into_a_folder_of_its_own(prep: Prep, capsys: pytest.CaptureFixture[str]) -> None:
    config = prep([asks(number) for number in range(60)], sample=10, valid_ratio=0.0, test_ratio=0.3)
    artifact = run_sft_data_prep(config)
    assert artifact.path == config.output_dir / "sample-10" / "splits"
    assert {text for text, _ in sequences_in(config.output_dir / "sample-10")} == {
        render(asks(number)["messages"]) for number in range(10)
    }
    assert artifact.validation_path is None
    assert "valid" not in capsys.readouterr().err


def test_bad_rows_are_named_and_may_be_skipped(prep: Prep, capsys: pytest.CaptureFixture[str]) -> None:
    deep: dict[str, Any] = {}
    for _ in range(600):
        deep = {"a": deep}
    nested = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": deep}]}
    rows = [asks(1), {"messages": [{"role": 7}]}, *(asks(n) for n in range(2, 9)), {"messages": [nested]}]
    config = prep(rows, num_shards=1)
    with pytest.raises(UserError, match=r"source-0.jsonl, line 2: messages\[0\].role is 7, not text"):
        run_sft_data_prep(config)
    config.on_bad_row = "skip"
    run_sft_data_prep(config)
    assert len(sequences_in(config.output_dir)) == 8
    first, second = report_of(config.output_dir)["datasets"][0]["bad_rows"]
    assert first.endswith("role is 7, not text.") and second.endswith("line 10: its values are nested too deeply.")
    assert "2 bad rows, the first" in capsys.readouterr().err


WRONG = [
    ({"train_ratio": 0.8}, "is 1.1, not 1"),
    ({"train_ratio": 1.7, "valid_ratio": -0.8}, "train_ratio=1.7: must be from 0 to 1"),
    ({"algorithm": "first_fit"}, "algorithm='first_fit'"),
    ({"parquet_compression": "lzma"}, "parquet_compression='lzma'"),
    ({"pack_size": 1}, "pack_size=1: must be at least 2"),
    ({"seed": 1 << 64}, "must be below 2^64"),
    ({"chat_template": "nano2"}, "no template 'nano2'"),
    ({"chat_template": "{% if %}"}, "chat_template, line 1"),
]


@pytest.mark.parametrize(("values", "why"), WRONG)
def test_settings_that_make_no_sense_stop_before_anything_is_written(
    prep: Prep, values: dict[str, Any], why: str
) -> None:
    config = prep([asks(1)], **values)
    assert why in " ".join(preflight(config, connect=False))
    with pytest.raises(UserError, match=re.escape(why)):
        run_sft_data_prep(config)
    assert not config.output_dir.exists()


def test_sources_that_hold_no_conversation(prep: Prep, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No conversation is left for training: 2 without messages"):
        run_sft_data_prep(prep([{"messages": []}, {"text": "a"}]))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match="holds no records such as messages"):
        run_sft_data_prep(prep({"path": str(tmp_path / "a.txt")}, force=True))
    config = prep([asks(1)])
    config.blend_path.write_text(json.dumps({"train": [{"name": "a", "path": "a.jsonl"}]}))
    with pytest.raises(UserError, match="splits by name are not for packed rows"):
        run_sft_data_prep(config)
