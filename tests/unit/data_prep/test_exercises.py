"""Exercises and questions about docstrings: right answers, no question twice, none for both forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.data_prep.config import Dataset
from nemotron_kit.data_prep.cpython import write_corpus
from nemotron_kit.data_prep.exercises import _TASKS, exercises, write_exercises
from nemotron_kit.data_prep.sources import list_files
from nemotron_kit.errors import UserError


def rows(url: str, folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in write_exercises(url, folder).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", ["last-digit", "last-word"])
def test_answers_are_right_and_no_question_is_for_both_forms(task: str, tmp_path: Path) -> None:
    asked = {}
    for form in ("chat", "rl"):
        pairs = [pair for seed in (1, 2) for pair in exercises(task, 500, seed, form)]
        assert all(question.rstrip("?.").endswith(answer) for question, answer in pairs)
        assert len(dict(pairs[:500])) == 500
        assert len({answer for _, answer in pairs}) >= 10
        asked[form] = {question for question, _ in pairs}
    assert not asked["chat"] & asked["rl"]
    before = write_exercises(f"exercises://{task}?n=5", tmp_path).read_bytes()
    assert write_exercises(f"exercises://{task}?n=5", tmp_path).read_bytes() == before


def test_rows_of_both_forms(tmp_path: Path) -> None:
    [chat] = rows("exercises://last-digit?n=1&seed=3", tmp_path)
    question, answer = chat["messages"]
    assert (question["role"], answer["role"]) == ("user", "assistant")
    [rl] = rows("exercises://last-digit?n=1&seed=3&form=rl", tmp_path)
    assert rl["responses_create_params"] == {"input": [{"role": "user", "content": rl["question"]}]}
    assert rl["agent_ref"] == {"type": "responses_api_agents", "name": "exact_match"}
    assert rl["question"].endswith(f"{rl['expected_answer']}?")
    files = list_files(Dataset("a", "exercises://last-word?n=3"), folder=tmp_path, corpora=tmp_path / "c")
    assert Path(files[0].path).read_text(encoding="utf-8").count("\n") == 3


BAD = [
    ("exercises://last-letter", "no such exercises"),
    ("exercises://last-digit?m=3", "unknown 'm'"),
    ("exercises://last-digit?n=many", "n=many: expected a whole number"),
    ("exercises://last-digit?n=0", "n=0: expected a whole number, 1 to"),
    ("exercises://last-digit?form=sft", "form=sft"),
]


@pytest.mark.parametrize(("url", "why"), BAD)
def test_urls_that_name_no_exercises(url: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        write_exercises(url, tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_than_there_are_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_TASKS, "last-digit", lambda rng: (str(rng.randrange(30)), "0"))
    with pytest.raises(UserError, match="hardly more than"):
        list(exercises("last-digit", 40, 1, "chat"))


def test_questions_about_docstrings(tmp_path: Path) -> None:
    lines = write_corpus("cpython://docstrings-qa", tmp_path).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["messages"] for line in lines]
    assert len(found) > 5_000
    assert len({answer["content"] for _, answer in found}) == len(found)
    by_question = {question["content"]: answer["content"] for question, answer in found}
    asked = next(question for question in by_question if question.startswith("What does json.dumps("))
    assert by_question[asked] == "Serialize ``obj`` to a JSON formatted ``str``."
    assert "What is the module json for?" in by_question
