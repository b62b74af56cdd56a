"""The text of an error has no control characters and no secret."""

from __future__ import annotations

import pytest

from nemotron_kit.cli.main import guarded
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
