"""Queries back ends for the states of runs, once for all runs of a target, and updates their records."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError
from nemotron_kit.executors.base import Executor, Observation, executor_for
from nemotron_kit.home import runs_root
from nemotron_kit.launch.queue import SweepQueue
from nemotron_kit.remote.ssh import transport_for, user_config
from nemotron_kit.runs.folder import RunFolder, RunSummary
from nemotron_kit.runs.job import (
    AGAIN,
    DAMAGED,
    TERMINAL,
    UNEXPLAINED,
    DamagedRunRecord,
    JobFolder,
    JobState,
    is_final_end,
    run_state,
)
from nemotron_kit.runs.process_facts import is_gone
from nemotron_kit.runs.progress import MetricsTail, Progress, job_progress
from nemotron_kit.spec.plan import Plan, check_followed, is_local, stored_plan

# Seconds for which a cached response is used: _TIMES as long as the query took, within these limits, so that a busy
# scheduler is queried less often; a failed query for as long as it took.
SHORTEST, LONGEST = 3.0, 60.0
_TIMES = 5.0
# Of the file's form and of Observation's fields.
_VERSION = 2

# Seconds to wait for a job that its scheduler does not know. There is no such limit for an unreachable one.
PATIENCE = 600.0
# What another end replaces in an exit record.
_REPLACED = ("code", "state", "error", "finished_at", "host", UNEXPLAINED, AGAIN)

# The most jobs of a target whose progress is read there.
_MEASURED = 100


class StatusCache:
    """Recent answers of a target, in a file shared by this user's processes. `key` identifies the target (see
    target_of).

    A file that is damaged, unreadable or unwritable counts as empty.
    """

    def __init__(self, key: str) -> None:
        self.path = runs_root() / ".seen" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def fresh(self, wanted: Mapping[str, Sequence[int]], *, progress: bool = False) -> dict[str, StatusSnapshot] | None:
        """Run id → snapshot, if the cache has fresh responses for all of `wanted` (run id → job numbers), else None.
        `progress`: responses without it, which was not asked for, don't count."""
        now, runs = time.time(), files.read_cache(self.path, _VERSION)
        found = {}
        for run_id, numbers in wanted.items():
            entry = runs.get(run_id)
            # A clock that was set back must not keep an answer alive.
            if entry is None or not now - LONGEST <= entry["at"] <= now < entry["until"]:
                return None
            if not entry["lost"] and any(str(number) not in entry["jobs"] for number in numbers):
                return None
            if progress and "progress" not in entry:
                return None
            jobs = {int(number): Observation(**values) for number, values in entry["jobs"].items()}
            measured = Progress(**entry["progress"]) if entry.get("progress") else None
            found[run_id] = StatusSnapshot(float(entry["at"]), jobs, entry["lost"], measured)
        return found

    def keep(self, snapshots: Mapping[str, StatusSnapshot], took: float, *, progress: bool = False) -> None:
        """Store an answer that took so many seconds, and until when it may be used. Fresh answers about other runs are
        kept. `progress`: it was asked for, too."""
        now = time.time()
        kept = files.read_cache(self.path, _VERSION)
        runs = {run_id: entry for run_id, entry in kept.items() if entry["until"] > now}
        for run_id, snapshot in snapshots.items():
            until = now + min(LONGEST, max(SHORTEST, took if snapshot.lost else _TIMES * took))
            jobs = {str(number): asdict(o) for number, o in snapshot.observed.items()}
            runs[run_id] = {"at": snapshot.at, "until": until, "lost": snapshot.lost, "jobs": jobs}
            if progress:
                runs[run_id]["progress"] = asdict(snapshot.progress) if snapshot.progress else None
        with suppress(OSError):  # a cache that can't be written is no reason to fail
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
        files.write_cache(self.path, _VERSION, runs)


def mirror(plan: Plan, jobs: Sequence[JobFolder]) -> None:
    """Copy the records of `jobs` from the target; does nothing if the folders are the same. Raises Unreachable, and
    NemotronError for a record that is damaged there, once those of the other jobs are copied."""
    if not jobs or not plan.has_separate_folder:
        return
    folders = [f"{plan.paths.run}/jobs/{job.number}" for job in jobs]
    records, _ = transport_for(plan.settings).call("job_records", jobs=folders)
    for job, found in zip(jobs, records, strict=True):
        if "error" not in found:
            _write(job, found)
    if damaged := [found["error"] for found in records if "error" in found]:
        raise NemotronError(damaged[0])


