"""The local executor: for each job a worker process, in a new session."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import NemotronError, Problem
from nemotron_kit.executors.base import EVERYWHERE, Executor, ExecutorPlan, Observation, PlanContext
from nemotron_kit.polling import polls
from nemotron_kit.quoting import expanded, refers
from nemotron_kit.runs.cancel import cancel_jobs
from nemotron_kit.runs.job import JobFolder, JobState
from nemotron_kit.spec.paths import RemotePaths, local_paths
from nemotron_kit.spec.plan import DETACHED, Plan
from nemotron_kit.spec.resources import Resources, resources_of
from nemotron_kit.spec.runconfig import env_dict

if TYPE_CHECKING:
    from nemotron_kit.runs.folder import RunFolder

START_SECONDS = 10.0


class Local(Executor):
    """Runs detached jobs on this machine. Their state is in their folders."""

    reads = EVERYWHERE | {"python", "retries"}
    pace = (0.05, 0.5)

    def _paths(self, run_id: str, job: int, registry: str | None) -> RemotePaths:
        return local_paths(self.settings, run_id, job, registry=registry)

    def resources(self, torchrun: bool | None) -> Resources:
        """One node, this machine. Scheduler settings of the profile have no effect."""
        if torchrun is False:
            return resources_of(replace(self.settings, gpus_per_node=None), False)
        processes = self.settings.nproc_per_node or 1
        return Resources(nodes=1, processes=processes, torchrun=processes > 1)

    def plan(self, context: PlanContext) -> ExecutorPlan:
        nodes = self.settings.nodes or 1
        problems: tuple[Problem, ...] = ()
        # A command that is one process has one node, whatever the profile says; its plan notes that.
        if nodes > 1 and context.torchrun is not False:
            more = "Use nproc_per_node for more processes."
            problems = (Problem("the local executor has one node.", field=f"nodes={nodes}", hint=more),)
        notes = list(context.resources.notes)
        if self.settings.python and context.mode == "batch" and not context.single:
            notes.append("python: no effect on a sweep of this machine, whose jobs the launch's Python runs.")
        return ExecutorPlan(problems=problems, notes=tuple(notes))

    def without_effect(self, given: Collection[str], launch: str) -> Iterator[str]:
        yield from super().without_effect(given, launch)
        if "python" in given and launch != DETACHED:
            yield "python: no effect on a job in this process; --batch starts the profile's Python."
        if "retries" in given and (self.settings.nproc_per_node or 1) == 1:
            yield "retries: no effect on one process; of several all start again when one has died."

    def nemo_run(self, run: Any, env: Mapping[str, str]) -> Any:
        config = self.settings
        return run.LocalExecutor(
            ntasks_per_node=config.nproc_per_node or 1, nodes=config.nodes or 1, env_vars=env, **(config.extra or {})
        )

    def prepare(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        """Nothing to prepare: the jobs use this machine's files."""

    def submit(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        for plan in plans:
            job = run.job(plan.job)
            if job.state().state == "pending":
                self._start(job, plan)

    def observe_many(self, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]) -> dict[str, dict[int, Observation]]:
        states = {run.id: {job.number: job.state() for job in jobs} for run, jobs in runs}
        return {
            run_id: {number: Observation(state.state, state.code, state.error) for number, state in found.items()}
            for run_id, found in states.items()
        }

    def cancel(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        del run
        cancel_jobs(jobs)

    def job_folder(self, job: JobFolder) -> str:
        """That of the record, also where the run's plan is damaged."""
        return str(job.path)

    def shell(self, plan: Plan, job: JobFolder, state: JobState, command: list[str], node: str | None) -> list[str]:
        """A shell in the job's folder, with the job's variables: this process gets both."""
        del state, node
        os.chdir(job.path)
        given = env_dict(plan.settings)  # of which alone the worker expands references
        variables = {n: expanded(text, os.environ) if n in given else text for n, text in plan.environment.items()}
        os.environ.update({**variables, "NEMO_RUN_DIR": str(job.path), "NEMOTRON_RUN_ID": job.run_id})
        return command or [os.environ.get("SHELL") or "/bin/sh"]

    def checks(self) -> Sequence[str]:
        return ("connection", "python", "storage", "registry", "secrets")

    def _start(self, job: JobFolder, plan: Plan) -> None:
        """Start the worker. Returns once it has recorded that it runs."""
        from nemotron_kit.worker.process import start_worker

        # The worker sets variables that refer to others; set here, too, they would be expanded twice.
        variables = {name: text for name, text in plan.environment.items() if not refers(text)}
        try:
            worker = start_worker(job, variables, plan.paths.python if plan.mode == "batch" else "")
        except OSError as failure:
            error = f"the worker did not start: python: {plan.paths.python}: {failure.strerror}"
            job.finish(1, "failed", error=error)
            raise NemotronError(f"{job.run_id}: {error}.") from failure
        # A worker that dies before it records `running` would leave its job pending for ever. One that waits for
        # another run has recorded its process; its job stays pending.
        for _ in polls(0.02, within=START_SECONDS):
            ended, state = worker.poll(), job.state()
            if state.state != "pending" or state.facts.get("process"):
                return
            if ended not in (None, 0):
                error = f"the worker did not start: see {job.log_path('worker')}"
                job.finish(worker.returncode, "failed", error=error)
                raise NemotronError(f"{job.run_id}: {error}.")
