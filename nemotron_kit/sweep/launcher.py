"""The engine of `hydra/launcher=nemo_run`: composes, plans and runs jobs, and returns their results to Hydra."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.nemotron_kit_launcher.nemo_run import SingleRunCheck

from nemotron_kit import files
from nemotron_kit.config.secrets import masked_overrides
from nemotron_kit.errors import NemotronError, UserError, full_trace
from nemotron_kit.executors.base import executor_class
from nemotron_kit.home import new_run_id
from nemotron_kit.launch import queue
from nemotron_kit.launch.launch import code_facts, refuse_problems
from nemotron_kit.launch.queue import SweepQueue
from nemotron_kit.launch.submission import submit_and_follow
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.process_facts import process_facts
from nemotron_kit.spec.plan import is_local
from nemotron_kit.spec.profiles import effective_profile
from nemotron_kit.sweep.compose_jobs import install
from nemotron_kit.sweep.hydra_app import ProgramPlanner, drop_copied, interpreter_options
from nemotron_kit.sweep.local_scheduler import LocalSchedulerClient
from nemotron_kit.sweep.objective import check_program, check_returned, learns, objective_facts, value_for
from nemotron_kit.sweep.recipe_task import RecipeTask
from nemotron_kit.sweep.sweep_job import Composed, Settings, SweepJob, overrides_of, starter_kind
from nemotron_kit.worker.payload import name_of
from nemotron_kit.worker.process import Terminated, term_raises
from nemotron_kit.worker.result import JobFailed, TaskResult, read_task_result
from nemotron_kit.worker.streams import print_notice

# The fields of a plan that are specific to one job.
_ONE_JOBS = frozenset(
    ("files", "config", "launch_command", "job_folder", "environment", "problems", "notes", "captured_at_launch")
)
_WRITERS = 16
_MANY = 256


def sweep_record(config: Any, task: Callable[..., Any]) -> RunFolder:
    """The sweep's run folder. For a recipe it is Hydra's sweep.dir, and exists already; for another app it is created,
    and sweep.dir is another folder."""
    if isinstance(task, RecipeTask):
        return RunFolder(task.folder)
    name, spec = str(config.hydra.job.name), getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]
    line = ["python", *interpreter_options(), *program, *sys.argv[1:]]
    plan = {"kind": "sweep", "recipe": name, "stage": "", "command_line": shlex.join(masked_overrides(line)),
            "code": code_facts(), "launcher": process_facts()}  # fmt: skip
    return create_run(new_run_id(name, ""), {**plan, **objective_facts(config.hydra)}, [])


def write_plan(run: RunFolder, sweep_job: SweepJob, hydra: Sequence[str]) -> None:
    """Add to plan.json what the jobs have in common: where they run, and the command line."""
    shared = {key: value for key, value in sweep_job.plan.to_dict().items() if key not in _ONE_JOBS}
    sweep_facts = {"kind": "sweep", "hydra": ["-m", *masked_overrides(hydra)], "launcher": process_facts()}
    known = run.plan()
    if "command_line" in known:  # as it was typed: that of a program's plan lacks the interpreter
        shared["command_line"] = known["command_line"]
    shared["code"] = shared.get("code") or known.get("code")
    files.write_json(run.path / "plan.json", {**known, **shared, **sweep_facts})


class JobWriter:
    """Creates jobs' folders, each atomically. With few jobs, folders are written while the next jobs are planned; with
    many, the disk is synced once, at the end. An exception in the block removes the folders."""

    def __init__(self, run: RunFolder, count: int) -> None:
        self.run = run
        # A sync of the whole file system waits for all users' data, so it is only used for many jobs.
        self._pool = ThreadPoolExecutor(_WRITERS) if count <= _MANY else None
        self._futures: list[Future[tuple[SweepJob, JobFolder]]] = []
        self._written: list[tuple[SweepJob, JobFolder]] = []

    def __enter__(self) -> JobWriter:
        return self

    def add(self, sweep_job: SweepJob, *, attached: bool) -> None:
        """Write a job's folder. `attached`: the launch waits for the job."""
        if self._pool:
            self._futures.append(self._pool.submit(self._write, sweep_job, attached))
            return
        with files.synced_later():
            self._written.append(self._write(sweep_job, attached))

    def done(self) -> list[tuple[SweepJob, JobFolder]]:
        """All jobs, in the order in which they were added, once all folders exist."""
        if self._pool:
            return [future.result() for future in self._futures]
        files.sync_file_system(self.run.path)
        return self._written

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=kind is not None)
        if kind is not None:
            ended = [f for f in self._futures if not f.cancelled() and f.exception() is None]
            for _, job in [*self._written, *(future.result() for future in ended)]:
                shutil.rmtree(job.path, ignore_errors=True)

    def _write(self, sweep_job: SweepJob, attached: bool) -> tuple[SweepJob, JobFolder]:
        texts = {**sweep_job.plan.files, **sweep_job.texts, queue.LAUNCH_FILE: queue.to_text(sweep_job.plan)}
        job = self.run.add_job(
            sweep_job.plan.job, texts, attached=attached, starts_here=is_local(sweep_job.plan.executor)
        )
        # Drop what is on disk now from memory: a sweep may have very many jobs.
        return SweepJob(replace(sweep_job.plan, files={}, config={}), sweep_job.overrides), job


