"""What scripts/cluster brings up, as values that tests use: Slurm, ssh servers, a Docker engine."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster"


@dataclass(frozen=True)
class Backend:
    """What every back end has: `env` is what a process needs to reach it, `facts` what `status --json` says of it."""

    env: dict[str, str]
    facts: dict[str, Any]

    def run(self, *words: str | Path, stdin: str = "", timeout: float = 60, check: bool = True) -> str:
        """Standard output of a command that sees this back end; with `check`, one that fails fails the test."""
        env = {**os.environ, **self.env}
        done = subprocess.run(words, env=env, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        assert not check or done.returncode == 0, f"{words} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@dataclass(frozen=True)
class Slurm(Backend):
    """Nodes n1 and n2 on this root filesystem; partitions batch, interactive, short, preempt (and remote, see Sshd)."""

    account: str = "research"

    def node(self, action: str, name: str) -> None:
        """`kill`: node `name` loses power; `start`: it is back."""
        self.run(SCRIPT, "node", action, name)

    @contextlib.contextmanager
    def stopped(self, daemon: str) -> Iterator[None]:
        """Inside, `daemon` (slurmctld, slurmdbd, n1, …) is there and does not answer."""
        pid = self.facts["pids"][daemon]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True)
class Sshd(Backend):
    """nk-plain leads into this root filesystem, nk-cluster and (by password and code) nk-password into a second one.

    The second machine is the login node of r1 and r2, which have its root filesystem; its partition is `remote`.
    """

    config: Path
    known_hosts: Path
    identity: Path
    rootfs: Path

    def port(self, door: str) -> int:
        """The port of plain, cluster or password on 127.0.0.1."""
        return int(self.facts["hosts"][door]["port"])

    def ssh(self, host: str, command: str, *, stdin: str = "", check: bool = True) -> str:
        """Standard output of `command` there."""
        return self.run("ssh", host, command, stdin=stdin, check=check)

    def here(self, there: str | Path) -> Path:
        """A path of the second machine, as seen from this one."""
        return self.rootfs / Path(there).relative_to("/")

    def profile(self, root: str) -> dict[str, str]:
        """A profile's fields: jobs of the second machine's Slurm, launched over ssh, whose records are in `root`."""
        facts = self.facts
        return {
            "executor": "slurm",
            "account": "research",
            "partition": facts["partition"],
            "time": "00:05:00",
            "tunnel": "ssh",
            "host": facts["hosts"]["cluster"]["host"],
            "user": facts["user"],
            "identity": facts["identity"],
            "remote_job_dir": root,
            "python": facts["python"],
        }

    @property
    def password(self) -> str:
        """What nk-password asks for first."""
        return Path(self.facts["password_file"]).read_text().strip()

    def one_time_code(self) -> str:
        """What nk-password asks for second: RFC 6238, good for half a minute."""
        secret = base64.b32decode(Path(self.facts["totp_file"]).read_text().strip())
        digest = hmac.digest(secret, struct.pack(">Q", int(time.time()) // 30), "sha1")
        (word,) = struct.unpack_from(">I", digest, digest[-1] & 15)
        return f"{(word & 0x7FFFFFFF) % 1_000_000:06d}"


@dataclass(frozen=True)
class Docker(Backend):
    """An engine whose only image is `image`: the second machine's files; no bridge, so --network is none or host."""

    image: str


def unavailable(reason: str) -> None:
    """Skip, or fail where somebody relies on these tests."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"cluster tests cannot run here, and CI=true says they must: {reason}")
    pytest.skip(reason)


def bring_up(part: str) -> dict[str, Any]:
    """`scripts/cluster up PART`, and what `status --json` then says: the whole answer."""
    if os.geteuid() != 0:
        unavailable("scripts/cluster needs root")
    if shutil.which("apt-get") is None:
        unavailable("scripts/cluster needs Debian's apt-get")
    if subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, check=False).returncode:
        unavailable("scripts/cluster needs mount namespaces, which this machine refuses")
    env = {"NEMOTRON_CLUSTER_PYTHON": sys.executable, **os.environ}
    up = subprocess.run([SCRIPT, "up", part], env=env, capture_output=True, text=True, timeout=280, check=False)
    assert up.returncode == 0, up.stderr
    status = subprocess.run([SCRIPT, "status", "--json"], capture_output=True, text=True, timeout=60, check=False)
    answer: dict[str, Any] = json.loads(status.stdout)
    return answer
