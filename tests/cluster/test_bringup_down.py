"""scripts/cluster itself: `up` is idempotent and stays on loopback, `down` leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .backends import SCRIPT, Backend, Docker, Slurm, Sshd
from .test_bringup import wait_for


def test_up_again_changes_nothing(slurm: Slurm, sshd: Sshd, docker: Docker) -> None:
    before = json.loads(slurm.run(SCRIPT, "status", "--json"))
    slurm.run(SCRIPT, "up")
    assert json.loads(slurm.run(SCRIPT, "status", "--json")) == before


def test_everything_listens_on_loopback_only(slurm: Slurm, sshd: Sshd, docker: Docker) -> None:
    first = sshd.port("plain") - 10
    heard = [line.split()[3] for line in slurm.run("ss", "-Hltn").splitlines()]
    ours = [address for address in heard if first <= int(address.rsplit(":", 1)[1]) < first + 30]
    assert len(ours) >= 9 and all(address.startswith("127.") for address in ours)


PLACES = {"/": 1, "/etc": 3, "/opt": 2, "/run": 2, "/root": 1, "/home": 1, "/usr/sbin": 1, "/dev/shm": 1}
PLACES |= {"/var/lib": 1, "/var/log": 2, "/var/spool": 2, "/sys/fs/cgroup": 2}


def traces() -> set[str]:
    """What a daemon could leave: names where they write (so many folders deep), mounts, control groups, a setting."""
    found = {f"ip_forward {Path('/proc/sys/net/ipv4/ip_forward').read_text()}"}
    for place, depth in PLACES.items():
        find = ["find", place, "-maxdepth", str(depth), "-not", "-path", "/proc*"]
        found |= set(subprocess.run(find, capture_output=True, text=True, check=False).stdout.splitlines())
    return found | {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def processes_of(root: Path) -> Iterator[str]:
    """Processes that were started for the cluster there, or run on one of its machines."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
            if str(root) in command + (process / "mountinfo").read_text():
                yield f"{process.name} {command}"
        except OSError:
            continue  # it ended while we looked


def running(*commands: str) -> list[str]:
    """Those of these commands that some process is running."""
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [command for command in commands if command in shown]


def test_down_leaves_nothing(slurm: Slurm, sshd: Sshd, docker: Docker) -> None:
    """A second cluster comes up beside the first, works, and goes without a trace, its running jobs included."""
    root = Path("/var/lib/nemotron-kit-second")
    own = {"NEMOTRON_CLUSTER_ROOT": str(root), "NEMOTRON_CLUSTER_PORT": "17800"}
    script = Backend({**own, "NEMOTRON_CLUSTER_PYTHON": sys.executable}, {})
    sleeps = ("sleep 301", "sleep 302", "sleep 303")
    before = traces()
    script.run(SCRIPT, "up", timeout=240)
    try:
        parts = json.loads(script.run(SCRIPT, "status", "--json"))["parts"]
        second = Backend({**parts["slurm"]["env"], **parts["docker"]["env"]}, {})
        second.run("sbatch", "--nodes=2", "--output=/dev/null", "--wrap=srun setsid sleep 301 & sleep 302")
        second.run("docker", "run", "--detach", "--network=none", parts["docker"]["image"], "sleep", "303")
        wait_for(lambda: running(*sleeps) == list(sleeps), "jobs and container run")
    finally:
        script.run(SCRIPT, "down", timeout=120)
    assert not root.exists()
    assert list(processes_of(root)) == [] and running(*sleeps) == []
    assert traces() - before == set()
