"""The agent's operations, called by name in this process or over a connection."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from nemotron_kit import errors, files
from nemotron_kit.artifacts.reference import Pin, parse_override
from nemotron_kit.artifacts.registry import LocalRegistry, artifact_field
from nemotron_kit.artifacts.store import MODES, DamagedVersion, make_folder
from nemotron_kit.errors import NemotronError, printable
from nemotron_kit.files import open_regular
from nemotron_kit.home import is_run_id
from nemotron_kit.remote.agent.slurm_commands import user_name
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import LOG_NAME, DamagedRunRecord, JobFolder
from nemotron_kit.runs.ledger import remove_unreferenced
from nemotron_kit.runs.logs import last_lines, log_names
from nemotron_kit.runs.metrics import condensed
from nemotron_kit.runs.progress import metrics_tail


def ping() -> None:
    """Do nothing: a response shows that the agent runs."""


def exist(paths: list[str]) -> list[bool]:
    """Whether each path exists."""
    return [os.path.exists(path) for path in paths]  # noqa: PTH110 — a NUL in one is False, not an error


def hello() -> dict[str, Any]:
    """Facts about the machine that can be found without starting a process."""
    return {
        "host": socket.gethostname(),
        "user": user_name(),
        "home": os.path.expanduser("~"),  # noqa: PTH111 — text, not a Path
        "executable": sys.executable,
        "pid": os.getpid(),
        "time": time.time(),
    }


CODE = "code.json"


def packed(texts: dict[str, str]) -> bytes:
    """The payload of `make_run`."""
    return zlib.compress(json.dumps(texts).encode(), 1)


def make_run(*, folder: str, payload: bytes = b"") -> int:
    """Write the run's files (path below `folder` → text), except those that exist; returns the number of new files.

    `folder` is `<root>/runs/<run id>`; it and everything below are readable by the user only.
    """
    run = _run_folder(folder)
    texts: dict[str, Any] = json.loads(zlib.decompress(payload))
    new = 0
    for name, text in texts.items():
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
            raise NemotronError(f"{name!r} is no file of a run.")
        path = run
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in parts[:-1]:
            path = path / part
            path.mkdir(mode=0o700, exist_ok=True)
        path = path / parts[-1]
        if not path.exists():
            files.write_text(path, text)
            new += 1
    return new


def _run_folder(folder: str) -> Path:
    run = Path(folder)
    if run.parent.name != "runs" or not is_run_id(run.name):
        raise NemotronError(f"{folder} is no folder of a run.")
    return run


class Piece(NamedTuple):
    """Bytes of a log from `offset` on. `offset` is 0 for a log that was truncated, whatever was requested."""

    name: str
    offset: int
    data: bytes


def names(*, job: str) -> list[str]:
    """The names of a job folder's logs: `job`, `rank-0`, …"""
    return log_names(JobFolder(Path(job)))


def read(
    *, job: str, offsets: dict[str, int], limit: int, only: bool = False, skip: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], bytes]:
    """The content of each log of a job beyond the reader's offset, at most `limit` bytes in all.

    Returns `[{"name", "offset", "size"}, …]`; the payload holds the bytes one after another. A log that has no offset
    is read from its beginning (with `only` it is left out); a log whose name begins with one of `skip` is left out. A
    log that has become shorter (truncated or replaced) is read from its beginning again, and listed even if it is
    empty.
    """
    found: list[dict[str, Any]] = []
    data = bytearray()
    for name in names(job=job):
        room = limit - len(data)
        unasked = name.startswith(tuple(skip)) or (only and name not in offsets)
        if not re.match(LOG_NAME, name) or room <= 0 or unasked:
            continue
        with open_regular(Path(job) / "logs" / f"{name}.log") as file:
            size = file.seek(0, 2)
            offset = offsets.get(name, 0)
            offset = offset if offset <= size else 0
            file.seek(offset)
            piece = file.read(room)
        if piece or offset < offsets.get(name, 0):
            found.append({"name": name, "offset": offset, "size": len(piece)})
            data += piece
    return found, bytes(data)


def pieces(found: Sequence[Mapping[str, Any]], data: bytes) -> list[Piece]:
    """A response of `read` as a list of pieces."""
    parts: list[Piece] = []
    start = 0
    for entry in found:
        parts.append(Piece(str(entry["name"]), int(entry["offset"]), data[start : start + int(entry["size"])]))
        start += int(entry["size"])
    return parts


_METRICS = 200


def job_records(*, jobs: Sequence[str]) -> list[dict[str, Any]]:
    """`{"exit", "history", "artifacts", "metrics"}` of each job folder; None, or empty, for a missing file. For a job
    with a damaged record `{"error", "history"}`: the others' are complete."""
    records: list[dict[str, Any]] = []
    for job in map(JobFolder, map(Path, jobs)):
        try:
            exit_record, artifacts = job.exit_record(), job.artifacts()
        except DamagedRunRecord as error:
            records.append({"error": error.message, "history": job.history()})
            continue
        metrics = condensed(job, _METRICS)
        records.append({"exit": exit_record, "history": job.history(), "artifacts": artifacts, "metrics": metrics})
    return records


