"""RL prompts: placeholders, splits, what is kept of a row, the manifest and the artifact."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.data_prep import stored
from nemotron_kit.data_prep.config import DataBlend, RLPrepConfig
from nemotron_kit.data_prep.placeholders import PLACEHOLDERS, answer_of, filled, rows_of_file
from nemotron_kit.data_prep.rl import SPLITS, prepare_rl
from nemotron_kit.errors import UserError

AGENT = {"type": "responses_api_agents", "name": "exact_match"}
DAPO = (
    "Solve the following math problem step by step. The last line is the answer.\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


def row(text: str, **more: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": [{"role": "user", "content": text}]}, "agent_ref": AGENT, **more}


def refers(number: int, template: Any) -> dict[str, Any]:
    return {"agent_ref": AGENT, "_hf_placeholder": {"row": number, "question_template": template}}


def write_rows(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def blend(folder: Path, path: str, **more: Any) -> Path:
    file = folder / "blend.json"
    file.write_text(json.dumps({"datasets": [{"name": "rows", "path": path}], **more}), encoding="utf-8")
    return file


def rows_of(path: str | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def prepared(folder: Path, path: str, **settings: Any) -> Any:
    more = settings.pop("blend", {})
    return prepare_rl(RLPrepConfig(blend_path=blend(folder, path, **more), output_dir=folder / "out", **settings))


def test_a_parquet_file_that_is_not_utf8_or_a_decompression_bomb_is_refused_by_name(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": pa.array([b"\xff"]).view(pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: not a Parquet file that can be read: .*can't decode byte 0xff"):
        prepared(tmp_path, "a.parquet")
    pq.write_table(pa.table({"text": ["x" * 1_000_000] * 30}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"a\.parquet, row 17: 17\.0 MB so far out of .*, over 1000 times as much"):
        list(rows_of_file(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    ("question", "template", "expected"),
    [
        ("2+2", {"prefix": "Q: ", "suffix": "\nShow it.\n"}, "Q: 2+2\nShow it."),
        (DAPO.format("a\n\nb"), {"prefix": "", "suffix": "!"}, "a\n\nb!"),
        ("one\n\ntwo\n\nthree", {"suffix": "!"}, "one\n\ntwo\n\nthree!"),  # no wrapper: nothing to strip
        ("q", {}, "q"),
        ("2+2", "Solve {question}, {question}.", "Solve 2+2, 2+2."),
        ("2+2", "no place", "2+2"),
    ],
)
def test_questions_are_filled_into_their_template(question: str, template: Any, expected: str) -> None:
    assert filled(question, template) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('["34"]', "34"),
        ("[42, 1]", "42"),
        ('{"a": "x"}', "x"),
        ('"7"', "7"),
        ("34", "34"),
        ("x^2", "x^2"),
        ("[]", "[]"),
    ],
)
def test_answers_are_the_first_element_and_stay_texts(given: Any, expected: Any) -> None:
    assert answer_of(given) == expected


def test_the_two_data_sets_that_rows_of_nvidias_blend_refer_to() -> None:
    known = {name: (one.path, one.split) for name, one in PLACEHOLDERS.items()}
    assert known == {
        "nano_v3_sft_profiled_dapo17k": ("hf://BytedTsinghua-SIA/DAPO-Math-17k", "train"),
        "nano_v3_sft_profiled_skywork_no_omni": ("hf://Skywork/Skywork-OR1-RL-Data", "math"),
    }


def test_placeholders_are_restored_and_all_else_of_a_row_is_kept(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dapo = [
        {"prompt": [{"content": DAPO.format(f"What is {n}?")}], "reward_model": {"ground_truth": str(n)}}
        for n in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(dapo), tmp_path / "dapo.parquet")
    write_rows(tmp_path / "sky.jsonl", [{"prompt": [{"content": "1+1"}], "reward_model": {"ground_truth": '["2"]'}}])
    rows = [
        {"dataset": "d", "pass_rate": 0.5, **refers(3, {"prefix": "P: "}), "responses_create_params": {"tools": []}},
        {"dataset": "s", **refers(0, "Think: {question}")},
        row("plain", verifier_metadata={"unit_tests": [1, 2]}, options=[{"A": "x"}], big=2**70),
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    places = {"d": {"path": "dapo.parquet"}, "s": {"path": "sky.jsonl"}}
    made = prepared(tmp_path, "rows.jsonl", blend={"placeholders": places}, train_ratio=1, valid_ratio=0, test_ratio=0)
    first, second, third = rows_of(made.train_path)
    assert first["responses_create_params"].pop("tools") == []
    assert first == row("P: What is 3?", dataset="d", pass_rate=0.5, question="P: What is 3?", expected_answer="3")
    assert second == row("Think: 1+1", dataset="s", question="1+1", expected_answer="2")
    assert third == rows[2]
    assert made.metadata["agents"] == {"exact_match": 3}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"responses_create_params": {"input": [{"role": "user", "content": "x"}]}}, "line 2: there is no agent_ref"),
        ({"agent_ref": AGENT, "messages": []}, "line 2: there is no responses_create_params"),
        ({**row("x"), "agent_ref": {"type": "x"}}, "line 2: there is no agent_ref.name"),
        ({**row("x"), "dataset": "q", "_hf_placeholder": {"row": 0}}, "line 2: it refers to the data set 'q'"),
        ([1], "line 2: expected a JSON object"),
    ],
)
def test_a_row_that_no_trainer_takes_is_named(tmp_path: Path, bad: Any, words: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [row("good"), bad])
    with pytest.raises(UserError, match=r"rows\.jsonl, " + words):
        prepared(tmp_path, "rows.jsonl")
    assert not list((tmp_path / "out").glob("*.json*"))


def test_splits_are_the_sources_own(tmp_path: Path) -> None:
    for split, count in (("rows", 5), ("validation", 2), ("test", 1)):
        write_rows(tmp_path / "data" / f"{split}-00000.jsonl", [row(f"{split} {n}") for n in range(count)])
    made = prepared(tmp_path, "data")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert [len(rows_of(manifest[split])) for split in ("train", "val", "test")] == [5, 2, 1]
    assert manifest["source_splits"] == ["test", "valid"]
    assert manifest["mode"] == "resolve"
    assert made.metadata["rows"] == {"train": 5, "val": 2, "test": 1}
    sampled = prepared(tmp_path, "data", sample=1, force=True)
    assert sampled.metadata["rows"] == {"train": 1, "val": 1, "test": 1}


def test_a_blend_that_names_the_splits_decides_them(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_rows(tmp_path / f"{name}.jsonl", [row(f"{name} {n}") for n in range(20)])
    for name in ("train", "dev"):
        write_rows(tmp_path / "both" / f"{name}.jsonl", [row(name)])
    named = {
        split: [{"name": name, "path": f"{name}.jsonl"}] for split, name in zip(("train", "test"), "ac", strict=True)
    }
    named["valid"] = [{"name": "b", "path": "b.jsonl"}, {"name": "both", "path": "both"}]
    file = tmp_path / "blend.json"
    file.write_text(json.dumps(named), encoding="utf-8")
    made = prepare_rl(RLPrepConfig(blend_path=file, output_dir=tmp_path / "out"))
    asked = [
        [one["responses_create_params"]["input"][0]["content"] for one in rows_of(getattr(made, split))]
        for split in SPLITS
    ]
    assert [{text[0] for text in texts} for texts in asked] == [{"a"}, {"b", "d"}, {"c"}]
    assert list(map(len, asked)) == [20, 21, 20]
    file.write_text(json.dumps({**named, "test": [{"name": "both", "path": "both"}]}), encoding="utf-8")
    with pytest.raises(UserError, match="has it under 'test', and its own splits are 'valid', 'train'"):
        prepare_rl(RLPrepConfig(blend_path=file, output_dir=tmp_path / "other"))


def test_ratios_split_prompts_and_not_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [row(f"prompt {n % 50}", n=n) for n in range(100)])
    made = prepared(tmp_path, "rows.jsonl", train_ratio=0.8, valid_ratio=0.1, test_ratio=0.1)
    prompts = [{str(one["responses_create_params"]) for one in rows_of(p)} for p in (made.train, made.val, made.test)]
    assert [len(one) for one in prompts] == [40, 5, 5]
    assert len(set.union(*prompts)) == 50
    # A sample has a validation split, too.
    assert prepared(tmp_path, "rows.jsonl", sample=10, force=True).metadata["rows"] == {"train": 8, "val": 1, "test": 1}


def test_a_prompt_of_two_sources_is_in_one_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", [row(f"prompt {n}", n=name) for n in range(20)] + [row(name)] * 30)
    for name in ("train", "test"):
        write_rows(tmp_path / "own" / f"{name}.jsonl", [row(f"prompt {n}") for n in range(18, 20)])
    file = tmp_path / "blend.json"
    sources = [{"name": name, "path": path} for name, path in (("a", "a.jsonl"), ("b", "b.jsonl"), ("c", "own"))]
    ratios = {"train_ratio": 0.6, "valid_ratio": 0.2, "test_ratio": 0.2}
    for count in (2, 3):
        file.write_text(json.dumps({"datasets": sources[:count]}), encoding="utf-8")
        made = prepare_rl(RLPrepConfig(blend_path=file, output_dir=tmp_path / f"out{count}", **ratios))
        held = {str(one["responses_create_params"]) for path in (made.val, made.test) for one in rows_of(path)}
        both = [one for one in rows_of(made.train) if str(one["responses_create_params"]) in held]
        assert len(held) > 4 and len(both) == (2 if count == 3 else 0)  # the source's own


def test_what_is_whole_is_kept_and_what_differs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "rows.jsonl", [row(f"prompt {n}") for n in range(30)])
    made = prepared(tmp_path, "rows.jsonl")
    before = Path(made.train_path).stat().st_mtime_ns
    assert prepared(tmp_path, "rows.jsonl").metadata["rows"] == made.metadata["rows"]
    assert Path(made.train_path).stat().st_mtime_ns == before
    assert "already" in capsys.readouterr().err
    prepared(tmp_path, "rows.jsonl", force=True)
    assert Path(made.train_path).stat().st_mtime_ns > before
    assert "already" not in capsys.readouterr().err
    with pytest.raises(UserError, match="another blend, or of other settings"):
        prepared(tmp_path, "rows.jsonl", seed=7)
    Path(made.val_path).write_text("", encoding="utf-8")  # damaged: made again
    again = prepared(tmp_path, "rows.jsonl")
    assert len(rows_of(again.val_path)) == 1
    assert not list((tmp_path / "out").glob(".*"))


def test_a_stopped_run_goes_on_with_the_files_it_had(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "a.jsonl", [row("a")])
    write_rows(tmp_path / "data" / "b.jsonl", [{"no": "row"}])
    with pytest.raises(UserError, match=r"b\.jsonl"):
        prepared(tmp_path, "data")
    kept = list((tmp_path / "out").glob(".parts-*/00000.json*"))
    assert len(kept) == 2  # of the first file: rows and record
    assert not list((tmp_path / "out").glob(".parts-*/.*"))


def test_manifest_artifact_round_trip(home: Path, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from nemotron_kit.artifacts import SplitJsonlDataArtifact
    from nemotron_kit.config.resolvers import register_resolvers

    write_rows(tmp_path / "rows.jsonl", [row(f"prompt {n}") for n in range(10)])
    made = prepared(tmp_path, "rows.jsonl", artifact_name="SplitJsonlDataArtifact-here")
    assert SplitJsonlDataArtifact.load(tmp_path / "out").test == made.test_path
    register_resolvers()
    keys = ("path", "train", "val", "test", "train_path", "val_path", "valid_path", "test_path", "metadata.rows.val")
    config = OmegaConf.create(
        {"run": {"data": "SplitJsonlDataArtifact-here:latest"}, "x": {key: f"${{art:data,{key}}}" for key in keys}}
    )
    found = OmegaConf.to_container(config.x, resolve=True)
    out = str(tmp_path / "out")
    files = {split: f"{out}/{split}.jsonl" for split in ("train", "val", "test")}
    assert found == {
        "path": f"{out}/manifest.json",
        **files,
        **{f"{split}_path": path for split, path in files.items()},
        "valid_path": files["val"],
        "metadata.rows.val": 1,
    }


def test_in_a_store_the_manifest_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Store:
        url = "s3://b/x"

        def put(self, path: Path, name: str) -> None:
            order.append(name)

        def put_text(self, text: str, name: str) -> None:
            order.append(name)

    for name in ("train.jsonl", "manifest.json", "val.jsonl", "report.json", "store.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(stored, "store_of", lambda _: Store())
    stored.publish(tmp_path, SimpleNamespace(metadata={}))
    assert order == ["train.jsonl", "val.jsonl", "manifest.json", "report.json"]


def test_an_imported_manifest_may_name_files_beside_it(home: Path, tmp_path: Path) -> None:
    from nemotron.recipes.nano3.import_export import ImportRLData, import_rl_data

    (tmp_path / "manifest.json").write_text(json.dumps({"train": "train.jsonl", "val": f"{tmp_path}/val.jsonl"}))
    found: Any = import_rl_data(ImportRLData(path=tmp_path))
    assert (found.train, found.val) == (f"{tmp_path}/train.jsonl", f"{tmp_path}/val.jsonl")


def test_blends_with_weights_and_other_stages_blends(tmp_path: Path) -> None:
    file = tmp_path / "blend.json"
    file.write_text(json.dumps({"datasets": [{"name": "a", "path": "a.jsonl", "weight": 2}]}), encoding="utf-8")
    with pytest.raises(UserError, match=r"weight 2; each row is written once"):
        prepare_rl(RLPrepConfig(blend_path=file, output_dir=tmp_path / "out"))
    with pytest.raises(UserError, match=r"unknown key 'placeholders'"):
        DataBlend.load(blend(tmp_path, "a.jsonl", placeholders={}))
    with pytest.raises(UserError, match=r"their sum 1"):
        prepare_rl(RLPrepConfig(blend_path=file, train_ratio=0.5))


def test_steps_make_the_files_of_one_run(tmp_path: Path) -> None:
    for number in range(5):
        write_rows(tmp_path / "many" / f"{number}.jsonl", [row(f"{number} and {n}") for n in range(20)])
    whole = prepared(tmp_path, "many", train_ratio=0.6, valid_ratio=0.2, test_ratio=0.2)
    names = ["train.jsonl", "val.jsonl", "test.jsonl"]
    expected = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    (tmp_path / "out").rename(tmp_path / "before")
    settings = {"train_ratio": 0.6, "valid_ratio": 0.2, "test_ratio": 0.2}
    with pytest.raises(UserError, match=r"holds no inputs\.json"):
        prepared(tmp_path, "many", step="shards", task=0, tasks=2, **settings)
    assert prepared(tmp_path, "many", step="plan", **settings) is None
    before = (tmp_path / "many" / "0.jsonl").read_bytes()
    write_rows(tmp_path / "many" / "0.jsonl", [row("another")])
    for seed in (42, 7):  # of another run, which leaves files behind
        with pytest.raises(UserError, match=r"0\.jsonl: it has changed since the plan was made"):
            prepared(tmp_path, "many", step="shards", task=0, tasks=5, **settings, seed=seed)
    (tmp_path / "many" / "0.jsonl").write_bytes(before)
    for task in (1, 0):
        assert prepared(tmp_path, "many", step="shards", task=task, tasks=2, **settings) is None
    for path in (tmp_path / "many").iterdir():
        path.chmod(0o200)  # whoever is not root can't read them again
    made = prepared(tmp_path, "many", step="finish", **settings)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == expected
    assert made.metadata["run_hash"] == whole.metadata["run_hash"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "before").iterdir()
    )
