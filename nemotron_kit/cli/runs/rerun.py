"""`nemotron runs rerun ID`: the same job, or sweep, again from its record."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import App, ArtifactInput, Group, add_import_folders
from nemotron_kit.artifacts.reference import DamagedRecordError, Pin
from nemotron_kit.cli import indexing, sweep
from nemotron_kit.cli import tree as trees
from nemotron_kit.cli.options import NEMOTRON
from nemotron_kit.cli.output import write_lines
from nemotron_kit.cli.reader import Reader
from nemotron_kit.cli.request import Job
from nemotron_kit.cli.run_job import carry_out, show_plan, spelled_out
from nemotron_kit.cli.runs.list import open_jobs
from nemotron_kit.config.compose import Composed, find_command
from nemotron_kit.config.config_files import load_mapping
from nemotron_kit.config.secrets import masked_overrides
from nemotron_kit.discovery import Tree, discover, use
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.files import read_regular
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.dependencies import SweepAfter, wait_for
from nemotron_kit.launch.launch import code_facts
from nemotron_kit.launch.plan import COMPOSED_FILE, build_plan
from nemotron_kit.launch.queue import load_plan
from nemotron_kit.quoting import hydra_text, omegaconf_escaped
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import DamagedRecord, JobFolder
from nemotron_kit.spec.plan import Plan, stored_plan
from nemotron_kit.spec.runconfig import FIELDS, check_value
from nemotron_kit.sweep.compose_jobs import ConfigRecord, RecordComposer
from nemotron_kit.sweep.launcher import Jobs
from nemotron_kit.sweep.recipe_task import sweep_job_of
from nemotron_kit.sweep.sweep_job import Settings, SweepJob

if TYPE_CHECKING:
    from nemotron_kit.artifacts.reference import Pin
    from nemotron_kit.discovery import Tree
    from nemotron_kit.envfile import EnvFile
    from nemotron_kit.spec.runconfig import RunConfig


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class Recorded:
    """What a job's folder and its run's plan say. Raises UserError for one that can't be started again by them."""

    def __init__(self, run: RunFolder, job: JobFolder) -> None:
        self.run, self.job = run, job
        try:
            self.plan, self.spec = stored_plan(run, job.number), job.spec()
            for key in ("command", "handler", "config_cls", "cwd"):
                if not str(self.spec.get(key) or "").strip() and not self.spec.get("module"):
                    raise DamagedRecord(f"{job.path / 'job.json'}: it has no {key}.")
            if not all(map(_NAME.match, str(self.spec.get("command") or "").split())):
                raise DamagedRecord(f"{job.path / 'job.json'}: command is {self.spec['command']!r}, no command's name.")
            if any(not path or "\0" in path for path in self.spec.get("sys_path") or ()):
                raise DamagedRecord(f"{job.path / 'job.json'}: sys_path holds what is no path.")
            # A sweep's plan has its first job's place.
            self.paths = load_plan(run, job).paths
            inputs = job.artifacts()["inputs"]
        except DamagedRecord as error:
            raise UserError(f"{run.id}: its record is not whole: {str(error).rstrip('.')}.") from error
        if self.spec.get("module"):
            raise UserError(
                f"{run.id} was launched by a program of its own, which alone can compose its config.",
                hint=f"Its command line: {self.plan.command_line}",
            )
        self.environment: Mapping[str, str] = self.spec.get("environment") or {}
        try:
            self.pins: dict[str, Pin] = {slot: Pin.from_dict(pin) for slot, pin in inputs.items()}
        except DamagedRecordError as error:
            raise UserError(f"{job.path / 'artifacts.json'}: {error.message}") from error

    @property
    def label(self) -> str:
        many = len(self.run.jobs()) > 1
        return f"{self.run.id}/{self.job.number}" if many else self.run.id

    @property
    def recipe(self) -> str:
        return str(self.spec["command"]).split()[0]

    @property
    def stage(self) -> str:
        """The job's own: a sweep may be over stages, too."""
        return "/".join(str(self.spec["command"]).split()[1:])

    @property
    def config_name(self) -> str:
        return str(self.environment.get("NEMOTRON_CONFIG_NAME") or self.plan.config_name or "default")

    @property
    def folder(self) -> str:
        """The folder that it was launched from."""
        tree, inside = self.paths.tree, self.paths.cwd
        if tree:
            inside = os.path.normpath(os.path.join(tree.root, tree.inside))  # noqa: PTH118
        return str((self.plan.code or {}).get("folder") or inside or self.spec.get("cwd"))

    @property
    def settings(self) -> RunConfig:
        """The profile's settings as they were."""
        given = {name: value for name, value in (self.run.plan().get("settings") or {}).items() if value is not None}
        if unknown := sorted(given.keys() - {*FIELDS}):
            raise UserError(f"{self.run.id}: its settings are another version's: {', '.join(unknown)}: no such field.")
        for name, value in given.items():
            check_value(name, value, f"{self.run.path / 'plan.json'}: settings.{name}")
        return self.plan.settings

    @property
    def overrides(self) -> list[str]:
        """The overrides that were typed, without those that chose the command and its config."""
        file = self.job.path / ".hydra" / "overrides.yaml"
        try:
            overrides = json.loads(read_regular(file))
        except (OSError, ValueError):
            overrides = [] if self.plan.kind else list(self.plan.hydra)
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise UserError(f"{self.run.id}: its record is not whole: {file}: expected a list of texts.")
        return list(overrides)

    def config(self, request: Job) -> ConfigRecord:
        """The config to start from: as it was composed, with the very versions of the artifacts that it read, and for
        the profile that the request names, or that it had."""
        file = self.job.path / COMPOSED_FILE
        values = dict(load_mapping(file)) if file.is_file() else self._config_of_older_version()
        recorded = values.get("run")
        run = dict(recorded) if isinstance(recorded, dict) else {}
        run |= {"profile": request.profile or self.plan.profile, "mode": request.mode or self.plan.mode}
        run |= {slot: omegaconf_escaped(pin.label) for slot, pin in self.pins.items()}
        run.pop("recipe", None)  # the command's own
        if request.profile is None:  # what it set is in the settings
            run.pop("env", None)
        return ConfigRecord(
            recipe=self.recipe,
            stage=self.stage,
            name=self.config_name,
            file=file if file.is_file() else self.job.config_path,
            values={**values, "run": run},
            added=[key for key in (self.environment.get("NEMOTRON_ADDED_KEYS") or "").split(",") if key],
            deleted=[text for text in self.typed(request) if text.startswith("~") and not text.startswith("~/")],
        )

    def _config_of_older_version(self) -> dict[str, Any]:
        """The job's own config.yaml, its paths as this machine calls them, and in the place of its folder the new
        job's. Since COMPOSED_FILE is written, this changes nothing where there is none."""

        def back(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: back(item) for key, item in value.items()}
            if isinstance(value, list):
                return [back(item) for item in value]
            if not isinstance(value, str):
                return value
            value = self.paths.move_back(value)
            for folder in (self.paths.job, str(self.job.path)):
                value = value.replace(folder, "${oc.env:NEMO_RUN_DIR}")
            return value

        values = load_mapping(self.job.config_path)
        return {key: value if key == "run" else back(value) for key, value in values.items()}

    def typed(self, request: Job) -> list[str]:
        """The overrides that were typed then, without those of keys that the request gives."""
        given = {_key(override) for override in _typed(request)}
        return [override for override in self.overrides if _key(override) not in given]

    def app(self, tree: Tree) -> App:
        """The recipe's tree; for a program that was its own recipe, one that holds the command by what is on record."""
        recipe, stage = self.recipe, self.stage
        if recipe in tree.apps:
            return tree.apps[recipe]
        if recipe in tree.broken:
            raise UserError(f"The recipe {recipe!r} is broken: {tree.broken[recipe]}.")
        app = App(recipe)
        *groups, name = stage.split("/")
        group: Group = app
        for each in groups:
            group = group.group(each)
        references = {**self.plan.references, **{slot: pin.label for slot, pin in self.pins.items()}}
        inputs = {slot: ArtifactInput(reference) for slot, reference in references.items()}
        script = self.spec.get("script")
        group.command(
            name,
            self._home(self.spec["config_cls"]),
            self._home(self.spec["handler"]),
            script_path=self.paths.move_back(script) if script else None,
            artifacts=inputs,
            torchrun=self.spec.get("torchrun"),
        )
        return app

    def _home(self, name: str) -> str:
        path, colon, rest = name.rpartition(":")
        return f"{self.paths.move_back(path)}{colon}{rest}" if path.endswith(".py") else name