def metrics_tails(*, jobs: Sequence[str]) -> list[dict[str, Any] | None]:
    """The end of each job's metrics, as `runs.progress.MetricsTail` has it; None for one that can't be read."""
    tails: list[dict[str, Any] | None] = []
    for job in jobs:
        try:
            tails.append(asdict(metrics_tail(JobFolder(Path(job)))))
        except OSError:
            tails.append(None)
    return tails


def begin_again(*, jobs: Sequence[str]) -> None:
    """Set jobs that have ended to pending, for another attempt."""
    for job in jobs:
        if Path(job).is_dir():  # otherwise it was never sent
            JobFolder(Path(job)).begin_again()


def log_offset(*, job: str, name: str, lines: int) -> int:
    """The offset at which the last `lines` lines of the log called `name` begin; 0 when there is none."""
    if not re.match(LOG_NAME, name):
        raise NemotronError(f"{name!r} is no name of a log.")
    return last_lines(Path(job) / "logs" / f"{name}.log", lines)


def versions_in(registry: LocalRegistry, folder: Path) -> list[str]:
    """The versions of a registry whose files are below `folder`, the folder of a run, as `Name:v3`. A damaged record is
    judged by the readable rest of its text and by what the run's jobs recorded as saved: it counts if it names the run
    at all."""
    resolved, found, saved = folder.resolve(), [], set()
    for job in RunFolder(folder).jobs():
        with contextlib.suppress(DamagedRunRecord):
            pins = [pin for pin in job.artifacts()["outputs"] if isinstance(pin, dict)]
            saved |= {f"{pin.get('name')}:v{pin.get('version')}" for pin in pins}
    for record in registry.everything():
        if isinstance(record, DamagedVersion):
            if folder.name in record.text or record.label in saved:
                found.append(f"{record.label} (its record is damaged)")
        elif registry.lies_in(record, str(resolved)):
            found.append(record.pin.label)
    return found


def lies_in(path: object, folder: Path) -> bool:
    """Whether a recorded path, which may be any text, is below `folder`, a resolved path."""
    return "\0" not in str(path) and Path(str(path)).resolve().is_relative_to(folder)


def remove_run(*, folder: str, registry: str) -> bool:
    """Delete a run's folder on the target; returns whether there was one. Raises UserError while it holds an artifact's
    files."""
    run = _run_folder(folder)
    store = LocalRegistry(registry)
    if not run.is_dir():
        return False
    remove_unreferenced(run, lambda: versions_in(store, run))
    return True


# name → "module:function"; a function takes the request's args by name, and bytes that were sent as `payload`. It
# returns JSON data, or that and bytes as a tuple. A new operation is one function and a line here.
OPS: dict[str, str] = {
    "ping": "nemotron_kit.remote.agent.operations:ping",
    "hello": "nemotron_kit.remote.agent.operations:hello",
    "python_facts": "nemotron_kit.remote.agent.inspect:python_facts",
    "image_in_registry": "nemotron_kit.remote.agent.inspect:image_in_registry",
    "slurm_on_node": "nemotron_kit.remote.agent.inspect:slurm_on_node",
    "writable": "nemotron_kit.remote.agent.inspect:writable",
    "docker_facts": "nemotron_kit.remote.agent.inspect:docker_facts",
    "slurm_facts": "nemotron_kit.remote.agent.inspect:slurm_facts",
    "slurm_accepts": "nemotron_kit.remote.agent.inspect:slurm_accepts",
    "exist": "nemotron_kit.remote.agent.operations:exist",
    "resolve": "nemotron_kit.remote.agent.operations:resolve",
    "registry_facts": "nemotron_kit.remote.agent.operations:registry_facts",
    "make_mounted": "nemotron_kit.remote.agent.operations:make_mounted",
    "code_of": "nemotron_kit.remote.agent.code:code_of",
    "has_code": "nemotron_kit.remote.agent.code:has_code",
    "put_code": "nemotron_kit.remote.agent.code:put_code",
    "commit_of": "nemotron_kit.remote.agent.code:commit_of",
    "fetch_repository": "nemotron_kit.remote.agent.code:fetch_repository",
    "clean": "nemotron_kit.remote.agent.code:clean",
    "make_run": "nemotron_kit.remote.agent.operations:make_run",
    "log_names": "nemotron_kit.remote.agent.operations:names",
    "read_logs": "nemotron_kit.remote.agent.operations:read",
    "log_offset": "nemotron_kit.remote.agent.operations:log_offset",
    "begin_again": "nemotron_kit.remote.agent.operations:begin_again",
    "job_records": "nemotron_kit.remote.agent.operations:job_records",
    "metrics_tails": "nemotron_kit.remote.agent.operations:metrics_tails",
    "remove_run": "nemotron_kit.remote.agent.operations:remove_run",
    "slurm_submit": "nemotron_kit.remote.agent.slurm:submit",
    "slurm_observe": "nemotron_kit.remote.agent.slurm_status:observe",
    "slurm_cancel": "nemotron_kit.remote.agent.slurm:cancel",
    "slurm_limits": "nemotron_kit.remote.agent.slurm:limits",
}

