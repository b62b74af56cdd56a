"""A process that is talked to over its standard input and output, never waited for longer than said."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

CHUNK = 1 << 18


class Lost(Exception):
    """The process ended, or said nothing for too long. `code` is its exit code, None when it had to be ended."""

    def __init__(self, code: int | None, stderr: str) -> None:
        super().__init__(stderr)
        self.code, self.stderr = code, stderr


class Pipe:
    """One started process. Its standard error goes to a file: a master that ssh leaves behind may hold a pipe open."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the process
        self._stderr = ""
        # A session of its own: Ctrl-C is for the launch, and nothing may ask on the terminal.
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout  # noqa: S101 — Popen was told to make pipes
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._buffer = bytearray()
        self.used = time.monotonic()

    def send(self, data: bytes, stall: float) -> None:
        """Write all of `data`. Raises Lost when the process is gone, or takes nothing for `stall` seconds."""
        view = memoryview(data)
        while view:
            if not select.select([], [self._in], [], stall)[1]:
                raise self.lost()
            try:
                view = view[os.write(self._in, view[:CHUNK]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                # What it had to say first is more telling: the reader finds it, or the end.
                return

    def answer(self, mark: str, stall: float) -> dict[str, Any]:
        """The next answer: the JSON of the next line that begins with `mark`. Lines before it are a shell's noise."""
        start = mark.encode() + b" "
        while True:
            line = self._line(stall)
            if line.startswith(start):
                head: dict[str, Any] = json.loads(line[len(start) :])
                return head

    def read(self, size: int, stall: float) -> bytes:
        """Exactly `size` bytes."""
        while len(self._buffer) < size:
            self._more(stall)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self.used = time.monotonic()
        return data

    def alive(self) -> bool:
        return self._process.poll() is None

    def lost(self) -> Lost:
        """Why there is nothing more to read; the process is over after this."""
        try:
            code: int | None = self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            code = None
        self.close()
        return Lost(code, self._stderr)

    def close(self) -> None:
        """End it: its input closes, and if that is not enough it is killed."""
        assert self._process.stdin and self._process.stdout  # noqa: S101
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self._errors.closed:
            self._errors.seek(0)
            self._stderr = self._errors.read(1 << 16).decode("utf-8", "replace")
            self._errors.close()

    def _line(self, stall: float) -> bytes:
        deadline = time.monotonic() + stall
        while (end := self._buffer.find(b"\n")) < 0:
            if time.monotonic() > deadline or len(self._buffer) > 1 << 26:
                raise self.lost()
            self._more(deadline - time.monotonic())
        return self.read(end + 1, stall)[:-1]

    def _more(self, stall: float) -> None:
        if not select.select([self._out], [], [], max(stall, 0))[0]:
            raise self.lost()
        data = os.read(self._out, CHUNK)
        if not data:
            raise self.lost()
        self._buffer += data
