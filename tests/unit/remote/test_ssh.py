"""The ssh transport without a connection (with one: tests/cluster/ssh)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.remote import ssh
from nemotron_kit.remote.agent import bootstrap, code


class Pipe:
    """Notes for how long a response is waited for."""

    seconds: float

    def send(self, data: bytes, stall: float) -> None:
        pass

    def response(self, mark: str, stall: float) -> dict[str, Any]:
        self.seconds = stall
        return {"payload": 0}

    def read(self, size: int, stall: float) -> bytes:
        return b""


def test_a_response_is_waited_for_as_long_as_its_operation_may_take() -> None:
    pipe: Any = Pipe()
    connection = ssh.Ssh("host", "/root", user="me")
    for op, least in (("fetch_repository", 2 * code.ASK_SECONDS + 3 * code.FETCH_SECONDS), ("slurm_on_node", 960)):
        connection._ask(pipe, op, b"", {})
        assert pipe.seconds >= least, op
    connection._ask(pipe, "ping", b"", {})
    assert pipe.seconds == ssh.STALL_SECONDS


def test_the_named_ssh_config_is_the_file_that_ssh_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NEMOTRON_SSH_CONFIG", "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"NEMOTRON_SSH_CONFIG: {tmp_path}/mine is no file"):
        ssh.ssh_config(ssh.QUIET)
    (tmp_path / "mine").touch()
    assert f'Include "{tmp_path}/mine"' in ssh.ssh_config(ssh.QUIET).read_text()
    monkeypatch.setenv("NEMOTRON_SSH_CONFIG", "/dev/null")  # none
    assert 'Include "/dev/null"' in ssh.ssh_config(ssh.QUIET).read_text()


def test_the_bootstrap_is_read_by_an_older_python_too() -> None:
    """By that of RHEL 8, 3.6, say: it answers that it is too old, where it would print a SyntaxError."""
    source = Path(str(bootstrap.__file__)).read_text(encoding="utf-8")
    found = ast.parse(source, feature_version=(3, 6)).body
    assert not any(isinstance(each, ast.ImportFrom) and each.module == "__future__" for each in found)
