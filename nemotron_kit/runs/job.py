"""One job's folder: its inputs, its states, its exit record.

    jobs/0/
    ├── config.yaml             the config: every value fixed but `${art:…}` and `${secret:…}`
    ├── job.json                what its worker is to do
    ├── resolved.yaml           the config as the job read it, with artifacts looked up
    ├── artifacts.json          its inputs and outputs
    ├── state/000001-….json     a file for each change of state, in order: `state`, `at` (ISO 8601), `process` if it is
    │                           one of that machine, `versions` of Python and packages when it began to run, and facts
    │                           of the back end; the last one counts
    ├── exit.json               once it has ended: `code`, `state`, `error` (null or text), `finished_at`, `host`; for a
    │                           sweep's job `value`, and facts such as `signal` or `slurm`. It takes precedence
    ├── cancel.json             `at` and `host` of the request to cancel it
    ├── metrics.jsonl           what it measured
    └── logs/job.log            what it printed, byte for byte; logs/rank-N.log where several processes print

A damaged exit.json makes the state unknown; no other file replaces it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import Cancelled, NemotronError, UserError, nearest
from nemotron_kit.files import decoded, open_regular, read_regular
from nemotron_kit.home import located
from nemotron_kit.lazy import Value
from nemotron_kit.masking import masked
from nemotron_kit.runs.process_facts import (
    has_facts_of_this_host,
    is_gone,
    is_in_a_command,
    is_process,
    process_facts,
)

STATES = ("pending", "running", "succeeded", "failed", "cancelled", "preempted", "unreachable", "unknown")
# Final states; `nemotron runs resume` begins a new attempt. A requeued job is `pending`, whatever stopped it.
TERMINAL = frozenset({"succeeded", "failed", "cancelled", "preempted"})
# A run whose plan.json can't be read; no job is ever in this state.
DAMAGED = "damaged"

# The variable that a worker in a step of Slurm's sets for its program: Slurm sends its signals to the program, too.
# SLURM_JOB_ID can't tell that: a local job that was launched inside an allocation has it as well.
SLURM_STEP = "NEMOTRON_SLURM_STEP"

# The exit code of a job that was stopped by a signal after a checkpoint (EX_TEMPFAIL in sysexits.h).
PREEMPTED = 75

# Job state → exit code of a command that reports it; 0 for the states of an unfinished job, which are not in it.
EXIT_CODES = {
    "succeeded": 0,
    "failed": 1,
    "unreachable": 3,
    "unknown": 3,
    DAMAGED: 3,
    "cancelled": 4,
    "preempted": PREEMPTED,
}

_YEAR_3000 = 32_503_680_000.0
# A run's state is the first of these that any of its jobs is in.
_PRECEDENCE = ("running", "pending", "unreachable", "unknown", "failed", "preempted", "cancelled", "succeeded")


@dataclass(frozen=True, eq=False, repr=False)
class JobState(Value):
    """The state of a job. Times are seconds since the epoch; `code` is the exit code once there is one.

    `facts` are from the last transition: `process` (pid, host, …) for a job on this machine, and facts of the back end.
    """

    state: str
    at: float | None = None
    started: float | None = None
    finished: float | None = None
    code: int | None = None
    error: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self.state in TERMINAL


def run_state(states: Iterable[str]) -> str:
    """The state of a run from those of its jobs: unfinished takes precedence over failed, failed over succeeded;
    pending if there are no jobs."""
    present = set(states)
    return next((state for state in _PRECEDENCE if state in present), "pending")


def now_iso() -> str:
    """The current time in UTC as records have it: ISO format with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def parse_time(value: object) -> float | None:
    """Seconds since the epoch of an ISO time or a number; None for anything else, and for a time before 1970 or after
    the year 3000 (a damaged record)."""
    if isinstance(value, bool):
        return None
    try:
        seconds = float(value) if isinstance(value, int | float) else datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < _YEAR_3000 else None


_MAX_BYTES = 64 * 1024 * 1024
_TAIL_BYTES = 1024 * 1024


class DamagedRunRecord(NemotronError):
    """A record in a run's folder exists, but is not valid JSON or has not the expected form."""

    exit_code = 3


# The shape of a JSON value: a type or a tuple of types; {key: shape} for an object with these keys and any others,
# {None: shape} for an object with any keys; [shape] for a list. Null and missing keys are valid, except that a list and
# {None: str} may have no null.
Shape = Any
_TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
}


