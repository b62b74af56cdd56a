"""The record of runs brought up to date from whatever runs them: one question a target for all of its runs.

What changes a job's state is written as a transition of the job. What a scheduler says besides (why it waits, when it
may start) is remembered for some seconds in `runs/.seen/`, so that many commands ask once. Losing sight of a target
changes no record: `standing` then gives `unreachable`, with the last state that was known.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.execution.attach import record
from nemotron_kit.execution.backends.base import Backend, Observation, backend_for
from nemotron_kit.execution.hydra_launcher.queue import SweepQueue
from nemotron_kit.execution.mirror import mirror
from nemotron_kit.execution.seen import Seen
from nemotron_kit.runs.folder import RunFolder, RunSummary, runs_root
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.process import is_gone
from nemotron_kit.runs.records import DamagedRecord
from nemotron_kit.runs.states import DAMAGED, TERMINAL, JobState, run_state

HERE = "local"
LOST = "unreachable"
ENDED = {"failed": "failed", "cancelled": "was cancelled", "preempted": "was preempted"}
# What a record says where nothing is known: the state before it is the last known one.
_UNKNOWN = (LOST, "unknown")
# What makes two profiles' jobs answerable in one question.
_TARGET = ("tunnel", "host", "user", "identity")

Asked = tuple[RunFolder, Mapping[str, Any], Sequence[JobFolder]]


@dataclass(frozen=True)
class Sight:
    """One run as its back end saw it at `at` (seconds since the epoch). `lost`: why nobody could be asked."""

    at: float
    observed: Mapping[int, Observation] = field(default_factory=dict)
    lost: str | None = None


def refresh(runs: Iterable[RunFolder]) -> dict[str, Sight]:
    """Run id → how its jobs are seen now, for each of `runs` that something elsewhere has still to tell about.

    Runs of this machine, and those that are over, are left out: their folders say all. Raises nothing of a back end's.
    """
    groups: dict[str, list[Asked]] = {}
    for run in runs:
        asked = _open(run)
        if asked is not None:
            groups.setdefault(target_of(asked[1]), []).append(asked)
    if len(groups) < 2:
        return {run_id: sight for key, group in groups.items() for run_id, sight in _refresh(key, group).items()}
    from concurrent.futures import ThreadPoolExecutor

    # A target that does not answer keeps nobody from hearing of the others.
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = pool.map(_refresh, groups.keys(), groups.values())
        return {run_id: sight for answer in answers for run_id, sight in answer.items()}


def refreshed(summaries: Sequence[RunSummary], runs: Mapping[str, RunFolder]) -> list[RunSummary]:
    """The summaries as they are once their back ends have been asked. `runs`: run id → folder of those to ask about."""
    sights = refresh(runs.values())
    return [_updated(runs[s.id], sights[s.id]) if s.id in sights else s for s in summaries]


def standing(job: JobFolder, sight: Sight | None) -> JobState:
    """Where a job stands: what its record says, or `unreachable` with the last known state in `facts["known"]`."""
    state = job.state()
    seen = sight.observed.get(job.number) if sight else None
    lost = sight.lost if sight and sight.lost else seen.error if seen and seen.state == LOST else None
    if state.terminal or (lost is None and state.state != LOST):
        return state
    known = last_known(job)
    facts = {**state.facts, "known": known["state"] if known else None, "known_at": known["at"] if known else None}
    return replace(state, state=LOST, error=lost or state.error, facts=facts)


def run_standing(run: RunFolder, sight: Sight | None) -> str:
    """The state of a run, in one word."""
    return run_state(standing(job, sight).state for job in run.jobs())


def last_known(job: JobFolder) -> Mapping[str, Any] | None:
    """The last transition that was more than not knowing."""
    return next((entry for entry in reversed(job.history()) if entry["state"] not in _UNKNOWN), None)


def is_elsewhere(plan: Mapping[str, Any]) -> bool:
    """Whether something besides the run's folder knows how it stands."""
    return str(plan.get("executor") or HERE) != HERE


def target_of(plan: Mapping[str, Any]) -> str:
    """What a plan's jobs are asked of, as text: equal for two runs that one question can cover."""
    settings = plan.get("settings") or {}
    return "|".join([str(plan.get("executor")), *(str(settings.get(name) or "") for name in _TARGET)])


