"""The local executor: a worker process in its own session for each job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemotron_kit.errors import NemotronError
from nemotron_kit.executors.base import Observation
from nemotron_kit.polling import looks
from nemotron_kit.quoting import refers
from nemotron_kit.remote.agent import operations
from nemotron_kit.runs.cancel import cancel_jobs
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.spec.plan import Plan
from nemotron_kit.spec.runconfig import RunConfig
from nemotron_kit.worker.process import start_worker

START_SECONDS = 10.0


class Local:
    """Runs detached jobs on this machine. Their state is in their folders."""

    pace = (0.05, 0.5)

    def prepare(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        """All is here."""

    def submit(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        for plan in plans:
            job = run.job(plan.job)
            if job.state().state == "pending":
                self._start(job, plan)

    def observe(self, run: RunFolder, jobs: Sequence[JobFolder]) -> dict[int, Observation]:
        del run
        states = {job.number: job.state() for job in jobs}
        return {number: Observation(s.state, s.code, s.error) for number, s in states.items()}

    def cancel(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        del run
        cancel_jobs(jobs)

    def read_logs(
        self, job: JobFolder, offsets: Mapping[str, int], limit: int, *, only: bool = False, skip: Sequence[str] = ()
    ) -> list[operations.Piece]:
        return operations.pieces(
            *operations.read(b"", job=str(job.path), offsets=dict(offsets), limit=limit, only=only, skip=skip)
        )

    def _start(self, job: JobFolder, plan: Plan) -> None:
        """Start the worker. Returns once it says that it runs."""
        # The worker sets what refers to other variables: twice would be once too often.
        worker = start_worker(job, {name: text for name, text in plan.environment.items() if not refers(text)})
        # A worker that dies before it says `running` would leave its job pending for ever.
        for _ in looks(0.02, within=START_SECONDS):
            ended = worker.poll()
            if not _unheard(job):
                return
            if ended not in (None, 0):
                error = f"the worker did not start: see {job.log_path('worker')}"
                job.finish(worker.returncode, "failed", error=error)
                raise NemotronError(f"{job.run_id}: {error}.")


def _unheard(job: JobFolder) -> bool:
    """Whether the worker has not said anything yet; one that waits for another run says so, and stays pending."""
    state = job.state()
    return state.state == "pending" and not state.facts.get("process")


def make(settings: RunConfig) -> Local:
    """The back end of executor "local"."""
    del settings
    return Local()
