"""A sweep: its jobs composed and planned, run where their profile says, and what came of them handed back to Hydra."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.execution.hydra_launcher.answer import read_answer
from nemotron_kit.execution.hydra_launcher.elsewhere import run_elsewhere
from nemotron_kit.execution.hydra_launcher.local import Carried
from nemotron_kit.execution.hydra_launcher.point import Composed, Point, returned
from nemotron_kit.execution.hydra_launcher.program import ProgramPlanner
from nemotron_kit.execution.hydra_launcher.queue import SweepQueue
from nemotron_kit.execution.hydra_launcher.recipe import RecipePlanner, RecipeTask
from nemotron_kit.execution.hydra_launcher.record import JobWriter, sweep_record, write_plan
from nemotron_kit.execution.hydra_launcher.settings import Settings, carried_by
from nemotron_kit.execution.launch import refuse_problems
from nemotron_kit.execution.signals import Terminated, term_raises
from nemotron_kit.plan import rendering
from nemotron_kit.plan.plan import Plan
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder

log = logging.getLogger("nemotron_kit.launcher")

Made = tuple[Point, JobFolder]


class Planner(Protocol):
    """Makes the point of one composed job."""

    def point(self, config: Any, hydra: Any, number: int) -> Point:
        """`hydra` is Hydra's own node. Raises UserError for what can't be launched."""


@contextmanager
def worded(task: Callable[..., Any]) -> Iterator[None]:
    """The kit's errors, where Hydra prints them: it shows a message alone only for its own exceptions. The kit's own
    command line words them itself."""
    from hydra.errors import CompactHydraException

    try:
        yield
    except NemotronError as error:
        if isinstance(task, RecipeTask):
            raise
        raise CompactHydraException(str(error)) from error


class Sweep:
    """One sweep is one record, however many batches its sweeper asks for."""

    def __init__(self, config: Any, context: Any, task: Callable[..., Any], settings: Settings) -> None:
        """Nothing is written before the first batch."""
        self.config, self.context, self.task, self.settings = config, context, task, settings
        self._kind, self._expected = carried_by(settings), _expected_executor(config, settings)
        self._run: RunFolder | None = None
        self._carried: Carried | None = None
        if self._expected == "slurm" and find_spec("nemo_run"):
            rendering.start()

    @property
    def run(self) -> RunFolder:
        if self._run is None:
            self._run = sweep_record(self.config, self.task)
            if self._expected == "local":
                self._carrier()  # NeMo-Run is imported there while the jobs are composed here
        return self._run

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        """Run a batch; Hydra's JobReturn for each of its jobs, in order. A plan with problems stops all of them."""
        try:
            with term_raises(), self._environment():
                made = self._planned(job_overrides, first)
                detached = self._launch(made)
        except Terminated:
            raise SystemExit(128 + 15) from None
        except BaseException:
            self._drop_if_empty()
            raise
        return [
            returned(
                *(point, job, partial(self._composed, words, job.number)),
                objective=self.settings.objective,
                detached=detached,
            )
            for (point, job), words in zip(made, job_overrides, strict=True)
        ]

    def _planned(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Made]:
        """The jobs and their folders. Nothing is left of them when one of them can't be."""
        planner, executor = self._planner(), None
        with JobWriter(self.run, len(job_overrides)) as writer:
            for number, words in enumerate(job_overrides, first):
                point = planner.point(*self._composed(words, number), number)
                refuse_problems(point.plan)
                if executor is None:
                    executor, detached = point.plan.executor, self._is_detached(point)
                    write_plan(self.run, point, self.config)
                if point.plan.executor != executor:
                    raise UserError(f"One sweep goes to one executor: not to {executor} and {point.plan.executor}.")
                writer.add(point, attached=executor == "local" and not detached)
            return writer.done()

    def _planner(self) -> Planner:
        if isinstance(self.task, RecipeTask):
            return RecipePlanner(self.task, self.settings)
        return ProgramPlanner(self.task, self.context.callbacks, self.settings, self.run.id)

    def _composed(self, overrides: Sequence[str], number: int) -> Composed:
        """The job's config, and Hydra's node, which was a part of it."""
        from omegaconf import flag_override, open_dict

        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        hydra = config._get_node("hydra")
        with open_dict(hydra):
            hydra.job.id = f"job_{number}"
            hydra.job.num = number
        with flag_override(config, "readonly", False), open_dict(config):
            del config["hydra"]
        return config, hydra

    def _launch(self, made: Sequence[Made]) -> bool:
        """Run the jobs to their ends, or submit them and leave them alone; whether they were left alone."""
        first = made[0][0]
        plan, detached = first.plan, self._is_detached(first)
        labels = {point.plan.job: point.label for point, _ in made}
        if plan.executor == "local":
            self._run_here(plan, labels, detached)
        else:
            log.info("%s: launching %d jobs on %s (%s)", self.run.id, len(made), plan.profile, plan.executor)
            ended = None if detached else lambda job: _tell(job, labels)
            SweepQueue(self.run).add(list(labels))
            run_elsewhere(self.run, [job for _, job in made], ended)
        if detached and not isinstance(self.task, RecipeTask):  # the kit's own command line says it of a recipe's
            log.info("%s goes on: nemotron runs attach %s; to stop it: nemotron runs cancel %s", *[self.run.id] * 3)
        return detached

    def _run_here(self, plan: Plan, labels: dict[int, str], detached: bool) -> None:
        asked = plan.settings.get("max_parallel") or self.settings.max_parallel or os.cpu_count() or 1
        parallel = max(1, min(len(labels), int(asked)))
        through = "NeMo-Run" if self._kind == "nemo_run" else "processes of this machine"
        log.info("%s: launching %d jobs through %s, %d at a time", self.run.id, len(labels), through, parallel)
        carrier = self._carrier(detached)
        carrier.submit(list(labels), parallel)
        if detached:
            carrier.leave()
        else:
            carrier.wait(list(labels), lambda job: _tell(job, labels))

    def _carrier(self, detached: bool = False) -> Carried:
        if detached:
            self.close()
            return Carried(self.run, self._kind, detached=True)
        if self._carried is None:
            self._carried = Carried(self.run, self._kind)
        return self._carried

    def _environment(self) -> AbstractContextManager[None]:
        return self.task.users_environment() if isinstance(self.task, RecipeTask) else nullcontext()

    def close(self) -> None:
        """End what this sweep still has running here."""
        if self._carried is not None:
            self._carried.stop()
            self._carried = None

    def _is_detached(self, point: Point) -> bool:
        return self.settings.detach or point.plan.mode == "batch"

    def _drop_if_empty(self) -> None:
        """A sweep that could not be planned leaves no record."""
        if not self.run.jobs():
            self.close()
            if not isinstance(self.task, RecipeTask):
                shutil.rmtree(self.run.path, ignore_errors=True)


def _expected_executor(config: Any, settings: Settings) -> str | None:
    """Where the jobs will run, by what is known before any of them is composed; None for detached ones of this machine.

    Raises UserError for a profile that isn't there."""
    from omegaconf import OmegaConf

    from nemotron_kit.plan.profiles import effective_profile

    profile = settings.profile or OmegaConf.select(config, "run.profile", default=None)
    executor = effective_profile(profile, file_env={}, command_line=dict(settings.env)).config.executor
    detached = settings.detach or OmegaConf.select(config, "run.mode", default=None) == "batch"
    return None if detached and executor == "local" else executor


def _tell(job: JobFolder, labels: dict[int, str]) -> None:
    state = job.state()
    text = f"\t#{job.number} {state.state}: {labels[job.number]}"
    if state.state == "succeeded":
        log.info(text)
    else:
        answer = read_answer(job)
        why = answer.failure.text if answer and answer.failure else state.error
        log.warning("%s (%s)", text, why or state.state)