def enter(folder: str) -> None:
    """Go where the first launch stood: relative paths, recipes and env.toml are found from there."""
    if not os.path.isdir(folder):  # noqa: PTH112 — pathlib's raises for a name that is too long
        raise UserError(
            f"{folder}, where it was launched, is gone.", hint="Its recipe and its paths are found from there."
        )
    os.chdir(folder)
    os.environ["PWD"] = folder  # as a shell does: configs refer to it


@dataclass(frozen=True)
class RerunContext:
    """What a rerun needs of the place where the run was launched: its command tree, its env.toml, and what composes the
    recorded configs."""

    tree: Tree
    env: EnvFile
    composer: RecordComposer

    @classmethod
    def of(cls, recorded: Recorded) -> RerunContext:
        """Read the context. Changes this process's working folder and import path to the launch's. Raises UserError
        when the folder is gone.
        """
        enter(recorded.folder)
        add_import_folders(map(str, recorded.spec.get("sys_path") or ()))

        found = discover()
        app = recorded.app(found)
        tree = Tree(apps={**found.apps, app.name: app}, broken=found.broken, sources=found.sources)
        use(tree)
        env = read_env_file()
        return cls(tree, env, RecordComposer(tree, env))


def request_of(arguments: Sequence[str], recorded: Recorded, tree: Tree) -> Job:
    """The arguments behind the run's id, parsed as arguments of its command."""
    command = find_command(tree, recorded.recipe, recorded.stage)
    index = indexing.live(tree)
    node = trees.find(index, command.path)
    where = f"nemotron runs rerun {recorded.label}"
    job = Reader(arguments, NEMOTRON, index.detail(node) if node else {}, where, "nemotron runs rerun --help").read()
    if job.config or job.recipe or job.stage:
        raise UserError("A rerun has the command and the config of its run.", hint="Override single values: KEY=VALUE.")
    if job.flags:
        raise UserError(f"{job.flags[0]} has no meaning for a rerun.", hint="See nemotron runs rerun --help.")
    for override in job.overrides:
        if _key(override).startswith(("hydra.", "hydra/")):
            raise UserError(
                f"{override} has no meaning for a rerun.",
                hint="A rerun does not go through Hydra's launcher; give the profile's fields.",
            )
    return replace(job, recipe=command.recipe, stage=command.stage, overrides=spelled_out(job.overrides))


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _typed(request: Job) -> list[str]:
    """The overrides that the request's command line adds."""
    profile = [f"run.profile={hydra_text(request.profile)}", f"run.mode={request.mode}"] if request.profile else []
    return [*profile, *request.overrides]