def _open(run: RunFolder) -> Asked | None:
    try:
        plan = run.plan()
    except DamagedRecord:
        return None
    if not is_elsewhere(plan):
        return None
    launcher = plan.get("launcher")
    over = isinstance(launcher, Mapping) and is_gone(launcher)
    queue = SweepQueue(run)  # read only now: a launch lists its jobs before it ends
    waiting, listed = set(queue.waiting), queue.listed
    jobs = [job for job in run.jobs() if job.number not in waiting and not job.state().terminal]
    for job in jobs if over else ():
        if job.number not in listed:  # nobody will submit it
            job.finish(1, "failed", error="its launch ended before it was submitted")
    left = [job for job in jobs if not over or job.number in listed]
    return (run, plan, left) if left else None


def _refresh(key: str, group: Sequence[Asked]) -> dict[str, Sight]:
    """The runs of one target: from what was seen a moment ago, else asked."""
    seen = Seen(key)
    known = seen.fresh({run.id: [job.number for job in jobs] for run, _, jobs in group})
    if known is not None:
        return {run_id: Sight(at, observed, lost) for run_id, (at, observed, lost) in known.items()}
    asked = time.time()
    found: dict[str, dict[int, Observation]] = {}
    lost = None
    try:
        found = observe_many(backend_for(group[0][1]), [(run, jobs) for run, _, jobs in group])
        for run, plan, jobs in group:
            _record(run, plan, jobs, found.get(run.id, {}), asked)
    except NemotronError as error:
        lost = error.message
    seen.keep(asked, time.time() - asked, found, lost, [run.id for run, _, _ in group])
    return {run.id: Sight(asked, found.get(run.id, {}), lost) for run, _, _ in group}


def ask(run: RunFolder, backend: Backend, jobs: Sequence[JobFolder]) -> None:
    """Bring the record of one run's jobs up to date now, whatever was seen a moment ago. Raises Unreachable."""
    asked = time.time()
    _record(run, run.plan(), jobs, backend.observe(run, jobs), asked)


def observe_many(
    backend: Backend, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]
) -> dict[str, dict[int, Observation]]:
    """One question where the back end has one for many runs, else one a run. Raises Unreachable."""
    many: Any = getattr(backend, "observe_many", None)
    if many is not None:
        found: dict[str, dict[int, Observation]] = many(runs)
        return found
    return {run.id: _each(backend, run, jobs) for run, jobs in runs}


def _each(backend: Backend, run: RunFolder, jobs: Sequence[JobFolder]) -> dict[int, Observation]:
    try:
        return backend.observe(run, jobs)
    except Unreachable as error:
        return {job.number: Observation(LOST, error=error.message) for job in jobs}


def _record(
    run: RunFolder, plan: Mapping[str, Any], jobs: Sequence[JobFolder], seen: Mapping[int, Observation], asked: float
) -> None:
    known = {number: _explained(plan, o) for number, o in seen.items() if o.state != LOST}
    ended = [job for job in jobs if job.number in known and known[job.number].state in TERMINAL]
    # What they left can still be fetched by whoever looks at the run; that they have ended is known now.
    with suppress(NemotronError):
        mirror(run, plan, ended)
    record(jobs, known, asked)


def _explained(plan: Mapping[str, Any], seen: Observation) -> Observation:
    """A job that its scheduler dropped because another one did not succeed says so."""
    if seen.state != "cancelled" or not plan.get("dependency"):
        return seen
    for run_id in plan.get("after") or ():
        state = RunFolder(runs_root() / str(run_id)).state()
        if state in ENDED:
            return replace(seen, error=f"it did not start: {run_id}, which it was to start after, {ENDED[state]}.")
    return seen


def _updated(run: RunFolder, sight: Sight) -> RunSummary:
    summary = run.summary()
    state = run_standing(run, sight)
    if summary.state == "pending" and state == "pending":
        reasons = [o.reason for o in sight.observed.values() if o.state == "pending" and o.reason]
        return replace(summary, reason=next(iter(reasons), summary.reason))
    if summary.state == DAMAGED or state != LOST:
        return summary
    known = next((s for s in (standing(job, sight) for job in run.jobs()) if s.state == LOST), None)
    return replace(summary, state=LOST, error=why_lost(known) if known else summary.error)


def why_lost(state: JobState) -> str:
    """`was running; cluster does not answer.`"""
    known = state.facts.get("known")
    return f"{f'was {known}; ' if known else ''}{state.error or 'nobody answers'}"