class LazyJobReturn(JobReturn):  # type: ignore[misc]
    """The JobReturn of one job. Its configs are composed again when a sweeper reads them, since those of ten thousand
    jobs would not fit into memory."""

    def __init__(
        self,
        overrides: Sequence[str],
        compose: Callable[[], Composed],
        job: JobFolder,
        task_result: TaskResult | None,
        *,
        value: Any,
        error: Exception | None = None,
    ) -> None:
        # JobReturn's __init__ would set what is computed here on access.
        self._compose, self._job, self._task_result = compose, job, task_result
        self.overrides = list(overrides)
        self.working_dir = (task_result and task_result.working_dir) or str(job.path)
        self.status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
        self._return_value = value if error is None else error

    @cached_property
    def _composed(self) -> Composed:
        return self._compose()

    @property
    def cfg(self) -> Any:
        """The job's config."""
        return self._composed[0]

    @property
    def task_name(self) -> str:
        """hydra.job.name."""
        return str(self._composed[1].job.name)

    @cached_property
    def hydra_cfg(self) -> Any:
        """The config's node hydra, with what is known only once the job has run."""
        from omegaconf import OmegaConf, open_dict, read_write

        config = OmegaConf.create({"hydra": self._composed[1]}, flags={"allow_objects": True})
        task_result, hydra = self._task_result, config.hydra
        with read_write(hydra), open_dict(hydra):
            hydra.runtime.output_dir = (task_result and task_result.output_dir) or str(self._job.path)
            hydra.job.id = (task_result and task_result.job_id) or hydra.job.id
        return config


log = logging.getLogger("nemotron_kit.launcher")

WrittenJob = tuple[SweepJob, JobFolder]


def job_return(
    sweep_job: SweepJob, job: JobFolder, compose: Callable[[], Composed], *, hydra: Any, detached: bool
) -> Any:
    """The LazyJobReturn of one job. Reading the value of a failed job raises its exception; a detached job's value is
    None."""
    if detached:
        return LazyJobReturn(sweep_job.overrides, compose, job, None, value=None)
    from hydra.errors import CompactHydraException

    task_result, state = read_task_result(job), job.state()
    value, error = None, None
    if state.state != "succeeded":
        code = (task_result and task_result.code) or state.code or 1
        failure = task_result.failure if task_result else None
        if failure is not None and failure.type != "builtins.SystemExit":
            error = failure.rebuild(code)
        else:
            why = state.error or f"exit code {code}"
            where = f"its log: nemotron runs logs {job.run_id} --job {job.number}"
            error = JobFailed(f"Job {job.number} ({sweep_job.label}) {state.state}: {why}; {where}", code)
    try:
        value = _value(job, task_result, sweep_job.plan.objective, hydra) if error is None else None
    except NemotronError as missing:
        # Hydra prints a program's exceptions with a traceback, unless they are its own.
        error = missing if task_result is None else CompactHydraException(str(missing))
    except ValueError as invalid:
        error = invalid
    return LazyJobReturn(sweep_job.overrides, compose, job, task_result, value=value, error=error)


