"""The plan of one job, and job.json, the instructions for its worker. Execution depends on the plan only."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import add_import_folders, load_object
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.config.config_files import load_mapping
from nemotron_kit.config.freeze import secrets_used
from nemotron_kit.config.secrets import masked_overrides
from nemotron_kit.errors import DamagedRecordError, NemotronError, Problem, UserError
from nemotron_kit.files import map_leaves, read_regular
from nemotron_kit.lazy import Value
from nemotron_kit.masking import note_secrets, secret_in
from nemotron_kit.runs.job import DamagedRunRecord, JobFolder, misshapen
from nemotron_kit.spec import MOST_PROCESSES

if TYPE_CHECKING:
    from nemotron_kit.runs.folder import RunFolder
    from nemotron_kit.spec.paths import RemotePaths
    from nemotron_kit.spec.resources import Resources
    from nemotron_kit.spec.runconfig import RunConfig


_PROGRAM = ("python", "-m", "nemotron_kit")
IN_PROCESS, TORCHRUN, RAY, DETACHED, INTERACTIVE = "in-process", "torchrun", "ray", "detached", "interactive"


_TAG = r"\w[\w.:/=-]{0,63}"
_LONGEST = {"name": 100, "note": 2000}


@dataclass(frozen=True, eq=False, repr=False)
class Labels(Value):
    """The user's labels of a run: a name in addition to its id, tags (a filter of `nemotron runs`), and a note. Raises
    UserError for invalid ones."""

    name: str | None = None
    tags: tuple[str, ...] = ()
    note: str | None = None

    def __post_init__(self) -> None:
        for kind, longest in _LONGEST.items():
            text = getattr(self, kind)
            if text and len(text) > longest:
                raise UserError(f"This {kind} has {len(text)} characters; at most {longest} are allowed.")
        if self.name and re.fullmatch(r"latest|.*/\d+(-\d+)?", self.name):
            what = "the last launch" if self.name == "latest" else "jobs of a run"
            raise UserError(f"{self.name!r} can't be a name: wherever a run is named, it means {what}.")
        for text in self.tags:
            if not re.fullmatch(_TAG, text):
                raise UserError(f"{text!r} can't be a tag: use up to 64 letters, digits and . : / = - _.")
        for kind, text in (("name", self.name), *(("tag", tag) for tag in self.tags), ("note", self.note)):
            if text and (variable := secret_in(text)):
                raise UserError(
                    f"This {kind} holds the value of {variable}, a secret by its name.",
                    hint="A run's labels are read by whoever lists the runs: write it without.",
                )

    def to_dict(self) -> dict[str, Any]:
        """The labels that are set, as JSON data."""
        return {key: list(value) if key == "tags" else value for key, value in vars(self).items() if value}

    def for_wandb(self, environment: Mapping[str, str], job: int | None) -> dict[str, str]:
        """The environment variables that give a job's W&B run these labels; tags in `environment` are kept. `job` is
        the job's number in a sweep."""
        found = {"WANDB_NAME": self.name, "WANDB_NOTES": self.note}
        if self.name and job is not None:
            found["WANDB_NAME"] = f"{self.name}/{job}"
        if self.tags:
            known = [tag for tag in environment.get("WANDB_TAGS", "").split(",") if tag]
            found["WANDB_TAGS"] = ",".join(dict.fromkeys([*known, *self.tags]))
        return {key: text for key, text in found.items() if text}


