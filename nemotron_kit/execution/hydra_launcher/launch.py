"""A sweep: its jobs composed and planned, run where their profile says, and what came of them handed back to Hydra."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.execution.backends.base import Backend, backend_for
from nemotron_kit.execution.hydra_launcher.answer import read_answer
from nemotron_kit.execution.hydra_launcher.local import Carried
from nemotron_kit.execution.hydra_launcher.point import Point, overrides_of
from nemotron_kit.execution.hydra_launcher.program import ProgramPlanner
from nemotron_kit.execution.hydra_launcher.recipe import RecipePlanner, RecipeTask
from nemotron_kit.execution.hydra_launcher.settings import Settings, carried_by
from nemotron_kit.execution.hydra_launcher.watch import watch
from nemotron_kit.execution.launch import refuse_problems
from nemotron_kit.execution.signals import Terminated, term_raises
from nemotron_kit.plan.plan import Plan
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.ids import new_run_id
from nemotron_kit.runs.job import JobFolder

log = logging.getLogger("nemotron_kit.launcher")
# What plan.json has of one job's plan, and a sweep's has not.
_ONE_JOBS = (
    "files",
    "config",
    "launch_command",
    "job_folder",
    "environment",
    "problems",
    "notes",
    "captured_at_launch",
)


class Planner(Protocol):
    """Makes the point of one composed job."""

    def point(self, config: Any, number: int) -> Point:
        """`config` holds Hydra's own node too. Raises UserError for what can't be launched."""


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
        self.run = _record(config, task)
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
        points = [planner.point(self._composed(o, n), n) for n, o in enumerate(job_overrides, first)]
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

    def _composed(self, overrides: Sequence[str], number: int) -> Any:
        from omegaconf import open_dict

        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"job_{number}"
            config.hydra.job.num = number
        return config

    def _run(self, points: Sequence[Point]) -> list[JobFolder]:
        """Make the jobs' folders and run them to their ends, or submit them and leave them alone."""
        plan = points[0].plan
        here, detached = plan.executor == "local", self._is_detached(points[0])
        self._write_plan(points)
        texts = [{**point.plan.files, **point.texts} for point in points]
        attached = here and not detached
        jobs = [self.run.add_job(p.plan.job, text, attached=attached) for p, text in zip(points, texts, strict=True)]
        numbers, shown = [job.number for job in jobs], {point.plan.job: point.words for point in points}
        if here:
            self._here(points, numbers, shown, detached)
        else:
            self._elsewhere(points, jobs, shown, detached)
        return jobs

    def _here(self, points: Sequence[Point], numbers: list[int], shown: dict[int, str], detached: bool) -> None:
        asked = points[0].plan.settings.get("max_parallel") or self.settings.max_parallel or os.cpu_count() or 1
        parallel = max(1, min(len(numbers), int(asked)))
        through = "NeMo-Run" if self._kind == "nemo_run" else "processes of this machine"
        log.info("%s: launching %d jobs through %s, %d at a time", self.run.id, len(numbers), through, parallel)
        carrier = self._carrier(detached)
        carrier.submit(numbers, parallel)
        if detached:
            carrier.leave()
        else:
            carrier.wait(numbers, lambda job: _tell(job, shown))

    def _elsewhere(
        self, points: Sequence[Point], jobs: Sequence[JobFolder], shown: dict[int, str], detached: bool
    ) -> None:
        plan = points[0].plan
        backend = backend_for(plan)
        log.info("%s: launching %d jobs on %s (%s)", self.run.id, len(jobs), plan.profile, plan.executor)
        _submit(backend, self.run, [point.plan for point in points], jobs)
        if detached:
            return
        try:
            watch(self.run, backend, [job.number for job in jobs], lambda job: _tell(job, shown))
        except (KeyboardInterrupt, Terminated):
            if plan.settings.get("cancel_on_interrupt"):
                backend.cancel(self.run, jobs)
                log.warning("%s: cancelled.", self.run.id)
            else:
                log.warning("%s goes on. Its states: nemotron runs show %s", self.run.id, self.run.id)
                log.warning("To stop it: nemotron runs cancel %s", self.run.id)
            raise

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

    def _write_plan(self, points: Sequence[Point]) -> None:
        plan = points[0].plan.to_dict()
        shared = {key: value for key, value in plan.items() if key not in _ONE_JOBS}
        hydra = [*overrides_of(self.config, "hydra"), *overrides_of(self.config)]
        record = {**shared, "kind": "sweep", "hydra": ["-m", *hydra]}
        files.write_json(self.run.path / "plan.json", {**self.run.plan(), **record})

    def _drop_if_empty(self) -> None:
        """A sweep that could not be planned leaves no record."""
        if not self.run.jobs():
            self.close()
            if not isinstance(self.task, RecipeTask):
                shutil.rmtree(self.run.path, ignore_errors=True)


def _record(config: Any, task: Callable[..., Any]) -> RunFolder:
    """The sweep's folder. A recipe's is Hydra's sweep.dir, and there already; another app's files stay its own."""
    if isinstance(task, RecipeTask):
        return RunFolder(task.folder)
    name = str(config.hydra.job.name)
    plan = {"kind": "sweep", "recipe": name, "stage": "", "command_line": shlex.join(sys.argv)}
    return create_run(new_run_id(name, ""), plan, [])


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


def _submit(backend: Backend, run: RunFolder, plans: Sequence[Plan], jobs: Sequence[JobFolder]) -> None:
    """Have the jobs submitted; what is known of those for which that failed is on record."""
    try:
        backend.submit(run, plans)
    except Unreachable as error:
        for job in jobs:
            job.transition("unknown", observed=True, error=error.message)
        raise
    except NemotronError as error:
        for job in jobs:
            job.finish(error.exit_code, "failed", error=error.message)
        raise


def _tell(job: JobFolder, shown: dict[int, str]) -> None:
    state = job.state()
    text = f"\t#{job.number} {state.state}: {shown[job.number]}"
    if state.state == "succeeded":
        log.info(text)
    else:
        answer = read_answer(job)
        why = answer.failure.text if answer and answer.failure else state.error
        log.warning("%s (%s)", text, why or state.state)
