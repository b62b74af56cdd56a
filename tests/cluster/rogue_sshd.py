"""An ssh server that is not who it says it is, to see that nobody tells it anything."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..conftest import until
from .backends import Sshd


@dataclass(frozen=True)
class Rogue:
    """A server that is not who it says: its ssh host, its port, the environment to meet it in, and what it heard."""

    host: str
    port: int
    env: dict[str, str]
    log: Path

    def heard_a_login(self) -> bool:
        """Whether a client went past the host key and named a user or sent a credential."""
        return "userauth-request" in self.log.read_text()


def start_rogue(folder: Path, sshd: Sshd, known: str) -> tuple[Rogue, subprocess.Popen[bytes]]:
    """A server on a free port, and its process, which the caller ends; `known` is what known_hosts says of its key.

    unknown: nothing; changed: another key; revoked: that very key, marked so.
    """
    key, log = folder / f"host_{known}", folder / f"rogue_{known}.log"
    _keygen(key)
    _keygen(key.with_name(key.name + "_other"))
    port = sshd.port("password") + 1 + ["unknown", "changed", "revoked"].index(known)
    options = {"ListenAddress": f"127.0.0.1:{port}", "HostKey": key, "PasswordAuthentication": "yes", "UsePAM": "no"}
    server = _sshd(log, {**options, "AuthorizedKeysFile": f"{sshd.identity}.pub", "PidFile": "none"})
    _wait_for(log, "Server listening")
    return Rogue("nk-rogue", port, _client(folder / known, port, known, key, sshd), log), server


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def _sshd(log: Path, options: Mapping[str, object]) -> subprocess.Popen[bytes]:
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", "/dev/null", "-E", log, "-o", "LogLevel=DEBUG3", *words])


def _wait_for(log: Path, text: str) -> None:
    until(lambda: log.exists() and text in log.read_text(), 10, lambda: f"{log} never said {text!r}", every=0.02)


def _client(folder: Path, port: int, known: str, key: Path, sshd: Sshd) -> dict[str, str]:
    """The environment of a client whose ssh has the rogue's address as nk-rogue, and `known` in its known_hosts."""
    (folder / "bin").mkdir(parents=True)
    shown = {"changed": key.with_name(key.name + "_other.pub"), "revoked": key.with_suffix(".pub")}.get(known)
    line = f"{'@revoked ' if known == 'revoked' else ''}[127.0.0.1]:{port} {shown.read_text()}" if shown else ""
    (folder / "known_hosts").write_text(line)
    lines = ["Host nk-rogue", "HostName 127.0.0.1", f"Port {port}", "User root", f"IdentityFile {sshd.identity}"]
    lines += ["IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known_hosts", "GlobalKnownHostsFile /dev/null"]
    (folder / "config").write_text("\n".join(lines) + "\n")
    ssh = folder / "bin" / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/config "$@"\n')
    ssh.chmod(0o755)
    return {"PATH": f"{folder}/bin{os.pathsep}{os.environ['PATH']}"}
