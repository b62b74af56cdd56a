"""`nemotron runs rerun ID`: launches a recorded job or sweep again."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from nemotron_kit.app import App, ArtifactInput, Group, add_import_folders
from nemotron_kit.artifacts.manifest import relative_to
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.cli import indexing, sweep
from nemotron_kit.cli import tree as trees
from nemotron_kit.cli.options import NEMOTRON
from nemotron_kit.cli.output import print_status, write_lines
from nemotron_kit.cli.parse import Reader
from nemotron_kit.cli.request import Job
from nemotron_kit.cli.run_job import carry_out, expand_profile_keys, show_plan
from nemotron_kit.cli.runs.list import open_jobs
from nemotron_kit.config.compose import Composed, find_command, refuse_deleted_fields, refuse_group_choices
from nemotron_kit.config.config_files import load_mapping
from nemotron_kit.discovery import Tree, discover, use
from nemotron_kit.envfile import EnvFile, read_env_file
from nemotron_kit.errors import DamagedRecordError, UserError
from nemotron_kit.files import read_regular
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.dependencies import SweepAfter
from nemotron_kit.launch.plan import COMPOSED_FILE, build_plan
from nemotron_kit.launch.queue import SWEEP_FILE, SweepQueue, load_plan
from nemotron_kit.quoting import hydra_text, omegaconf_escaped
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import DamagedRunRecord, JobFolder
from nemotron_kit.spec.plan import Plan, stored_plan
from nemotron_kit.spec.runconfig import FIELDS, RunConfig, check_value
from nemotron_kit.sweep.compose_jobs import ConfigRecord, RecordComposer
from nemotron_kit.sweep.launcher import Jobs
from nemotron_kit.sweep.recipe_task import sweep_job_of
from nemotron_kit.sweep.sweep_job import Settings, SweepJob

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class Recorded:
    """The record of a job and its run's plan. Raises UserError for a run that can't be launched again from it."""

    def __init__(self, run: RunFolder, job: JobFolder) -> None:
        self.run, self.job = run, job
        try:
            self.plan, self.spec = stored_plan(run, job.number), job.spec()
            if wrong := _unusable(self.spec):
                raise DamagedRunRecord(f"{job.path / 'job.json'}: {wrong}.")
            self.paths = load_plan(run, job).paths  # a sweep's plan has those of its first job
            inputs = job.artifacts()["inputs"]
            self.overrides = _overrides(job, self.plan)
        except DamagedRunRecord as error:
            raise UserError(f"{run.id}: its record is damaged: {str(error).rstrip('.')}.") from error
        if self.spec.get("module"):
            raise UserError(
                f"{run.id} was launched by another program, and only that can compose its config.",
                hint=f"Its command line: {self.plan.command_line}",
            )
        try:
            self.pins: dict[str, Pin] = {slot: Pin.from_dict(pin) for slot, pin in inputs.items()}
        except DamagedRecordError as error:
            raise UserError(f"{job.path / 'artifacts.json'}: {error.message}") from error
        names = str(self.spec["command"]).split()
        self.recipe, self.stage = names[0], "/".join(names[1:])  # the job's own: a sweep may be over stages, too
        self.label = f"{run.id}/{job.number}" if len(run.jobs()) > 1 else run.id

    @property
    def settings(self) -> RunConfig:
        """The recorded settings of the profile."""
        given = {name: value for name, value in (self.run.plan().get("settings") or {}).items() if value is not None}
        if unknown := sorted(given.keys() - {*FIELDS}):
            raise UserError(f"{self.run.id}: its settings are another version's: {', '.join(unknown)}: no such field.")
        for name, value in given.items():
            check_value(name, value, f"{self.run.path / 'plan.json'}: settings.{name}")
        return self.plan.settings

    def config(self, request: Job) -> ConfigRecord:
        """The config to which the request's overrides are applied: as it was composed, with the recorded versions of
        its artifacts, for the request's profile if it names one, else for the recorded one."""
        file, environment = self.job.path / COMPOSED_FILE, self.spec.get("environment") or {}
        if file.is_file():
            values = dict(self.job.located(load_mapping(file)))
        else:  # the same as the job's own config, or an older version's, which has the target's paths
            file = self.job.config_path
            root = self.paths.tree and self.paths.tree.root
            folders = {there: here for here, there in sorted(self.paths.moves, key=lambda move: move[0] == root)}
            folders |= dict.fromkeys((self.paths.job, str(self.job.path)), "${oc.env:NEMO_RUN_DIR}")
            located = self.job.located(load_mapping(file))
            values = {key: value if key == "run" else relative_to(value, folders) for key, value in located.items()}
        run = dict(values["run"]) if isinstance(values.get("run"), dict) else {}
        run |= {"profile": request.profile or self.plan.profile, "mode": request.mode or self.plan.mode}
        run |= {slot: omegaconf_escaped(pin.label) for slot, pin in self.pins.items()}
        run.pop("recipe", None)  # composition sets it from the command
        if request.profile is None:  # the recorded settings contain what run.env set
            run.pop("env", None)
        return ConfigRecord(
            recipe=self.recipe,
            stage=self.stage,
            name=str(environment.get("NEMOTRON_CONFIG_NAME") or self.plan.config_name or "default"),
            file=file,
            values={**values, "run": run},
            added=[key for key in (environment.get("NEMOTRON_ADDED_KEYS") or "").split(",") if key],
            deleted=[text for text in self.typed(request) if text.startswith("~") and not text.startswith("~/")],
        )

    def typed(self, request: Job) -> list[str]:
        """The overrides that were typed then, without those of keys that the request gives."""
        given = {_key(override) for override in _typed(request)}
        return [override for override in self.overrides if _key(override) not in given]

    def enter(self) -> Tree:
        """Change to the folder of the first launch, from which relative paths, recipes and env.toml are found."""
        tree, inside = self.paths.tree, self.paths.cwd
        if tree:
            inside = os.path.normpath(os.path.join(tree.root, tree.inside))  # noqa: PTH118
        folder = str((self.plan.code or {}).get("folder") or inside or self.spec.get("cwd"))
        if not os.path.isdir(folder):  # noqa: PTH112 — pathlib's raises for a name that is too long
            hint = "Its recipe and its paths are found from there."
            raise UserError(f"{folder}, where it was launched, is gone.", hint=hint)
        os.chdir(folder)
        os.environ["PWD"] = folder  # as a shell does: configs refer to it
        add_import_folders(map(str, self.spec.get("sys_path") or ()))
        found = discover()
        if self.recipe not in {**found.apps, **found.broken}:  # the program itself was the recipe (App.run)
            found.apps[self.recipe] = self._app()
        use(found)
        return found

    def _app(self) -> App:
        """A recipe that holds the command by what is on record."""
        app = App(self.recipe)
        *groups, name = self.stage.split("/")
        group: Group = app
        for each in groups:
            group = group.group(each)
        references = {**self.plan.references, **{slot: pin.label for slot, pin in self.pins.items()}}
        config_cls, handler = (
            f"{self.paths.move_back(path)}{colon}{rest}" if path.endswith(".py") else f"{path}{colon}{rest}"
            for path, colon, rest in (str(self.spec[key]).rpartition(":") for key in ("config_cls", "handler"))
        )
        group.command(
            name,
            config_cls,
            handler,
            script_path=self.paths.move_back(self.spec["script"]) if self.spec.get("script") else None,
            artifacts={slot: ArtifactInput(reference) for slot, reference in references.items()},
            torchrun=None if self.spec.get("ray") else self.spec.get("torchrun"),
            ray=bool(self.spec.get("ray")),
        )
        return app


