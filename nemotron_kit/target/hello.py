"""What the target is: Python, time, places, what is installed there."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import socket
import sys
import time
from typing import Any


def ping(payload: bytes) -> tuple[None, bytes]:
    """Nothing: somebody is there."""
    del payload
    return None, b""


def exist(payload: bytes, paths: list[str]) -> tuple[list[bool], bytes]:
    """Whether each path is there."""
    del payload
    return [os.path.exists(path) for path in paths], b""  # noqa: PTH110 — a NUL in one is False, not an error


def hello(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """The machine in a few facts, none of which takes a process to find."""
    del payload
    tools = ("sbatch", "squeue", "sacct", "scancel", "srun", "docker")
    return {
        "host": socket.gethostname(),
        "user": _user(),
        "home": os.path.expanduser("~"),  # noqa: PTH111 — text, not a Path
        "python": platform.python_version(),
        "executable": sys.executable,
        "pid": os.getpid(),
        "time": time.time(),
        "tools": {tool: shutil.which(tool) for tool in tools},
    }, b""


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        return str(os.getuid())