# Operations that may take longer than the others, and for how many seconds at most: the sum of the time limits of the
# commands that they run one after another.
SLOW_OPS = {"fetch_repository": 2_900.0, "slurm_on_node": 1_000.0, "slurm_submit": 1_000.0}
# Operations whose response nobody waits for longer than so many seconds.
QUICK_OPS = {"metrics_tails": 5.0}


def perform(op: str, payload: bytes, args: Mapping[str, Any]) -> tuple[Any, bytes]:
    """Perform one operation in this process. Raises NemotronError with the operating system's message."""
    if op not in OPS:
        raise NemotronError(f"No operation {op!r} on the target.", hint=errors.nearest(op, OPS).capitalize())
    module, _, name = OPS[op].partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    try:
        result = function(**args, **({"payload": payload} if payload else {}))
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        raise NemotronError(f"{op}:{where} {error.strerror or error}.") from error
    return result if isinstance(result, tuple) else (result, b"")


def serve(source: BinaryIO, sink: BinaryIO, mark: str) -> None:
    """Answer requests until the input ends. An error in a request is its response; a truncated request ends the
    loop."""
    while line := source.readline():
        request = json.loads(line)
        payload = source.read(request["payload"])
        if len(payload) != request["payload"]:
            return
        try:
            result, data = perform(request["op"], payload, request["args"])
            head = json.dumps({"ok": True, "result": result, "payload": len(data)})
        except Exception as error:  # noqa: BLE001 — a bug on the target has to be reported to the launch, too
            if not isinstance(error, NemotronError):
                error = NemotronError(f"{request['op']} failed on the target: {type(error).__name__}: {error}")
            head, data = json.dumps({"ok": False, "error": error_to_dict(error), "payload": 0}), b""
        sink.write(b"\n%s %s\n" % (mark.encode(), head.encode()))
        sink.write(data)
        sink.flush()


def error_to_dict(error: NemotronError) -> dict[str, Any]:
    """An error as JSON data, with the name of its nearest class in nemotron_kit.errors."""
    known = next(cls for cls in type(error).__mro__ if vars(errors).get(cls.__name__) is cls)
    return {"type": known.__name__, "message": error.message, "hint": error.hint}


def error_from_dict(data: Mapping[str, Any]) -> NemotronError:
    """The error that `error_to_dict` wrote. Its text comes from another machine, so control characters are made
    visible."""
    cls = vars(errors).get(str(data.get("type")))
    made = cls if isinstance(cls, type) and issubclass(cls, NemotronError) else NemotronError
    hint = data.get("hint")
    return made(printable(str(data.get("message"))), hint=printable(str(hint)) if hint else None)


def resolve(
    root: str,
    references: Mapping[str, tuple[str, str | None]],
    fields: Mapping[str, Sequence[str]] | None = None,
    mode: str = "private",
) -> dict[str, Any]:
    """Resolve references: slot → `{"pin": …, "fields": …}` or `{"error": …}`, for each (reference, default that a
    partial reference is relative to). `fields` lists, by slot, the fields to look up: each gives `{"value": …}` or
    `{"error": …}`.

    Creates nothing: a registry that does not exist is an empty one.
    """
    registry = LocalRegistry(root, mode=mode)
    found: dict[str, Any] = {}
    for slot, (text, default) in references.items():
        try:
            pin = registry.resolve(parse_override(text, default, aliases=registry.aliases))
        except NemotronError as error:
            found[slot] = {"error": error_to_dict(error)}
            continue
        values = {name: _field(pin, name, registry) for name in (fields or {}).get(slot, ())}
        found[slot] = {"pin": pin.to_dict(), "fields": values}
    return found


def registry_facts(root: str) -> dict[str, Any]:
    """The registry at `root`: its uuid ("" if nothing was saved) and its number of names."""
    registry = LocalRegistry(root)
    return {"uuid": registry.uuid, "names": len(registry.names())}


def make_mounted(root: str, registry: str, mode: str = "private") -> None:
    """Create the folders that every container mounts, if they are missing: the code folder below `root`, and the
    registry. A missing mount source would make the job fail, or be created as a folder of root."""
    make_folder(Path(root, "code"), MODES["private"])
    make_folder(Path(registry), MODES[mode])


def _field(pin: Pin, name: str, registry: LocalRegistry) -> dict[str, Any]:
    try:
        return {"value": artifact_field(pin, name, registry=registry)}
    except NemotronError as error:
        return {"error": error_to_dict(error)}
