"""Which process a job is, and whether it is still there. A pid alone is not enough: pids are used again."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def process_facts(pid: int | None = None) -> dict[str, Any]:
    """What identifies process `pid` (this one by default) to a later reader: pid and start time, its process group, and
    the host, boot and pid namespace in which they mean anything."""
    pid = os.getpid() if pid is None else pid
    status = _stat(pid)
    return {
        "pid": pid,
        "pgid": os.getpgid(pid),
        "started": status[1] if status else None,
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "namespace": _namespace(),
    }


def is_here(process: Mapping[str, Any]) -> bool:
    """Whether this process can judge that one: same host and same pid namespace."""
    return process.get("host") == socket.gethostname() and process.get("namespace") == _namespace()


def is_gone(process: Mapping[str, Any]) -> bool:
    """True only when the process is known to have ended; False when it lives or can't be judged from here."""
    pid = process.get("pid")
    if not is_here(process) or not isinstance(pid, int) or pid <= 0:
        return False
    if process.get("boot") != _boot_id():
        return True
    status = _stat(pid)
    if status is None:
        return not _exists(pid)
    state, started = status
    return state in "ZX" or (process.get("started") is not None and started != process["started"])


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, children first. Empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        parent = _parent(entry)
        if parent is not None:
            children.setdefault(parent, []).append(int(entry.parent.name))
    found = list(children.get(pid, []))
    for child in found:  # grows while it is walked
        found.extend(children.get(child, []))
    return found


def _fields(path: Path) -> list[str] | None:
    """/proc/<pid>/stat from the state on: the command before it may hold spaces and parentheses."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:  # it ended, or there is no /proc
        return None


def _stat(pid: int) -> tuple[str, int] | None:
    fields = _fields(Path(f"/proc/{pid}/stat"))
    return (fields[0], int(fields[19])) if fields and len(fields) > 19 else None


def _parent(path: Path) -> int | None:
    fields = _fields(path)
    return int(fields[1]) if fields and len(fields) > 1 else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot_id() -> str | None:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else None


def _namespace() -> str | None:
    path = Path("/proc/self/ns/pid")
    return str(path.readlink()) if path.is_symlink() else None
