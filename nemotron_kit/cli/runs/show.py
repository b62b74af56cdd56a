"""`nemotron runs show`: prints a run's plan, inputs and results."""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.cli.output import clean, print_facts, print_json, print_status
from nemotron_kit.cli.runs.list import as_json, chosen_jobs, clock, duration, iso
from nemotron_kit.cli.runs.results import (
    ResultCache,
    SweepTable,
    job_result,
    measured_facts,
    overrides_of,
    print_sweep,
    print_sweep_csv,
    sweep_table,
)
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import finite
from nemotron_kit.launch.queue import SweepQueue
from nemotron_kit.launch.status import effective_state, is_mirrored, mirror, refresh, refresh_stages
from nemotron_kit.remote.agent.code import registered_folders, written_since
from nemotron_kit.runs.folder import DAMAGE, RunFolder, RunSummary
from nemotron_kit.runs.job import DAMAGED, EXIT_CODES, DamagedRunRecord, JobFolder, JobState
from nemotron_kit.runs.ledger import labels_of
from nemotron_kit.runs.metrics import measured_by_rank, series
from nemotron_kit.runs.progress import short_span
from nemotron_kit.spec.plan import Plan, is_local, stored_plan

if TYPE_CHECKING:
    from nemotron_kit.launch.status import StatusSnapshot


class RunView:
    """A run and some of its jobs, with their current states; its back end is queried once, if it has one."""

    def __init__(self, run: RunFolder, jobs: Sequence[JobFolder], cache: ResultCache | None = None) -> None:
        """`cache` is the cache of the run's results, for callers that need no facts of ended jobs but their states."""
        self.run, self.jobs, self._cache = run, jobs, cache
        self.plan: Plan | None = None
        with suppress(DamagedRunRecord):
            self.plan = stored_plan(run)
        self._is_remote = self.plan is not None and not is_local(self.plan.executor)
        self.snapshot: StatusSnapshot | None = None
        if self.plan is not None and self._is_remote:
            self.snapshot = refresh([run]).get(run.id)
            if len(jobs) == 1 and not (self.snapshot and self.snapshot.lost):
                try:
                    mirror(self.plan, [job for job in jobs if not is_mirrored(job)])
                except NemotronError as error:
                    print_status(f"note: its records on the target could not be read: {clean(error.message)}")
        self.states = {job.number: self._job_state(job) for job in jobs}
        whole = not self._is_remote and len(jobs) == len(run.jobs())
        self.summary = run.summary(list(self.states.values()) if whole else None)
        if self.plan is None or self.summary.state == DAMAGED:
            self.state = DAMAGED
        elif len(jobs) == self.summary.jobs:
            self.state = run.state_of(state.state for state in self.states.values())
        else:
            self.state = run.state_of(self._job_state(job).state for job in run.jobs())

    def _job_state(self, job: JobFolder) -> JobState:
        known = self._cache.known(job.path.name, str(job.path)) if self._cache else None
        if known is not None:
            return known[0]
        if not self._is_remote:
            return job.state()
        return effective_state(job, self.snapshot)

    @property
    def unsubmitted(self) -> int:
        """The number of a sweep's jobs that are not submitted yet."""
        return len(SweepQueue(self.run).waiting) if self._is_remote else 0

    def waiting(self, number: int) -> tuple[str | None, str | None]:
        """(the reason why a pending job waits, its estimated start), as its scheduler reports them."""
        observed = self.snapshot.observed.get(number) if self.snapshot else None
        if self.states[number].state != "pending":
            return None, None
        recorded = self.states[number].facts.get("reason")
        return (observed.reason if observed else None) or recorded, observed.estimated_start if observed else None


def written_by(job: JobFolder) -> dict[str, Any]:
    """The files that a job wrote into its copy of the code and did not register: `{"folder", "files", "more"}`; {} if
    there are none. They are read from its exit record, or from the folder if the record lacks names."""
    saved = registered_folders(job)
    try:
        record = job.exit_record()
    except DamagedRunRecord:
        record = None
    if record is None:
        return written_since(job.path / "code", saved)
    written = record.get("written")
    if isinstance(written, dict) and isinstance(written.get("files"), list):
        folder, more = Path(str(written.get("folder"))), written.get("more")
        if more and os.path.isdir(folder):  # noqa: PTH112 — pathlib's raises for a name that is too long
            return written_since(folder, saved)
        names = [str(name) for name in written["files"] if saved.isdisjoint((folder / str(name)).parents)]
        more = more if isinstance(more, int) else 0
        return {"folder": str(folder), "files": names, "more": more} if names or more else {}
    return {}