def is_mirrored(job: JobFolder) -> bool:
    """Whether the exit record and the artifacts of a submitted job have been copied to this machine."""
    return bool((job.exit_record() or {}).get("mirrored"))


def _write(job: JobFolder, found: Mapping[str, Any]) -> None:
    if found["artifacts"]["inputs"] or found["artifacts"]["outputs"]:
        files.write_json(job.path / "artifacts.json", found["artifacts"])
    if found["metrics"]:
        files.write_text(job.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in found["metrics"]))
    end, recorded = found["exit"], job.exit_record()
    if end is not None and is_final_end(end):
        recorded = end  # otherwise the scheduler's state counts: a job that was stopped does not know why
        # When it began, and with which versions: it may not have been observed while it ran, and no other record has
        # the versions.
        began = next((entry for entry in reversed(found["history"]) if entry.get("state") == "running"), None)
        versions = {"versions": began["versions"]} if began and "versions" in began else {}
        unversioned = versions and not any("versions" in entry for entry in job.history())
        if began and (job.state().started is None or unversioned):
            job.transition("running", observed=True, at=began["at"], **versions)
    if recorded is not None:
        files.write_json(job.path / "exit.json", {**recorded, "mirrored": True})


LOST = "unreachable"
ENDED = {"failed": "failed", "cancelled": "was cancelled", "preempted": "was preempted"}
# States of a job of which nothing is known: the one before is its last known state.
_UNKNOWN = (LOST, "unknown")
# Settings by which one query covers the jobs of several profiles.
_TARGET = ("host", "user", "identity")

Asked = tuple[RunFolder, Plan, Sequence[JobFolder]]


@dataclass(frozen=True)
class StatusSnapshot:
    """The jobs of one run as their back end reported them.

    `at` is the time of the query in seconds since the epoch, `observed` job number → Observation, `lost` the error if
    the back end did not answer, `progress` that of a running job that writes its metrics on another machine.
    """

    at: float
    observed: Mapping[int, Observation] = field(default_factory=dict)
    lost: str | None = None
    progress: Progress | None = None


def refresh(runs: Iterable[RunFolder], *, progress: bool = False) -> dict[str, StatusSnapshot]:
    """Run id → snapshot, for each of `runs` whose state is known to a back end only. With `progress` also that of
    running jobs, for which each target gets one more request.

    Runs of this machine and runs that have ended are left out: their folders hold their state. Errors of a back end are
    not raised, but stored in `lost`.
    """
    groups: dict[str, list[Asked]] = {}
    for run in runs:
        asked = _open(run)
        if asked is not None:
            groups.setdefault(target_of(asked[1]), []).append(asked)
    query = partial(_refresh, progress=progress)
    if len(groups) < 2:
        return {run_id: snapshot for each in groups.items() for run_id, snapshot in query(*each).items()}
    from concurrent.futures import ThreadPoolExecutor

    # A target that does not answer does not affect the others.
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = pool.map(query, groups.keys(), groups.values())
        return {run_id: snapshot for answer in answers for run_id, snapshot in answer.items()}


def refresh_stages(run: RunFolder, *, progress: bool = False) -> dict[str, StatusSnapshot]:
    """Update the records of a pipeline's submitted stages; returns `refresh` of these."""
    return refresh([each for each in run.stage_runs() if each.summary().state not in TERMINAL], progress=progress)


def progress_elsewhere(runs: Iterable[RunSummary]) -> dict[str, Progress]:
    """The progress of the running ones, and of the stages of running pipelines, that write their metrics on another
    machine, by the id of the run or of the stage's run."""
    snapshots: dict[str, StatusSnapshot] = {}
    single = []
    for run in runs:
        if run.state == "running":
            folder = RunFolder(runs_root() / run.id)
            if not run.jobs and folder.is_pipeline:
                snapshots |= refresh_stages(folder, progress=True)
            elif run.jobs == 1 and not is_local(run.executor):
                single.append(folder)
    snapshots |= refresh(single, progress=True)
    return {run_id: found for run_id, snapshot in snapshots.items() if (found := progress_now(snapshot))}