def _unusable(spec: Mapping[str, Any]) -> str | None:
    """Why a rerun can't use a job.json; None if it can."""
    if spec.get("module"):
        return None
    for key in ("command", "handler", "config_cls", "cwd"):
        if not str(spec.get(key) or "").strip():
            return f"it has no {key}"
    if not all(map(_NAME.match, spec["command"].split())):
        return f"command is {spec['command']!r}, no command's name"
    if any(not path or "\0" in path for path in spec.get("sys_path") or ()):
        return "sys_path has an entry that is no path"
    return None


def _overrides(job: JobFolder, plan: Plan) -> list[str]:
    """The overrides that were typed, without those that chose the command and its config."""
    file = job.path / ".hydra" / "overrides.yaml"
    try:
        overrides = job.located(json.loads(read_regular(file)))
    except (OSError, ValueError):
        overrides = [] if plan.kind else list(plan.hydra)
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise DamagedRunRecord(f"{file}: expected a list of texts.")
    return overrides


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _typed(request: Job) -> list[str]:
    """The overrides that the request's command line adds."""
    profile = [f"run.profile={hydra_text(request.profile)}", f"run.mode={request.mode}"] if request.profile else []
    return [*profile, *request.overrides]


@dataclass(frozen=True)
class Rerun:
    """What is launched again: the request, and what its jobs are composed and planned by. `run_id` is the new run's."""

    request: Job
    tree: Tree
    env: EnvFile
    composer: RecordComposer
    argv: Sequence[str]
    run_id: str

    @classmethod
    def read(cls, recorded: Recorded, label: str, arguments: Sequence[str], *, whole_sweep: bool) -> Rerun:
        """Read the arguments after the run's id as arguments of its command. Changes this process's working folder and
        import path to the launch's."""
        tree = recorded.enter()
        env, command = read_env_file(), find_command(tree, recorded.recipe, recorded.stage)
        index = indexing.LiveIndex(tree.apps, tree.broken)
        node = trees.find(index, command.path)
        where, help_line = f"nemotron runs rerun {recorded.label}", "nemotron runs rerun --help"
        job = Reader(arguments, NEMOTRON, index.detail(node) if node else {}, where, help_line).read()
        if job.config or job.recipe or job.stage:
            hint = "Override single values: KEY=VALUE."
            raise UserError("A rerun has the command and the config of its run.", hint=hint)
        for asked in [*job.flags, *(each for each in job.overrides if _key(each).startswith(("hydra.", "hydra/")))]:
            hint = (
                "Hydra is not called again: override fields by KEY=VALUE, and those of the profile by --run.KEY VALUE."
            )
            raise UserError(f"{asked} has no effect on a rerun.", hint=hint)
        recipe, stage = command.recipe, command.stage
        if whole_sweep:
            recipe, stage = recorded.plan.recipe, recorded.plan.stage
        job = replace(job, recipe=recipe, stage=stage, overrides=expand_profile_keys(job.overrides))
        argv = ["nemotron", "runs", "rerun", label, *arguments]
        return cls(job, tree, env, RecordComposer(tree, env), argv, new_run_id(recipe or "sweep", stage or "jobs"))

    def composed(self, recorded: Recorded) -> Composed:
        """The recorded config with the request's overrides on top. UserError for what the command can't take now."""
        command = find_command(self.tree, recorded.recipe, recorded.stage)
        refuse_group_choices(command, self.request.overrides)
        refuse_deleted_fields(command, self.request.overrides)
        composed = self.composer.compose(recorded.config(self.request), self.request.overrides)
        # On record it is what was typed, then and now.
        return replace(composed, overrides=[*recorded.typed(self.request), *_typed(self.request)])

    def plan(self, recorded: Recorded, composed: Composed, *, single: bool = True) -> Plan:
        """The job's plan in the new run. A job of several (`single` is False) keeps its number. Raises UserError if a
        pinned input has changed."""
        request, connect = self.request, not self.request.dry_run
        plan = build_plan(
            composed,
            self.tree.apps[recorded.recipe],
            run_id=self.run_id,
            argv=self.argv,
            job=0 if single else recorded.job.number,
            single=single,
            connect=connect,
            transports=transport_for if connect else None,
            recorded=None if request.profile else recorded.settings,
            labels=request.labels,
        )
        given = {override.partition("=")[0] for override in request.overrides}
        for slot, old in recorded.pins.items():
            new = plan.inputs.get(slot)  # None: gone, which is a problem of the plan already; or not read any more
            if new is None or f"run.{slot}" in given:
                continue
            if new.registry != old.registry:
                what = (
                    f"{slot}: {old.label} was read from another registry than that of the machine where the job would "
                    "run now."
                )
                raise UserError(what, hint=f"Name a version in that one: --art.{slot} NAME:vN.")
            moved = (new.version, old.version) == (None, None) and new.path != old.path
            if new.digest != old.digest or moved:
                digests = f"sha256 {str(new.digest)[:12]}, and it was {str(old.digest)[:12]}"
                what = f"{slot}: {old.label} is not what {recorded.run.id} read: {digests}."
                raise UserError(what, hint=f"To use it as it is now: --art.{slot} {old.label}.")
        # The mounts are recorded as folders; those of repositories may have been removed since.
        repositories = plan.repositories or (() if request.profile else recorded.plan.repositories)
        return replace(plan, rerun_of=recorded.label if single else recorded.run.id, repositories=repositories)

    def sweep_jobs(self, run: RunFolder, chosen: Sequence[JobFolder]) -> Iterator[SweepJob]:
        """Yield the chosen jobs of a sweep, planned for the new run."""
        request = self.request
        detached = (request.mode or stored_plan(run).mode) == "batch"
        after = SweepAfter(request.after) if request.after and detached and not request.dry_run else None
        for job in chosen:
            recorded = Recorded(run, job)
            composed = self.composed(recorded)
            planned = partial(self.plan, recorded, composed, single=False)
            plan = after.apply(planned(), composed.command, planned) if after else planned()
            yield sweep_job_of(plan, composed, composed.overrides)