def compose_again(recorded: Recorded, request: Job, composer: RecordComposer) -> Composed:
    """The recorded config with the request's overrides on top. Raises UserError for what the command can't take now."""
    composed = composer.compose(recorded.config(request), request.overrides)
    # On record it is what was typed, then and now.
    return replace(composed, overrides=[*recorded.typed(request), *_typed(request)])


def plan_again(
    recorded: Recorded,
    request: Job,
    composed: Composed,
    tree: Tree,
    argv: Sequence[str],
    run_id: str,
    *,
    alone: bool = True,
) -> Plan:
    """The job's plan in the run `run_id`; of a sweep (not `alone`) the job keeps its number. Raises UserError where a
    pinned input is not what it was."""
    connect = not request.dry_run
    plan = build_plan(
        composed,
        tree.apps[recorded.recipe],
        run_id=run_id,
        argv=argv,
        job=0 if alone else recorded.job.number,
        alone=alone,
        connect=connect,
        transports=transport_for if connect else None,
        recorded=None if request.profile else recorded.settings,
    )
    check_pins(recorded, request, plan)
    # Its mounts are on record as folders; those of repositories may have been removed since.
    fetched = () if request.profile else recorded.plan.repositories
    of = recorded.label if alone else recorded.run.id
    return replace(plan, rerun_of=of, repositories=plan.repositories or fetched)


def check_pins(recorded: Recorded, request: Job, plan: Plan) -> None:
    """Raise UserError for an input that the request does not give, where it has another content now, or is from another
    registry."""
    given = {override.partition("=")[0] for override in request.overrides}
    for slot, old in recorded.pins.items():
        new = plan.inputs.get(slot)
        if new is None or f"run.{slot}" in given:
            continue  # gone: a problem of the plan already; or not read any more
        if new.registry != old.registry:
            raise UserError(
                f"{slot}: {old.label} was read from another registry than the one where the job would run now.",
                hint=f"Name what is meant there: --art.{slot} NAME:vN.",
            )
        if (new.digest, new.path if new.version is None else None) != (
            old.digest,
            old.path if old.version is None else None,
        ):
            raise UserError(
                f"{slot}: {old.label} is not what {recorded.run.id} read: sha256 {str(new.digest)[:12]}, and it was "
                f"{str(old.digest)[:12]}.",
                hint=f"To run with what is there now: --art.{slot} {old.label}.",
            )


