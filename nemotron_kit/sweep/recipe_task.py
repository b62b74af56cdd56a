"""Plans the jobs of a sweep over a recipe: config.yaml, and the command's script or handler. No Hydra, no pickle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from nemotron_kit import worker
from nemotron_kit.config.compose import Composed, from_hydra
from nemotron_kit.config.freeze import environment
from nemotron_kit.config.limits import hydra_reading_fixes
from nemotron_kit.config.resolvers import set_run_dir
from nemotron_kit.discovery import discover, tree_in_use
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.launch.dependencies import SweepAfter
from nemotron_kit.launch.launch import refuse_problems, run_planned
from nemotron_kit.launch.plan import build_plan
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.spec.plan import DETACHED, IN_PROCESS, Labels, Plan, is_local
from nemotron_kit.sweep.objective import check_objective, objective_of, record_objective, value_for
from nemotron_kit.sweep.sweep_job import Settings, SweepJob
from nemotron_kit.worker import hydra as hydra_module
from nemotron_kit.worker.hydra import hydra_files, mask_multirun
from nemotron_kit.worker.process import INTERRUPTED, TERMINATED, Outcome
from nemotron_kit.worker.result import JobFailed

# What the command line sets for a sweep: Hydra's errors as exceptions; and no modules from the working folder, in the
# processes of launchers that start them by `python -m` without -P, as submitit does.
FULL_ERROR, SAFE_PATH = "HYDRA_FULL_ERROR", "PYTHONSAFEPATH"
# In an exit record: the job could not be planned.
REFUSED = "refused"


class RecipeTask:
    """The task function of a sweep over a recipe: one job, called by the launcher configured in Hydra.

    Hydra's basic launcher calls it in this process, submitit's pickles it and calls it in another;
    `hydra/launcher=nemo_run` calls only its `plan_job`.
    """

    def __init__(
        self,
        folder: Path,
        argv: Sequence[str],
        after: Sequence[str] = (),
        labels: Labels | None = None,
        announce: Callable[[], None] | None = None,
    ) -> None:
        """`after`: the runs that a detached sweep starts after. `labels`: the run's. `announce` prints the run's id; it
        is called once, by `begin`."""
        self.begun, self._announce = False, announce
        # The number of the sweep's jobs; None while a sweeper such as Optuna's may add more.
        self.count: int | None = None
        self.labels = labels
        self.folder, self.argv = folder, tuple(argv)
        self._after = SweepAfter(after) if after else None
        self._masked = False
        self._users = {name: os.environ.get(name) for name in (FULL_ERROR, SAFE_PATH)}

    def __getstate__(self) -> dict[str, Any]:
        # The process that unpickles this discovers its commands; it can't find those of an app that is a program.
        found = discover().apps
        for name in tree_in_use().apps.keys() - found.keys():
            raise UserError(
                f"The processes that this launcher starts can't find the recipe {name!r}, which is a program.",
                hint="hydra/launcher=nemo_run runs it, and so do --run and --batch. For other launchers: put it into a "
                f"folder {name}, which env.toml names in [cli] recipes.",
            )
        self.begin()  # a launcher that pickles this is about to start jobs
        return {**self.__dict__, "_announce": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A launcher that pickles this composes in another process, which needs the launch's folder, too.
        self.__dict__.update(state)
        worker.process_exits = True  # sooner or later, after its jobs
        set_run_dir(str(self.folder))
        enter_reading_fixes()

    def begin(self) -> None:
        """Announce the run, unless that was done: from now on its record stays."""
        if not self.begun and self._announce is not None:
            self._announce()
        self.begun = True

    def __call__(self, config: Any) -> Any:
        """Run the job that Hydra composed; returns the handler's return value to the sweeper."""
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        try:
            refuse_several_tasks(hydra.launcher)
            composed = from_hydra(tree_in_use(), config, hydra)
            plan = self.plan(composed, int(hydra.job.num))
            refuse_problems(plan)
            if plan.launch == IN_PROCESS:  # an import that fails leaves no run, as of a single job
                composed.command.load_handler()
            if plan.launch == DETACHED:
                raise UserError("A sweep with --batch needs hydra/launcher=nemo_run.")
        except NemotronError as error:
            # Hydra has created the job's folder for its log; the exit record says why it contains nothing else.
            with suppress(NemotronError):  # another process of the job has written it
                refused = RunFolder(self.folder).add_job(int(hydra.job.num), {})
                refused.finish(error.exit_code, "failed", error=error.message, **{REFUSED: True})
            raise
        run = RunFolder(self.folder)
        job = run.add_job(
            plan.job,
            {**plan.files, **hydra_files(composed)},
            attached=plan.launch == IN_PROCESS,
            starts_here=is_local(plan.executor),
        )
        if plan.job + 1 == self.count == len(run.jobs()):
            run.all_jobs_added()
        self.begin()
        with self.users_environment():
            outcome = run_planned(plan, composed.command, job)
        if self._announce is not None:  # the launch's own process
            _end_if_stopped(outcome)
        if outcome.state == "succeeded":
            return value_for(hydra, job, objective_of(hydra, composed.command), outcome.value)
        if isinstance(outcome.exception, Exception):
            raise outcome.exception
        raise JobFailed(outcome.error or outcome.state, outcome.code)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Within the block, `count` is set once Hydra's own sweeper has listed the sweep's jobs."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        theirs = BasicSweeper.split_arguments

        def split(*arguments: Any, **named: Any) -> Any:
            batches = theirs(*arguments, **named)
            self.count = sum(map(len, batches))
            return batches

        BasicSweeper.split_arguments = staticmethod(split)
        try:
            yield
        finally:
            BasicSweeper.split_arguments = staticmethod(theirs)

    def users_environment(self) -> AbstractContextManager[None]:
        """Within the block, the environment variables that the command line sets for Hydra have the user's values."""
        return environment(self._users)

    def plan(self, composed: Composed, number: int) -> Plan:
        """The plan of job `number`. Raises UserError for one that can't be planned, and at the first job for a sweeper
        that would get no value."""
        if not self._masked:
            check_objective(composed)
            # the sweeper has written it by now
            mask_multirun(Path(composed.hydra.sweep.dir))
            record_objective(RunFolder(self.folder), composed.hydra, composed.command)
            self._masked = True
        plan = self._build(composed, number)
        if self._after is None:
            return plan
        return self._after.apply(plan, composed.command, lambda: self._build(composed, number))

    def plan_job(self, config: Any, hydra: Any, number: int, settings: Settings) -> SweepJob:
        """The SweepJob of one composed job; `hydra` is the config's node hydra."""
        from omegaconf import open_dict

        with open_dict(config):
            set_run(config.run, settings)
        composed = from_hydra(tree_in_use(), config, hydra)
        plan = replace(self.plan(composed, number), objective=objective_of(hydra, composed.command))
        if settings.max_parallel:
            plan = replace(plan, settings=replace(plan.settings, max_parallel=settings.max_parallel))
        return sweep_job_of(plan, composed, composed.overrides)

    def _build(self, composed: Composed, number: int) -> Plan:
        app = tree_in_use().apps[composed.command.recipe]
        return build_plan(
            *(composed, app),
            run_id=self.folder.name,
            argv=self.argv,
            job=number,
            transports=transport_for,
            single=False,
            labels=self.labels,
        )


