"""The earlier runs of a pipeline's stages: their records, inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nemotron_kit.app import Pipeline
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.home import new_run_id, runs_root
from nemotron_kit.launch.fingerprint import Fingerprint
from nemotron_kit.runs.folder import DAMAGE, PIPELINE, RunFolder
from nemotron_kit.runs.job import DamagedRecord
from nemotron_kit.runs.ledger import run_ids
from nemotron_kit.spec.plan import is_local, stored_plan

# How many of a pipeline's earlier runs are compared with.
_REMEMBERED = 30


@dataclass(frozen=True)
class Earlier:
    """A stage's record in an earlier run of its pipeline, and the stage's run (None if it was skipped or removed)."""

    record: Mapping[str, Any]
    pipeline: str
    run: RunFolder | None

    @property
    def id(self) -> str:
        """The run that did the stage's work."""
        return str(self.record.get("run") or self.record.get("producer") or self.pipeline)

    @property
    def removed(self) -> bool:
        """Whether the run has been deleted."""
        return bool(self.record.get("run")) and self.run is None

    @property
    def succeeded(self) -> bool:
        """Whether the stage's work was done: it succeeded, or was skipped."""
        return bool(self.record.get("skipped")) or (self.run is not None and self.run.state() == "succeeded")

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint that the stage had then; an empty one if none is recorded."""
        return Fingerprint.from_dict(self.record.get("fingerprint") or {})

    def inputs(self) -> dict[str, Pin]:
        """Slot → pin of the artifacts that the run read."""
        return _pins_of(self._artifacts("inputs") or self.record.get("inputs") or {})

    def outputs(self) -> list[Pin]:
        """The versions that the run saved; of a skipped stage, those that it took over."""
        found = self.record.get("outputs") if self.record.get("skipped") else self._artifacts("outputs")
        return list(_pins_of(dict(enumerate(found or ()))).values())

    def _artifacts(self, what: str) -> Any:
        try:
            return self.run.job(0).artifacts()[what] if self.run is not None else None
        except (DamagedRecord, UserError):
            return None


def saved_by(run: RunFolder) -> list[Pin]:
    """What a run has saved. Raises DamagedRecord."""
    return list(_pins_of(dict(enumerate(run.job(0).artifacts()["outputs"]))).values())


def _pins_of(stored: Mapping[Any, Any]) -> dict[Any, Pin]:
    found = {}
    for key, value in stored.items():
        with suppress(DamagedRecordError):
            found[key] = Pin.from_dict(value)
    return found


def earlier_runs(pipeline: Pipeline, connect: bool) -> dict[str, list[Earlier]]:
    """Stage → its records, the newest first, in the last runs of the pipeline."""
    middle = new_run_id(pipeline.recipe, pipeline.stage)[15:-6]
    ids = [run_id for run_id in run_ids() if run_id[15:-6] == middle][:_REMEMBERED]
    found: dict[str, list[Earlier]] = {}
    for run in (RunFolder(runs_root() / run_id) for run_id in ids):
        try:
            plan = run.plan()
        except DamagedRecord:
            continue
        if (plan.get("kind"), plan.get("recipe"), plan.get("stage")) != (PIPELINE, pipeline.recipe, pipeline.stage):
            continue
        for record in (each for each in run.stages() if DAMAGE not in each):
            found.setdefault(str(record.get("stage")), []).append(Earlier(record, run.id, run.stage_run(record)))
    if connect:
        _bring_up_to_date(each.run for records in found.values() for each in records if each.run is not None)
    return found


def _bring_up_to_date(runs: Iterable[RunFolder]) -> None:
    """Update the records of submitted runs, and fetch those of the artifacts that they saved."""
    submitted = []
    for run in runs:
        with suppress(DamagedRecord):
            plan = stored_plan(run)
            if not is_local(plan.executor) and not (run.jobs() and (run.job(0).exit_record() or {}).get("mirrored")):
                submitted.append((run, plan))
    if not submitted:
        return
    from nemotron_kit.launch.status import mirror, refresh

    snapshots = refresh([run for run, _ in submitted])
    for run, plan in submitted:
        lost = run.id in snapshots and snapshots[run.id].lost
        if not lost and run.state() == "succeeded":
            with suppress(NemotronError):  # then it is not known what it saved, and the stage runs again
                mirror(plan, run.jobs())
