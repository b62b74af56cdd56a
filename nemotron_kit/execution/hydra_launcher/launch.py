"""A sweep of Hydra's: its jobs composed and planned, run as `jobs` does, and what came of them handed back to Hydra."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

from nemotron_kit.errors import NemotronError
from nemotron_kit.execution.hydra_launcher.jobs import Jobs
from nemotron_kit.execution.hydra_launcher.packet import name_of
from nemotron_kit.execution.hydra_launcher.point import Composed, Point, overrides_of, returned
from nemotron_kit.execution.hydra_launcher.program import ProgramPlanner
from nemotron_kit.execution.hydra_launcher.recipe import RecipePlanner, RecipeTask
from nemotron_kit.execution.hydra_launcher.record import sweep_record
from nemotron_kit.execution.hydra_launcher.settings import Settings, carried_by
from nemotron_kit.plan import rendering

# How many sweeps this process has made over task functions of a name: a job runs its program again up to its own.
_sweeps: Counter[str] = Counter()


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
        """Nothing is written before the first batch. Raises UserError for what is not installed, or a profile that
        isn't there."""
        self.config, self.context, self.task, self.settings = config, context, task, settings
        carried_by(settings)
        self._expected = _expected_executor(config, settings)
        self._jobs: Jobs | None = None
        name = name_of(task)
        self._earlier = _sweeps[name]
        _sweeps[name] += 1
        if self._expected == "slurm" and find_spec("nemo_run"):
            rendering.start()

    @property
    def jobs(self) -> Jobs:
        if self._jobs is None:
            ours = isinstance(self.task, RecipeTask)
            words = [*overrides_of(self.config.hydra, "hydra"), *overrides_of(self.config.hydra)]
            run = sweep_record(self.config, self.task)
            self._jobs = Jobs(run, self.settings, words, ours=ours)
            if self._expected == "local":
                self._jobs.carrier()
        return self._jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        """Run a batch; Hydra's JobReturn for each of its jobs, in order."""
        with self._environment():
            made = self.jobs.carry_out(self._points(job_overrides, first), len(job_overrides))
        return [
            returned(
                *(point, job, partial(self._composed, words, job.number)),
                objective=self.settings.objective,
                detached=self.jobs.detached(made[0][0]),
            )
            for (point, job), words in zip(made, job_overrides, strict=True)
        ]

    def close(self) -> None:
        """End what this sweep still has running here."""
        if self._jobs is not None:
            self._jobs.close()

    def _points(self, job_overrides: Sequence[Sequence[str]], first: int) -> Iterator[Point]:
        planner = self._planner()
        for number, words in enumerate(job_overrides, first):
            yield planner.point(*self._composed(words, number), number)

    def _planner(self) -> Planner:
        if isinstance(self.task, RecipeTask):
            return RecipePlanner(self.task, self.settings)
        return ProgramPlanner(self.task, self.context.callbacks, self.settings, self.jobs.run.id, self._earlier)

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

    def _environment(self) -> AbstractContextManager[None]:
        return self.task.users_environment() if isinstance(self.task, RecipeTask) else nullcontext()


def _expected_executor(config: Any, settings: Settings) -> str | None:
    """Where the jobs will run, by what is known before any of them is composed; None for detached ones of this machine.

    Raises UserError for a profile that isn't there."""
    from omegaconf import OmegaConf

    from nemotron_kit.plan.profiles import effective_profile

    profile = settings.profile or OmegaConf.select(config, "run.profile", default=None)
    executor = effective_profile(profile, file_env={}, command_line=dict(settings.env)).config.executor
    detached = settings.detach or OmegaConf.select(config, "run.mode", default=None) == "batch"
    return None if detached and executor == "local" else executor
