"""How a job under a scheduler ends: each node leaves its end for the others; node 0 writes the job's record, or that it
runs again."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemotron_kit import files
from nemotron_kit.execution.jobspec import JobSpec
from nemotron_kit.execution.nodes import Node
from nemotron_kit.execution.outcome import Outcome
from nemotron_kit.masking import masked
from nemotron_kit.runs.job import AGAIN, NODES, RESUMED, UNEXPLAINED, JobFolder
from nemotron_kit.target.code import written_since

OTHERS_SECONDS = 20.0
# In the job's folder: what its function returned, if a sweeper can use it.
VALUE = "value.json"
_LAST = "this was the last of its segments, max_segments"


def write_end(job: JobFolder, node: Node, outcome: Outcome) -> None:
    """How this node ended, for the others; a job on one node has none."""
    if node.count == 1:
        return
    place = _end_of(job, node.rank)
    place.parent.mkdir(mode=0o700, exist_ok=True)
    end = {"code": outcome.recorded, "state": outcome.state, "error": outcome.error, "host": socket.gethostname()}
    files.write_json(place, masked({**end, "node": node.name}))


def wait_for_nodes(job: JobFolder, ranks: Iterable[int], seconds: float) -> None:
    """Until these nodes have ended."""
    places = [_end_of(job, rank) for rank in ranks]
    deadline = time.monotonic() + seconds
    while not all(place.exists() for place in places) and time.monotonic() < deadline:
        time.sleep(0.1)


def with_others(job: JobFolder, node: Node, outcome: Outcome, seen: set[str]) -> Outcome:
    """The outcome of all nodes. Node 0 waits for the others' last lines, but not where it is being stopped."""
    others = range(1, node.count)
    wait_for_nodes(job, others, OTHERS_SECONDS if not seen else 2.0)
    for end in filter(None, (_read(_end_of(job, rank)) for rank in others)):
        if end["state"] == "failed" and (outcome.state == "succeeded" or seen):
            error = f"node {end['node'] or end['host']}: {end['error']}"
            return Outcome(1, "failed", error, own=int(end["code"]) or 1)
    return outcome


def record(job: JobFolder, spec: JobSpec, node: Node, outcome: Outcome, seen: set[str]) -> None:
    """The exit record, or that the job runs again."""
    # What a signal ended, only the scheduler can explain, unless it was asked to from here. USR1 ends nothing.
    asked = not node.job or job.cancel_requested
    explained = outcome.state == "succeeded" or asked or not ("TERM" in seen or outcome.signal)
    signals = {} if explained else {UNEXPLAINED: sorted(seen)}
    again = node.job is not None and not job.cancel_requested and _again(job, spec, outcome, seen)
    if again:
        files.write_text(again_file(job), "told" if seen == {"TERM"} else "always")
    if again and outcome.state != "preempted":
        reason = f"retry after {outcome.error}"
        job.transition("pending", process=None, retry=True, reason=reason, error=outcome.error)
    elif outcome.state == "preempted" and job.cancel_requested:
        job.finish(128 + signal.SIGTERM, "cancelled", error="cancelled")
    elif outcome.state == "preempted":
        last = f"{_LAST}={spec.max_segments}" if node.job else None
        then = "it goes on from there" if again else f"{last or 'nothing starts it again'}: {resume_line(job)}"
        facts = {**signals, **({AGAIN: True} if again else {}), **_written(spec)}
        state = "failed" if last and not again else "preempted"
        job.finish(outcome.recorded, state, error=f"stopped with a checkpoint; {then}", **facts)
    else:
        value = _read(job.path / VALUE) or {}
        job.finish(outcome.recorded, outcome.state, error=outcome.error, **signals, **value, **_written(spec))


def _written(spec: JobSpec) -> dict[str, Any]:
    """What lies in the job's copy of the code that was not sent: it goes when the run's folder goes."""
    found = written_since(Path(spec.code)) if spec.code else {}
    return {"written": found} if found else {}


def resume_line(job: JobFolder) -> str:
    """What is typed to have a job go on that nothing starts again."""
    return f"nemotron runs resume {job.reference}"


def again_file(job: JobFolder) -> Path:
    """What asks the job's script to have it queued again."""
    return job.path.parent.parent / "slurm" / f"again-{os.environ['SLURM_JOB_ID']}"


def _again(job: JobFolder, spec: JobSpec, outcome: Outcome, seen: set[str]) -> bool:
    """Whether the job runs once more: after a checkpoint, or after a failure that was no signal's."""
    history = job.history()
    begun = max((number for number, entry in enumerate(history) if entry.get(RESUMED)), default=0)
    history = history[begun:]  # whoever resumes it starts the count anew
    if outcome.state == "preempted":
        # Being preempted costs nobody a segment.
        done = sum(1 for entry in history if entry["state"] == "preempted" and entry.get(UNEXPLAINED) != ["TERM"])
        return spec.max_segments is None or done + 1 < spec.max_segments or seen == {"TERM"}
    if outcome.state == "failed" and not seen:
        return sum(1 for entry in history if entry.get("retry")) < spec.retries
    return False


def _end_of(job: JobFolder, rank: int) -> Path:
    return job.path / NODES / f"{os.environ.get('SLURM_RESTART_COUNT', '0')}-{rank}.json"


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        value = json.loads(files.read_regular(path))
    except FileNotFoundError:
        return None
    return files.decoded(value) if isinstance(value, dict) else None
