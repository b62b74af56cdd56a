"""The transport to a target by the system's ssh: one connection and one remote Python process serve many operations."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import re
import secrets
import select
import shlex
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, Protocol

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, NotSent, Unreachable, UserError, printable
from nemotron_kit.home import expand_user, nemotron_home
from nemotron_kit.quoting import shell_path
from nemotron_kit.remote.agent.operations import QUICK_OPS, SLOW_OPS, error_from_dict, perform
from nemotron_kit.spec.package import package_hash, package_zip
from nemotron_kit.spec.paths import REMOTE_FOLDER
from nemotron_kit.spec.profiles import list_run_profiles, load_run_profile
from nemotron_kit.spec.runconfig import RunConfig

# A socket's path has 108 bytes at most; ssh adds a slash, 40 hex digits and a suffix of 17 while it makes it.
_LONGEST = 108 - 1 - 40 - 17 - 1
# ssh pastes the config's path into a jump host's command as it is.
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+\Z")

# The first value that ssh meets for an option wins. The caller's agent, display and ports are not forwarded.
_CONFIG = """\
Host *
  StrictHostKeyChecking {strict}
  BatchMode {batch}
  UpdateHostKeys no
  NoHostAuthenticationForLocalhost no
  ForwardAgent no
  ForwardX11 no
  ForwardX11Trusted no
  GSSAPIDelegateCredentials no
  ClearAllForwardings yes
  PermitLocalCommand no
  RemoteCommand none
  RequestTTY no
  ConnectTimeout {connect}
  ConnectionAttempts 1
  ServerAliveInterval 5
  ServerAliveCountMax 3
  LogLevel INFO
  ControlMaster auto
  ControlPersist {persist}
  ControlPath {folder}/%C
