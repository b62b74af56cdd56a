"""Real ssh servers on loopback, each with throw-away keys in a folder of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ...conftest import until

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """One sshd, and the client's files for it. `options` are lines of its sshd_config."""

    folder: Path
    port: int = field(default_factory=free_port)
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        for key in ("host", "id"):
            if not (self.folder / key).exists():
                keygen(self.folder / key)
        shutil.copy(self.folder / "id.pub", self.folder / "authorized")
        (self.folder / "sshd_config").write_text("\n".join(self._config()) + "\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log)
        wait_for(lambda: listens(self.port))
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def knows(self, key: str = "host", mark: str = "") -> str:
        """The known_hosts line for a key of this server's folder."""
        kind, text = (self.folder / f"{key}.pub").read_text().split()[:2]
        return f"{mark}[127.0.0.1]:{self.port} {kind} {text}\n"

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _config(self) -> list[str]:
        return [
            *self.options,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder}/host",
            f"AuthorizedKeysFile {self.folder}/authorized",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PidFile none",
            "LogLevel DEBUG2",
            "MaxStartups 100",
        ]


def keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(true: Callable[[], bool], seconds: float = 10.0) -> None:
    until(true, seconds, lambda: "it did not come up", every=0.02)


@dataclass
class Client:
    """This machine as a client: its ssh config, known hosts and NEMOTRON_HOME in one folder."""

    folder: Path

    def writes(self, server: Server, known: str | None = None, extra: str = "") -> None:
        """Make the host `cluster` mean that server, with `known` in known_hosts (its own key when None)."""
        (self.folder / "known").write_text(server.knows() if known is None else known)
        (self.folder / "config").write_text(
            f"Host cluster\n  HostName 127.0.0.1\n  Port {server.port}\n"
            f"  UserKnownHostsFile {self.folder}/known\n  GlobalKnownHostsFile /dev/null\n{extra}"
        )

    def profile(self, server: Server, **more: object) -> dict[str, object]:
        return {
            "executor": "slurm",
            "tunnel": "ssh",
            "host": "cluster",
            "user": getpass.getuser(),
            "identity": str(server.folder / "id"),
            "remote_job_dir": str(self.folder / "target"),
            "python": "/usr/bin/python3",
            **more,
        }


@pytest.fixture(autouse=True)
def _tools() -> None:
    missing = [tool for tool in ("ssh", "ssh-keygen", SSHD) if not shutil.which(tool)]
    if missing:
        reason = f"{', '.join(missing)} not installed: apt-get install openssh-server openssh-client"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    folder = tmp_path / "client"
    folder.mkdir()
    monkeypatch.setenv("NEMOTRON_HOME", str(folder / "home"))
    monkeypatch.setenv("NEMOTRON_SSH_CONFIG", str(folder / "config"))
    yield Client(folder)
    end_masters()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "server").start()
    yield made
    made.stop()


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`make_server(name, *options)`: one more server, not started yet."""
    made: list[Server] = []

    def make(name: str, *options: str) -> Server:
        made.append(Server(tmp_path / name, options=options))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def end_masters() -> None:
    """Connections that ssh keeps open for the next call end with the test, and their folder goes."""
    from nemotron_kit.remote.ssh import ssh_folder

    folder = ssh_folder()
    for path in folder.iterdir():
        if path.is_socket():
            subprocess.run(["ssh", "-o", f"ControlPath={path}", "-O", "exit", "x"], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)  # a master that ends takes its socket with it


@pytest.fixture
def end_connections() -> Callable[[Path], None]:
    """`end_connections(home)`: what a launch with that NEMOTRON_HOME left open ends."""

    def end(home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NEMOTRON_HOME", str(home))
            end_masters()

    return end
