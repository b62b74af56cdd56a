"""`--after ID`: a job that starts once other runs, of this machine or submitted, have succeeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import Command
from nemotron_kit.artifacts.reference import parse_override
from nemotron_kit.errors import Cancelled, NemotronError, Problem
from nemotron_kit.executors.base import Executor, executor_for
from nemotron_kit.launch.status import (
    ENDED,
    StatusSnapshot,
    Watch,
    effective_run_state,
    effective_state,
    refresh,
    target_of,
)
from nemotron_kit.polling import Pace
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import DAMAGED, JobFolder
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.runs.process_facts import process_facts
from nemotron_kit.spec.plan import Plan, is_local, stored_plan
from nemotron_kit.worker.streams import print_notice

if TYPE_CHECKING:
    from nemotron_kit.artifacts.reference import Reference

_GONE = "removed"
_NEVER = (*ENDED, DAMAGED, _GONE)


@dataclass(frozen=True)
class After:
    """The runs of `--after`, which must succeed before a job starts: run id → current state, and the snapshot that it
    comes from.
    """

    runs: Sequence[RunFolder]
    states: Mapping[str, str]
    snapshots: Mapping[str, StatusSnapshot]
    connect: bool = True

    @classmethod
    def of(cls, references: Sequence[str], *, connect: bool = True) -> After:
        """Find the runs. Raises UserError for one that does not exist. `connect=False` (a dry-run) takes their recorded
        states.
        """
        runs = list({run.id: run for run in map(open_run, references)}.values())
        snapshots = refresh(runs) if connect else {}
        states = {run.id: effective_run_state(run, snapshots.get(run.id)) for run in runs}
        return cls(runs, states, snapshots, connect)

    @property
    def left(self) -> list[RunFolder]:
        """The runs that have not succeeded yet."""
        return [run for run in self.runs if self.states[run.id] != "succeeded"]

    def dependency(self, plan: Plan) -> list[str] | None:
        """The scheduler ids that a job depends on; None if the runs are not all of one scheduler, or have no ids
        yet."""
        executor = executor_for(plan.settings)
        if not executor.holds_back or any(target_of(stored_plan(run)) != target_of(plan) for run in self.left):
            return None
        found = [_dependency_ids(executor, run, self.snapshots.get(run.id)) for run in self.left if self.connect]
        return sorted(set().union(*found)) if all(found) else None

    def apply(self, plan: Plan, command: Command) -> Plan:
        """The plan of a job that starts after the runs. One that has failed is a problem of the plan."""
        never = {run_id: state for run_id, state in self.states.items() if state in _NEVER}
        problems = [
            Problem(f"{run_id} {state}: a job after it would never start.", field="--after")
            for run_id, state in never.items()
        ]
        waits: dict[str, Any] = {}
        spec: dict[str, Any] = {}
        if is_local(plan.executor):
            spec["after"] = [run.id for run in self.left]
        elif (numbers := self.dependency(plan)) is not None:
            waits["dependency"] = tuple(numbers)
        else:
            waits["wait_first"] = tuple(run.id for run in self.left)
        notes = [f"it starts when {run.id} has succeeded" for run in self.left if run.id not in never]
        # A run may have ended since the registry was queried: the job will find what it saved.
        deferred = _deferred_inputs(plan, {run.id for run in self.runs}, command)
        kept = [problem for problem in plan.problems if problem.slot not in deferred]
        read = [run for run in self.runs if any(reference.run == run.id for reference in deferred.values())]
        folders = [stored_plan(run).paths.run for run in read]
        plan = executor_for(plan.settings).with_folders(replace(plan, problems=tuple(kept)), folders)
        if deferred:
            spec["deferred_inputs"] = {slot: str(reference) for slot, reference in deferred.items()}
            notes += [f"{slot}: {text} is pinned when that run has succeeded" for slot, text in deferred.items()]
        return replace(
            plan.with_spec(**spec),
            problems=(*plan.problems, *problems),
            notes=(*plan.notes, *notes),
            after=tuple(run.id for run in self.runs),
            **waits,
            hydra=(*plan.hydra, *(f"--after={run.id}" for run in self.runs)),
        )


class SweepAfter:
    """The runs after which the jobs of a detached sweep start. The scheduler holds them back, or on this machine each
    job's worker; if neither can, the launch waits."""

    def __init__(self, references: Sequence[str]) -> None:
        self._references = tuple(references)
        self._known: After | None = None

    def apply(self, plan: Plan, command: Command, replan: Callable[[], Plan]) -> Plan:
        """A job's plan; the first one may be made again by `replan` after a wait. The runs are queried once for all
        jobs."""
        if self._known is None:
            self._known = After.of(self._references)
            if not is_local(plan.executor) and self._known.dependency(plan) is None:
                wait_for(None, self._references)
                self._known, plan = After.of(self._references), replan()
        return self._known.apply(plan, command)


def wait_for(job: JobFolder | None, run_ids: Sequence[str]) -> None:
    """Return once all of the runs have succeeded; a job of this machine that waits for them is pending until then.

    Raises NemotronError as soon as one of them has failed, been cancelled, or been removed; Cancelled if the job itself
    was cancelled. An unreachable run is waited for.
    """
    waits = [Watch(open_run(run_id), unsubmitted=math.inf) for run_id in run_ids]
    pace, notified = Pace(0.1, 1.3), False
    while True:
        snapshots = refresh([each.run for each in waits])
        for each in waits:
            removed = not each.run.path.is_dir()
            if not removed:
                each.update(snapshots.get(each.run.id))
            state = _GONE if removed else each.state
            if state in _NEVER or (each.over and state != "succeeded"):
                # Of an end that is not known: what is damaged, or the scheduler's error.
                why = each.why or each.run.summary().error
                how = {**ENDED, _GONE: "was removed"}.get(state, f"is {state}{f': {why}' if why else ''}")
                raise NemotronError(f"it did not start: {each.run.id}, which it was to start after, {how}.")
        # One that has succeeded may be removed while the others are waited for.
        waits = [each for each in waits if not each.over]
        if not waits:
            return
        if not notified:
            reason = ", ".join(f"{each.run.id} ({each.state})" for each in waits)
            print_notice(f"waits for {reason}")
            if job is not None:
                job.transition("pending", process=process_facts(), reason=reason)
            notified = True
        if job is not None and (job.cancel_requested or not job.path.is_dir()):
            raise Cancelled(f"{job.run_id}: cancelled before it ran.")
        pace.longest = 30.0 if snapshots else 2.0
        pace.wait()


def _dependency_ids(executor: Executor, run: RunFolder, snapshot: StatusSnapshot | None) -> set[str]:
    """The ids by which a job can depend on a run's unfinished jobs; empty if one has no id yet."""
    found = set()
    for job in run.jobs():
        state = effective_state(job, snapshot)
        if state.terminal:
            continue
        observation = snapshot.observed.get(job.number) if snapshot else None
        number = executor.dependency_id({**state.facts, **(observation.facts if observation else {})})
        if number is None:
            return set()
        found.add(number)
    return found


def _deferred_inputs(plan: Plan, run_ids: set[str], command: Command) -> dict[str, Reference]:
    """Slot → reference of inputs that the runs have not saved yet."""
    deferred: dict[str, Reference] = {}
    for slot, text in plan.references.items():
        if plan.inputs.get(slot) is not None:
            continue
        declared = command.artifacts.get(slot)
        reference = parse_override(text, declared.default_name if declared else None, aliases=lambda _: ())
        if reference.run in run_ids:
            deferred[slot] = reference
    return deferred