def _value(job: JobFolder, task_result: TaskResult | None, objective: str | None, hydra: Any) -> Any:
    is_recipe = task_result is None
    if task_result is None:
        record = job.exit_record() or {}
        task_result = TaskResult(
            value=record.get("value"), types=record.get("types") or {}, left_out=record.get("left_out")
        )
    if task_result.left_out and objective is None:
        log.warning("#%d %s: the sweep gets None.", job.number, task_result.left_out)
    if is_recipe or objective is not None:
        return value_for(hydra, job, objective, task_result.result)
    check_returned(hydra, job, task_result.result)
    return task_result.result


class Jobs:
    """Plans, writes and runs the jobs of one sweep. All batches of the sweep share one run folder."""

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        hydra: Sequence[str],
        *,
        ours: bool,
        begun: Callable[[], None] | None = None,
    ) -> None:
        """`hydra` are the overrides of the sweep's command line. `ours`: the sweep was launched by `nemotron`, which
        removes the record of a sweep that could not be planned, and prints how to follow a detached one. `begun` is
        called once jobs are planned and written, before they start."""
        self.run, self.settings, self._hydra, self._ours, self._begun = run, settings, hydra, ours, begun
        self._kind = starter_kind(settings)
        self._scheduler: LocalSchedulerClient | None = None

    def run_all(self, sweep_jobs: Iterable[SweepJob], count: int) -> list[WrittenJob]:
        """Run `count` jobs until they end, or submit them and return, as the first job's plan specifies. Raises
        UserError, and runs none, if a plan has problems."""
        try:
            with term_raises():
                written = self._plan_and_write(sweep_jobs, count)
                if self._begun is not None:
                    self._begun()
                self._launch(written)
                return written
        except Terminated:
            raise SystemExit(128 + 15) from None
        except BaseException:
            if not self.run.jobs():  # no job could be planned
                self.close()
                if not self._ours:
                    shutil.rmtree(self.run.path, ignore_errors=True)
            raise

    def detached(self, sweep_job: SweepJob) -> bool:
        """Whether the launch returns once such a job is submitted."""
        return self.settings.detach or sweep_job.plan.mode == "batch"

    def scheduler(self, detached: bool = False) -> LocalSchedulerClient:
        """The scheduler of jobs on this machine. It imports NeMo-Run while the jobs are composed."""
        if detached:
            self.close()
            return LocalSchedulerClient(self.run, self._kind, detached=True)
        if self._scheduler is None:
            self._scheduler = LocalSchedulerClient(self.run, self._kind)
        return self._scheduler

    def close(self) -> None:
        """Stop whatever this sweep still runs on this machine."""
        if self._scheduler is not None:
            self._scheduler.stop()
            self._scheduler = None

    def _plan_and_write(self, sweep_jobs: Iterable[SweepJob], count: int) -> list[WrittenJob]:
        """The jobs and their folders. If one of them can't be planned, all folders are removed."""
        executor = None
        with JobWriter(self.run, count) as writer:
            for sweep_job in sweep_jobs:
                refuse_problems(sweep_job.plan)
                if executor is None:
                    executor, detached = sweep_job.plan.executor, self.detached(sweep_job)
                    write_plan(self.run, sweep_job, self._hydra)
                if sweep_job.plan.executor != executor:
                    raise UserError(f"A sweep has one executor, not {executor} and {sweep_job.plan.executor}.")
                writer.add(sweep_job, attached=is_local(executor) and not detached)
            return writer.done()

    def _launch(self, written: Sequence[WrittenJob]) -> None:
        first = written[0][0]
        plan, detached = first.plan, self.detached(first)
        labels = {sweep_job.plan.job: sweep_job.label for sweep_job, _ in written}
        for note in plan.notes if not self._ours else ():
            log.info("note: %s", note)
        if is_local(plan.executor):
            secrets = dict.fromkeys(name for sweep_job, _ in written for name in sweep_job.plan.secrets)
            asked = plan.settings.max_parallel or self.settings.max_parallel or os.cpu_count() or 1
            parallel = max(1, min(len(labels), int(asked)))
            through = "NeMo-Run" if self._kind == "nemo_run" else "processes of this machine"
            log.info("%s: launching %d jobs through %s, %d at a time", self.run.id, len(labels), through, parallel)
            scheduler = self.scheduler(detached)
            scheduler.submit(list(labels), parallel, secrets)
            if detached:
                scheduler.leave()
            else:
                scheduler.wait(list(labels), lambda job: _log_end(job, labels))
        else:
            log.info("%s: launching %d jobs on %s (%s)", self.run.id, len(written), plan.profile, plan.executor)
            ended = None if detached else lambda job: _log_end(job, labels)
            SweepQueue(self.run).add(list(labels))
            submit_and_follow(self.run, [job for _, job in written], ended)
        if detached and not self._ours:
            log.info("%s is running: nemotron runs attach %s; to stop it: nemotron runs cancel %s", *[self.run.id] * 3)


