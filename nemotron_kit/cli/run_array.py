"""One run that divides a command's work: a job that makes the plan, an array of task jobs, and a job that finishes."""

from __future__ import annotations

import copy
import gc
import posixpath
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemotron_kit.cli.output import print_status
from nemotron_kit.cli.request import Job
from nemotron_kit.cli.run_job import announce, print_commands, print_end, show_plan, transport_to
from nemotron_kit.config.freeze import typed
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.launch.dependencies import After, wait_for
from nemotron_kit.launch.launch import code_facts, refuse_problems
from nemotron_kit.launch.plan import build_plan
from nemotron_kit.launch.queue import SweepQueue
from nemotron_kit.objects import object_url
from nemotron_kit.quoting import omegaconf_escaped
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import JobFolder, run_state
from nemotron_kit.runs.process_facts import process_facts
from nemotron_kit.spec.plan import DETACHED, Plan, is_local
from nemotron_kit.worker.process import Outcome

if TYPE_CHECKING:
    from nemotron_kit.app import App
    from nemotron_kit.config.compose import Composed
    from nemotron_kit.envfile import EnvFile
    from nemotron_kit.sweep.sweep_job import SweepJob

_PLAN, _SHARDS, _FINISH = "plan", "shards", "finish"
_MOST_TASKS = 100_000
_PROGRESS_SECONDS = 30.0  # between two lines about the progress
# Fields of a plan that are specific to one job.
_PER_JOB_FIELDS = frozenset(("files", "config", "launch_command", "job_folder", "problems", "notes"))


def count_tasks(plan: Plan, composed: Composed) -> int | None:
    """The number of task jobs that a launch divides its work among; None if one job does all of it. Raises UserError
    for `tasks` greater than 1 on an executor without job dependencies."""
    config = composed.config
    if not composed.command.array or config.step is not None:
        return None
    tasks = None if config.tasks is None else int(config.tasks)
    if plan.launch != DETACHED or not executor_for(plan.settings).holds_back:
        if tasks is not None and tasks > 1:
            where = "this machine" if is_local(plan.executor) else f"executor {plan.executor!r}"
            raise UserError(
                f"tasks={tasks}: {where} starts no job after another one has succeeded.",
                hint="Leave tasks out: one job uses all CPUs of its machine (num_workers). Slurm takes arrays.",
            )
        return None
    count = tasks if tasks is not None else (plan.settings.nodes or 1)
    if count < 1:
        raise UserError(f"tasks={count}: must be at least 1.")
    if count > _MOST_TASKS:
        raise UserError(
            f"tasks={count}: {_MOST_TASKS} are the most, since each is a job with a folder of its own.",
            hint="A task makes as many shards as it is given: fewer tasks do the same work.",
        )
    return count if count > 1 else None


def run_array(count: int, first: Plan, composed: Composed, app: App, request: Job, env: EnvFile) -> int:
    """Print the plan of an array's jobs (--dry-run), or submit them and, with --run, follow them; the exit code."""
    if first.settings.dry_run or request.dry_run:
        jobs = _Jobs(count, first, composed, app, connect=False)
        return show_plan(
            jobs.planned(1).plan,
            as_json=request.json,
            theme=env.table("cli").get("theme"),
            array=list(_dry_run_lines(jobs, composed)),
        )
    gc.freeze()
    gc.enable()
    refuse_problems(first, composed.notes)
    after = After.of(request.after) if request.after else None
    jobs = _Jobs(count, first, composed, app, connect=True)
    announce(_without_nodes(first))
    run, started = _record(jobs, after, composed), time.monotonic()
    detached = first.mode == "batch"
    return _submit(run, jobs, detached, request, started)


