"""`nemotron runs show ID`: what was launched, from what, how it went, and where it lies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from nemotron_kit.cli.grid import print_facts, print_json
from nemotron_kit.cli.runs import as_json, duration, iso
from nemotron_kit.cli.toolargs import ToolParser, at_least, short_span
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.runs.records import DamagedRecord
from nemotron_kit.runs.states import DAMAGED, EXIT_CODES, JobState

_METRICS = 5
_MANY = 20

Fact = tuple[str, object]


def show(argv: list[str]) -> int:
    """Print one run. The exit code is 3 for a damaged one, else 0: how the run itself ended is for `wait`."""
    parser = ToolParser("nemotron runs show", "The plan, inputs, outputs, states, metrics and folder of a run.")
    parser.add_argument("id", metavar="ID", help="a run's id, the start of one, its last six digits, or latest")
    parser.add_argument("--job", type=at_least(0), help="of a run with many jobs: this one")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse(argv)
    if options is None:
        return 0
    run = open_run(options.id)
    jobs = run.jobs() if options.job is None else [run.job(options.job)]
    if options.json:
        print_json(_json(run, jobs))
    else:
        print_facts(list(_facts(run, jobs)))
    return EXIT_CODES[DAMAGED] if run.summary().state == DAMAGED else 0


def _json(run: RunFolder, jobs: list[JobFolder]) -> dict[str, Any]:
    try:
        plan: dict[str, Any] | None = run.plan()
    except DamagedRecord:
        plan = None
    return {**as_json(run.summary()), "plan": plan, "job_records": [_job_json(job) for job in jobs]}


def _job_json(job: JobFolder) -> dict[str, Any]:
    state = job.state()
    return {
        "number": job.number,
        "state": state.state,
        "exit_code": state.code,
        "error": state.error,
        "started_at": iso(state.started),
        "finished_at": iso(state.finished),
        "duration_s": duration(state.started, state.finished, state.state),
        "history": [{**entry, "at": iso(entry["at"])} for entry in job.history()],
        "artifacts": _artifacts(job),
        "metrics": job.metrics(_METRICS),
        "folder": str(job.path),
    }


def _facts(run: RunFolder, jobs: list[JobFolder]) -> Iterator[Fact]:
    summary = run.summary()
    yield "run", run.id
    yield "state", summary.state
    if summary.error:
        yield "why", summary.error
    plan = run.plan() if summary.state != DAMAGED else {}
    yield "command", plan.get("command_line")
    yield "hydra", plan.get("hydra")
    yield "profile", _profile(plan)
    yield "folder", run.path
    if len(jobs) == 1:
        yield from _job_facts(jobs[0], plan)
    else:
        yield from _sweep_facts(jobs, run)


def _profile(plan: Mapping[str, Any]) -> str:
    name, executor = plan.get("profile"), plan.get("executor")
    return f"{name} ({executor})" if name and executor else str(name or "none: this machine")


def _sweep_facts(jobs: list[JobFolder], run: RunFolder) -> Iterator[Fact]:
    for job in jobs[:_MANY]:
        state = job.state()
        yield "jobs", f"{job.number}  {_outcome(state)}"
    if len(jobs) > _MANY:
        yield "jobs", f"and {len(jobs) - _MANY} more"
    yield "next", f"nemotron runs show {run.id} --job N"


def _job_facts(job: JobFolder, plan: Mapping[str, Any]) -> Iterator[Fact]:
    state = job.state()
    if state.code is not None:
        yield "exit code", state.code
    took = duration(state.started, state.finished, state.state)
    if took is not None:
        yield "took", short_span(took)
    artifacts = _artifacts(job)
    inputs = {**_mapping(plan.get("inputs")), **_mapping(artifacts.get("inputs"))}
    for slot, pin in inputs.items():
        yield "inputs", f"{slot} = {_pin(pin)}"
    for pin in artifacts.get("outputs", []):
        yield "outputs", _pin(pin)
    if "error" in artifacts:
        yield "outputs", artifacts["error"]
    for entry in job.history():
        yield "history", _moment(entry)
    if state.finished is not None:
        yield "history", f"{_clock(state.finished)}  {_outcome(state)}"
    for row in job.metrics(_METRICS):
        yield "metrics", "  ".join(f"{key}={_number(value)}" for key, value in row.items())
    yield "next", f"nemotron runs logs {job.run_id}" + (f" --job {job.number}" if job.number else "")


def _artifacts(job: JobFolder) -> dict[str, Any]:
    try:
        return job.artifacts()
    except DamagedRecord as error:
        return {"inputs": {}, "outputs": [], "error": error.message}


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _pin(pin: object) -> str:
    if not isinstance(pin, Mapping):
        return "not resolved yet" if pin is None else str(pin)
    if pin.get("version") is None:
        return str(pin.get("path"))
    return f"{pin.get('name')}:v{pin['version']}  {pin.get('path')}  sha256 {str(pin.get('digest'))[:12]}"


def _moment(entry: Mapping[str, Any]) -> str:
    process = _mapping(entry.get("process"))
    where = f"  {process.get('host')}, pid {process.get('pid')}" if process else ""
    return f"{_clock(entry['at'])}  {entry['state']}{where}"


def _outcome(state: JobState) -> str:
    code = f", exit code {state.code}" if state.code is not None else ""
    return f"{state.state}{code}{f': {state.error}' if state.error else ''}"


def _clock(seconds: float | None) -> str:
    return "?" * 19 if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
