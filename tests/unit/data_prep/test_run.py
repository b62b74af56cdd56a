"""run_data_prep on one worker: output, filters, weights, resume, and folders that hold something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from nemotron_kit.artifacts import PretrainBlendsArtifact
from nemotron_kit.data_prep import DataPrepConfig, PerSplitConfig, run_data_prep
from nemotron_kit.data_prep.preflight import preflight
from nemotron_kit.errors import UserError

WORDS = [f"The {n}th document says {n * n}." for n in range(60)]
Config = Callable[..., DataPrepConfig]
Writer = Callable[..., Path]


def documents(prefix: str | Path) -> list[list[int]]:
    """An independent reader of small .bin/.idx pairs."""
    raw = Path(f"{prefix}.idx").read_bytes()
    assert raw[:9] == b"MMIDIDX\0\0"
    count = int.from_bytes(raw[18:26], "little")
    lengths = np.frombuffer(raw, "<i4", count, 34)
    ids = np.fromfile(f"{prefix}.bin", {8: "<u2", 4: "<i4"}[raw[17]])
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]]


def all_texts(out: Path, tokenizer: str, *, split: str = "*") -> list[str]:
    decode = Tokenizer.from_file(f"{tokenizer}/tokenizer.json").decode
    return [decode(d) for idx in sorted(out.glob(f"{split}/*.idx")) for d in documents(idx.with_suffix(""))]


def test_every_document_lands_in_one_split(write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)])
    artifact = run_data_prep(config)
    assert sorted(all_texts(config.output_dir, config.tokenizer_model)) == sorted(WORDS)
    assert all(all_texts(config.output_dir, config.tokenizer_model, split=s) for s in ("train", "valid", "test"))
    assert (artifact.total_sequences, artifact.num_shards, artifact.path) == (60, 2, config.output_dir)
    assert artifact.total_tokens == artifact.train_tokens + artifact.valid_tokens + artifact.test_tokens
    assert artifact.metadata["vocab_size"] == 4096
    assert artifact.source_datasets[0].num_rows == 60
    assert PretrainBlendsArtifact.load(config.output_dir).total_tokens == artifact.total_tokens


def test_weights_are_honoured_however_many_shards_a_source_has(write_jsonl: Writer, make_config: Config) -> None:
    sources = [(write_jsonl("a.jsonl", WORDS * 5), 0.25), (write_jsonl("b.jsonl", WORDS), 0.75)]
    config = make_config(sources, num_shards=5)
    run_data_prep(config)
    blend = json.loads((config.output_dir / "blend.json").read_text())
    plan = json.loads((config.output_dir / "plan.json").read_text())
    for split in ("train", "valid", "test"):
        shards = [shard for shard in plan["shards"] if shard["split"] == split]
        weights = list(map(float, blend[split][::2]))
        assert len(shards) == len(weights)
        for number, weight in enumerate((0.25, 0.75)):
            shares = [w for w, s in zip(weights, shards, strict=True) if s["source"] == number]
            assert sum(shares) == pytest.approx(weight)
    tokens = [len(np.fromfile(f"{prefix}.bin", "<u2")) for prefix in blend["train"][1::2]]
    ratios = [float(w) / t for w, t in zip(blend["train"][::2], tokens, strict=True)]
    assert ratios[0] == pytest.approx(ratios[1])  # of one source: in proportion to tokens


def test_filters_and_special_tokens(write_jsonl: Writer, make_config: Config) -> None:
    source = write_jsonl("a.jsonl", ["tiny", "long enough to stay in " * 30], field="body")
    config = make_config(
        [(source, 1.0)],
        text_field="body",
        min_doc_chars=10,
        max_doc_tokens=16,
        add_bos=True,
        per_split=None,
        num_shards=1,
    )
    run_data_prep(config)
    [only] = documents(config.output_dir / "train" / "shard_000000")
    assert (only[0], only[-1], len(only)) == (1, 2, 16)
    blend = json.loads((config.output_dir / "blend.json").read_text())
    assert (blend["valid"], blend["test"]) == (None, None)


def test_sample_takes_the_first_rows_of_each_dataset(write_jsonl: Writer, make_config: Config) -> None:
    sources = [(write_jsonl("a.jsonl", WORDS), 1.0), (write_jsonl("b.jsonl", [w.upper() for w in WORDS]), 1.0)]
    config = make_config(sources, sample=10)
    assert run_data_prep(config).total_sequences == 20
    expected = WORDS[:10] + [w.upper() for w in WORDS[:10]]
    assert sorted(all_texts(config.output_dir, config.tokenizer_model)) == sorted(expected)


def test_blend_by_splits(tmp_path: Path, write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([], num_shards=3)
    entries = {
        s: [{"name": s, "path": str(write_jsonl(f"{s}.jsonl", [f"{s} {w}" for w in WORDS]))}] for s in ("train", "test")
    }
    config.blend_path.write_text(json.dumps(entries))
    run_data_prep(config)
    assert sorted(p.name for p in (config.output_dir / "train").glob("*.bin")) == [
        f"shard_00000{n}.bin" for n in range(3)
    ]
    assert sorted(all_texts(config.output_dir, config.tokenizer_model, split="test")) == sorted(
        f"test {w}" for w in WORDS
    )
    assert not (config.output_dir / "valid").exists()


def test_shard_size_sets_the_number_of_shards(write_jsonl: Writer, make_config: Config) -> None:
    source = write_jsonl("a.jsonl", WORDS * 20)
    config = make_config([(source, 1.0)], num_shards=None, shard_size=source.stat().st_size // 4)
    assert run_data_prep(config).num_shards == 2  # and one each of valid and test


def test_an_empty_source_is_said_and_left_out(
    write_jsonl: Writer, make_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0), (write_jsonl("b.jsonl", []), 5.0)])
    run_data_prep(config)
    assert "'source-1' gave no document" in capsys.readouterr().err
    blend = json.loads((config.output_dir / "blend.json").read_text())
    assert sum(map(float, blend["train"][::2])) == pytest.approx(1.0)


def test_nothing_at_all_is_an_error(write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", ["short"]), 1.0)], min_doc_chars=100)
    with pytest.raises(UserError, match="No document is left for training"):
        run_data_prep(config)
    assert not (config.output_dir / "blend.json").exists()


def test_a_second_run_keeps_the_shards_and_the_version(write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)], artifact_name="PretrainBlendsArtifact-test")
    first = run_data_prep(config)
    times = {p: p.stat().st_mtime_ns for p in config.output_dir.glob("*/shard_*")}
    second = run_data_prep(config)
    assert {p: p.stat().st_mtime_ns for p in config.output_dir.glob("*/shard_*")} == times
    assert first.uri == second.uri == "art://PretrainBlendsArtifact-test:v0"


def test_a_tampered_shard_is_named_and_made_again(
    write_jsonl: Writer, make_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)])
    run_data_prep(config)
    shard = config.output_dir / "train" / "shard_000001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # same size
    run_data_prep(config)
    assert shard.read_bytes() == whole
    assert "train/shard_000001.bin did not have the recorded content; made again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_shards": 3}, "the number of shards"),
        ({"add_bos": True}, "the tokenizer, BOS or EOS"),
        ({"max_doc_tokens": 5}, "max_doc_tokens"),
        ({"sample": 5}, "the sources"),
    ],
)
def test_a_folder_with_another_plan_is_refused_unless_forced(
    write_jsonl: Writer, make_config: Config, change: dict[str, Any], says: str
) -> None:
    source = [(write_jsonl("a.jsonl", WORDS), 1.0)]
    config = make_config(source, num_shards=4)
    run_data_prep(config)
    before = {p: p.read_bytes() for p in config.output_dir.rglob("*") if p.is_file()}
    other = make_config(source, **{"num_shards": 4, **change})
    with pytest.raises(UserError, match="holds another plan's shards") as error:
        run_data_prep(other)
    assert says in error.value.message
    assert "--force" in str(error.value)
    assert {p: p.read_bytes() for p in config.output_dir.rglob("*") if p.is_file()} == before
    (config.output_dir / "notes.txt").write_text("mine")
    forced = run_data_prep(make_config(source, **{"num_shards": 4, **change}, force=True))
    assert len(list((config.output_dir / "train").glob("*.bin"))) == forced.num_shards
    assert (config.output_dir / "notes.txt").read_text() == "mine"


def test_other_weights_keep_the_shards(write_jsonl: Writer, make_config: Config) -> None:
    paths = [write_jsonl("a.jsonl", WORDS), write_jsonl("b.jsonl", WORDS[::-1])]
    config = make_config(list(zip(paths, (1.0, 1.0), strict=True)))
    run_data_prep(config)
    times = {p: p.stat().st_mtime_ns for p in config.output_dir.glob("*/shard_*")}
    run_data_prep(make_config(list(zip(paths, (1.0, 3.0), strict=True))))
    assert {p: p.stat().st_mtime_ns for p in config.output_dir.glob("*/shard_*")} == times
    assert "3" in json.loads((config.output_dir / "blend.json").read_text())["valid"]


def test_shards_without_a_plan_are_refused(write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)])
    (config.output_dir / "train").mkdir(parents=True)
    (config.output_dir / "train" / "shard_000000.bin").write_bytes(b"old")
    with pytest.raises(UserError, match="holds shards without a plan"):
        run_data_prep(config)


def test_a_changed_source_is_noticed(write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)])
    run_data_prep(config)
    write_jsonl("a.jsonl", [w.replace("says", "sayz") for w in WORDS])
    with pytest.raises(UserError, match="the sources"):
        run_data_prep(config)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("no/such/folder", "there is no no/such/folder, and it is no hub name"),
        ("justaname", "there is no justaname"),
        ("./owner/name", "and it is no hub name"),
    ],
)
def test_a_tokenizer_that_is_not_there(write_jsonl: Writer, make_config: Config, model: str, says: str) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)], tokenizer_model=model)
    with pytest.raises(UserError, match=says):
        run_data_prep(config)
    assert not config.output_dir.exists()


def test_a_tokenizer_without_eos_and_one_that_is_none(tmp_path: Path, write_jsonl: Writer, make_config: Config) -> None:
    bare = tmp_path / "bare.json"
    tokenizer = json.loads(Path(make_config([]).tokenizer_model, "tokenizer.json").read_text())
    tokenizer["added_tokens"] = []
    for name in ("<s>", "</s>"):
        tokenizer["model"]["vocab"][f"x{name}"] = tokenizer["model"]["vocab"].pop(name)
    bare.write_text(json.dumps(tokenizer))
    source = [(write_jsonl("a.jsonl", WORDS), 1.0)]
    with pytest.raises(UserError, match=r"names no EOS token.\nSet add_eos=false"):
        run_data_prep(make_config(source, tokenizer_model=str(bare)))
    assert run_data_prep(make_config(source, tokenizer_model=str(bare), add_eos=False)).total_sequences == 60
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    with pytest.raises(UserError, match=r"its EOS token is '<\|end\|>', which .*bare.json lacks"):
        run_data_prep(make_config(source, tokenizer_model=str(bare)))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config.json: expected a JSON object"):
        run_data_prep(make_config(source, tokenizer_model=str(bare)))
    bare.write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        run_data_prep(make_config(source, tokenizer_model=str(bare), force=True))


def test_a_source_beside_the_blend_is_recorded_as_there(
    tmp_path: Path, write_jsonl: Writer, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS).name, 1.0)], num_shards=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (source,) = run_data_prep(config).source_datasets
    assert source.uri == str(config.blend_path.parent / "a.jsonl") and Path(source.uri).is_file()


def test_no_file_of_another_tokenizer_stays(tmp_path: Path, write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)], num_shards=1)
    copy = config.output_dir / "tokenizer"
    copy.mkdir(parents=True)
    for name in ("special_tokens_map.json", "chat_template.jinja"):
        (copy / name).write_text("{}")
    run_data_prep(config)
    assert sorted(path.name for path in copy.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_per_split_config_sets_the_held_out_share(write_jsonl: Writer, make_config: Config) -> None:
    per_split = PerSplitConfig(valid_shards=2, test_shards=0)
    artifact = run_data_prep(make_config([(write_jsonl("a.jsonl", WORDS * 10), 1.0)], per_split=per_split))
    assert artifact.valid_tokens == pytest.approx(artifact.train_tokens, rel=0.1)
    assert (artifact.test_tokens, artifact.test_path) == (0, None)


def test_what_an_earlier_version_began_is_continued(
    write_jsonl: Writer, make_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)])
    run_data_prep(config)
    out = config.output_dir
    whole = {path: path.read_bytes() for path in out.glob("*/*.bin")}
    # Plans and records had none of these, and no report was written.
    plan = json.loads((out / "plan.json").read_text())
    for key in ("max_doc_size", "on_bad_row", "max_bad_rows"):
        del plan[key]
    del plan["tokens"]["number_type"], plan["sources"][0]["left_out"]
    (out / "plan.json").write_text(json.dumps(plan))
    for path in out.glob("*/shard_*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: record[key] for key in list(record)[:6]}))
    for path in [out / "report.json", out / "blend.json", *out.glob("train/shard_000001.*")]:
        path.unlink()
    run_data_prep(make_config([(out.parent / "a.jsonl", 1.0)]))
    told = capsys.readouterr().err
    assert "4 shards (3 of them were there already)" in told
    assert "some shards are an earlier version's, which did not count what it skipped" in told
    assert {path: path.read_bytes() for path in out.glob("*/*.bin")} == whole
    assert json.loads((out / "report.json").read_text())["total"]["rows"] is None


def test_each_shards_record_has_the_sha256_of_its_files(write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)])
    run_data_prep(config)
    digest = json.loads((config.output_dir / "plan.json").read_text())["digest"]
    records = sorted(config.output_dir.glob("*/shard_*.json"))
    assert len(records) == 4
    for path in records:
        record = json.loads(path.read_text())
        for ending in ("bin", "idx"):
            content = path.with_suffix(f".{ending}").read_bytes()
            assert record[ending] == [len(content), hashlib.sha256(content).hexdigest()]
        assert record["plan"] == digest


@pytest.mark.parametrize(
    ("make", "model", "says"),
    [
        (
            "models/other",
            "models/tok",
            r"there is no models/tok in the folder models/\.\nCorrect the path; the hub's is hf",
        ),
        ("", "models/tok.json", "there is no models/tok.json, and it is no hub name"),
        (
            "spm/tokenizer.model",
            "spm",
            r"holds SentencePiece's tokenizer\.model(.|\n)*LlamaTokenizerFast.* spm spm-fast$",
        ),
        ("spm/tokenizer.model", "spm/tokenizer.model", "import LlamaTokenizerFast as T"),
        ("x/other.model", "x/other.model", "is a SentencePiece model, not a tokenizer.json"),
    ],
)
def test_a_local_tokenizer_is_not_asked_of_the_hub(
    tmp_path: Path,
    write_jsonl: Writer,
    make_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    make: str,
    model: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nemotron_kit.data_prep.tokenizer._fetch", lambda *_: pytest.fail("the hub was asked"))
    if make:
        (tmp_path / make).parent.mkdir()
        (tmp_path / make).write_bytes(b"\n\x0e")
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)], tokenizer_model=model)
    with pytest.raises(UserError, match=says):
        run_data_prep(config)
    assert any(model.split("/")[0] in problem for problem in preflight(config, connect=False))