def rerun_sweep(run: RunFolder, chosen: Sequence[JobFolder], again: Rerun) -> int:
    """Launch the chosen jobs of a sweep again, as one sweep; the exit code."""
    request, old, count = again.request, stored_plan(run), len(chosen)
    if request.dry_run:
        for sweep_job in again.sweep_jobs(run, chosen):
            show_plan(sweep_job.plan, as_json=request.json, theme=again.env.table("cli").get("theme"))
        return 0
    overrides = [*(override for override in old.hydra if override not in ("-m", "--multirun")), *_typed(request)]
    request = replace(request, mode=request.mode or old.mode)
    record = sweep.create_sweep(
        *(again.run_id, request, again.argv, ["-m", *overrides]),
        rerun_of=run.id,
        direction=old.direction,
        objective=old.objective,
    )
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    # One that Hydra's own launcher ran in its process, one job after another, has no settings on record.
    settings = Settings(max_parallel=None if "settings" in run.plan() else 1)
    title = f"{again.run_id}: {count} jobs of {run.id}, launched again"

    def begun() -> None:
        record.all_jobs_added()
        print_status(title)

    jobs = Jobs(record, settings, overrides, ours=True, begun=begun)
    try:
        (first, _), *_ = jobs.run_all(again.sweep_jobs(run, chosen), count)
    except BaseException:
        if not record.jobs():
            shutil.rmtree(record.path)
        raise
    finally:
        jobs.close()
    if not jobs.detached(first):
        states = (job.state() for job in record.jobs())
        why = next((state.error for state in states if state.state != "succeeded"), None)
        if error := sweep.sweep_failures(record, why, request.json):
            raise error
    return sweep.report_sweep(record, request.json)


