"""Which node of a job this worker is on, and where its nodes meet. Asked only in a job that was launched to
Slurm: a launch from inside somebody's allocation has its variables too."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

# Below the ports that Linux hands out by itself.
_FIRST_PORT, _PORTS = 10_000, 20_000
_FIRST_HOST = re.compile(r"([^,\[\]]*)(?:\[(\d+)[^\]]*\]([^,\[\]]*))?")


@dataclass(frozen=True)
class Node:
    """Node `rank` of `count`. `head` is the address of node 0; `meeting` and `port` differ for any two jobs that can
    run at once; `job` is the scheduler's id of the job, None without one. `step` is Slurm's own number for what started
    this worker (`17.1`), also in an array."""

    rank: int = 0
    count: int = 1
    head: str = "localhost"
    port: int = 0
    meeting: str = ""
    job: str | None = None
    name: str | None = None
    step: str | None = None

    @property
    def is_head(self) -> bool:
        return self.rank == 0

    @property
    def log(self) -> str:
        """The name of this node's log: each has one writer."""
        return "job" if self.is_head else f"node-{self.rank}"


def this_node(environ: Mapping[str, str] = os.environ) -> Node:
    """The node that this worker of a Slurm job is on, from the environment that its srun set."""
    if "SLURM_JOB_ID" not in environ:
        return Node()
    number = int(environ["SLURM_JOB_ID"])
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else str(number)
    return Node(
        rank=int(environ.get("SLURM_NODEID", "0")),
        count=int(environ.get("SLURM_NNODES", "1")),
        head=_head(environ),
        # Each task of an array has a number of its own too, so jobs near one another never share a port.
        port=_FIRST_PORT + number % _PORTS,
        meeting=job,
        job=job,
        name=environ.get("SLURMD_NODENAME"),
        step=f"{number}.{environ['SLURM_STEP_ID']}" if "SLURM_STEP_ID" in environ else None,
    )


def first_host(nodelist: str) -> str:
    """The first host of Slurm's short form: `n[01-03],x` gives n01."""
    match = _FIRST_HOST.match(nodelist)
    if match is None:
        return nodelist
    return f"{match[1]}{match[2] or ''}{match[3] or ''}"


def _head(environ: Mapping[str, str]) -> str:
    """Node 0's name where it leads to an address that other nodes reach, else the address that its srun called from."""
    name = first_host(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", ""))
    address = environ.get("SLURM_LAUNCH_NODE_IPADDR") or environ.get("NEMOTRON_HEAD_ADDRESS", "").split(" ")[0]
    # A node's own name often means 127.0.1.1 to itself.
    if name and not _is_loopback(name):
        return name
    return address or name or "localhost"


def _is_loopback(name: str) -> bool:
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    except OSError:
        return True
    return any(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
