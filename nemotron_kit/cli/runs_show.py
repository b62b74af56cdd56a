"""`nemotron runs show ID`: what was launched, from what, how it went, and where it lies."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from nemotron_kit.cli.grid import print_facts, print_json
from nemotron_kit.cli.runs import as_json, duration, iso
from nemotron_kit.cli.runs_look import Look, written_by
from nemotron_kit.cli.toolargs import ToolParser, at_least, short_span
from nemotron_kit.files import read_regular
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.runs.records import DamagedRecord
from nemotron_kit.runs.states import EXIT_CODES, JobState

_METRICS = 5
_FILES = 20
_MANY = 20

Fact = tuple[str, object]


def show(argv: list[str]) -> int:
    """Print one run. The exit code is 3 where its state isn't known, else 0: how the run itself ended is for `wait`."""
    parser = ToolParser("nemotron runs show", "The plan, inputs, outputs, states, metrics and folder of a run.")
    parser.add_argument("id", metavar="ID", help="a run's id, the start of one, its last six digits, or latest")
    parser.add_argument("--job", type=at_least(0), help="of a run with many jobs: this one")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse(argv)
    if options is None:
        return 0
    run = open_run(options.id)
    jobs = run.jobs() if options.job is None else [run.job(options.job)]
    look = Look(run, jobs)
    if options.json:
        print_json(_json(look))
    else:
        print_facts(list(_facts(look)))
    return 3 if EXIT_CODES.get(look.state) == 3 else 0


def _json(look: Look) -> dict[str, Any]:
    facts = {**as_json(look.summary), "state": look.state}
    records = [_job_json(job, look) for job in look.jobs]
    return {**facts, "plan": look.plan, "job_records": records}


def _job_json(job: JobFolder, look: Look) -> dict[str, Any]:
    state = look.states[job.number]
    reason, start = look.waiting(job.number)
    return {
        "number": job.number,
        "state": state.state,
        "exit_code": state.code,
        "error": state.error,
        "reason": reason,
        "estimated_start": start,
        "last_known": state.facts.get("known"),
        "last_known_at": iso(state.facts.get("known_at")),
        "scheduler": _mapping(state.facts.get("scheduler")) or None,
        "started_at": iso(state.started),
        "finished_at": iso(state.finished),
        "duration_s": duration(state.started, state.finished, state.state),
        "history": [{**entry, "at": iso(entry["at"])} for entry in job.history()],
        "artifacts": _artifacts(job),
        "metrics": job.metrics(_METRICS),
        "written": written_by(job),
        "folder": str(job.path),
    }


def _facts(look: Look) -> Iterator[Fact]:
    run, plan = look.run, look.plan or {}
    yield "run", run.id
    yield "state", look.state
    yield from _why(look)
    yield "command", plan.get("command_line")
    yield "hydra", _line(plan.get("hydra"))
    yield "profile", _profile(plan)
    yield from _links(plan)
    yield "folder", run.path
    if len(look.jobs) == 1:
        if (look.plan or {}).get("kind") == "sweep" and (said := _overrides(look.jobs[0])):
            yield "overrides", " ".join(said)
        yield from _job_facts(look.jobs[0], look)
    else:
        yield from _sweep_facts(look)


def _why(look: Look) -> Iterator[Fact]:
    lost = next((s for s in look.states.values() if s.state == "unreachable"), None)
    if lost is not None and look.state == "unreachable":
        yield "why", lost.error
        yield "last known", _known(lost)
    elif look.summary.error:
        yield "why", look.summary.error
    if len(look.jobs) == 1:
        reason, start = look.waiting(look.jobs[0].number)
        yield from [("waits for", reason)] if reason else []
        yield from [("may start", start)] if start else []


def _known(state: JobState) -> str:
    known = state.facts.get("known")
    return f"{known}, {_clock(state.facts.get('known_at'))}" if known else "nothing"


def _links(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if plan.get("rerun_of"):
        yield "rerun of", str(plan["rerun_of"])
    for run_id in plan.get("after") or ():
        yield "after", str(run_id)
    code = _mapping(plan.get("code"))
    if code.get("commit"):
        yield "code", f"{str(code['commit'])[:12]}{' and what was not committed' if code.get('dirty') else ''}"


def _line(words: object) -> object:
    """A sweep's words are on record one by one."""
    return shlex.join(["python", "-m", "nemotron_kit", *map(str, words)]) if isinstance(words, list) else words


def _profile(plan: Mapping[str, Any]) -> str:
    name, executor = plan.get("profile"), plan.get("executor")
    return f"{name} ({executor})" if name and executor else str(name or "none: this machine")


def _sweep_facts(look: Look) -> Iterator[Fact]:
    counts = Counter(state.state for state in look.states.values())
    yield "jobs", f"{counts.total()}: {', '.join(f'{count} {state}' for state, count in counts.most_common())}"
    if look.unsubmitted:
        yield "waiting", f"{look.unsubmitted} for room: nemotron runs resume {look.run.id} submits what fits"
    shown = look.jobs[:_MANY]
    words = [_overrides(job) for job in shown]
    common = set.intersection(*map(set, words)) if words else set()
    for job, said in zip(shown, words, strict=True):
        own = " ".join(word for word in said if word not in common)
        yield "jobs", f"{job.number}  {_outcome(look.states[job.number])}{f'  {own}' if own else ''}"
    if len(look.jobs) > _MANY:
        yield "jobs", f"and {len(look.jobs) - _MANY} more"
    yield "next", f"nemotron runs show {look.run.id} --job N"


def _overrides(job: JobFolder) -> list[str]:
    """The words of one job of a sweep, as recorded; none for a job that has no such record."""
    try:
        found = json.loads(read_regular(job.path / ".hydra" / "overrides.yaml"))
    except (OSError, ValueError):
        return []
    return [str(word) for word in found] if isinstance(found, list) else []


def _job_facts(job: JobFolder, look: Look) -> Iterator[Fact]:
    state, plan = look.states[job.number], look.plan or {}
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
    if found := written_by(job):
        more = f" and {found['more']} more" if found["more"] else ""
        yield "wrote", f"{', '.join(found['files'][:_FILES])}{more} in {found['folder']}"
    for entry in job.history():
        yield "history", _moment(entry)
    if state.finished is not None:
        yield "history", f"{_clock(state.finished)}  {_outcome(state)}"
    for row in job.metrics(_METRICS):
        yield "metrics", "  ".join(f"{key}={_number(value)}" for key, value in row.items())
    if state.state == "failed" and look.unsubmitted:
        yield "next", f"nemotron runs resume {job.run_id} waits on, and submits it"
    elif state.terminal and state.state != "succeeded":
        yield "next", f"nemotron runs resume {job.reference} goes on with it"
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
    scheduler = _mapping(entry.get("scheduler"))
    where = f"  {process.get('host')}, pid {process.get('pid')}" if process else ""
    if scheduler:
        where = "  " + " ".join(str(scheduler[key]) for key in ("kind", "job", "node") if scheduler.get(key))
    return f"{_clock(entry['at'])}  {entry['state']}{where}"


def _outcome(state: JobState) -> str:
    code = f", exit code {state.code}" if state.code is not None else ""
    return f"{state.state}{code}{f': {state.error}' if state.error else ''}"


def _clock(seconds: float | None) -> str:
    return "?" * 19 if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