_FILES = 20
_METRICS = 40
_MAX_JOBS = 20
_NO_TIME = "?" * 19

Fact = tuple[str, object]


def show(argv: list[str]) -> int:
    """`nemotron runs show ID`: print one run. Returns 3 if its state isn't known, else 0, also for a failed run."""
    options = ToolParser("runs", "show").parse(argv)
    if options.csv and options.json:
        raise UserError("nemotron runs show: --csv and --json are two formats.", hint="Leave one of them out.")
    run, chosen = chosen_jobs(options.id, options.job)
    jobs = run.jobs() if chosen is None else chosen
    many = not run.is_pipeline and len(jobs) > 1
    if (options.sort or options.top or options.csv) and not (many or (chosen is None and _is_sweep(run))):
        raise UserError(f"nemotron runs show: {options.id} is not a sweep: --sort, --top and --csv need one.")
    if run.is_pipeline:
        return _show_pipeline(run, as_data=options.json)
    gc.disable()  # the results of many jobs are many objects, which all live until the end
    with ResultCache(run.path) as cache:
        view = RunView(run, jobs, None if options.json or len(jobs) == 1 else cache)
        results = [cache.result(job.path.name, job, view.states[job.number]) for job in jobs]
    table = sweep_table(results, options.sort, view.plan)
    if options.csv:
        print_sweep_csv(table, options.top)
    elif options.json:
        print_json(_json(view, table, options.top))
    else:
        print_facts(list(_facts(view)))
        if len(jobs) > 1:
            print_sweep(table, options.top or _MAX_JOBS)
    return 3 if EXIT_CODES.get(view.state) == 3 else 0


def _is_sweep(run: RunFolder) -> bool:
    """Whether a run is a sweep by its record: it may have one job."""
    try:
        return run.plan().get("kind") == "sweep"
    except DamagedRunRecord:
        return False


def _show_pipeline(run: RunFolder, *, as_data: bool) -> int:
    """Print a pipeline: its state, and a line for each stage with its run."""
    refresh_stages(run)
    plan, summary = run.plan(), run.summary()
    rows = [_stage_row(run, record) for record in run.stages()]
    rows += [{"stage": name, "state": "not started"} for name in (plan.get("stages") or [])[len(rows) :]]
    if as_data:
        print_json({**as_json(summary), "plan": plan, "stages": rows})
    else:
        print_facts(list(_pipeline_facts(run, plan, summary, rows)))
    return 3 if EXIT_CODES.get(summary.state) == 3 else 0


def _stage_row(run: RunFolder, record: Mapping[str, Any]) -> dict[str, Any]:
    if DAMAGE in record:
        return {"stage": record["stage"], "state": DAMAGED, "error": record[DAMAGE]}
    stage_run = run.stage_run(record)
    row = {"stage": record.get("stage"), "why": record.get("why"), "run": record.get("run") or record.get("producer")}
    if record.get("skipped") or stage_run is None:
        outputs = record.get("outputs") or []
        return {**row, "state": "skipped" if record.get("skipped") else "removed", "outputs": outputs}
    state = stage_run.summary()
    job = stage_run.jobs()[0] if stage_run.jobs() else None
    skipped = job.state().facts.get("skipped") if job else None
    return {
        **row,
        "state": "skipped" if skipped else state.state,
        **({"why": skipped} if skipped else {}),
        "error": state.error,
        "duration_s": duration(state.started, state.finished, state.state),
        "outputs": artifacts_of(job)["outputs"] if job else [],
    }


