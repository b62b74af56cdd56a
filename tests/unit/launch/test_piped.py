"""Standard input is the caller's: artifacts are taken from it only where a step says that it writes there, where what
lies in it is artifacts that fit, or where `-` asks for it; everything else is left for its owner."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from nemotron_kit.app import App, ArtifactInput, Command
from nemotron_kit.artifacts import pipe as pipe_module
from nemotron_kit.artifacts.pipe import pins_from_step
from nemotron_kit.errors import UserError
from nemotron_kit.launch.inputs import piped_overrides

ENTRY = {"path": "/d", "type": "BlendArtifact"}
STEP = json.dumps({"data": ENTRY}) + "\n"
REGISTERED = json.dumps({**ENTRY, "name": "D", "version": 3, "digest": "a" * 64, "registry": "r"}) + "\n"


@dataclass
class Config:
    path: str = ""


@pytest.fixture
def command() -> Command:
    app = App("demo")
    inputs = {"data": ArtifactInput("BlendArtifact-x:latest", {"path": "path"}), "other": ArtifactInput("Other:latest")}
    app.command("go", Config, print, artifacts=inputs)
    return next(iter(app.commands()))


class Pipe:
    """A pipe that is this process's standard input; `write` is its other end."""

    def __init__(self) -> None:
        read, self.write = os.pipe()
        self._before = os.dup(0)
        os.dup2(read, 0)
        os.close(read)

    def put(self, text: str | bytes, *, end: bool = False) -> Pipe:
        os.write(self.write, text if isinstance(text, bytes) else text.encode())
        return self.end() if end else self

    def end(self) -> Pipe:
        write, self.write = self.write, -1
        os.close(write)
        return self

    def step(self) -> Pipe:
        """The writer is a step, and says so."""
        fcntl.fcntl(self.write, fcntl.F_OFD_SETLK, pipe_module._flock(fcntl.F_WRLCK))
        return self

    def left(self) -> bytes:
        """What is still there for its owner."""
        os.set_blocking(0, False)
        try:
            return os.read(0, 1 << 20)
        except BlockingIOError:
            return b""
        finally:
            os.set_blocking(0, True)

    def close(self) -> None:
        os.dup2(self._before, 0)
        os.close(self._before)
        if self.write >= 0:
            self.end()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("text", "ends", "expected"),
    [
        (STEP, False, ["run.data='/d'"]),
        (STEP, True, ["run.data='/d'"]),
        ("some progress\n" + STEP, True, ["run.data='/d'"]),
        (REGISTERED, False, ["run.data='D:v3'"]),
        (json.dumps({"x": {"path": "/m", "type": "Model"}, "y": ENTRY}) + "\n", False, ["run.data='/d'"]),
    ],
)
def test_what_a_step_has_printed_is_taken(
    pipe: Pipe, command: Command, text: str, ends: bool, expected: list[str]
) -> None:
    pipe.put(text, end=ends)
    notes: list[str] = []
    assert piped_overrides(command, [], notes, dry_run=True) == expected
    assert piped_overrides(command, ["run.profile=x"], notes) == expected
    assert (pipe.left(), notes) == (b"", [])


@pytest.mark.parametrize("path", ["/a'b", "/a\\'b", "/ends\\", "/x${oc.env:HOME}", "/\\${a", "/a\\\n", "/a, b"])
def test_a_path_of_any_text_is_the_path(pipe: Pipe, command: Command, path: str) -> None:
    pipe.put(json.dumps({"data": {**ENTRY, "path": path}}) + "\n", end=True)
    (override,) = piped_overrides(command, [], [])
    read = OverridesParser.create().parse_override(override).value()
    assert OmegaConf.create({"x": read}).x == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1\n2\n3\n",
        "no newline",
        b"\xff\xfe\x00",
        STEP + "more\n",
        STEP + STEP,
        json.dumps(ENTRY) + "\n",  # could be any list's first line
        json.dumps({"model": {"path": "/m", "type": "Model"}}) + "\n",  # nothing that this command reads
        "{" * 100,
        "x" * 65536,
    ],
)
def test_anything_else_is_left_for_its_owner_at_once(pipe: Pipe, command: Command, text: str | bytes) -> None:
    pipe.put(text)
    began, notes = time.monotonic(), list[str]()
    assert piped_overrides(command, [], notes) == []
    assert time.monotonic() - began < 1
    assert pipe.left() == (text if isinstance(text, bytes) else text.encode())
    assert notes == [
        "Standard input is a pipe that no nemotron step writes to: it is left unread. --art.data - reads it."
    ]