Include {user_config}
Include /etc/ssh/ssh_config
"""
_USER_CONFIG = "~/.ssh/config"
CONNECT_SECONDS = 4
QUIET = {"strict": "yes", "batch": "yes", "connect": str(CONNECT_SECONDS), "persist": "600"}
# An interactive login: the user may accept an unknown key, never a changed one.
LOGIN = {"strict": "ask", "batch": "no", "connect": "20", "persist": "43200"}


def ssh_config(values: dict[str, str]) -> Path:
    """An ssh config file with `values` (QUIET or LOGIN), written unless it exists with this content.

    Raises UserError if NEMOTRON_SSH_CONFIG names no file, which ssh would ignore; /dev/null is one.
    """
    folder = ssh_folder()
    given = user_config()
    there = os.path.exists(given) and not os.path.isdir(given)  # noqa: PTH110, PTH112 — False where Path's raise
    if given != _USER_CONFIG and not there:
        raise UserError(f"NEMOTRON_SSH_CONFIG: {given} is no file.", hint="Name an ssh config, or unset the variable.")
    text = _CONFIG.format(folder=folder, user_config=f'"{given}"', **values)
    # One file for each user config: two concurrent commands may have been given different ones.
    mark = "" if given == _USER_CONFIG else f"-{_short_hash(given)}"
    path = folder / f"{'login' if values is LOGIN else 'config'}{mark}"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)
    return path


def user_config() -> str:
    """The user's ssh config: $NEMOTRON_SSH_CONFIG, else ~/.ssh/config. ssh would look for a relative path in ~/.ssh."""
    named = os.environ.get("NEMOTRON_SSH_CONFIG")
    return str(expand_user(named).absolute()) if named else _USER_CONFIG


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def ssh_folder() -> Path:
    """The folder of config and sockets: $NEMOTRON_HOME/ssh, else, if its path is too long for a socket, a private
    folder in the temporary one. Raises UserError for a folder that another user can enter."""
    home = nemotron_home() / "ssh"
    folder = home
    if len(str(home)) > _LONGEST or not _PLAIN.match(str(home)):
        name = f"nemotron-{os.getuid()}-{_short_hash(str(home))}"
        folder = Path(tempfile.gettempdir()) / name
        if len(str(folder)) > _LONGEST or not _PLAIN.match(str(folder)):
            folder = Path("/tmp") / name  # noqa: S108 — checked below
    folder.mkdir(mode=0o700, parents=folder == home, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UserError(
            f"{folder} must be a folder of yours that no other user can enter: it holds open connections.",
            hint=f"chmod 700 {folder}, or remove it.",
        )
    return folder


def ssh_command(host: str, user: str | None, identity: str | None, *options: str, login: bool = False) -> list[str]:
    """`ssh … HOST`, to be followed by a remote command. Raises UserError for an identity file that does not exist."""
    arguments = ["ssh", "-F", str(ssh_config(LOGIN if login else QUIET)), "-T", *options]
    if identity:
        path = expand_user(identity)
        if not path.is_file():
            raise UserError(f"identity: {identity} is no file.", hint="Name your private key, as in ~/.ssh/id_ed25519.")
        arguments += ["-i", str(path), "-o", "IdentitiesOnly=yes"]
    if user:
        arguments += ["-l", user]
    return [*arguments, "--", host]


_SSH_FAILED = 255
_NO_COMMAND = 127
# The first of these texts in ssh's output decides the message; {address} and {login} are filled in.
_KEY = "No password, key or data went to it."
_REASONS: tuple[tuple[str, str, str], ...] = (
    ("REVOKED HOST KEY", "{address} shows a host key that is revoked: refused. " + _KEY, "Ask those who run it."),
    (
        "HOST IDENTIFICATION HAS CHANGED",
        "{address} shows another host key than the one known here: refused. " + _KEY,
        "The connection may be intercepted. Only if the key was really changed: ssh-keygen -R {host}, then {login}",
    ),
    (
        "Host key verification failed",
        "{address} shows a host key that is not known here: refused. " + _KEY,
        "Compare its fingerprint and accept it on your terminal: {login}",
    ),
    ("Permission denied", "{address} requires a password or a second factor.", "Log in first: {login}"),
    ("Too many authentication failures", "{address} refused each key that was offered.", "Name one: identity = …"),
    ("Could not resolve hostname", "{host}: there is no such host.", "Check host in the profile, and your network."),
    ("timed out", "{address} does not answer.", "Is this machine on the right network? Otherwise try again later."),
    ("Connection refused", "{address} refused the connection.", "Check host in the profile; {host} may be down."),
)


def not_reached(to: Ssh, code: int | None, stderr: str) -> NemotronError:
    """The error for an ssh that ended with `code` before the agent was ready (None: it had to be killed)."""
    output = printable(" ".join(line.strip() for line in stderr.splitlines() if line.strip())[-600:])
    if code is None:
        return NotSent(f"{to.address} does not answer.", hint=output or "Its login may be very slow. Try again.")
    if code == _NO_COMMAND:
        return NemotronError(f"{to.address}: there is no {to.python} there.", hint="Name it in the profile: python = …")
    if code != _SSH_FAILED:
        return NemotronError(f"{to.address}: {to.python} ended with exit code {code}.", hint=output or None)
    login = f"nemotron profiles login {_profile_of(to) or 'NAME'}"
    fill = {"address": to.address, "host": to.host, "login": login}
    for sign, what, hint in _REASONS:
        if sign.lower() in stderr.lower():
            return NotSent(what.format(**fill), hint=hint.format(**fill))
    return NotSent(f"{to.address} can't be reached.", hint=output or None)


def _profile_of(to: Ssh) -> str | None:
    """The name of the profile with this target. env.toml is read again, for an error message only."""
    try:
        for name in list_run_profiles():
            config = load_run_profile(name)
            if (config.tunnel, config.host, config.user) == ("ssh", to.host, to.user):
                return name
    except NemotronError:
        return None  # a broken env.toml is not what went wrong here
    return None


CHUNK = 1 << 18


class Lost(Exception):
    """The remote process ended, or was silent for too long. `code` is its exit code, None if it was killed here."""

    def __init__(self, code: int | None, stderr: str) -> None:
        super().__init__(stderr)
        self.code, self.stderr = code, stderr


class Pipe:
    """One started process. Its standard error goes to a file, since an ssh master process that outlives it may hold a
    pipe open."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 — closed with the process
        self._stderr = ""
        # In a new session: Ctrl-C goes to the launch only, and ssh can't prompt on the terminal.
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout  # noqa: S101 — Popen was called with pipes
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._buffer = bytearray()
        self.used = time.monotonic()

    def send(self, data: bytes, stall: float) -> None:
        """Write all of `data`. Raises Lost if the process has ended, or accepts nothing for `stall` seconds."""
        view = memoryview(data)
        while view:
            if not select.select([], [self._in], [], stall)[1]:
                raise self.lost()
            try:
                view = view[os.write(self._in, view[:CHUNK]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                # Its earlier output explains more: `response` reads that, or raises.
                return

    def response(self, mark: str, stall: float) -> dict[str, Any]:
        """The next response: the JSON of the next line that begins with `mark`. Other lines are output of a shell's
        start-up files."""
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

    def lost(self) -> Lost:
        """The Lost error that explains the end of the output; the process has ended afterwards."""
        try:
            code: int | None = self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            code = None
        self.close()
        return Lost(code, self._stderr)

    def close(self) -> None:
        """End the process: close its input, and kill it if it does not end."""
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


# Constant: whatever a user gives is sent after it, as data.
START = "import sys;exec(sys.stdin.buffer.readline())"
# A login shell may be slow; a dead network is noticed by ssh itself, after 15 s.
READY_SECONDS, STALL_SECONDS = 30.0, 300.0
# After a pause of so many seconds the connection is tested by a ping before the next request.
IDLE_SECONDS = 2.0
# A server that is full (MaxStartups) closes new connections before it has shown its key: tried once more.
_FULL = "kex_exchange_identification"
_FULL_SECONDS = 1.0


class Ssh:
    """An ssh connection of one user to one host. Connects at the first call, and again after the connection was
    lost."""

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
        """The absolute path of the folder that holds runs/; asks the machine for its home at first. Raises
        Unreachable."""
        if self._root.startswith("~/"):
            facts, _ = self.call("hello")
            self._root = f"{facts['home'].rstrip('/')}{self._root[1:]}"
        return self._root

    @property
    def address(self) -> str:
        """`user@host`, or the host without a user."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def call(self, op: str, payload: bytes = b"", **args: Any) -> tuple[Any, bytes]:
        """See Transport. Raises NotSent (an Unreachable) if the connection failed before the request was sent."""
        with self._lock:
            try:
                pipe = self._connected()
                head, data = self._ask(pipe, op, payload, args)
            except Lost as lost:
                self._pipe = None
                output = [line for line in printable(lost.stderr).splitlines() if line.strip()]
                raise Unreachable(
                    f"{self.address}: the connection was lost during {op}; whether it was done is not known.",
                    hint=output[-1] if output else None,
                ) from lost
            except BaseException:  # Ctrl-C in the middle of a response: the next request needs a new connection
                self._close()
                raise
        if not head["ok"]:
            raise error_from_dict(head["error"])
        with contextlib.suppress(OSError):  # a full disk here is no failure there
            self._reached_path.touch()
        return head["result"], data

    @property
    def _reached_path(self) -> Path:
        key = json.dumps([user_config(), self.host, self.user, self.identity])
        return ssh_folder() / f"reached-{_short_hash(key)}"

    def reached_at(self) -> float:
        """When a process of this user last had a response from this target over the same connection settings, in
        seconds since the epoch; 0 if unknown."""
        try:
            return self._reached_path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def close(self) -> None:
        """End the connection; ssh's master process stays for the next one."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _ask(self, pipe: Pipe, op: str, payload: bytes, args: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        request = json.dumps({"op": op, "args": args, "payload": len(payload)})
        pipe.send(request.encode() + b"\n" + payload, STALL_SECONDS)
        head = pipe.response(self._mark, QUICK_OPS.get(op) or max(STALL_SECONDS, SLOW_OPS.get(op, 0.0)))
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

    def _connect(self, *, is_retry: bool = False) -> Pipe:
        python = f"{shell_path(self.python)} -I -c {shlex.quote(START)}"
        pipe = Pipe([*ssh_command(self.host, self.user, self.identity), python])
        try:
            source = resources("nemotron_kit.remote.agent").joinpath("bootstrap.py").read_text(encoding="utf-8")
            head = json.dumps({"mark": self._mark, "root": self._root, "kit": package_hash()})
            pipe.send(f"exec({source!r})\n{head}\n".encode(), READY_SECONDS)
            response = pipe.response(self._mark, READY_SECONDS)
            if response.get("need") == "kit":
                package = package_zip()
                pipe.send(b"%d\n%s" % (len(package), package), STALL_SECONDS)
                response = pipe.response(self._mark, STALL_SECONDS)
            if "error" in response:
                reason = printable(str(response["error"]))
                raise NemotronError(f"{self.address}: nemotron_kit can't start there: {reason}.")
        except Lost as lost:
            if _FULL in lost.stderr and not is_retry:
                time.sleep(_FULL_SECONDS)
                return self._connect(is_retry=True)
            raise not_reached(self, lost.code, lost.stderr) from lost
        except BaseException:
            pipe.close()
            raise
        return pipe


_open: dict[tuple[str | None, ...], Ssh] = {}


def ssh_from(settings: RunConfig) -> Ssh:
    """The ssh transport to the target of a profile with `tunnel = "ssh"`, shared by all callers in this process with
    equal settings.

    Raises UserError for a missing profile setting.
    """
    host, user, identity, python = settings.host, settings.user, settings.identity, settings.python or "python3"
    if not host or not user:
        raise UserError(f"tunnel 'ssh' needs {'user' if host else 'host'}.", hint="Set it in the profile.")
    root = settings.remote_job_dir or f"~/{REMOTE_FOLDER}"
    if not root.startswith(("/", "~/")):
        raise UserError(f"remote_job_dir: {root} must be an absolute path on {host}.")
    key = (host, root, user, identity, python)
    if key not in _open:
        _open[key] = Ssh(host, root, user=user, identity=identity, python=python)
    return _open[key]


class Transport(Protocol):
    """Runs operations of the agent on one machine."""

    @property
    def root(self) -> str:
        """The folder on that machine, absolute, that holds runs/."""

    def reached_at(self) -> float:
        """When the machine last responded to any command of this machine, in seconds since the epoch; 0 if that is not
        recorded."""

    def call(self, op: str, payload: bytes = b"", **args: Any) -> tuple[Any, bytes]:
        """Run an operation of `remote.agent.operations.OPS` on that machine; returns its result (JSON data) and bytes.

        Raises the operation's error (UserError, NemotronError, …), and Unreachable if the machine did not answer:
        it is then not known whether the operation was carried out.
        """


class LocalTransport:
    """The transport to this machine: the operation runs in this process."""

    def __init__(self, root: str | None = None) -> None:
        self._root = root

    @property
    def root(self) -> str:
        """`root` as given, else NEMOTRON_HOME."""
        return self._root or str(nemotron_home())

    def reached_at(self) -> float:
        """0: not recorded for this machine."""
        return 0.0

    def call(self, op: str, payload: bytes = b"", **args: Any) -> tuple[Any, bytes]:
        """See Transport."""
        result, data = perform(op, payload, args)
        # The same round trip through JSON as over ssh.
        return json.loads(json.dumps(result)), data


def transport_for(settings: RunConfig) -> Transport:
    """The transport to the machine of a profile's settings: over ssh with `tunnel = "ssh"`, else this machine. It
    connects at the first call."""
    if settings.tunnel == "ssh":
        return ssh_from(settings)
    return LocalTransport(settings.remote_job_dir)