def read_object(path: Path, shape: Shape = None) -> dict[str, Any]:
    """The JSON object in `path`. Raises FileNotFoundError, or DamagedRunRecord if the file can't be read, is no
    complete JSON object, or has not this shape."""
    try:
        value = json.loads(read_regular(path, limit=_MAX_BYTES))
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedRunRecord(f"{path}: not valid JSON: {error}.") from error
    except OSError as error:
        raise DamagedRunRecord(f"{path}: {error.strerror or error}.") from error
    if not isinstance(value, dict):
        raise DamagedRunRecord(f"{path}: expected a JSON object, got {type(value).__name__}.")
    value = decoded(value)
    if shape is not None and (wrong := misshapen(value, shape, "")):
        raise DamagedRunRecord(f"{path}: {wrong}.")
    return value


def read_object_if_any(path: Path, shape: Shape = None) -> dict[str, Any] | None:
    """`read_object`; None if there is no such file."""
    try:
        return read_object(path, shape)
    except FileNotFoundError:
        return None


def misshapen(value: Any, shape: Shape, key: str) -> str | None:
    """An error message for the first part of a value that does not match its shape, named by its `key`; None if the
    value matches."""
    if value is None:
        return None
    kinds = shape if isinstance(shape, tuple) else (type(shape) if isinstance(shape, dict | list) else shape,)
    # In Python, True is an int.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(_TYPE_NAMES[kind] for kind in kinds)
        text = json.dumps(value, default=str) if len(repr(value)) < 60 else f"{repr(value)[:57]}…"
        return f"{key} is {text}, not {expected}"
    if isinstance(value, str) and "\0" in value:  # neither an argument, a variable nor a path can have it
        return f"{key} has a NUL character"
    if isinstance(shape, dict):
        if shape.get(None) is str and (nulls := [k for k in value if value[k] is None and k not in shape]):
            return f"{key}.{nulls[0]} is null".lstrip(".")
        pairs = [(k, shape.get(k, shape.get(None))) for k in value]
        found = (misshapen(value[k], kind, f"{key}.{k}".lstrip(".")) for k, kind in pairs if kind is not None)
        return next(filter(None, found), None)
    if isinstance(shape, list):
        if None in value:
            return f"{key}[{value.index(None)}] is null"
        return next(filter(None, (misshapen(item, shape[0], f"{key}[{n}]") for n, item in enumerate(value))), None)
    return None


def tail(path: Path, count: int, *, limit: int = _TAIL_BYTES) -> list[bytes]:
    """The last `count` lines of a file, without reading more than `limit` bytes of it; [] when there is no file."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            if size > limit:
                file.readline()  # only the end of a line
            return list(deque(file, maxlen=count)) if count > 0 else []
    except FileNotFoundError:
        return []


def tail_objects(path: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` JSON objects of a file with one in each line; without a last line that is still incomplete."""
    found = []
    for line in tail(path, count + 1):
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found[-count:] if count > 0 else []


_STATE_FILE = r"(\d{6,})-.+\.json\Z"
LOG_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
_ARTIFACTS = {"inputs": {None: dict}, "outputs": [dict]}
_SPEC: dict[str, Any] = {
    **dict.fromkeys(("command", "handler", "config_cls", "script", "module", "cwd", "executor"), str),
    "ray": bool,
    "ray_working_dir": str,
    "sys_path": [str],
    "secrets": [str],
    "environment": {None: str},
    "deferred_inputs": {None: str},
    "late": {None: str},  # deferred_inputs, as older versions wrote it
    "unchanged": {"run": str, "inputs": {None: str}, "outputs": [dict]},
    "after": [str],
    "torchrun": bool,
    "retries": int,
}
DISAPPEARED = "the process disappeared"
NOT_STARTED = "its launch ended before its worker had started"
# In the state of a pending job on this machine: the process that starts it.
STARTER = "starter"
ORPHANED = "its worker has ended; processes that it started are still running"
_CHILD, _CHILD_END, _CANCEL = "child.json", "child-end.json", "cancel.json"
# The file in the job's folder with the value that its function returned, if a sweeper can use it.
VALUE = "value.json"
# The folder with the exit records of each node of a job on several nodes.
NODES = "nodes"
# In the state that begins another attempt.
RESUMED = "resumed"
# In an exit record: the signals that ended the job. The worker does not know why they were sent; their sender does.
UNEXPLAINED = "signalled"
# In an exit record: the scheduler was asked to start the job again.
AGAIN = "again"


def is_sound(record: Mapping[str, Any]) -> bool:
    """Whether an exit record is valid: it has a state, and an exit code or null."""
    return record.get("state") in STATES and type(record.get("code")) in (int, type(None))


