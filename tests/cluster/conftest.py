"""The back ends of scripts/cluster as fixtures: `slurm`, `sshd`, `docker`; each comes up once and stays up afterwards.

Where they cannot run (no root, no apt-get, no mount namespaces) a test skips with the reason; with CI=true it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .backends import SCRIPT, Docker, Slurm, Sshd, bring_up, unavailable
from .rogue_sshd import Rogue, start_rogue


@pytest.fixture(scope="session")
def slurm() -> Slurm:
    """Two nodes with accounting; `slurm.env` is SLURM_CONF."""
    facts = bring_up("slurm")["parts"]["slurm"]
    return Slurm(facts["env"], facts)


@pytest.fixture(scope="session")
def sshd() -> Sshd:
    """Three ssh hosts; `sshd.env` is a PATH whose ssh knows them."""
    status = bring_up("ssh")
    facts = status["parts"]["ssh"]
    path = f"{status['bin']}{os.pathsep}{os.environ['PATH']}"
    files = (Path(facts[name]) for name in ("config", "known_hosts", "identity", "rootfs"))
    return Sshd({"PATH": path}, facts, *files)


@pytest.fixture(scope="session")
def docker() -> Docker:
    """A Docker engine; `docker.env` is DOCKER_HOST."""
    facts = bring_up("docker")["parts"]["docker"]
    return Docker(facts["env"], facts, facts["image"])


@pytest.fixture(scope="session")
def apptainer() -> Path:
    """The real Apptainer's program, which is Debian's of unstable."""
    folder = os.environ.get("NEMOTRON_APPTAINER", "/var/lib/nemotron-kit-apptainer")
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        unavailable("scripts/apptainer needs root and apt-get")
    words = [SCRIPT.parent / "apptainer", folder]
    made = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    if made.returncode:
        unavailable(f"scripts/apptainer: {made.stderr[-500:]}")
    return Path(folder, "bin", "apptainer")


@pytest.fixture
def cluster_home(home: Path) -> Path:
    """A fresh NEMOTRON_HOME that n1 and n2 see at the same path."""
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def rogue(sshd: Sshd, tmp_path: Path) -> Iterator[Callable[[str], Rogue]]:
    """`rogue("changed")`, `"unknown"` or `"revoked"`: somebody else's ssh server, and the environment to meet it in."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(known: str) -> Rogue:
        met, server = start_rogue(tmp_path, sshd, known)
        servers.append(server)
        return met

    yield start
    for server in servers:
        server.kill()
        server.wait()