@dataclass(frozen=True, eq=False, repr=False)
class Container(Value):
    """The container of a job: its name, its image, and the arguments of the command that starts it."""

    name: str
    image: str
    arguments: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON data, for plan.json, whose key for the arguments is `words`."""
        return {"name": self.name, "image": self.image, "words": list(self.arguments)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Container:
        """The inverse of `to_dict`. Missing fields are empty."""
        return cls(stored.get("name") or "", stored.get("image") or "", tuple(stored.get("words") or ()))


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Value):
    """One job and where it runs. `files`: name in the job folder → text. `problems`: reasons why it can't run.

    `folder` is the launch's record on this machine, `paths` the paths of the job's files. Its executor has planned
    `resources`, `mounts` (folders mounted into a container at the same paths), `container`, `request` (what a service
    would be sent). `repositories` are fetched for its mounts. `after` are runs that must have succeeded: `dependency`
    holds their jobs' ids if the scheduler waits for them, `wait_first` those that this machine waits for before it
    submits the job. `attempt` counts attempts (`runs resume`), `rerun_of` names the run that a new one repeats, `code`
    is the state of the working folder. `kind` and `launcher` (the process) are a sweep's. A sweep's jobs are not
    `single`: they share a script. `direction` is its sweeper's (`maximize`), `objective` the metric that
    its jobs hand to the sweeper. `labels` are stored in a separate file. `part_of` names the pipeline run of which
    it is a stage.
    """

    run_id: str
    recipe: str
    stage: str
    folder: str
    argv: tuple[str, ...]
    hydra: tuple[str, ...]
    mode: str
    profile: str | None
    executor: str
    settings: RunConfig
    launch: str
    config_name: str
    config_file: str | None
    config: Mapping[str, Any]
    inputs: Mapping[str, Pin | None]
    references: Mapping[str, str]
    launch_command: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: tuple[str, ...]
    captured: Mapping[str, str]
    files: Mapping[str, str]
    paths: RemotePaths
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    job: int = 0
    resources: Resources | None = None
    mounts: tuple[str, ...] | None = None
    container: Container | None = None
    request: Mapping[str, Any] | None = None
    repositories: tuple[Mapping[str, str], ...] = ()
    after: tuple[str, ...] = ()
    dependency: tuple[str, ...] | None = None
    wait_first: tuple[str, ...] | None = None
    attempt: int = 0
    rerun_of: str | None = None
    code: Mapping[str, Any] | None = None
    kind: str | None = None
    launcher: Mapping[str, Any] | None = None
    part_of: str | None = None
    direction: str | None = None
    objective: str | None = None
    labels: Labels | None = None
    single: bool = True

    @property
    def job_folder(self) -> str:
        """The job's folder in the record on this machine."""
        return f"{self.folder}/jobs/{self.job}"

    @property
    def has_separate_folder(self) -> bool:
        """Whether the job writes to another folder than that of the record."""
        return self.paths.run != self.folder

    @property
    def deferred(self) -> bool:
        """Whether the launch returns before the job can be submitted."""
        return bool(self.wait_first) and self.mode == "batch"

    @property
    def hydra_command(self) -> str:
        """The same job as a shell command in Hydra's syntax."""
        return shlex.join([*_PROGRAM, *masked_overrides(self.hydra)])

    @property
    def command_line(self) -> str:
        """The launch's command line as a shell reads it, secrets masked."""
        return shlex.join(masked_overrides(self.argv))

    def with_spec(self, **fields: Any) -> Plan:
        """The plan with these fields in its job.json, which read_spec reads."""
        spec = {**json.loads(self.files["job.json"]), **fields}
        return replace(self, files={**self.files, "job.json": json.dumps(spec, indent=2) + "\n"})

    def optional_fields(self) -> dict[str, Any]:
        """JSON data of the fields that are set here and that not every plan has."""
        found: dict[str, Any] = {
            "resources": {**asdict(self.resources), "notes": list(self.resources.notes)} if self.resources else None,
            "mounts": None if self.mounts is None else list(self.mounts),
            "container": self.container.to_dict() if self.container else None,
            "request": self.request,
            "repositories": list(self.repositories) or None,
            "after": list(self.after) or None,
            "dependency": None if self.dependency is None else list(self.dependency),
            "wait_first": None if self.wait_first is None else list(self.wait_first),
            "attempt": self.attempt or None,
            "rerun_of": self.rerun_of,
            "code": self.code,
            "kind": self.kind,
            "launcher": self.launcher,
            "part_of": self.part_of,
            "direction": self.direction,
            "objective": self.objective,
        }
        return {name: value for name, value in found.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """JSON data: what `--dry-run --json` prints and plan.json holds."""
        from nemotron_kit.spec.runconfig import settings_dict

        return {
            "run_id": self.run_id,
            "recipe": self.recipe,
            "stage": self.stage,
            "command_line": self.command_line,
            "hydra": self.hydra_command,
            "mode": self.mode,
            "profile": self.profile,
            "executor": self.executor,
            "settings": settings_dict(self.settings),
            "launch": self.launch,
            "launch_command": list(self.launch_command),
            "config_name": self.config_name,
            "config_file": self.config_file,
            "config": map_leaves(
                self.config, lambda each: b64encode(each).decode() if isinstance(each, bytes) else each
            ),
            "inputs": {slot: pin.to_dict() if pin else None for slot, pin in self.inputs.items()},
            "references": dict(self.references),
            "environment": dict(self.environment),
            "secrets": list(self.secrets),
            "captured_at_launch": dict(self.captured),
            "job_folder": self.job_folder,
            "place": self.paths.to_dict(),
            "files": dict(self.files),
            "problems": list(map(str, self.problems)),
            "notes": list(self.notes),
            **self.optional_fields(),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], folder: Path, job: int = 0, *, where: Path | None = None) -> Plan:
        """The plan of a job of the run in `folder`, as `to_dict` of this or an older version wrote it: missing fields
        have their defaults, unknown ones are ignored. `stored` has the shape PLAN_SHAPE.

        Raises DamagedRunRecord, which names the file (`where`, else the run's plan.json) and the key, for settings and
        inputs of a wrong type.
        """
        from nemotron_kit.spec.paths import RemotePaths
        from nemotron_kit.spec.resources import Resources
        from nemotron_kit.spec.runconfig import SETTINGS_SHAPE, stored_settings

        given = {name: value for name, value in stored.items() if value is not None}
        settings = given.get("settings", {})
        if wrong := misshapen(settings, SETTINGS_SHAPE, "settings"):
            raise DamagedRunRecord(f"{where or folder / 'plan.json'}: {wrong}.")
        executor = given.get("executor") or settings.get("executor") or LOCAL
        if settings.get("executor") not in (None, "", executor):
            wrong = f"executor is {executor!r}, and settings.executor {settings['executor']!r}"
            raise DamagedRunRecord(f"{where or folder / 'plan.json'}: {wrong}.")
        held, hydra = given.get("resources") or {}, given.get("hydra", ())
        resources = {f.name: held[f.name] for f in fields(Resources) if held.get(f.name) is not None}
        if isinstance(hydra, str):  # a job's record has the overrides as a command line, a sweep's as a list
            hydra = _split_line(hydra)[len(_PROGRAM) :]
        known: dict[str, Any] = {
            **{name: given[name] for name in _STORED_UNCHANGED if name in given},
            **{name: tuple(given[name]) for name in _LISTS if name in given},
        }
        if "dependency" in given:
            known["dependency"] = tuple(map(str, given["dependency"]))
        if given.get("container"):
            known["container"] = Container.from_dict(given["container"])
        if resources:
            known["resources"] = Resources(
                **{**_ONE_PROCESS, **resources, "notes": tuple(resources.get("notes") or ())}
            )
        return cls(
            **{**_DEFAULTS, **known},
            run_id=folder.name,
            folder=str(folder),
            job=job,
            executor=executor,
            settings=stored_settings({**settings, "executor": settings.get("executor") or executor}),
            paths=RemotePaths.from_dict(given.get("place", {}), str(folder), job),
            problems=tuple(map(Problem, given.get("problems", ()))),
            argv=tuple(_split_line(given.get("command_line", ""))),
            hydra=tuple(map(str, hydra)),
            captured=given.get("captured_at_launch", {}),
            inputs=_pins(given.get("inputs", {}), where or folder / "plan.json"),
        )