def progress_now(snapshot: StatusSnapshot) -> Progress | None:
    """The snapshot's progress, less the time since it was taken in the time left."""
    found = snapshot.progress
    if found is None or found.eta is None:
        return found
    return replace(found, eta=max(0.0, found.eta - max(0.0, time.time() - snapshot.at)))


def refreshed(summaries: Sequence[RunSummary], runs: Mapping[str, RunFolder]) -> list[RunSummary]:
    """The summaries, updated with what their back ends report, progress included. `runs`: run id → folder of the runs
    to query."""
    snapshots, found = refresh(runs.values(), progress=True), list[RunSummary]()
    for summary in summaries:
        if (snapshot := snapshots.get(summary.id)) is not None:
            run = runs[summary.id]
            summary, state = run.summary(), effective_run_state(run, snapshot)
            if summary.state == "pending" and state == "pending":
                reasons = [o.reason for o in snapshot.observed.values() if o.state == "pending" and o.reason]
                summary = replace(summary, reason=next(iter(reasons), summary.reason))
            elif summary.state != DAMAGED and state == LOST:
                states = (effective_state(job, snapshot) for job in run.jobs())
                lost, error = next((each for each in states if each.state == LOST), None), summary.error
                if lost:
                    before = lost.facts.get("known")
                    error = f"{f'was {before}; ' if before else ''}{lost.error or 'no answer'}"
                summary = replace(summary, state=LOST, error=error)
        found.append(summary)
    return found


class Watch:
    """A run, or some of its jobs, that is waited for: `state` is the last known one, `over` whether it is no use to
    wait longer, `why` the reason for that if the run has not ended.

    It is no use if the record is damaged, and for a job of this machine whose state is `unknown`. Waiting ends after so
    many seconds: `patience` (None: PATIENCE) for a submitted job that its scheduler does not know, `unsubmitted` (None:
    as `patience`) for jobs that wait for `nemotron runs resume`, `lost` for a target that does not answer.
    """

    def __init__(
        self,
        run: RunFolder,
        jobs: Sequence[JobFolder] | None = None,
        *,
        patience: float | None = None,
        lost: float = math.inf,
        unsubmitted: float | None = None,
    ) -> None:
        self.run, self.jobs = run, jobs
        self.is_remote = not is_local(run.summary().executor)
        self.state, self.over = "pending", False
        self.why: str | None = None
        patience = PATIENCE if patience is None else patience
        self._limits = {"unknown": patience, LOST: lost, "pending": patience if unsubmitted is None else unsubmitted}
        self._unsure_since: float | None = None

    def update(self, snapshot: StatusSnapshot | None) -> None:
        """Update `state`, `over` and `why` by what `refresh` has found."""
        self.why = None
        self.state = self._state(snapshot)
        if self.state == DAMAGED or (self.state not in _UNKNOWN and self.why is None):
            self._unsure_since = None
            self.over = self.state in (*TERMINAL, DAMAGED)
            return
        now = time.monotonic()
        self._unsure_since = now if self._unsure_since is None else self._unsure_since
        self.over = not self.is_remote or now - self._unsure_since >= self._limits[self.state]

    def _state(self, snapshot: StatusSnapshot | None) -> str:
        if self.jobs is not None:
            state = run_state(effective_state(job, snapshot).state for job in self.jobs)
        else:
            if self.run.is_pipeline:
                refresh_stages(self.run)
            state = effective_run_state(self.run, snapshot)
        if state in TERMINAL:
            return state
        try:
            check_followed(self.run)
            if state == DAMAGED and not self.run.jobs():
                raise DamagedRunRecord(self.run.summary().error or DAMAGED)
            if state == "running" and not self.is_remote:
                for job in self.run.jobs() if self.jobs is None else self.jobs:
                    now = job.state()
                    if now.state == "running" and now.facts.get("process") is None and job.exit_record() is None:
                        # The end of a process that is not recorded would never be noticed.
                        raise DamagedRunRecord(f"{job.path / 'state'}: process: missing.")
            if state == "pending" and self.is_remote:
                self.why = self._unsubmitted()
        except DamagedRunRecord as error:
            self.why = error.message.replace(f"{self.run.path}/", "")
            return DAMAGED
        return state

    def _unsubmitted(self) -> str | None:
        """A sentence if all unfinished jobs wait to be submitted, and their launch has ended; else None."""
        launcher, waiting = stored_plan(self.run).launcher, set(SweepQueue(self.run).waiting)
        if not waiting or (launcher and not is_gone(launcher)):
            return None
        states = {job.number: job.state() for job in self.run.jobs()}
        left = {number: state for number, state in states.items() if not state.terminal}
        # A process of this machine may wait for other runs, to submit it.
        if left.keys() - waiting or any(state.facts.get("process") for state in left.values()):
            return None
        return f"{len(left)} job{'s' * (len(left) > 1)} still to be submitted: nemotron runs resume {self.run.id}"


