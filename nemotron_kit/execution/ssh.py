"""The system's ssh as a way to a target: one connection, one Python over there, many operations."""

from __future__ import annotations

import atexit
import json
import secrets
import shlex
import threading
import time
from collections.abc import Mapping
from importlib.resources import files as resources
from typing import Any

from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.execution.ssh_errors import not_reached
from nemotron_kit.execution.ssh_options import ssh_command
from nemotron_kit.execution.ssh_pipe import Lost, Pipe
from nemotron_kit.plan.kit import kit_hash, kit_zip
from nemotron_kit.plan.paths import REMOTE_FOLDER
from nemotron_kit.runs.logs import neutralise
from nemotron_kit.target.agent import error_from_dict

# Constant: whatever a user gives travels behind it, as data.
START = "import sys;exec(sys.stdin.buffer.readline())"
# A login shell may be slow; a dead network is noticed by ssh itself, after 15 s.
READY_SECONDS, STALL_SECONDS = 30.0, 300.0
# After so long a pause the connection is tried with a question that changes nothing, before one that does.
IDLE_SECONDS = 2.0


class Ssh:
    """One user on one host. Connects at the first call, and again after the connection was lost."""

    def __init__(
        self, host: str, root: str, *, user: str | None = None, identity: str | None = None, python: str = "python3"
    ) -> None:
        self.host, self.user, self.identity, self.python = host, user, identity, python
        self._root = root
        self._pipe: Pipe | None = None
        self._mark = secrets.token_hex(16)
        self._lock = threading.Lock()

    @property
    def root(self) -> str:
        if self._root.startswith("~/"):
            facts, _ = self.call("hello")
            self._root = f"{facts['home'].rstrip('/')}{self._root[1:]}"
        return self._root

    @property
    def place(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    def call(self, op: str, payload: bytes = b"", **args: Any) -> tuple[Any, bytes]:
        """See Reach. NotSent (an Unreachable) when the connection failed before anything was asked for."""
        with self._lock:
            try:
                pipe = self._connected()
                head, data = self._ask(pipe, op, payload, args)
            except Lost as lost:
                self._pipe = None
                raise Unreachable(
                    f"{self.place}: the connection was lost during {op}; whether it was done is not known.",
                    hint=_last_line(neutralise(lost.stderr)),
                ) from lost
            except BaseException:  # Ctrl-C in the middle of an answer: the next one must not begin there
                self._close()
                raise
        if not head["ok"]:
            raise error_from_dict(head["error"])
        return head["result"], data

    def close(self) -> None:
        """End the connection; ssh's master stays for the next one."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _ask(self, pipe: Pipe, op: str, payload: bytes, args: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        request = json.dumps({"op": op, "args": args, "payload": len(payload)})
        pipe.send(request.encode() + b"\n" + payload, STALL_SECONDS)
        head = pipe.answer(self._mark, STALL_SECONDS)
        return head, pipe.read(head["payload"], STALL_SECONDS)

    def _connected(self) -> Pipe:
        if self._pipe is not None and time.monotonic() - self._pipe.used > IDLE_SECONDS:
            try:
                self._ask(self._pipe, "ping", b"", {})
            except Lost:
                self._pipe = None
        if self._pipe is None:
            self._pipe = self._connect()
            atexit.unregister(self.close)
            atexit.register(self.close)
        return self._pipe

    def _connect(self) -> Pipe:
        python = f"{shlex.quote(self.python)} -I -c {shlex.quote(START)}"
        pipe = Pipe([*ssh_command(self.host, self.user, self.identity), python])
        try:
            self._start_agent(pipe)
        except Lost as lost:
            raise not_reached(self, lost.code, lost.stderr) from lost
        except BaseException:
            pipe.close()
            raise
        return pipe

    def _start_agent(self, pipe: Pipe) -> None:
        source = resources("nemotron_kit.target").joinpath("bootstrap.py").read_text(encoding="utf-8")
        head = json.dumps({"mark": self._mark, "root": self._root, "kit": kit_hash()})
        pipe.send(f"exec({source!r})\n{head}\n".encode(), READY_SECONDS)
        answer = pipe.answer(self._mark, READY_SECONDS)
        if answer.get("need") == "kit":
            kit = kit_zip()
            pipe.send(b"%d\n%s" % (len(kit), kit), STALL_SECONDS)
            answer = pipe.answer(self._mark, STALL_SECONDS)
        if "error" in answer:
            raise NemotronError(f"{self.place}: the kit can't start there: {neutralise(str(answer['error']))}.")


_open: dict[tuple[str | None, ...], Ssh] = {}


def ssh_from(settings: Mapping[str, Any]) -> Ssh:
    """The way to the target of a profile with `tunnel = "ssh"`: one for all who ask for the same in this process.

    UserError for what the profile lacks.
    """
    for name in ("host", "user"):
        if not settings.get(name):
            raise UserError(f"tunnel 'ssh' needs {name}.", hint="Set it in the profile.")
    root = str(settings.get("remote_job_dir") or f"~/{REMOTE_FOLDER}")
    if not root.startswith(("/", "~/")):
        raise UserError(f"remote_job_dir: {root} must be an absolute path on {settings['host']}.")
    host, user, identity = settings["host"], settings["user"], settings.get("identity")
    python = settings.get("python") or "python3"
    key = (host, root, user, identity, python)
    if key not in _open:
        _open[key] = Ssh(host, root, user=user, identity=identity, python=python)
    return _open[key]


def _last_line(text: str) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None