HELP = """\
usage: nemotron runs rerun ID[/N] [KEY=VALUE …] [--art.SLOT REF] [--run.KEY V] [--run|--batch PROFILE] [--dry-run]

Launches a recorded job again, under a new id and from its beginning; to continue the recorded run itself, use nemotron
runs resume. The new job has the recorded config, whatever the config files contain now, the same versions of its input
artifacts and the recorded settings of its profile, and starts in the folder where the first one was launched. It runs
the code that is in that folder now: nemotron runs diff prints whether it differs. ID/N launches job N of a sweep again;
ID launches all of its jobs, as one sweep, with the values of the recorded jobs: the sweeper (such as Optuna's) chooses
no new ones.

Overrides and options are applied to the recorded config. With --run or --batch PROFILE, the profile is read from
env.toml. If an input artifact was changed or removed since, nothing is launched.
"""


def rerun(argv: list[str]) -> int:
    """Launch a recorded run again; exits as the job's own command does."""
    if not argv or {"-h", "--help"} & set(argv):
        write_lines(HELP.splitlines())
        return 0 if argv else 2
    reference, *arguments = argv
    if reference.startswith("-"):
        raise UserError(
            f"nemotron runs rerun: the first argument must be a run, and {reference!r} is none.",
            hint=HELP.splitlines()[0],
        )
    run, jobs = open_jobs(reference)
    recorded, whole_sweep = Recorded(run, jobs[0]), len(jobs) > 1
    if whole_sweep and (run.path / SWEEP_FILE).exists() and SweepQueue(run).levels:
        hint = (
            f"Launch it again: {recorded.plan.command_line}\n"
            f"To run those of its jobs that did not succeed: nemotron runs resume {run.id}"
        )
        raise UserError(
            f"{run.id} is an array, whose jobs write into one folder: it can't be run again in another one.", hint=hint
        )
    label = recorded.label
    if whole_sweep:
        label = f"{run.id}/{jobs[0].number}-{jobs[-1].number}" if "/" in reference else run.id
    again = Rerun.read(recorded, label, arguments, whole_sweep=whole_sweep)
    if whole_sweep:
        return rerun_sweep(run, jobs, again)
    composed = again.composed(recorded)
    plan, state = again.plan(recorded, composed), jobs[0].state()
    if state.terminal and state.state != "succeeded":
        note = (
            f"it starts from the beginning; to continue {label}, which is {state.state}: nemotron runs resume {label}"
        )
        plan = replace(plan, notes=(*plan.notes, note))
    return carry_out(plan, composed, again.request, again.env)