def effective_state(job: JobFolder, snapshot: StatusSnapshot | None) -> JobState:
    """The state of a job: as recorded, or `unreachable` if its back end did not answer, with the last known state in
    `facts["known"]`."""
    state = job.state()
    reported = snapshot.observed.get(job.number) if snapshot else None
    if snapshot and reported and reported.state in TERMINAL and not state.terminal and (state.at or 0.0) < snapshot.at:
        # The end is not recorded: writing it has failed.
        return replace(state, state=reported.state, code=reported.code, error=reported.error)
    lost = reported.error if reported and reported.state == LOST else None
    if snapshot and snapshot.lost:
        lost = snapshot.lost
    if state.terminal or (lost is None and state.state != LOST):
        return state
    known = last_known(job)
    facts = {**state.facts, "known": known["state"] if known else None, "known_at": known["at"] if known else None}
    return replace(state, state=LOST, error=lost or state.error, facts=facts)


def effective_run_state(run: RunFolder, snapshot: StatusSnapshot | None) -> str:
    """The state of a run, out of the effective states of its jobs; without jobs that of its summary."""
    jobs = run.jobs()
    return run.state_of(effective_state(job, snapshot).state for job in jobs) if jobs else run.summary().state


def last_known(job: JobFolder) -> Mapping[str, Any] | None:
    """The last transition to a state other than `unreachable`."""
    return next((entry for entry in reversed(job.history()) if entry["state"] not in _UNKNOWN), None)


def target_of(plan: Plan) -> str:
    """The identity of the target of a plan's jobs, as text: equal for two runs that one query can cover."""
    settings = plan.settings
    return "|".join([plan.executor, settings.tunnel, *(getattr(settings, name) or "" for name in _TARGET)])


def _open(run: RunFolder) -> Asked | None:
    try:
        plan = stored_plan(run)
    except DamagedRunRecord:
        return None
    if is_local(plan.executor):
        return None
    over = plan.launcher is not None and is_gone(plan.launcher)
    all_jobs = run.jobs()
    try:
        queue = SweepQueue(run)  # read only now: a launch lists its jobs before it ends
        waiting, listed = set(queue.waiting), queue.listed
    except DamagedRunRecord:  # whoever runs them knows which it has
        waiting, listed = set(), {job.number for job in all_jobs}
    jobs = [job for job in all_jobs if job.number not in waiting and not job.state().terminal]
    for job in jobs if over else ():
        if job.number not in listed:  # it will not be submitted
            job.finish(1, "failed", error="its launch ended before it was submitted")
    left = [job for job in jobs if not over or job.number in listed]
    return (run, plan, left) if left else None


def _refresh(key: str, group: Sequence[Asked], *, progress: bool) -> dict[str, StatusSnapshot]:
    """The runs of one target: from the cache of recent answers, else queried."""
    cache = StatusCache(f"{key}|{user_config()}")
    known = cache.fresh({run.id: [job.number for job in jobs] for run, _, jobs in group}, progress=progress)
    if known is not None and not any(_is_outdated(asked, known[asked[0].id]) for asked in group):
        return known
    asked = time.time()
    found: dict[str, dict[int, Observation]] = {}
    measured: dict[str, Progress] = {}
    lost = None
    try:
        found = executor_for(group[0][1].settings).observe_many([(run, jobs) for run, _, jobs in group])
        for run, plan, jobs in group:
            _record(plan, jobs, found.get(run.id, {}), asked)
        measured = dict(_measured(group)) if progress else {}
    except NemotronError as error:
        lost = error.message
    snapshots = {
        run.id: StatusSnapshot(asked, found.get(run.id, {}), lost, measured.get(run.id)) for run, _, _ in group
    }
    cache.keep(snapshots, time.time() - asked, progress=progress)
    return snapshots