class _Jobs:
    """The jobs of one launch: 0 makes the plan, 1 to `count` are the tasks, the last one finishes."""

    def __init__(self, count: int, first: Plan, composed: Composed, app: App, *, connect: bool) -> None:
        self.count, self.first, self.composed, self.app, self.connect = count, first, composed, app, connect
        # Each job has its own copy of the code, so a relative output_dir would differ: all jobs get the first one's.
        output = str(first.config["output_dir"])
        inside = not output.startswith(("/", "~")) and object_url(output) is None
        folder = first.paths.environment["PWD"]
        self._output = omegaconf_escaped(posixpath.normpath(posixpath.join(folder, output)) if inside else output)

    @property
    def finish(self) -> int:
        return self.count + 1

    def planned(self, number: int) -> SweepJob:
        from omegaconf import OmegaConf

        from nemotron_kit.sweep.recipe_task import sweep_job_of

        step = {0: _PLAN, self.finish: _FINISH}.get(number, _SHARDS)
        overrides = [f"step={step}", *([f"task={number - 1}"] if step == _SHARDS else []), f"tasks={self.count}"]
        config = copy.deepcopy(self.composed.config)
        for override in overrides:
            key, _, value = override.partition("=")
            OmegaConf.update(config, key, int(value) if value.isdecimal() else value)
        config.output_dir = self._output
        composed = replace(
            self.composed,
            # Each task is one process on one node, whatever the profile sets: the tasks themselves run in parallel.
            command=replace(self.composed.command, torchrun=False),
            config=config,
            overrides=[*self.composed.overrides, *overrides],
        )
        plan = build_plan(
            composed,
            self.app,
            run_id=self.first.run_id,
            argv=self.first.argv,
            job=number,
            single=False,
            connect=self.connect,
            transports=transport_to if self.connect else None,
            labels=self.first.labels,
        )
        return sweep_job_of(_without_nodes(plan), composed, overrides)


def _without_nodes(plan: Plan) -> Plan:
    """The plan without the notes on how the profile's nodes become jobs: an array is what was asked for."""
    return replace(plan, notes=tuple(note for note in plan.notes if getattr(note, "field", "") != "nodes"))


def _record(jobs: _Jobs, after: After | None, composed: Composed) -> RunFolder:
    """Write the run's folder, its jobs' folders, and its queue."""
    from nemotron_kit.sweep.launcher import JobWriter

    first = jobs.first
    shared = {key: value for key, value in first.to_dict().items() if key not in _PER_JOB_FIELDS}
    facts = {"kind": "sweep", "launcher": process_facts(), "code": code_facts()}
    if after is not None:
        held_back = after.apply(jobs.planned(0).plan, composed.command)
        refuse_problems(held_back)
        if held_back.wait_first and first.mode == "batch":
            raise UserError(
                f"--after: {', '.join(held_back.wait_first)} is no job of this scheduler: an array can't depend on it.",
                hint="With --run this process waits for it.",
            )
        if held_back.wait_first:
            wait_for(None, held_back.wait_first)
        facts["after"] = list(held_back.after)
    labels = first.labels.to_dict() if first.labels else None
    run = create_run(first.run_id, {**shared, **facts}, [], labels=labels)
    numbers = range(jobs.count + 2)
    try:
        with JobWriter(run, len(numbers)) as writer:
            for number in numbers:
                sweep_job = jobs.planned(number)
                refuse_problems(sweep_job.plan)
                if number == 0 and after is not None:
                    sweep_job = replace(sweep_job, plan=after.apply(sweep_job.plan, composed.command))
                writer.add(sweep_job, attached=False)
            writer.done()
        # In steps: each starts after the one before has succeeded.
        SweepQueue(run).add(list(numbers), [[0], list(range(1, jobs.finish)), [jobs.finish]])
    except BaseException:  # nothing was submitted, and an array without all of its jobs can't be resumed
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def _submit(run: RunFolder, jobs: _Jobs, detached: bool, request: Job, started: float) -> int:
    from nemotron_kit.launch.attach import attach
    from nemotron_kit.launch.submission import submit_and_follow

    folders = run.jobs()
    print_status(f"{run.id}: a plan, {jobs.count} tasks and a final job, on {jobs.first.profile}")
    progress = _Progress(run, jobs)
    submit_and_follow(run, folders, None if detached else progress.ended, progress.tick)
    if detached:
        print_commands(run.id, "show", "attach", "cancel")
        if request.json:
            print_end(run.id, "pending", 0, folder=str(run.path))
        return 0
    states = {job.number: job.state().state for job in folders}
    failed = [number for number, state in states.items() if state != "succeeded"]
    if failed:
        ended = [run.job(number).state() for number in failed]
        first = next((state for state in ended if state.state == "failed"), ended[0])
        state = run_state(job.state().state for job in run.jobs())
        hint = f"Its log: nemotron runs logs {run.id} --job {failed[0]}\nTo continue it: nemotron runs resume {run.id}"
        what = f"{len(failed)} of its jobs did not succeed, the first: job {failed[0]}: {first.error}"
        error = NemotronError(f"{run.id} {state}: {what}", hint=hint)
        if request.json:
            print_end(run.id, state, error.exit_code, error=first.error, folder=str(run.path))
        raise error
    # The last job's output is what the next step of a pipe reads.
    outcome: Outcome = attach(run, executor_for(jobs.first.settings), [run.job(jobs.finish)])
    print_status(f"{run.id}: succeeded in {time.monotonic() - started:.1f} s · nemotron runs show {run.id}")
    if request.json:
        print_end(run.id, outcome.state, outcome.code, folder=str(run.path))
    return outcome.code


