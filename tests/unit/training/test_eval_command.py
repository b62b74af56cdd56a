"""`nemotron nano3 eval`: what it measures, what it saves, what it refuses; lm-eval-harness beside our own scorer."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nemotron.recipes.nano3.stage3_eval.evaluation import EvalConfig, _show, main, preflight

from nemotron_kit.artifacts import EvalArtifact, ModelArtifact, PretrainBlendsArtifact, Reference, open_registry
from nemotron_kit.artifacts.lineage import forget_inputs, given_inputs
from nemotron_kit.errors import UserError
from nemotron_kit.training import evaluate
from nemotron_kit.training.generate import TextGenerator

from ...shards import write_shard


@pytest.fixture(autouse=True)
def in_project(project: Path) -> Path:
    return project


def _data(folder: Path, ids: list[int]) -> None:
    (folder / "blend.json").parent.mkdir()
    (folder / "blend.json").write_text(json.dumps({"valid": ["1", write_shard(folder / "valid/a", [ids])]}))
    PretrainBlendsArtifact(path=folder).save(name="Data")


def test_what_is_found_is_an_artifact_with_its_inputs(
    chat_model: Path, generator: TextGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _data(tmp_path / "data", generator.raw("Some text that the model has never seen. " * 3))
    shared: dict[str, Any] = {"seq_length": 8, "limit": 2, "output_dir": tmp_path / "out"}
    data = open_registry().resolve(Reference.parse("Data"))
    with given_inputs({"data": data}):
        main(EvalConfig(deployment={"checkpoint_path": str(chat_model)}, **shared))
    table = capsys.readouterr().err
    assert "held_out" in table and "bits_per_byte" in table and "\x1b" not in table
    found = EvalArtifact.from_uri("art://EvalArtifact-default:latest")
    expected = evaluate.held_out(generator, tmp_path / "data", split="valid", limit=2, seq_length=8, batch_size=16)
    assert (found.results, found.tasks, found.model) == ({"held_out": expected}, ["held_out"], str(chat_model))
    assert found.metrics == {f"held_out.{name}": value for name, value in expected.items()}
    assert json.loads((found.path / "results.json").read_text())["results"] == {"held_out": expected}
    assert found.get_input_uris() == ["art://Data:v0"]
    forget_inputs()  # what was read back just now
    # A model that is an input is in the lineage, too.
    ModelArtifact(path=shutil.copytree(chat_model, tmp_path / "model"), step=1).save(name="ModelArtifact-rl")
    model = open_registry().resolve(Reference.parse("ModelArtifact-rl"))
    with given_inputs({"data": data, "model": model}):
        main(EvalConfig(deployment={"checkpoint_path": model.path}, **{**shared, "output_dir": tmp_path / "again"}))
    found = EvalArtifact.from_uri("art://EvalArtifact-default:v1")
    assert (found.results, found.model) == ({"held_out": expected}, "art://ModelArtifact-rl:v0")
    assert set(found.get_input_uris()) == {"art://Data:v0", "art://ModelArtifact-rl:v0"}


def test_a_value_that_is_no_number_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    _show({"task": {"ppl": float("nan"), "worst": float("inf"), "count": 1200.0}}, EvalArtifact(path=Path("/x")))
    shown = capsys.readouterr().err
    assert "nan" in shown and "inf" in shown and "1,200" in shown


def test_there_must_be_something_to_measure(chat_model: Path) -> None:
    with given_inputs({}), pytest.raises(UserError, match=r"There is nothing to measure."):
        main(EvalConfig(deployment={"checkpoint_path": str(chat_model)}))


def test_what_is_another_programs_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    model = {"checkpoint_path": str(tmp_path)}
    for config, said in (
        (EvalConfig(execution={"walltime": "1"}, deployment=model), "execution.walltime: that is nemo-evaluator"),
        (EvalConfig(deployment={**model, "command": "x"}), "deployment.command: that is nemo-evaluator-launcher's"),
        (EvalConfig(evaluation={"tasks": []}, deployment=model), "Tasks are named by -t TASK"),
        (EvalConfig(deployment={}), "deployment.checkpoint_path is not set"),
        (EvalConfig(deployment={"checkpoint_path": str(tmp_path / "no")}), "holds no model"),
        (EvalConfig(deployment=model, limit=0), "limit is 0; it must be 1 or more."),
        (EvalConfig(deployment=model, num_fewshot=-1), "num_fewshot is -1; it must be 0 or more."),
        (EvalConfig(deployment=model, task_path=tmp_path / "no"), "task_path: there is no folder"),
    ):
        (problem,) = preflight(config, connect=False)
        assert said in problem
    assert preflight(EvalConfig(deployment=model), connect=False) == []
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else there(name))
    (problem,) = preflight(EvalConfig(deployment=model, tasks=["hellaswag"]), connect=False)
    assert problem == "-t hellaswag needs lm-eval, which is not installed: pip install 'nemotron-kit[eval]'."


TASK = """
task: exercises
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{expected_answer}}"
generation_kwargs: {until: ["<|im_end|>"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def test_the_harness_and_our_scorer_agree(
    generator: TextGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf/datasets"))
    rows: list[dict[str, Any]] = []
    for number in range(8):
        asked = [{"role": "user", "content": f"Is {number} even?"}]
        (answer,) = generator.answers([generator.prompt(asked)], 6)
        expected = answer.text.strip() if number % 4 else "No."
        rows.append(
            {
                "responses_create_params": {"input": asked},
                "agent_ref": {"name": "exact_match"},
                "expected_answer": expected,
                "question": asked[0]["content"],
            }
        )
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "manifest.json").write_text(json.dumps({"test": "test.jsonl"}))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/exercises.yaml").write_text(TASK.replace("TEST", str(tmp_path / "test.jsonl")))
    shared: dict[str, Any] = {"limit": None, "batch_size": 4, "enable_thinking": False}
    ours = evaluate.answers(generator, tmp_path, split="test", max_new_tokens=6, **shared)["exact_match"]
    path = tmp_path / "tasks"
    theirs = evaluate.run_tasks(generator, ["exercises"], task_path=path, num_fewshot=None, **shared)["exercises"]
    assert ours["accuracy"] == theirs["exact_match"] == 0.75
    assert ours["stderr"] == pytest.approx(theirs["exact_match_stderr"])
