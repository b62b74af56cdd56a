"""The text of an error has no control characters and no secret."""

from __future__ import annotations

import os

import pytest

from nemotron_kit.cli.main import guarded
from nemotron_kit.cli.output import ask, print_status
from nemotron_kit.cli.tools import run
from nemotron_kit.errors import Unreachable, UserError


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


def test_a_traceback_changes_no_exit_code_and_shows_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HYDRA_FULL_ERROR=1 made each of them 1, the code of a job that failed, and printed the text as it was."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary0123456789")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def fail(error: Exception) -> int:
        try:
            raise ValueError("hf_canary0123456789")
        except ValueError as cause:
            raise error from cause

    assert guarded(lambda: fail(UserError("wrong", hint="Give more."))) == 2
    assert guarded(lambda: fail(Unreachable("no answer"))) == 3
    assert guarded(lambda: fail(FileNotFoundError(2, "No such file", "/tmp/y"))) == 1
    said = capsys.readouterr().err
    assert said.count("ValueError: ***") == 3 and "canary" not in said
    assert "error: wrong\nGive more.\n" in said and "error: /tmp/y: No such file.\n" in said


def test_a_notice_has_no_control_characters_and_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reasons and tracebacks of other programs are in some, as a Hydra program's with HYDRA_FULL_ERROR=1."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary0123456789")
    print_status("failed: hf_canary0123456789\x1b[2J")
    assert capsys.readouterr().err == "failed: ***^[[2J\n"


@pytest.mark.parametrize("wrong", ["closed pipe", "full disk"])
def test_a_standard_error_that_takes_nothing_changes_nothing(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nemotron … 2>&1 | head -1` started no job at all and exited with 0; on a full disk it was 1 or 120."""
    reader, writer = os.pipe()
    os.close(reader)
    if wrong == "full disk":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    done: list[str] = []

    def launch() -> int:
        print_status("about to start")
        done.append("ran")
        print_status("ended")
        raise UserError("in the end")

    with os.fdopen(writer, "w", buffering=1) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        assert guarded(launch) == 2
        assert guarded(interrupt) == 130
    assert done == ["ran"]


def interrupt() -> int:
    raise KeyboardInterrupt


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
