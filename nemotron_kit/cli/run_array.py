"""A command that a cluster divides among many jobs: its plan, an array of tasks, and its end, as one run."""

from __future__ import annotations

import copy
import gc
import posixpath
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemotron_kit.cli.request import Job
from nemotron_kit.cli.run_job import announce, print_end, say_commands, show_plan, transport_to
from nemotron_kit.errors import NemotronError, UserError, printable
from nemotron_kit.executors.base import executor_for
from nemotron_kit.launch.dependencies import After, wait_for
from nemotron_kit.launch.launch import code_facts, refuse_problems
from nemotron_kit.launch.plan import build_plan
from nemotron_kit.launch.queue import SweepQueue
from nemotron_kit.objects import object_url
from nemotron_kit.quoting import omegaconf_escaped
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import JobFolder, process_facts, run_state
from nemotron_kit.spec.plan import DETACHED, Plan, is_local
from nemotron_kit.worker.process import Outcome

if TYPE_CHECKING:
    from nemotron_kit.app import App
    from nemotron_kit.config.compose import Composed
    from nemotron_kit.envfile import EnvFile
    from nemotron_kit.sweep.sweep_job import SweepJob

_PLAN, _SHARDS, _FINISH = "plan", "shards", "finish"
_EVERY = 30.0  # seconds between two lines about the progress
# Fields of a plan that are specific to one job.
_ONE_JOBS = frozenset(("files", "config", "launch_command", "job_folder", "problems", "notes"))


def count_tasks(plan: Plan, composed: Composed) -> int | None:
    """Among how many tasks a launch divides its work; None for a job that does all of it. Raises UserError for `tasks`
    where there is nobody to divide it."""
    config = composed.config
    if not composed.command.array or config.step is not None:
        return None
    asked = None if config.tasks is None else int(config.tasks)
    if plan.launch != DETACHED or not executor_for(plan.settings).holds_back:
        if asked is not None and asked > 1:
            where = "this machine" if is_local(plan.executor) else f"executor {plan.executor!r}"
            raise UserError(
                f"tasks={asked}: {where} starts no job after another one has succeeded.",
                hint="Leave tasks out: one job uses all CPUs of its machine (num_workers). Slurm takes arrays.",
            )
        return None
    count = asked if asked is not None else (plan.settings.nodes or 1)
    if count < 1:
        raise UserError(f"tasks={count}: must be at least 1.")
    return count if count > 1 else None


def run_array(count: int, first: Plan, composed: Composed, app: App, request: Job, env: EnvFile) -> int:
    """Show, or submit, and with --run follow, the jobs; the exit code."""
    if first.settings.dry_run or request.dry_run:
        jobs = _Jobs(count, first, composed, app, connect=False)
        return show_plan(
            jobs.made(1).plan,
            as_json=request.json,
            theme=env.table("cli").get("theme"),
            array=list(_described(jobs, composed)),
        )
    gc.freeze()
    gc.enable()
    refuse_problems(first, composed.notes)
    after = After.of(request.after) if request.after else None
    jobs = _Jobs(count, first, composed, app, connect=True)
    announce(replace(first, notes=tuple(note for note in first.notes if not note.startswith("nodes="))))
    run, started = _recorded(jobs, after, composed), time.monotonic()
    detached = first.mode == "batch"
    return _submitted(run, jobs, detached, request, started)


class _Jobs:
    """The jobs of one launch: 0 makes the plan, 1 to `count` are the tasks, the last one finishes."""

    def __init__(self, count: int, first: Plan, composed: Composed, app: App, *, connect: bool) -> None:
        self.count, self.first, self.composed, self.app, self.connect = count, first, composed, app, connect
        # Each job has its own copy of the code, and what is relative lies in it: all write where the first does.
        output = str(first.config["output_dir"])
        inside = not output.startswith(("/", "~")) and object_url(output) is None
        folder = first.paths.environment["PWD"]
        self._output = omegaconf_escaped(posixpath.normpath(posixpath.join(folder, output)) if inside else output)

    @property
    def levels(self) -> list[list[int]]:
        return [[0], list(range(1, self.count + 1)), [self.count + 1]]

    @property
    def finish(self) -> int:
        return self.count + 1

    def steps(self, number: int) -> list[str]:
        """The overrides by which the jobs differ."""
        if number == 0:
            return [f"step={_PLAN}", f"tasks={self.count}"]
        if number == self.finish:
            return [f"step={_FINISH}", f"tasks={self.count}"]
        return [f"step={_SHARDS}", f"task={number - 1}", f"tasks={self.count}"]

    def made(self, number: int) -> SweepJob:
        from omegaconf import OmegaConf

        from nemotron_kit.sweep.recipe_task import sweep_job_of

        config, overrides = copy.deepcopy(self.composed.config), self.steps(number)
        for override in overrides:
            key, _, value = override.partition("=")
            OmegaConf.update(config, key, int(value) if value.isdecimal() else value)
        config.output_dir = self._output
        composed = replace(
            self.composed,
            # One process on one node, whatever the profile has: the tasks are what is done side by side.
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
        )
        # How the profile's nodes become jobs is no surprise to who asked for it.
        plan = replace(plan, notes=tuple(note for note in plan.notes if not note.startswith("nodes=")))
        return sweep_job_of(plan, composed, overrides)