def is_final_end(record: Mapping[str, Any]) -> bool:
    """Whether an exit record is the job's end: False for one that is UNEXPLAINED, precedes a requeue (AGAIN), or is not
    valid."""
    ends = is_sound(record) and record["state"] in TERMINAL
    return ends and UNEXPLAINED not in record and not record.get(AGAIN)


@dataclass(frozen=True, eq=False, repr=False)
class JobFolder(Value):
    """`runs/<run id>/jobs/<n>`: the job's NEMO_RUN_DIR. Each file in it has one writer only."""

    path: Path

    @property
    def number(self) -> int:
        """Its number in the run: the folder's name."""
        return int(self.path.name)

    @property
    def run_id(self) -> str:
        """The id of its run."""
        return self.path.parent.parent.name

    @property
    def reference(self) -> str:
        """The name of the job in commands and messages: the run's id; of one among several jobs, `ID/N`."""
        others = any(name.name != self.path.name for name in self.path.parent.glob("[0-9]*"))
        return f"{self.run_id}/{self.number}" if others else self.run_id

    @property
    def config_path(self) -> Path:
        """Its config.yaml, in which only `${art:…}` and `${secret:…}` are unresolved."""
        return self.path / "config.yaml"

    def located(self, value: Any) -> Any:
        """`value`, from a record of the job, with paths inside the home as they are now."""
        return located(value, self.path.parent.parent)

    # --- transitions

    def transition(self, state: str, *, writer: str | None = None, observed: bool = False, **facts: Any) -> None:
        """Record that the job is now in `state`, in a new file for each transition, so that two hosts never write to
        the same file.

        `running` also records this process, unless `process=` gives another (None: no process on this machine). The
        exit record of an earlier attempt (before a requeue) is moved to the history. Raises Cancelled if cancellation
        was requested before the job ran. `observed`: the state was observed by a process that is not the job's; an
        existing exit record is kept.
        """
        _check_state(state)
        if observed:
            self._write_state({"state": state, "at": now_iso(), **facts}, writer)
            return
        if state == "running":
            if self.cancel_requested:
                raise Cancelled(f"{self.run_id}: cancelled before it ran.")
            facts.setdefault("process", process_facts())
        begins = state in ("pending", "running")
        if begins:
            for name in (_CHILD, _CHILD_END):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):  # there was no earlier attempt
                try:
                    record = read_object(self.path / "exit.json")
                    self._write_state({"at": record.get("finished_at"), **record}, writer)
                except DamagedRunRecord as error:
                    self._write_state({"state": "unknown", "at": now_iso(), "error": error.message}, writer)
        self._write_state({"state": state, "at": now_iso(), **facts}, writer)
        if begins:  # after the new state is written: else the last entry of the history would be the old attempt's end
            (self.path / "exit.json").unlink(missing_ok=True)

    def begin_again(self, *, starts_here: bool = False) -> None:
        """Prepare another attempt of a job that has ended: its state becomes pending, a request to cancel it is
        dropped. `starts_here`: this process starts it."""
        (self.path / _CANCEL).unlink(missing_ok=True)
        shutil.rmtree(self.path / NODES, ignore_errors=True)
        starts: dict[str, Any] = {STARTER: process_facts()} if starts_here else {}
        self.transition("pending", resumed=True, **starts)

    def finish(self, code: int, state: str | None = None, *, error: str | None = None, **facts: Any) -> None:
        """Write the exit record. `state` by default follows from `code`; a job that failed or was preempted after
        `request_cancel` is `cancelled`. With the fact UNEXPLAINED the record is provisional, and the job counts as
        running until another is written; with AGAIN it counts as pending."""
        state = state or ("succeeded" if code == 0 else "failed")
        _check_state(state)
        if state in ("failed", "preempted") and self.cancel_requested:
            # How it ended (killed by SIGTERM) is how it was cancelled.
            state, error = "cancelled", f"cancelled: {error}" if state == "preempted" and error else "cancelled"
        record = {"code": code, "state": state, "error": error, "finished_at": now_iso(), "host": socket.gethostname()}
        files.write_json(self.path / "exit.json", masked({**record, **facts}), undecoded=True)

    def record_child(self, pid: int) -> None:
        """Record the child process that runs the job's work; it may outlive the recorded process, its worker."""
        files.write_json(self.path / _CHILD, process_facts(pid))

    def record_child_end(self, code: int) -> None:
        """Record the exit code of this process, the recorded child: its worker may have been killed."""
        files.write_json(self.path / _CHILD_END, {**process_facts(), "code": code, "finished_at": now_iso()})

    def request_cancel(self) -> None:
        """Record that cancellation was requested: an end without success is then `cancelled`."""
        files.write_json(self.path / _CANCEL, {"at": now_iso(), "host": socket.gethostname()})

    @property
    def cancel_requested(self) -> bool:
        """Whether `request_cancel` was called for this attempt."""
        return (self.path / _CANCEL).exists()

    # --- state

    def state(self) -> JobState:
        """The job's state, from its exit record, else from its last transition. A job has failed if its process on this
        machine, or the process that was to start it, has ended without an exit record."""
        written = self._written(this_attempt=True)
        history = [entry for _, entry in written]
        started = next((entry["at"] for entry in reversed(history) if entry["state"] == "running"), None)
        try:
            return _from_exit(read_object(self.path / "exit.json"), started, history)
        except FileNotFoundError:
            if history and history[-1]["state"] in TERMINAL:  # resumed after the history was read
                written = self._written(this_attempt=True)
        except DamagedRunRecord as error:
            return JobState("unknown", error=error.message)
        if not written:
            return JobState("unknown", error=f"{self.path / 'state'}: no readable state.")
        return self._from_last(*written[-1], started)

    def history(self) -> list[dict[str, Any]]:
        """Every readable transition in order; `at` as seconds since the epoch. The exit record is not among them."""
        return [entry for _, entry in self._written()]

    @property
    def has_run(self) -> bool:
        """Whether it, or an earlier attempt, has begun to run."""
        return any(entry["state"] == "running" for entry in self.history())

    def _written(self, *, this_attempt: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """The history, each with its writer: the name of its file without the number. `this_attempt`: what precedes
        the last time that the job began to run is left out, and not read."""
        found: list[tuple[str, dict[str, Any]]] = []
        for _, name in reversed(self._state_files()):
            with contextlib.suppress(DamagedRunRecord, FileNotFoundError):
                entry = read_object(self.path / "state" / name)
                if entry.get("state") in STATES:
                    writer = name.partition("-")[2].removesuffix(".json")
                    found.append((writer, {**entry, "at": parse_time(entry.get("at"))}))
                    if this_attempt and entry["state"] == "running":
                        break
        return found[::-1]

    def exit_record(self) -> dict[str, Any] | None:
        """exit.json; None if there is none. Raises DamagedRunRecord."""
        return read_object_if_any(self.path / "exit.json")

    # --- logs, artifacts, metrics

    def log_path(self, name: str = "job") -> Path:
        """The path of `logs/<name>.log`: "job" is the whole job's log, "rank-3" that of one rank. Creates the folder,
        not the file."""
        if not re.match(LOG_NAME, name) or ".." in name:
            raise ValueError(f"log name {name!r}: use letters, digits, '.', '_' and '-'.")
        folder = self.path / "logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{name}.log"

    def open_log(self, name: str = "job") -> FileIO:
        """The log, opened for appending, unbuffered, mode 0600: a requeued job's log is continued."""
        return files.open_appending(self.log_path(name))

    def artifacts(self) -> dict[str, Any]:
        """`{"inputs": {slot: pin}, "outputs": [pin, …]}`; empty ones if nothing was recorded. Raises DamagedRunRecord.

        Each save is a file in `artifacts.d`; the list in artifacts.json may lack saves of killed processes.
        """
        record = self.located(read_object_if_any(self.path / "artifacts.json", _ARTIFACTS) or {})
        outputs = list(record.get("outputs") or ())
        for file in sorted((self.path / "artifacts.d").glob("[0-9]*.json")):
            with contextlib.suppress(FileNotFoundError):
                pin = self.located(read_object(file))
                outputs += [pin] if pin not in outputs else []
        return {"inputs": record.get("inputs") or {}, "outputs": outputs}

    def spec(self) -> dict[str, Any]:
        """The content of job.json, the worker's input; {} if there is none. Raises DamagedRunRecord."""
        return dict(self.located(read_object_if_any(self.path / "job.json", _SPEC) or {}))

    def metrics(self, count: int) -> list[dict[str, Any]]:
        """The last `count` rows of metrics.jsonl."""
        return tail_objects(self.path / "metrics.jsonl", count)

    # --- private

    def _state_files(self) -> list[tuple[int, str]]:
        try:
            names = os.listdir(self.path / "state")  # noqa: PTH208 — names only, and 10,000 folders are listed
        except OSError:
            return []
        return sorted((int(match[1]), name) for name in names if (match := re.match(_STATE_FILE, name)))

    def _write_state(self, record: Mapping[str, Any], writer: str | None) -> None:
        folder = self.path / "state"
        folder.mkdir(mode=0o700, exist_ok=True)
        known = self._state_files()
        sequence = known[-1][0] + 1 if known else 0
        writer = _file_text(writer or f"{socket.gethostname()}-{os.getpid()}")
        files.write_json(folder / f"{sequence:06d}-{writer}.json", masked(record))

    def _child(self, name: str = _CHILD) -> dict[str, Any] | None:
        try:
            return read_object_if_any(self.path / name)
        except DamagedRunRecord:
            return None

    def _from_child_end(
        self, child: Mapping[str, Any], last: Mapping[str, Any], started: float | None
    ) -> JobState | None:
        """The job's state by the exit code that its child recorded after the worker was killed; None without one."""
        end = self._child(_CHILD_END)
        if end is None or any(end.get(name) != child.get(name) for name in ("host", "pid", "started")):
            return None
        code, finished = end.get("code"), parse_time(end.get("finished_at"))
        if type(code) is not int:
            return None
        state = "succeeded" if code == 0 else "preempted" if code == PREEMPTED else "failed"
        if state != "succeeded" and self.cancel_requested:
            state = "cancelled"
        error = f"exit code {code}; its worker had been killed" if state == "failed" else None
        return JobState(state, finished, started, finished, code, error, last)

    def _is_abandoned(self, last: Mapping[str, Any]) -> bool:
        """Whether the process that was to start the job has ended, and no other process of ours will start it."""
        starter = last.get(STARTER)
        return isinstance(starter, Mapping) and is_gone(starter) and not is_in_a_command(self.path, starter)

    def _from_last(self, writer: str, last: Mapping[str, Any], started: float | None) -> JobState:
        state, error, process = last["state"], last.get("error"), last.get("process")
        if state in ("pending", "running"):  # with a damaged record it is not known whether the job is alive
            for name in ("process", STARTER):
                if last.get(name) is not None and not _is_of(writer, last[name]):
                    return JobState("unknown", last["at"], started, error=f"{name}: not a process", facts=last)
        if state in ("pending", "running") and isinstance(process, Mapping) and is_gone(process):
            if (self.path / "exit.json").exists():  # written after `state` looked for it
                return self.state()
            child = self._child()
            if child is not None and not _is_of(writer, child):
                return JobState("unknown", last["at"], started, error=f"{_CHILD}: not a process", facts=last)
            if child is not None and not is_gone(child):
                facts = {**last, "process": child}
                return JobState("running", last["at"], started, error=ORPHANED, facts=facts)
            if child is not None and (ended := self._from_child_end(child, last, started)) is not None:
                return ended
            state, error = ("cancelled", None) if self.cancel_requested else ("failed", DISAPPEARED)
        elif state == "pending" and process is None and self._is_abandoned(last):
            if (self.path / "exit.json").exists() or self.history()[-1] != last:  # its worker has written meanwhile
                return self.state()
            state, error = ("cancelled", None) if self.cancel_requested else ("failed", NOT_STARTED)
        return JobState(state, last["at"], started, None, last.get("code"), error, last)


def _file_text(text: str) -> str:
    """As a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "kit"


def _is_of(writer: str, record: object) -> bool:
    """Whether a record is that of a process of the machine that wrote it, `<host>-<pid>`."""
    pid = writer.rpartition("-")[2]
    if not isinstance(record, Mapping) or not is_process(record) or _file_text(f"{record['host']}-{pid}") != writer:
        return False
    return has_facts_of_this_host(record)


def _from_exit(record: Mapping[str, Any], started: float | None, history: list[dict[str, Any]]) -> JobState:
    state, code = str(record.get("state")), record.get("code")
    if not is_sound(record):
        return JobState("unknown", error=f"exit.json: state {state!r} with code {code!r} is not valid.")
    facts, finished = {**(history[-1] if history else {}), **record}, parse_time(record.get("finished_at"))
    if UNEXPLAINED in record and state == "failed":  # its scheduler knows whether it was cancelled or is requeued
        return JobState("running", finished, started, facts=facts)
    if record.get(AGAIN):
        return JobState("pending", finished, started, facts={**facts, "reason": record.get("error")})
    return JobState(state, finished, started, finished, code, record.get("error"), facts)


def _check_state(state: str) -> None:
    if state not in STATES:
        raise UserError(f"{state!r} is not a state of a job.", hint=nearest(state, STATES))
