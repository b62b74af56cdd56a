"""A process that follows a log, and what it cost: bytes over the wire, bytes that it read, memory at its peak."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..project import NEMOTRON

CHUNK = 1 << 16


class Meter:
    """A TCP relay to a server that counts what goes through it, both ways."""

    def __init__(self, port: int) -> None:
        self.moved, self.to = 0, port
        self._open: list[socket.socket] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def cut(self) -> None:
        """Whatever is connected is so no longer."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def config(self, path: Path, theirs: str, host: str) -> dict[str, str]:
        """Write an ssh config, `theirs` but that `host` is reached through here; the environment to read it in."""
        lines = [f"Host {host}", f"  Port {self.port}", f"  HostKeyAlias [127.0.0.1]:{self.to}", "  Compression no"]
        path.write_text("\n".join([*lines, "Host *", f"  Include {theirs}"]) + "\n")
        return {"NEMOTRON_SSH_CONFIG": str(path)}

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.to))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(end)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(CHUNK):
                self.moved += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@dataclass(frozen=True)
class Cost:
    """`peak` is memory in bytes; `read` is what the process itself has read since it began to show something."""

    code: int
    peak: int
    read: int


class Follower:
    """`nemotron runs WORDS`, whose standard output goes to the file `out`."""

    def __init__(self, words: list[str], env: Mapping[str, str], cwd: Path, out: Path) -> None:
        self.out = out
        with out.open("wb") as sink, out.with_suffix(".err").open("wb") as errors:
            line = [NEMOTRON, "runs", *words]
            self._process = subprocess.Popen(line, cwd=cwd, env=dict(env), stdout=sink, stderr=errors)
        self._peak = self._read = 0
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def said(self) -> str:
        return self.out.with_suffix(".err").read_text()

    def to_the_end(self) -> Cost:
        """What it cost, once it has ended."""
        self._watcher.join()
        return Cost(self._process.wait(), self._peak, self._read)

    def _watch(self) -> None:
        before = 0
        while not os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            with contextlib.suppress(LookupError):  # it has just ended
                self._peak = 1024 * self._number("VmHWM", "status")
            if not self.out.stat().st_size:
                before = self._number("rchar", "io")
            time.sleep(0.02)
        self._read = self._number("rchar", "io") - before

    def _number(self, name: str, file: str) -> int:
        """Of the process's own thread: not what squeue has read."""
        text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/{file}").read_text()
        return int(re.findall(rf"^{name}:\s*(\d+)", text, re.MULTILINE)[0])

    def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self.to_the_end()