def _end_if_stopped(outcome: Outcome) -> None:
    """Raise KeyboardInterrupt or SystemExit for a job that ended because this process got Ctrl-C or SIGTERM: the launch
    ends as well, where Hydra's basic launcher would go on with the next job."""
    if outcome.state in ("cancelled", "detached") and outcome.code == INTERRUPTED:
        raise KeyboardInterrupt
    if outcome.state == "preempted" or (outcome.state in ("cancelled", "detached") and outcome.code == TERMINATED):
        raise SystemExit(outcome.code)


@cache
def enter_reading_fixes() -> ExitStack:
    """`hydra_reading_fixes` for the rest of this process, in which a launcher composes each job; they end with what is
    returned."""
    entered = ExitStack()
    entered.enter_context(hydra_reading_fixes())
    return entered


def refuse_several_tasks(launcher: Mapping[str, Any]) -> None:
    """Raise UserError for a launcher that runs the task function of one job in several processes, as submitit does."""
    count = int(launcher.get("nodes") or 1) * int(launcher.get("tasks_per_node") or 1)
    if count > 1:
        raise UserError(
            f"hydra.launcher.nodes and tasks_per_node: this launcher would run each job of a recipe {count} times.",
            hint="A job of several processes: hydra/launcher=nemo_run hydra.launcher.profile=NAME, with nodes and "
            "nproc_per_node in the profile.",
        )


def set_run(run: Any, settings: Settings) -> None:
    """Set the launcher's settings in a job's `run` section. Raises UserError if the two differ."""
    profile = settings.profile
    if profile and run.profile and run.profile != profile:
        raise UserError(
            f"run.profile={run.profile} and hydra.launcher.profile={profile} differ.", hint="Give one of them."
        )
    run.profile = run.profile or profile
    if run.profile:
        run.mode = "batch" if settings.detach or run.mode == "batch" else "run"
    if settings.env:
        raise UserError("hydra.launcher.env is for other apps.", hint="In a recipe's sweep give run.env.KEY=VALUE.")


def sweep_job_of(plan: Plan, composed: Composed, overrides: Sequence[str]) -> SweepJob:
    """The SweepJob of a planned job: Hydra's node is sent to the job, its other files are written to the record."""
    texts = hydra_files(composed)
    plan = replace(plan, files={**plan.files, hydra_module.FILE: texts[hydra_module.FILE]})
    return SweepJob(plan, tuple(overrides), texts)