def _recorded(jobs: _Jobs, after: After | None, composed: Composed) -> RunFolder:
    """The run's folder with those of its jobs, and its list of them by level."""
    from nemotron_kit.sweep.launcher import JobWriter

    first = jobs.first
    shared = {key: value for key, value in first.to_dict().items() if key not in _ONE_JOBS}
    facts = {"kind": "sweep", "launcher": process_facts(), "code": code_facts()}
    if after is not None:
        held = after.apply(jobs.made(0).plan, composed.command)
        refuse_problems(held)
        if held.wait_first and first.mode == "batch":
            raise UserError(
                f"--after: {', '.join(held.wait_first)} is not of this scheduler, so nothing can hold an array back.",
                hint="With --run this process waits for it.",
            )
        if held.wait_first:
            wait_for(None, held.wait_first)
        facts["after"] = list(held.after)
    run = create_run(first.run_id, {**shared, **facts}, [])
    numbers = range(jobs.count + 2)
    with JobWriter(run, len(numbers)) as writer:
        for number in numbers:
            made = jobs.made(number)
            refuse_problems(made.plan)
            if number == 0 and after is not None:
                made = replace(made, plan=after.apply(made.plan, composed.command))
            writer.add(made, attached=False)
        writer.done()
    SweepQueue(run).add(list(numbers), jobs.levels)
    return run


def _submitted(run: RunFolder, jobs: _Jobs, detached: bool, request: Job, started: float) -> int:
    from nemotron_kit.launch.attach import attach
    from nemotron_kit.launch.submission import run_elsewhere

    folders = run.jobs()
    _say(f"{run.id}: a plan, {jobs.count} tasks, and what they make together, on {jobs.first.profile}")
    progress = _Progress(run, jobs)
    run_elsewhere(run, folders, None if detached else progress.ended, progress.tick)
    if detached:
        say_commands(run.id, "show", "attach", "cancel")
        if request.json:
            print_end(run.id, "pending", 0, folder=str(run.path))
        return 0
    states = {job.number: job.state().state for job in folders}
    failed = [number for number, state in states.items() if state != "succeeded"]
    if failed:
        return _failed(run, failed, request)
    # What it prints is what the next step of a pipe reads.
    outcome: Outcome = attach(run, executor_for(jobs.first.settings), [run.job(jobs.finish)])
    _say(f"{run.id}: succeeded in {time.monotonic() - started:.1f} s · nemotron runs show {run.id}")
    if request.json:
        print_end(run.id, outcome.state, outcome.code, folder=str(run.path))
    return outcome.code


def _failed(run: RunFolder, failed: Sequence[int], request: Job) -> int:
    states = [run.job(number).state() for number in failed]
    first = next((state for state in states if state.state == "failed"), states[0])
    state = run_state(job.state().state for job in run.jobs())
    error = NemotronError(
        f"{run.id} {state}: {len(failed)} of its jobs did not succeed, the first: job {failed[0]}: {first.error}",
        hint=f"Its log: nemotron runs logs {run.id} --job {failed[0]}\n"
        f"To make what is left: nemotron runs resume {run.id}",
    )
    if request.json:
        print_end(run.id, state, error.exit_code, error=first.error, folder=str(run.path))
    raise error


class _Progress:
    """One line about all tasks: as each ends, and every half minute while they run."""

    def __init__(self, run: RunFolder, jobs: _Jobs) -> None:
        self._run, self._jobs = run, jobs
        self._last, self._said = time.monotonic(), ""

    def ended(self, job: JobFolder) -> None:
        name = {0: "the plan", self._jobs.finish: "the end"}.get(job.number, f"task {job.number - 1}")
        state = job.state()
        _say(f"{name} {state.state}{f': {state.error}' if state.error else ''}{self._counts()}")
        self._last = time.monotonic()

    def tick(self) -> None:
        if time.monotonic() - self._last < _EVERY:
            return
        self._last = time.monotonic()
        counts = self._counts()
        if counts and counts != self._said:
            self._said = counts
            _say(f"{self._run.id}{counts}")

    def _counts(self) -> str:
        """What the tasks have written into their metrics, where these can be read here."""
        rows = [row for number in range(1, self._jobs.count + 1) for row in self._run.job(number).metrics(1)[-1:]]
        if not rows:
            return ""
        sums = {name: sum(int(row.get(name) or 0) for row in rows) for name in ("shards", "of", "tokens", "rows")}
        what = [f"{sums[name]:,} {name}" for name in ("tokens", "rows") if sums[name]]
        return f" · {len(rows)} of {self._jobs.count} tasks have {sums['shards']:,} of {sums['of']:,} done" + (
            f", {', '.join(what)}" if what else ""
        )


def _described(jobs: _Jobs, composed: Composed) -> Iterator[str]:
    """What a dry-run says about the jobs beside the one whose plan is shown, task 0."""
    from omegaconf import OmegaConf

    from nemotron_kit.config.freeze import typed

    yield f"{jobs.count + 2} jobs of one run: {_PLAN}, then {jobs.count} tasks as one array, then {_FINISH}"
    yield "each step starts once the one before has succeeded; nemotron runs resume makes what is left of a failed one"
    outlook = composed.command.load_outlook()
    if outlook is None:
        return
    values: Any = OmegaConf.to_container(composed.config, resolve=True, enum_to_str=True)
    values.pop("run", None)
    config: Any = typed(values, composed.command.load_config_cls())
    settings = jobs.first.settings
    yield from outlook(config, jobs.count, settings.cpus_per_task or None)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)  # noqa: T201