@pytest.mark.parametrize("words", [["run.data=D:v1", "run.other=x"], ["run.data='D'", 'run.other="-x"']])
def test_nothing_is_looked_at_where_the_inputs_are_given(pipe: Pipe, command: Command, words: list[str]) -> None:
    notes: list[str] = []
    assert piped_overrides(command, words, notes) == []
    assert (pipe.put(STEP).left(), notes) == (STEP.encode(), [])


def test_a_step_that_says_so_is_waited_for(pipe: Pipe, command: Command) -> None:
    pipe.step()
    notes: list[str] = []
    assert piped_overrides(command, [], notes, dry_run=True) == []
    assert "A step writes to standard input, which a dry-run does not wait for" in notes.pop()
    later = threading.Timer(0.3, lambda: pipe.put("progress\n" + STEP, end=True))
    later.start()
    assert piped_overrides(command, [], notes) == ["run.data='/d'"]
    assert notes == []


@pytest.mark.parametrize(
    ("far", "taken"),
    [
        ("host nemotron a b", True),
        ("host -p 22 cd 'x;' .venv/bin/nemotron a", True),
        ("host python -m nemotron_kit a", True),
        ("host nemotron runs list", False),
        ("nemotron cat list", False),
        ("-p 22 host my-nemotron a", False),
    ],
)
def test_a_step_over_ssh_is_waited_for(pipe: Pipe, command: Command, far: str, taken: bool) -> None:
    # Once its session is open, ssh writes by another descriptor; one that shares a connection keeps its own.
    moved = "" if "python" in far else "exec 5>&1 >&-; "
    said = f"{moved}(sleep 0.1; echo progress; echo '{STEP.strip()}') >&{5 if moved else 1}"
    ssh = subprocess.Popen(["ssh", "-c", said, *far.split()], executable="/bin/sh", stdout=pipe.write)
    pipe.end()
    notes: list[str] = []
    assert piped_overrides(command, [], notes) == (["run.data='/d'"] if taken else [])
    assert ssh.wait(10) == 0
    assert ("left unread" in "".join(notes), STEP in pipe.left().decode()) == (not taken, not taken)


def test_a_step_that_brings_nothing_is_told(pipe: Pipe, command: Command) -> None:
    notes: list[str] = []
    assert piped_overrides(command, [], notes, dry_run=not pipe.end()) == []
    assert notes == ["Nothing came through the pipe; inputs are read as without one."]


def test_a_closed_standard_input_is_asked_for(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match=r"--art\.data -: standard input is closed"):
        piped_overrides(command, ["run.data='-'"], [])


def test_what_a_step_writes_must_be_artifacts(pipe: Pipe, command: Command) -> None:
    threading.Timer(0.2, lambda: pipe.put("Traceback\n", end=True)).start()
    pipe.step()
    with pytest.raises(UserError, match="it is not JSON"):
        piped_overrides(command, [], [])


def test_a_dash_asks_for_it(pipe: Pipe, command: Command) -> None:
    notes: list[str] = []
    assert piped_overrides(command, ["run.data='-'"], notes, dry_run=True) == ["run.data='BlendArtifact-x:latest'"]
    threading.Timer(0.2, lambda: pipe.put(STEP, end=True)).start()
    assert piped_overrides(command, ["run.data='-'"], []) == ["run.data='/d'"]
    assert notes == ["A dry-run reads no standard input: what is shown is the input without it."]


def test_a_dash_for_what_is_not_there(pipe: Pipe, command: Command) -> None:
    pipe.put(STEP, end=True)
    with pytest.raises(UserError, match=r"--art\.other -: standard input holds no artifact.*\nIt holds data: BlendArt"):
        piped_overrides(command, ["run.other='-'"], [])


def test_a_script_takes_what_a_step_pipes_and_nothing_else(pipe: Pipe) -> None:
    pipe.put(STEP)
    assert pins_from_step(["data"]) == {}  # nobody says that this is for a script's inputs
    threading.Timer(0.2, pipe.end).start()
    pipe.step()
    assert pins_from_step([]) == {}
    assert pins_from_step(["data"])["data"].path == "/d"


def test_a_step_says_so_on_the_pipe_that_it_writes_to(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe_module, "_announced", [])
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(pipe.write, 1)
    try:
        assert not pipe_module.step_writes()
        pipe_module.announce_step()
        assert pipe_module.step_writes()
        pipe_module.withdraw_step()
        assert not pipe_module.step_writes()
    finally:
        os.dup2(before, 1)
        os.close(before)
    assert pipe.left() == b""