def _measured(group: Sequence[Asked]) -> Iterator[tuple[str, Progress]]:
    """(run id, progress) of the single jobs of one target that run and write their metrics there; a target that does
    not answer soon gives none."""
    running = [
        (run.id, plan, jobs[0])
        for run, plan, jobs in group
        if plan.has_separate_folder and len(run.jobs()) == 1 and jobs[0].state().state == "running"
    ][:_MEASURED]
    if not running:
        return
    folders = [f"{plan.paths.run}/jobs/{job.number}" for _, plan, job in running]
    try:
        tails, _ = transport_for(running[0][1].settings).call("metrics_tails", jobs=folders)
    except NemotronError:
        return
    for (run_id, _, job), tail in zip(running, tails, strict=True):
        progress = job_progress(job, MetricsTail(**tail)) if tail else None
        if progress:
            yield run_id, progress


def _is_outdated(asked: Asked, known: StatusSnapshot) -> bool:
    """Whether the back end was unreachable at the time of the snapshot, and has answered since: another command, or a
    new submission."""
    _, plan, jobs = asked
    with suppress(NemotronError):  # settings without a reachable target
        if known.lost and transport_for(plan.settings).reached_at() > known.at:
            return True
    doubted = (job for job in jobs if known.lost or known.observed[job.number].state == LOST)
    return any((job.state().at or 0.0) > known.at for job in doubted)


def record(jobs: Sequence[JobFolder], observed: Mapping[int, Observation], asked: float | None = None) -> None:
    """Write changed states into the ledger. `asked` is when the back end was queried: states that the job has
    written since then are newer."""
    asked = time.time() if asked is None else asked
    for job in jobs:
        observation = observed.get(job.number)
        if observation is None:
            continue
        try:
            recorded = job.exit_record()
        except DamagedRunRecord:  # the observation counts
            recorded = {}
        if observation.state in TERMINAL:
            if recorded is None or not is_final_end(recorded):
                kept = {name: fact for name, fact in (recorded or {}).items() if name not in _REPLACED}
                code = observation.code if observation.code is not None else int(observation.state != "succeeded")
                job.finish(code, observation.state, error=observation.error, **{**kept, **observation.facts})
            continue
        state = job.state()
        if recorded is None and observation.state != state.state and (state.at or 0.0) < asked:
            why = {"reason": observation.reason, "error": observation.error}
            job.transition(observation.state, observed=True, **why, **observation.facts)


def ask(run: RunFolder, backend: Executor, jobs: Sequence[JobFolder]) -> None:
    """Query the state of a run's jobs now, without the cache, and update their records. Raises Unreachable."""
    asked = time.time()
    _record(stored_plan(run), jobs, backend.observe(run, jobs), asked)


def _record(plan: Plan, jobs: Sequence[JobFolder], observed: Mapping[int, Observation], asked: float) -> None:
    known = {number: _explained(plan, o) for number, o in observed.items() if o.state != LOST}
    ended = [job for job in jobs if job.number in known and known[job.number].state in TERMINAL]
    # Their output can still be fetched when the run is shown; their end is recorded now.
    with suppress(NemotronError):
        mirror(plan, ended)
    record(jobs, known, asked)


def _explained(plan: Plan, observation: Observation) -> Observation:
    """The observation; that another run did not succeed is its error, where the scheduler dropped the job for that."""
    if observation.state != "cancelled" or not plan.dependency:
        return observation
    for run_id in plan.after:
        state = RunFolder(runs_root() / run_id).state()
        if state in ENDED:
            error = f"it did not start: {run_id}, which it was to start after, {ENDED[state]}."
            return replace(observation, error=error)
    return observation