def _pipeline_facts(
    run: RunFolder, plan: Mapping[str, Any], summary: RunSummary, rows: Sequence[Mapping[str, Any]]
) -> Iterator[Fact]:
    yield "run", run.id
    yield from _labels(run)
    yield "state", summary.state
    yield from [("why", summary.error)] if summary.error else []
    yield "command", plan.get("command_line")
    yield "profile", plan.get("profile") or "none: this machine"
    yield "folder", run.path
    for at, row in enumerate(rows):
        took = f" in {short_span(row['duration_s'])}" if row.get("duration_s") is not None else ""
        labels = ", ".join(_pin(pin).partition("  ")[0] for pin in row.get("outputs") or ())
        line = f"{at}  {str(row['stage']).replace('/', ' ')}: {row['state']}{took}{f': {labels}' if labels else ''}"
        yield "stages", f"{line}  {row['run']}" if row.get("run") else line
    if rows:
        yield "next", f"nemotron runs show {run.id}/0"
    if summary.state in ("failed", "cancelled", "preempted"):
        yield "next", f"{plan.get('command_line')} continues it"


def _json(view: RunView, table: SweepTable, top: int | None) -> dict[str, Any]:
    """The run as JSON data, with its jobs by number; with `top` only the best ones, best first."""
    facts = {**as_json(view.summary), "state": view.state}
    results = {result.number: result for result in table.jobs}
    jobs = view.jobs if top is None else [view.run.job(result.number) for result in table.jobs[:top]]
    records = [{**_job_json(job, view), **results[job.number].to_dict()} for job in jobs]
    best = table.best if len(view.jobs) > 1 else None
    found = {"objective": table.objective, "best_job": None if best is None else best.number}
    return {**facts, "plan": view.run.plan() if view.plan else None, **found, "job_records": records}


def _job_json(job: JobFolder, view: RunView) -> dict[str, Any]:
    state = view.states[job.number]
    reason, start = view.waiting(job.number)
    ranks = {}
    if (by_rank := measured_by_rank(job.path)).keys() - {0}:  # others than rank 0 logged metrics
        ranks = {str(rank): {name: each.to_dict() for name, each in of.items()} for rank, of in by_rank.items()}
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
        "artifacts": artifacts_of(job),
        "metrics": job.metrics(_METRICS),
        **({"ranks": ranks} if ranks else {}),
        "written": written_by(job),
        "folder": str(job.path),
    }


def _facts(view: RunView) -> Iterator[Fact]:
    run, plan = view.run, view.plan
    yield "run", run.id
    yield from _labels(run)
    yield "state", view.state
    if len(view.jobs) == 1 < view.summary.jobs:
        yield "job", f"{view.jobs[0].number}: {view.states[view.jobs[0].number].state}"
    lost = next((s for s in view.states.values() if s.state == "unreachable"), None)
    if lost is not None and view.state == "unreachable":
        yield "why", lost.error
        known = lost.facts.get("known")
        yield "last known", f"{known}, {clock(lost.facts.get('known_at')) or _NO_TIME}" if known else "nothing"
    elif view.summary.error:
        yield "why", view.summary.error
    if len(view.jobs) == 1:
        reason, start = view.waiting(view.jobs[0].number)
        yield from [("waits for", reason)] if reason else []
        yield from [("may start", start)] if start else []
    if plan:
        yield "command", plan.command_line or None
    if plan and plan.hydra and plan.stage:  # a program of its own has no such line
        yield "hydra", plan.hydra_command
    yield "profile", f"{plan.profile} ({plan.executor})" if plan and plan.profile else "none: this machine"
    if plan and plan.rerun_of:
        yield "rerun of", plan.rerun_of
    if plan and plan.part_of:
        yield "pipeline", plan.part_of
    for run_id in plan.after if plan else ():
        yield "after", run_id
    code = (plan.code if plan else None) or {}
    if code.get("commit"):
        yield "code", f"{str(code['commit'])[:12]}{' and what was not committed' if code.get('dirty') else ''}"
    yield "folder", run.path
    if len(view.jobs) == 1:
        if plan and plan.kind == "sweep" and (typed := overrides_of(view.jobs[0])):
            yield "overrides", " ".join(typed)
        yield from _job_facts(view.jobs[0], view)
        return
    counts = Counter(state.state for state in view.states.values())
    yield "jobs", f"{counts.total()}: {', '.join(f'{count} {state}' for state, count in counts.most_common())}"
    if view.unsubmitted:
        yield "waiting", f"{view.unsubmitted} to be submitted: nemotron runs resume {run.id}"
    yield "next", f"nemotron runs show {run.id} --job N"