def rerun_sweep(run: RunFolder, request: Job, context: RerunContext, argv: Sequence[str]) -> int:
    """Launch all jobs of a sweep again, as one sweep; the exit code."""
    old = stored_plan(run)
    run_id = new_run_id(old.recipe or "sweep", old.stage or "jobs")
    if request.dry_run:
        for sweep_job in _sweep_jobs(run, request, context, argv, run_id):
            show_plan(sweep_job.plan, as_json=request.json, theme=context.env.table("cli").get("theme"))
        return 0
    if request.after and (request.mode or old.mode) != "batch":
        wait_for(None, request.after)
    overrides = [*(override for override in old.hydra if override not in ("-m", "--multirun")), *_typed(request)]
    plan = {"recipe": old.recipe, "stage": old.stage, "kind": "sweep", "after": list(request.after),
            "command_line": shlex.join(masked_overrides(argv)), "hydra": masked_overrides(["-m", *overrides]),
            "rerun_of": run.id, "code": code_facts()}  # fmt: skip
    if old.direction is not None:
        plan["direction"] = old.direction
    again, count = create_run(run_id, plan, []), len(run.jobs())
    print(f"{run_id}: the {count} jobs of {run.id} again", file=sys.stderr)  # noqa: T201
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    # One that Hydra's own launcher ran in its process, one job after another, has no settings on record.
    settings = Settings(max_parallel=None if "settings" in run.plan() else 1)
    jobs = Jobs(again, settings, overrides, ours=True)
    try:
        (first, _), *_ = jobs.run_all(_sweep_jobs(run, request, context, argv, run_id), count)
    except BaseException:
        if not again.jobs():
            shutil.rmtree(again.path)
        raise
    finally:
        jobs.close()
    if not jobs.detached(first):
        states = (job.state() for job in again.jobs())
        why = next((state.error for state in states if state.state != "succeeded"), None)
        if error := sweep.sweep_failures(again, why, request.json):
            raise error
    return sweep.told(again, request.json)


def _sweep_jobs(
    run: RunFolder, request: Job, context: RerunContext, argv: Sequence[str], run_id: str
) -> Iterator[SweepJob]:
    detached = (request.mode or stored_plan(run).mode) == "batch"
    after = SweepAfter(request.after) if request.after and detached and not request.dry_run else None
    for job in run.jobs():
        recorded = Recorded(run, job)
        composed = compose_again(recorded, request, context.composer)
        planned = partial(plan_again, recorded, request, composed, context.tree, argv, run_id, alone=False)
        plan = after.apply(planned(), composed.command, planned) if after else planned()
        yield sweep_job_of(plan, composed, composed.overrides)


HELP = """\
usage: nemotron runs rerun ID[/N] [KEY=VALUE …] [--art.SLOT REF] [--run.KEY V] [--run|--batch PROFILE] [--dry-run]

The same job anew, from its beginning and under a new id; `nemotron runs resume` goes on with the old one. The config is
the recorded one (whatever its files say now), with the very versions of its artifacts and the settings of its profile,
from the folder where it was launched. The code is what lies there now; `nemotron runs diff` tells whether it is the
same. Of a sweep, ID/N is its job N, and ID all of its jobs, as one sweep: the values that were tried are tried again,
and a sweeper that learns (Optuna's, say) is not asked.

Overrides and options stand on top, as on any job's command line; with --run or --batch PROFILE the profile is read
from env.toml. A pinned artifact that was changed or removed since stops it.
"""


def rerun(argv: list[str]) -> int:
    """Launch a recorded run again; exits as the job's own command does."""
    if not argv or {"-h", "--help"} & set(argv):
        write_lines(HELP.splitlines())
        return 0 if argv else 2
    reference, *arguments = argv
    if reference.startswith("-"):
        raise UserError(
            f"nemotron runs rerun: a run stands first, and {reference!r} is none.", hint=HELP.splitlines()[0]
        )

    run, jobs = open_jobs(reference)
    recorded = Recorded(run, jobs[0])
    context = RerunContext.of(recorded)
    request = request_of(arguments, recorded, context.tree)
    label = recorded.label if len(jobs) == 1 else run.id
    line = ["nemotron", "runs", "rerun", label, *arguments]
    if len(jobs) > 1:
        return rerun_sweep(run, request, context, line)

    composed = compose_again(recorded, request, context.composer)
    plan = plan_again(recorded, request, composed, context.tree, line, new_run_id(request.recipe, request.stage))
    state = jobs[0].state()
    if state.terminal and state.state != "succeeded":
        note = f"it starts anew; {label} {state.state}, and goes on with: nemotron runs resume {label}"
        plan = replace(plan, notes=(*plan.notes, note))
    return carry_out(plan, composed, request, context.env)
