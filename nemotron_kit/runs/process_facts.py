"""A process on record: the facts that identify it, whether it still runs, and what runs below it or for a job."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemotron_kit.files import process_exists


def process_facts(pid: int | None = None) -> dict[str, Any]:
    """The facts that identify process `pid` (by default this one) later: pid, start time and process group, and the
    host, boot and pid namespace in which these are valid."""
    pid = os.getpid() if pid is None else pid
    status = _stat(pid)
    return {
        "pid": pid,
        "pgid": os.getpgid(pid),
        "started": status[2] if status else None,
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "namespace": _namespace(),
    }


def is_on_this_host(process: Mapping[str, Any]) -> bool:
    """Whether a recorded process is on this host and in this pid namespace, so that its state can be determined."""
    return process.get("host") == socket.gethostname() and process.get("namespace") == _namespace()


# What the facts of a process look like: any other text would be another machine's, boot's or container's for ever.
_FACTS = {
    "host": re.compile(r"[^\s\x00-\x1f\x7f/:]{1,255}"),
    "boot": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "namespace": re.compile(r"pid:\[\d+\]"),
}


def is_process(record: object) -> bool:
    """Whether `record` has the form of `process_facts()`."""
    if not isinstance(record, Mapping):
        return False
    pid, started = record.get("pid"), record.get("started")
    texts = {name: record.get(name) for name in _FACTS if name == "host" or record.get(name) is not None}
    sound = all(isinstance(text, str) and _FACTS[name].fullmatch(text) for name, text in texts.items())
    return type(pid) is int and pid > 0 and type(started) in (int, type(None)) and sound


def has_facts_of_this_host(process: Mapping[str, Any]) -> bool:
    """Whether a recorded process of this host has the boot and the namespace, where the system tells them; True for
    processes of other hosts."""
    facts = {"boot": _boot_id(), "namespace": _namespace()} if process["host"] == socket.gethostname() else {}
    return all(fact is None or process.get(name) is not None for name, fact in facts.items())


def is_gone(process: Mapping[str, Any]) -> bool:
    """True only if the process is known to have ended; False if it is alive, or on another host."""
    pid = process.get("pid")
    if not is_on_this_host(process) or not isinstance(pid, int) or pid <= 0:
        return False
    if process.get("boot") != _boot_id():
        return True
    status = _stat(pid)
    if status is None:
        return not process_exists(pid)
    state, _, started = status
    return state in "ZX" or (process.get("started") is not None and started != process["started"])


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, children first. Empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        child = int(entry.parent.name)
        if (status := _stat(child)) is not None:
            children.setdefault(status[1], []).append(child)
    found = list(children.get(pid, []))
    for child in found:  # grows while it is walked
        found.extend(children.get(child, []))
    return found


def _stat(pid: int) -> tuple[str, int, int] | None:
    """The state, the parent and the start time of a process; None if it has ended, or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command before it may contain spaces and parentheses
    return (fields[0], int(fields[1]), int(fields[19])) if len(fields) > 19 else None


_SCAN_SECONDS = 0.5  # for how long a scan of /proc is reused
# (pid, start time) of a starter that has ended → (when /proc was scanned after that, the folders in commands).
_scans: dict[tuple[Any, str], tuple[float, frozenset[bytes]]] = {}


def is_in_a_command(folder: Path, starter: Mapping[str, Any]) -> bool:
    """Whether the command of one of our processes contains a job's folder or its run's: the job's worker, or the
    process that starts a sweep's jobs. `starter` has ended, so it starts nothing more. True if there is no /proc."""
    who, now = (starter.get("pid"), str(starter.get("started"))), time.monotonic()
    at, named = _scans.get(who, (-_SCAN_SECONDS, frozenset()))
    if now - at >= _SCAN_SECONDS:
        if not Path("/proc/self/cmdline").exists():
            return True
        at, named = _scans[who] = now, frozenset(_folders_in_commands())
    job = os.fsencode("/".join(folder.parts[-3:]))
    return job in named or job.split(b"/", 1)[0] in named


def _folders_in_commands() -> Iterable[bytes]:
    """`<run id>` and `<run id>/jobs/<n>` of the folders in the commands of our processes."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process ended
            arguments = entry.read_bytes().split(b"\0")
            if any(argument.startswith(b"nemotron_kit.") for argument in arguments):
                parts = (argument.rstrip(b"/").split(b"/") for argument in arguments if b"/" in argument)
                yield from (b"/".join(each[-3:] if each[-2:-1] == [b"jobs"] else each[-1:]) for each in parts)


def _boot_id() -> str | None:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else None


def _namespace() -> str | None:
    path = Path("/proc/self/ns/pid")
    return str(path.readlink()) if path.is_symlink() else None
