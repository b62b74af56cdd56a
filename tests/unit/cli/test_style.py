"""Colour and width follow the terminal and the usual variables."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
from pathlib import Path

import pytest

from nemotron_kit.cli.help import Paint, table
from nemotron_kit.cli.main import nemotron
from nemotron_kit.cli.output import colour, width, wrap


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def _terminal() -> io.TextIOBase:
    _, end = pty.openpty()
    return os.fdopen(end, "w")


@pytest.mark.parametrize(
    ("variables", "on_terminal", "elsewhere"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "0"}, False, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "xterm"}, True, False),
    ],
)
def test_colour(variables: dict[str, str], on_terminal: bool, elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert colour(_terminal()) is on_terminal  # type: ignore[arg-type]
    assert colour(io.StringIO()) is elsewhere


@pytest.mark.parametrize(
    ("columns", "expected"), [("", 80), ("100", 100), ("10", 40), ("500", 110), ("wide", 80), ("0", 80)]
)
def test_width(columns: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert width(io.StringIO()) == expected


def test_wrap() -> None:
    assert wrap("aa bb  cc", 5) == ["aa bb", "cc"]
    assert wrap("abcdefgh ij", 5) == ["abcdefgh", "ij"]
    assert wrap("", 5) == [""]


def test_table() -> None:
    rows = [("a", "one two"), ("a-very-long-name-indeed", "x"), ("b", "")]
    assert table(rows, 40, Paint(False)) == [
        "  a                 one two",
        "  a-very-long-name-indeed",
        "                    x",
        "  b",
    ]
    assert table([("a", "b")], 40, Paint(True)) == ["  \x1b[36ma\x1b[0m  b"]


def test_a_character_that_the_locale_lacks_is_no_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["nano3", "pretrain", "-c", "tiny", "--wandb.notes", "é→日"]
    shown = {}
    for command in (["--dry-run"], ["--dry-run", "--json"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
        monkeypatch.setattr(sys, "stdout", stream)
        assert nemotron([*words, *command]) == 0
        shown[command[-1]] = stream.detach().getvalue().decode("latin-1")  # type: ignore[attr-defined]
    assert "notes: é??" in shown["--dry-run"]
    assert json.loads(shown["--json"])["config"]["run"]["wandb"]["notes"] == "é→日"
