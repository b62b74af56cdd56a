"""A sweep: its jobs composed and planned, run where their profile says, and what came of them handed back to Hydra."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.execution.hydra_launcher.answer import read_answer
from nemotron_kit.execution.hydra_launcher.elsewhere import run_elsewhere
from nemotron_kit.execution.hydra_launcher.local import Carried
from nemotron_kit.execution.hydra_launcher.point import Point
from nemotron_kit.execution.hydra_launcher.program import ProgramPlanner
from nemotron_kit.execution.hydra_launcher.recipe import RecipePlanner, RecipeTask
from nemotron_kit.execution.hydra_launcher.record import add_jobs, sweep_record, write_plan
from nemotron_kit.execution.hydra_launcher.settings import Settings, carried_by
from nemotron_kit.execution.launch import refuse_problems
from nemotron_kit.execution.signals import Terminated, term_raises
from nemotron_kit.runs.job import JobFolder

log = logging.getLogger("nemotron_kit.launcher")


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
        self.config, self.context, self.task, self.settings = config, context, task, settings
        self._carried: Carried | None = None
        self._kind, here = carried_by(settings), _expected_here(config, settings)
        self.run = sweep_record(config, task)
        if here:
            with self._environment():
                self._carrier()  # NeMo-Run is imported there while the jobs are composed here

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        """Run a batch; Hydra's JobReturn for each of its jobs, in order. A plan with problems stops all of them."""
        try:
            with term_raises(), self._environment():
                points = self._points(job_overrides, first)
                jobs = self._run(points)
        except Terminated:
            raise SystemExit(128 + 15) from None
        except BaseException:
            self._drop_if_empty()
            raise
        objective, detached = self.settings.objective, self._is_detached(points[0])
        pairs = zip(points, jobs, strict=True)
        return [point.returned(job, objective=objective, detached=detached) for point, job in pairs]

    def _points(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Point]:
        planner = self._planner()
        points = [planner.point(*self._composed(o, n), n) for n, o in enumerate(job_overrides, first)]
        executors = sorted({point.plan.executor for point in points})
        if len(executors) > 1:
            raise UserError(f"One sweep goes to one executor; this one names {', '.join(executors)}.")
        for point in points:
            refuse_problems(point.plan)
        return points

    def _planner(self) -> Planner:
        if isinstance(self.task, RecipeTask):
            return RecipePlanner(self.task, self.settings)
        return ProgramPlanner(self.task, self.context.callbacks, self.settings, self.run.id)

    def _composed(self, overrides: Sequence[str], number: int) -> tuple[Any, Any]:
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

    def _run(self, points: Sequence[Point]) -> list[JobFolder]:
        """Make the jobs' folders and run them to their ends, or submit them and leave them alone."""
        plan, detached = points[0].plan, self._is_detached(points[0])
        here = plan.executor == "local"
        write_plan(self.run, points, self.config)
        jobs = add_jobs(self.run, points, attached=here and not detached)
        words = {point.plan.job: point.words for point in points}
        if here:
            self._run_here(points, words, detached)
        else:
            log.info("%s: launching %d jobs on %s (%s)", self.run.id, len(jobs), plan.profile, plan.executor)
            ended = None if detached else lambda job: _tell(job, words)
            run_elsewhere(self.run, [point.plan for point in points], jobs, ended)
        return jobs

    def _run_here(self, points: Sequence[Point], words: dict[int, str], detached: bool) -> None:
        asked = points[0].plan.settings.get("max_parallel") or self.settings.max_parallel or os.cpu_count() or 1
        parallel = max(1, min(len(points), int(asked)))
        through = "NeMo-Run" if self._kind == "nemo_run" else "processes of this machine"
        log.info("%s: launching %d jobs through %s, %d at a time", self.run.id, len(points), through, parallel)
        carrier = self._carrier(detached)
        carrier.submit(list(words), parallel)
        if detached:
            carrier.leave()
        else:
            carrier.wait(list(words), lambda job: _tell(job, words))

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


def _expected_here(config: Any, settings: Settings) -> bool:
    """Whether, by what is known before any job is composed, the jobs will run on this machine."""
    from omegaconf import OmegaConf

    if settings.detach or OmegaConf.select(config, "run.mode", default=None) == "batch":
        return False
    profile = settings.profile or OmegaConf.select(config, "run.profile", default=None)
    executor = settings.env.get("executor")
    if profile is None or executor is not None:
        return executor in (None, "local")
    from nemotron_kit.plan.profiles import load_run_profile

    return load_run_profile(profile).executor == "local"


def _tell(job: JobFolder, shown: dict[int, str]) -> None:
    state = job.state()
    text = f"\t#{job.number} {state.state}: {shown[job.number]}"
    if state.state == "succeeded":
        log.info(text)
    else:
        answer = read_answer(job)
        why = answer.failure.text if answer and answer.failure else state.error
        log.warning("%s (%s)", text, why or state.state)
