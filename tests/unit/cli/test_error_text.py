"""The text of an error has no control characters and no secret."""

from __future__ import annotations

import pytest

from nemotron_kit.cli.main import guarded
from nemotron_kit.cli.output import ask
from nemotron_kit.cli.tools import run
from nemotron_kit.errors import UserError


def test_an_error_has_no_control_characters_and_no_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary0123456789")

    def wrong() -> int:
        raise UserError("/tmp/x\x1b[2J.yaml\u202e: no such file", hint="Give hf_canary0123456789\x07.")

    def missing() -> int:
        raise FileNotFoundError(2, "No such file", "/tmp/y\x1b]0;t\x07")

    assert guarded(wrong) == 2
    assert guarded(missing) == 1
    said = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\u202e"} & set(said)
    assert "/tmp/x^[[2J.yaml" in said and "Give ***" in said and "/tmp/y^[]0;t" in said


def test_input_that_ends_at_a_question(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-D is an error message and no traceback."""

    def end(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert guarded(lambda: len(ask("Continue? "))) == 2
    assert "The input ended" in capsys.readouterr().err


@pytest.mark.parametrize(("tool", "hint"), [("doctor", "nemotron doctor --help."), ("runs", "nemotron runs show x")])
def test_the_hint_for_an_unknown_subcommand(tool: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        run(tool, ["x"])
    assert caught.value.hint is not None and caught.value.hint.endswith(hint)
