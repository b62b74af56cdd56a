"""`nemotron nano3 generate` and `chat`, in this process: what goes to the model, and what comes back."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from nemotron_kit.artifacts import ModelArtifact
from nemotron_kit.cli.main import nemotron
from nemotron_kit.training.generate import Sampling, TextGenerator

Script = Callable[..., list[str]]


pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a model was given, as text. It answers `answer N`; to what holds `stop`, it is stopped after a word."""
    given: list[str] = []

    def stream(self: TextGenerator, prompt: list[int], sampling: Sampling) -> Generator[str, None, bool]:
        given.append(self.tokenizer.decode(prompt))
        yield "answer"
        if "stop" in given[-1].rpartition("<|im_start|>user")[2]:
            raise KeyboardInterrupt
        yield f" {len(given)}"
        return sampling.max_new_tokens > 1

    monkeypatch.setattr(TextGenerator, "stream", stream)
    return given


def test_generate_prints_what_the_model_says_and_nothing_else(
    chat_model: Path, generator: TextGenerator, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "What is ${x} = 'y'?\nAnd 2+2="
    shared = ["--art.model", str(chat_model), "--max-new-tokens", "5"]
    for more, ids in (
        ([], generator.prompt([{"role": "user", "content": text}])),
        (["--raw"], generator.raw(text)),
        (
            ["--system", "Be ${brief}", "--enable-thinking"],
            generator.prompt(
                [{"role": "system", "content": "Be ${brief}"}, {"role": "user", "content": text}], enable_thinking=True
            ),
        ),
    ):
        assert nemotron(["nano3", "generate", text, *shared, *more]) == 0
        assert capsys.readouterr().out.removesuffix("\n") == generator.answers([ids], 5)[0].text.removesuffix("\n")
    assert not (home / "runs").exists()


def test_the_prompt_may_come_through_a_pipe(
    chat_model: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
        assert nemotron(["nano3", "generate", *words, "--art.model", str(chat_model)]) == 0
    assert nemotron(["nano3", "generate", "x", "--art.model", str(chat_model), "--max-new-tokens", "1"]) == 0
    assert "user\ntwo\nlines<|im_end|>" in asked[0] and asked[0] == asked[1]
    captured = capsys.readouterr()
    assert captured.out == "answer 1\nanswer 2\nanswer 3\n"
    assert captured.err == "The answer was cut off after 1 tokens: --max-new-tokens N allows more.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "x", "--temperature", "-1"], "temperature is -1.0; it must be 0"),
        (["generate", "x", "--max-new-tokens", "0"], "max_new_tokens is 0; it must be 1 or more"),
        (["generate", "x", "--top-p", "1.5"], "top_p is 1.5; it must be more than 0, and 1 at most"),
        (["generate", "x", "--seed", "-3"], "seed is -3"),
        (["generate", "x", "--raw", "--system", "y"], "--system can't be used"),
        (
            ["generate", "x", "--run", "here"],
            "nano3 generate is interactive, on this terminal: it can't be launched with a profile",
        ),
        (["chat", "-m", "seed=1,2"], "nano3 chat is interactive, on this terminal: it can't be a job of a sweep"),
        (["generate", "x", "--after", "latest"], "it does not take --after"),
        (["generate", "x", "--json"], "it does not take --json without --dry-run"),
        (["generate", "x", "tempreature=1"], "temperature"),
        (["generate"], "Standard input is empty: there is no prompt."),
        (["chat", "--art.model", "./none"], "There is no file or folder"),
        (["chat", "--art.model", "./empty"], "holds no model in transformers' format (no config.json)"),
        (["chat"], "There is no model: none of ModelArtifact-rl, ModelArtifact-sft, ModelArtifact-pretrain"),
        (["model", "eval", "-c", "tiny"], "Make it with: nemotron nano3 rl -c tiny"),
    ],
)
def test_mistakes_are_one_error(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    Path("empty").mkdir()
    assert nemotron(["nano3", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == "" and captured.err.count("error:") == 1
    assert "a sweep over" not in captured.err


@pytest.mark.parametrize(
    ("given", "said"),
    [(None, "Standard input is closed: there is nobody to chat with."), (b"caf\xe9\n", "Standard input is not UTF-8")],
)
def test_what_can_not_be_chatted_with(
    given: bytes | None,
    said: str,
    chat_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", given and io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    assert nemotron(["nano3", "chat", "--art.model", str(chat_model)]) == 2
    assert said in capsys.readouterr().err


def test_without_a_model_given_the_last_stage_answers(
    chat_model: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("pretrain", "sft"):
        ModelArtifact(path=chat_model, step=1).save(name=f"ModelArtifact-{stage}")
        assert nemotron(["nano3", "generate", "x"]) == 0
        assert capsys.readouterr().err == f"ModelArtifact-{stage}:v0 answers.\n"
    (chat_model / "metadata.json").unlink()


def test_a_chat_has_a_history_that_can_be_saved_and_forgotten(
    chat_model: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["one", "", "stop here", "two", "/save talk.jsonl", "/save taken", "/rest"]
    lines += ["/reset", "/save none.jsonl", "three", "/save"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    Path("taken").write_text("mine")
    assert nemotron(["nano3", "chat", "--art.model", str(chat_model), "--system", "S"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "answer 1\nanswer\nanswer 3\nanswer 4\n"
    said = [("system", "S"), ("user", "one"), ("assistant", "answer 1"), ("user", "stop here")]
    said += [("assistant", "answer"), ("user", "two"), ("assistant", "answer 3")]
    messages = [{"role": role, "content": content} for role, content in said]
    assert json.loads(Path("talk.jsonl").read_text()) == {"messages": messages}
    assert "user\none<|im_end|>" in asked[2] and "answer<|im_end|>\n<|im_start|>user\ntwo" in asked[2]
    assert "one" not in asked[3] and "system\nS" in asked[3]
    assert Path("taken").read_text() == "mine" and not Path("none.jsonl").exists()
    for part in (
        "(stopped)",
        "(nothing has been said yet",
        "taken is there already",
        "no command /rest; did you mean /reset?",
        "/save needs a file",
    ):
        assert part in captured.err


def test_a_long_chat_drops_its_oldest_turns(
    chat_model: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\n" + "word " * 30 + "\nlast\n"))
    # 4096 is what the model takes.
    assert nemotron(["nano3", "chat", "--art.model", str(chat_model), "--max-new-tokens", str(4096 - 70)]) == 0
    assert "first" in asked[0] and "first" not in asked[2] and "last" in asked[2]
    assert "(forgot the " in capsys.readouterr().err
