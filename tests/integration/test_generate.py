"""`nemotron nano3 chat` on a terminal of its own."""

from __future__ import annotations

import os
import pty
import select
import time
from pathlib import Path

from ..project import NEMOTRON, environment
from ..shards import write_chat_model


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(words[0], words, environment(folder / "home"))  # noqa: S606
        self.shown = b""

    def read(self, until: bytes, seconds: float = 120) -> bytes:
        """What is shown up to `until` and with it."""
        end = time.monotonic() + seconds
        while until not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self.fd], [], [], 1)[0]:
                self.shown += os.read(self.fd, 4096)
        found, _, self.shown = self.shown.partition(until)
        return found + until

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_program(tmp_path: Path) -> None:
    model = write_chat_model(tmp_path / "model")
    shell = Terminal(
        [NEMOTRON, "nano3", "chat", "--art.model", str(model), "--max-new-tokens", "4000", "--temperature", "1"],
        tmp_path,
    )
    shell.read(b"> ")
    shell.type(b"hello\n")
    shell.read(b"hello\r\n")
    shell.read(b" ")  # it is speaking
    shell.type(b"\x03")
    assert b"error" not in shell.read(b"(stopped)")
    shell.read(b"> ")
    shell.type(b"half a line\x03")
    shell.read(b"(Ctrl-D ends)")
    shell.read(b"> ")
    shell.type(b"/save talk.jsonl\n")
    shell.read(b"(saved in ")
    shell.read(b"> ")
    shell.type(b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(shell.pid, 0)[1]) == 0
    assert '"content": "hello"' in (tmp_path / "talk.jsonl").read_text()
    assert not (tmp_path / "home/runs").exists()