class _Progress:
    """One line about all tasks: as each ends, and every half minute while they run."""

    def __init__(self, run: RunFolder, jobs: _Jobs) -> None:
        self._run, self._jobs = run, jobs
        self._last, self._last_line = time.monotonic(), ""

    def ended(self, job: JobFolder) -> None:
        label = {0: "the plan", self._jobs.finish: "the final job"}.get(job.number, f"task {job.number - 1}")
        state = job.state()
        print_status(f"{label} {state.state}{f': {state.error}' if state.error else ''}{self._counts()}")
        self._last = time.monotonic()

    def tick(self) -> None:
        if time.monotonic() - self._last < _PROGRESS_SECONDS:
            return
        self._last = time.monotonic()
        counts = self._counts()
        if counts and counts != self._last_line:
            self._last_line = counts
            print_status(f"{self._run.id}{counts}")

    def _counts(self) -> str:
        """A summary of the tasks' metrics; "" while none can be read on this machine."""
        rows = [row for number in range(1, self._jobs.count + 1) for row in self._run.job(number).metrics(1)[-1:]]
        if not rows:
            return ""
        sums = {name: sum(int(row.get(name) or 0) for row in rows) for name in ("shards", "of", "tokens", "rows")}
        what = [f"{sums[name]:,} {name}" for name in ("tokens", "rows") if sums[name]]
        return f" · {len(rows)} of {self._jobs.count} tasks have {sums['shards']:,} of {sums['of']:,} done" + (
            f", {', '.join(what)}" if what else ""
        )


def _dry_run_lines(jobs: _Jobs, composed: Composed) -> Iterator[str]:
    """The lines of a dry-run about the jobs other than task 0, whose plan is printed."""
    from omegaconf import OmegaConf

    yield f"{jobs.count + 2} jobs of one run: {_PLAN}, then {jobs.count} tasks as one array, then {_FINISH}"
    yield "each step starts after the one before has succeeded; nemotron runs resume continues a failed one"
    outlook = composed.command.load_outlook()
    if outlook is None:
        return
    values: Any = OmegaConf.to_container(composed.config, resolve=True, enum_to_str=True)
    values.pop("run", None)
    config: Any = typed(values, composed.command.load_config_cls())
    settings = jobs.first.settings
    yield from outlook(config, jobs.count, settings.cpus_per_task or None)