def _log_end(job: JobFolder, labels: Mapping[int, str]) -> None:
    state = job.state()
    text = f"\t#{job.number} {state.state}: {labels[job.number]}"
    if state.state == "succeeded":
        log.info(text)
    else:
        task_result = read_task_result(job)
        why = task_result.failure.text if task_result and task_result.failure else state.error
        log.warning("%s (%s)", text, why or state.state)


# Function name → number of sweeps over it in this process: a job runs its program again up to the sweep of that number.
_sweeps: Counter[str] = Counter()


@contextmanager
def hydra_errors(task: Callable[..., Any]) -> Iterator[None]:
    """Convert NemotronErrors to exceptions of Hydra, which prints only the message of its own, and exits with 1: one
    with another exit code ends the program here. Errors of a recipe's sweep pass unchanged: nemotron's command line
    prints them."""
    from hydra.errors import CompactHydraException

    try:
        yield
    except NemotronError as error:
        if isinstance(task, RecipeTask):
            raise
        if error.exit_code == NemotronError.exit_code:
            raise CompactHydraException(str(error)) from error
        print_notice(f"{full_trace(error)}error: {error}")
        sys.exit(error.exit_code)


def _begin(task: RecipeTask, run: RunFolder, *, more: bool) -> None:
    """Announce a batch of jobs, which are all that the run has unless the sweeper adds `more` by their results, or has
    counted more (hydra.sweeper.max_batch_size)."""
    task.begin()
    if not more and task.count in (None, len(run.jobs())):
        run.all_jobs_added()