# Fields of a plan that its record holds as they are, and those that are lists there.
_STORED_UNCHANGED = (
    *("recipe", "stage", "mode", "profile", "launch", "config_name", "config_file", "config", "references"),
    *("environment", "files", "request", "attempt", "rerun_of", "code", "kind", "launcher", "part_of", "direction"),
    "objective",
)
_LISTS = ("launch_command", "secrets", "notes", "mounts", "repositories", "after", "wait_first")
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("recipe", "stage", "config_name"), ""),
    **{key: {} for key in ("config", "references", "environment", "files")},
    **dict.fromkeys(("launch_command", "secrets"), ()),
    "mode": "local",
    "launch": DETACHED,
    "profile": None,
    "config_file": None,
}
_ONE_PROCESS: dict[str, Any] = {"nodes": 1, "processes": 1, "torchrun": False, "ray": False}


def stored_plan(run: RunFolder, job: int = 0) -> Plan:
    """The plan in a run's record; of a sweep, what its jobs have in common. Raises DamagedRunRecord."""
    return Plan.from_dict(run.plan(), run.path, job)


def check_followed(run: RunFolder) -> None:
    """Raises DamagedRunRecord for a run whose jobs can't be followed: its plan can't be read, or names no executor. The
    plan of a sweep by one of Hydra's launchers has neither an executor nor settings; its jobs run on this machine."""
    plan = run.plan()
    Plan.from_dict(plan, run.path)
    if not plan.get("executor") and not run.is_pipeline and (plan.get("kind") != "sweep" or "settings" in plan):
        raise DamagedRunRecord(f"{run.path / 'plan.json'}: executor: missing.")


