"""A run as `nemotron runs show` sees it: its record, and what its back end says now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nemotron_kit.cli.grid import clean
from nemotron_kit.cli.runs import is_asked
from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.records import DamagedRecord
from nemotron_kit.runs.states import DAMAGED, JobState, run_state

if TYPE_CHECKING:
    from nemotron_kit.execution.ledger import Sight


class Look:
    """A run and some of its jobs as they stand now: one question to its back end, if it has one."""

    def __init__(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        self.run, self.jobs = run, jobs
        self.plan: dict[str, Any] | None = None
        with suppress(DamagedRecord):
            self.plan = run.plan()
        self._asked = is_asked((self.plan or {}).get("executor"))
        self.sight: Sight | None = None
        if self._asked:
            self._ask()
        self.states = {job.number: self._standing(job) for job in jobs}
        self.summary = run.summary()
        self.state = self._state()

    def _state(self) -> str:
        if self.plan is None:
            return DAMAGED
        if len(self.jobs) == self.summary.jobs:
            return run_state(state.state for state in self.states.values())
        return run_state(self._standing(job).state for job in self.run.jobs())

    def _ask(self) -> None:
        from nemotron_kit.execution.ledger import refresh
        from nemotron_kit.execution.mirror import is_mirrored, mirror

        self.sight = refresh([self.run]).get(self.run.id)
        if len(self.jobs) != 1 or (self.sight and self.sight.lost):
            return
        try:
            mirror(self.run, self.plan or {}, [job for job in self.jobs if not is_mirrored(job)])
        except NemotronError as error:
            sys.stderr.write(f"note: what it left where it ran is not shown: {clean(error.message)}\n")

    def _standing(self, job: JobFolder) -> JobState:
        if not self._asked:
            return job.state()
        from nemotron_kit.execution.ledger import standing

        return standing(job, self.sight)

    @property
    def unsubmitted(self) -> int:
        """How many jobs of a sweep its back end has not been given yet."""
        if not self._asked:
            return 0
        from nemotron_kit.execution.hydra_launcher.queue import SweepQueue

        return len(SweepQueue(self.run).waiting)

    def waiting(self, number: int) -> tuple[str | None, str | None]:
        """Why a pending job waits, and when it may start, by its scheduler's word."""
        seen = self.sight.observed.get(number) if self.sight else None
        if self.states[number].state != "pending":
            return None, None
        said = self.states[number].facts.get("reason")
        return (seen.reason if seen else None) or said, seen.estimated_start if seen else None


def written_by(job: JobFolder) -> dict[str, Any]:
    """What a job wrote into its copy of the code: `{"folder", "files", "more"}`, {} for nothing. Its record says so;
    where it has none, what lies there."""
    from nemotron_kit.target.code import written_since

    try:
        record = job.exit_record()
    except DamagedRecord:
        record = None
    if record is None:
        return written_since(job.path / "code")
    said = record.get("written")
    if isinstance(said, dict) and isinstance(said.get("files"), list):
        more = said.get("more")
        names = [str(name) for name in said["files"]]
        return {"folder": str(said.get("folder")), "files": names, "more": more if isinstance(more, int) else 0}
    return {}
