"""What jobs left in their folders on the target, for the record of the machine that launched them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.local import LocalRegistry
from nemotron_kit.artifacts.store import Damaged
from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.ids import is_run_id
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import take_away
from nemotron_kit.runs.logs import last_lines
from nemotron_kit.runs.records import DamagedRecord
from nemotron_kit.target.logs import LOG_NAME

_METRICS = 200


def job_records(payload: bytes, *, jobs: Sequence[str]) -> tuple[list[dict[str, Any]], bytes]:
    """`{"exit", "history", "artifacts", "metrics"}` of each job folder; None, or empty, for what isn't there."""
    del payload
    return [_record(JobFolder(Path(job))) for job in jobs], b""


def begin_again(payload: bytes, *, jobs: Sequence[str]) -> tuple[None, bytes]:
    """Have jobs that have ended be pending, for another attempt."""
    del payload
    for job in jobs:
        if Path(job).is_dir():  # else nothing of it has ever come here
            JobFolder(Path(job)).begin_again()
    return None, b""


def log_offset(payload: bytes, *, job: str, name: str, lines: int) -> tuple[int, bytes]:
    """The offset at which the last `lines` lines of the log called `name` begin; 0 when there is none."""
    del payload
    if not LOG_NAME.match(name):
        raise NemotronError(f"{name!r} is no name of a log.")
    return last_lines(Path(job) / "logs" / f"{name}.log", lines), b""


def saved_in(payload: bytes, *, folder: str, registry: str) -> tuple[list[str], bytes]:
    """The versions of the target's registry whose files lie below `folder`, as `Name:v3`."""
    del payload
    return versions_in(LocalRegistry(registry), Path(folder)), b""


def versions_in(registry: LocalRegistry, folder: Path) -> list[str]:
    """The versions of a registry whose files lie below `folder`, a run's. Of a record that is damaged, what is left of
    its text tells, and what the run's jobs say that they saved: it is one of them where it names the run at all."""
    place, found = folder.resolve(), []
    saved = {f"{pin.get('name')}:v{pin.get('version')}" for pin in _saved(RunFolder(folder))}
    for record in registry.everything():
        if isinstance(record, Damaged):
            if folder.name in record.text or record.label in saved:
                found.append(f"{record.label} (its record is damaged)")
        elif any(Path(path).resolve().is_relative_to(place) for path in (record.path, record.root)):
            found.append(record.pin.label)
    return found


def _saved(run: RunFolder) -> Iterator[dict[str, Any]]:
    for job in run.jobs():
        with contextlib.suppress(DamagedRecord):
            yield from (pin for pin in job.artifacts()["outputs"] if isinstance(pin, dict))


def remove_run(payload: bytes, *, folder: str, registry: str) -> tuple[bool, bytes]:
    """Delete a run's folder on the target; whether there was one. UserError while an artifact's files lie in it."""
    run = Path(folder)
    if run.parent.name != "runs" or not is_run_id(run.name):
        raise NemotronError(f"{folder} is no folder of a run.")
    store = LocalRegistry(registry)
    if not run.is_dir():
        return False, b""
    take_away(run, lambda: versions_in(store, run))
    return True, b""


def _record(job: JobFolder) -> dict[str, Any]:
    try:
        exit_record, artifacts = job.exit_record(), job.artifacts()
    except DamagedRecord as error:
        raise NemotronError(error.message) from error
    return {"exit": exit_record, "history": job.history(), "artifacts": artifacts, "metrics": job.metrics(_METRICS)}