def _split_line(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # no valid shell syntax: one argument
        return [line]


def _pins(stored: Mapping[str, Any], where: Path) -> dict[str, Pin | None]:
    try:
        return {slot: Pin.from_dict(pin) if pin is not None else None for slot, pin in stored.items()}
    except DamagedRecordError as error:
        raise DamagedRunRecord(f"{where}: inputs: {error.message}") from error


LOCAL = "local"


def is_local(executor: str | None) -> bool:
    """Whether an executor's jobs are processes of this machine, whose folders hold their complete state."""
    return executor in (None, "", LOCAL)


@dataclass(frozen=True, eq=False, repr=False)
class JobSpec(Value):
    """One job as the worker sees it. `sys_path` is the launch's, so that the recipe's modules are found.

    `after` are runs that must have succeeded before it starts, `deferred_inputs`
    its inputs (slot → reference) that they save.
    `expand` are the variables of `environment` that refer to others.
    `unchanged` is an earlier run of the same config and code, by its `run`, its `inputs` (slot → digest) and `outputs`
    (pins): a job with these inputs takes over those outputs.
    `ray`: it runs on its own Ray cluster, its program in `ray_working_dir` (None: `cwd`) of node 0.
    `module` is a module of nemotron_kit that runs the job as `python -m module FOLDER`; config.yaml is then for people.
    """

    command: str
    handler: str
    config_cls: str
    script: str | None
    nproc_per_node: int
    cwd: str
    sys_path: list[str]
    environment: dict[str, str]
    secrets: list[str] = field(default_factory=list)
    module: str | None = None
    executor: str = ""
    torchrun: bool = False
    ray: bool = False
    ray_working_dir: str | None = None
    retries: int = 0
    max_segments: int | None = None
    code: str | None = None
    after: list[str] = field(default_factory=list)
    deferred_inputs: dict[str, str] = field(default_factory=dict)
    expand: list[str] = field(default_factory=list)
    unchanged: dict[str, Any] | None = None

    @property
    def scheduled(self) -> bool:
        """Whether a scheduler starts the worker, on each of the job's nodes: it only supervises then, and prints into
        the job's log."""
        return not is_local(self.executor or self.environment.get("NEMOTRON_EXECUTOR"))

    def load_handler(self) -> Callable[..., Any]:
        """Import the handler. Raises UserError if that fails."""
        return load_object(self.handler)  # type: ignore[no-any-return]

    def load_config_cls(self) -> type:
        """Import the dataclass of the job's config. Raises UserError if that fails."""
        return load_object(self.config_cls)  # type: ignore[no-any-return]

    def prepare_imports(self) -> None:
        """Make the launch's modules importable here."""
        add_import_folders(self.sys_path)


def read_spec(folder: Path) -> JobSpec:
    """The spec in a job folder. Raises NemotronError when it is missing or damaged."""
    path = folder / "job.json"
    try:
        values = JobFolder(folder).located(json.loads(read_regular(path)))
        if "late" in values:  # as an older version wrote it
            values["deferred_inputs"] = values["late"]
        spec = JobSpec(**{f.name: values[f.name] for f in fields(JobSpec) if f.name in values})
        if type(spec.nproc_per_node) is not int or not 1 <= spec.nproc_per_node <= MOST_PROCESSES:
            raise ValueError(f"nproc_per_node is {str(spec.nproc_per_node)[:20]!r}, not 1 to {MOST_PROCESSES}")
        return replace(spec, script=_script(spec.script))
    except FileNotFoundError as error:
        raise NemotronError(f"{path}: no such file. Is {folder} a job folder?") from error
    except OSError as error:
        raise NemotronError(f"{path}: {error.strerror or error}.") from error
    except (ValueError, TypeError) as error:
        raise NemotronError(f"{path}: damaged: {error}.") from error


def _script(name: str | None) -> str | None:
    """The script's path; `@module` is that of a package which is installed here as it was where the launch was made."""
    if name is None or not name.startswith("@"):
        return name
    try:
        found = find_spec(name[1:])
    except ImportError:
        found = None
    if found is None or not found.origin:
        raise NemotronError(
            f"The recipe's module {name[1:]} is not installed on this machine.",
            hint=f"Install its package for {sys.executable}, as it is where you launch.",
        )
    return found.origin


def read_config(folder: Path) -> Mapping[str, Any]:
    """The frozen config in a job folder. The secrets that it refers to are masked in output from now on."""
    values: Mapping[str, Any] = JobFolder(folder).located(load_mapping(folder / "config.yaml"))
    note_secrets(name for _, name in secrets_used(values))
    return values


def rank() -> int:
    """This process's global rank, 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))