class Sweep:
    """The launcher's state between the batches of one sweep."""

    def __init__(self, config: Any, context: Any, task: Callable[..., Any], settings: Settings) -> None:
        """Writes nothing before the first batch. Raises UserError for a missing package or an unknown profile."""
        self.config, self.context, self.task, self.settings = config, context, task, settings
        starter_kind(settings)
        if settings.detach and learns(config.hydra):
            raise UserError(
                "hydra.launcher.detach: the sweeper needs the value of each trial, and a detached launch waits for "
                "none.",
                hint="Leave it out.",
            )
        if not isinstance(task, RecipeTask):
            check_program(config.hydra, task)
        self._expected = _expected_executor(config, settings)
        self._jobs: Jobs | None = None
        self._waited = False
        name = name_of(task)
        self._earlier = _sweeps[name]
        _sweeps[name] += 1
        if self._expected is not None:
            executor_class(self._expected).warm_up()

    @property
    def jobs(self) -> Jobs:
        """The sweep's jobs; on first access this creates the sweep's run folder."""
        if self._jobs is None:
            task = self.task if isinstance(self.task, RecipeTask) else None
            overrides = [*overrides_of(self.config.hydra, "hydra"), *overrides_of(self.config.hydra)]
            run = sweep_record(self.config, self.task)
            begun = None if task is None else partial(_begin, task, run, more=learns(self.config.hydra))
            self._jobs = Jobs(run, self.settings, overrides, ours=task is not None, begun=begun)
            if self._expected is not None and is_local(self._expected):
                self._jobs.scheduler()
        return self._jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        """Run a batch of jobs; returns Hydra's JobReturn for each, in order."""
        if not job_overrides:  # a glob that matches nothing
            log.info("launching 0 jobs")
            return []
        with hydra_errors(self.task):
            with self.task.users_environment() if isinstance(self.task, RecipeTask) else nullcontext():
                written = self.jobs.run_all(self._sweep_jobs(job_overrides, first), len(job_overrides))
            detached = self.jobs.detached(written[0][0])
            self._waited = not detached
            return [
                job_return(
                    *(sweep_job, job, partial(self._composed, overrides, job.number)),
                    hydra=self.config.hydra,
                    detached=detached,
                )
                for (sweep_job, job), overrides in zip(written, job_overrides, strict=True)
            ]

    def stops_at(self, returned: Sequence[JobReturn]) -> bool:
        """Whether these jobs are the last ones: Hydra's own sweeper stops at a job that failed."""
        return any(job.status == JobStatus.FAILED for job in returned) and not learns(self.config.hydra)

    def ended_run(self) -> RunFolder | None:
        """The run of a program's sweep, at the first call; None for a detached one, and for a recipe's, whose end
        nemotron prints."""
        if self._jobs is None or not self._waited or isinstance(self.task, RecipeTask):
            return None
        self._waited = False
        return self._jobs.run

    def close(self) -> None:
        """Stop whatever this sweep still runs on this machine."""
        if self._jobs is not None:
            self._jobs.close()

    def _sweep_jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> Iterator[SweepJob]:
        plan_job: Callable[[Any, Any, int], SweepJob]
        if isinstance(self.task, RecipeTask):
            plan_job = partial(self.task.plan_job, settings=self.settings)
        else:
            callbacks = copy(self.context.callbacks)
            callbacks.callbacks = [each for each in callbacks.callbacks if not isinstance(each, SingleRunCheck)]
            plan_job = ProgramPlanner(self.task, callbacks, self.settings, self.jobs.run.id, self._earlier).plan_job
        for number, overrides in enumerate(job_overrides, first):
            yield plan_job(*self._composed(overrides, number), number)

    def _composed(self, overrides: Sequence[str], number: int) -> Composed:
        """The job's config and its node hydra, separately."""
        from omegaconf import flag_override, open_dict

        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        hydra = config._get_node("hydra")
        with open_dict(hydra):
            hydra.job.id = f"job_{number}"
            hydra.job.num = number
        SingleRunCheck.remove(hydra)
        with flag_override(config, "readonly", False), open_dict(config):
            del config["hydra"]
        return config, hydra


def begin_sweep(config: Any, context: Any, task: Callable[..., Any], settings: Mapping[str, Any]) -> Sweep:
    """The sweep that Hydra's plugin runs its batches by. `settings` are the fields of `hydra.launcher`."""
    install(context.config_loader)
    # Neither the sweep's record nor a job on a machine without this package has a use for it.
    SingleRunCheck.remove(config.hydra)
    if config.hydra.job.env_copy:  # whose values the sweeper would write into multirun.yaml
        drop_copied(config.hydra)
    with hydra_errors(task):
        sweep = Sweep(config, context, task, Settings(**settings))
    for each in context.callbacks.callbacks:
        if isinstance(each, SingleRunCheck):
            each.sweep = sweep
    return sweep


def _expected_executor(config: Any, settings: Settings) -> str | None:
    """The executor of the jobs, as far as it is known before any of them is composed; None for detached
    jobs of this machine.

    Raises UserError for an unknown profile.
    """
    from omegaconf import OmegaConf

    profile = settings.profile or OmegaConf.select(config, "run.profile", default=None)
    executor = effective_profile(profile, file_env={}, command_line=dict(settings.env)).config.executor
    detached = settings.detach or OmegaConf.select(config, "run.mode", default=None) == "batch"
    return None if detached and is_local(executor) else executor