def _labels(run: RunFolder) -> Iterator[Fact]:
    for key, label in labels_of(run.id).items():
        if label:
            yield key, ", ".join(label) if isinstance(label, list) else label


def distinct_overrides(jobs: Sequence[JobFolder]) -> list[str]:
    """For each job of a sweep, its overrides that not all jobs have, as one text."""
    overrides = [overrides_of(job) for job in jobs]
    common = set.intersection(*map(set, overrides)) if overrides else set()
    return [" ".join(override for override in texts if override not in common) for texts in overrides]


def _job_facts(job: JobFolder, view: RunView) -> Iterator[Fact]:
    state = view.states[job.number]
    if state.code is not None:
        yield "exit code", state.code
    took = duration(state.started, state.finished, state.state)
    if took is not None:
        yield "took", short_span(took)
    artifacts = artifacts_of(job, view.plan)
    for slot, pin in artifacts["inputs"].items():
        yield "inputs", f"{slot} = {_pin(pin)}"
    for pin in artifacts.get("outputs", []):
        yield "outputs", _pin(pin)
    if "error" in artifacts:
        yield "outputs", artifacts["error"]
    if found := written_by(job):
        more = f" and {found['more']} more" if found["more"] else ""
        yield "wrote", f"{', '.join(found['files'][:_FILES])}{more} in {found['folder']}"
    if versions := versions_of(job):
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    for entry in job.history():
        where = where_at(entry)
        yield "history", f"{clock(entry['at']) or _NO_TIME}  {entry['state']}{f'  {where}' if where else ''}"
    if state.finished is not None:
        code = f", exit code {state.code}" if state.code is not None else ""
        skipped = state.facts.get("skipped") if state.state == "succeeded" else None
        detail = state.error or (f"skipped, {skipped}" if skipped else None)
        yield "history", f"{clock(state.finished)}  {state.state}{code}{f': {detail}' if detail else ''}"
    result = job_result(job, state)
    if result.value is not None:
        yield "returned", json.dumps(finite(result.value), ensure_ascii=False)
    shown = dict(list(result.metrics.items())[:_METRICS])
    for line in measured_facts(shown, measured_by_rank(job.path), series(job.path)):
        yield "metrics", line
    if len(shown) < len(result.metrics):
        yield "metrics", f"and {len(result.metrics) - len(shown)} more, in --json"
    if state.state == "failed" and view.unsubmitted:
        yield "next", f"nemotron runs resume {job.run_id} continues to wait, and submits it"
    elif state.terminal and state.state != "succeeded":
        yield "next", f"nemotron runs resume {job.reference} continues it"
    yield "next", f"nemotron runs logs {job.run_id}" + (f" --job {job.number}" if job.number else "")


def artifacts_of(job: JobFolder, plan: Plan | None = None) -> dict[str, Any]:
    """What a job's record of artifacts says, with `error` if it is damaged; with a plan, also the inputs that are only
    planned."""
    try:
        found = job.artifacts()
    except DamagedRunRecord as error:
        found = {"inputs": {}, "outputs": [], "error": error.message}
    planned = {slot: pin.to_dict() if pin else None for slot, pin in plan.inputs.items()} if plan else {}
    return {**found, "inputs": {**planned, **found["inputs"]}}


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _pin(pin: object) -> str:
    if not isinstance(pin, Mapping):
        return "not resolved yet" if pin is None else str(pin)
    if pin.get("version") is None:
        return str(pin.get("path"))
    return f"{pin.get('name')}:v{pin['version']}  {pin.get('path')}  sha256 {str(pin.get('digest'))[:12]}"


def where_at(entry: Mapping[str, Any]) -> str:
    """Where a job was when this entry of its history was written: the scheduler's job, or the process."""
    if scheduler := _mapping(entry.get("scheduler")):
        return " ".join(str(scheduler[key]) for key in ("kind", "job", "node") if scheduler.get(key))
    process = _mapping(entry.get("process"))
    return f"{process.get('host')}, pid {process.get('pid')}" if process else ""


def versions_of(job: JobFolder) -> dict[str, Any]:
    """Python's and the packages' versions where the last attempt ran; {} for a job that has not run, or an older
    version's record."""
    found = next((entry["versions"] for entry in reversed(job.history()) if "versions" in entry), None)
    return dict(found) if isinstance(found, Mapping) else {}
