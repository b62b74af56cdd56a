"""Makes the plan of one job from its composed config. Reads env.toml and a registry on this machine; writes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit import __version__
from nemotron_kit.app import App, Command
from nemotron_kit.artifacts.registry import artifact_field, open_registry
from nemotron_kit.config import freeze as job_config
from nemotron_kit.config.compose import Composed
from nemotron_kit.config.freeze import secrets_used, to_yaml, walk_strings
from nemotron_kit.config.resolvers import pinned
from nemotron_kit.config.schema import contradictions
from nemotron_kit.envfile import EnvFile, read_env_file, reserved_table
from nemotron_kit.errors import NemotronError, Note, Problem, UserError
from nemotron_kit.executors.base import SHELL, Executor, PlanContext, executor_for
from nemotron_kit.home import TENSORBOARD, nemotron_home
from nemotron_kit.launch.inputs import ART, Inputs, field_of, look_up_for, remote_field, resolve_inputs
from nemotron_kit.launch.placing import (
    ResolvedJob,
    TransportFactory,
    import_path,
    left_out,
    registry_table,
    resolve_job,
    unshipped_problems,
)
from nemotron_kit.lazy import Value
from nemotron_kit.masking import MASK, is_literal, is_path, is_secret_name, is_switch, secret_in, without_passwords
from nemotron_kit.quoting import refers
from nemotron_kit.spec.paths import RemotePaths
from nemotron_kit.spec.plan import DETACHED, IN_PROCESS, INTERACTIVE, RAY, TORCHRUN, Labels, Plan, is_local
from nemotron_kit.spec.profiles import check_run_wandb
from nemotron_kit.spec.resources import Resources, fields_given, gpu_of, label_of
from nemotron_kit.spec.runconfig import env_dict
from nemotron_kit.worker import ray_command, torchrun_command, worker_command

if TYPE_CHECKING:
    from nemotron_kit.artifacts.reference import Pin
    from nemotron_kit.spec.runconfig import RunConfig


WANDB_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "run_name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
}


def job_environment(
    run_id: str,
    paths: RemotePaths,
    run: Mapping[str, Any],
    settings: RunConfig,
    overrides: Sequence[str],
    config_name: str | None = None,
    env: EnvFile | None = None,
) -> dict[str, str]:
    """The variables that the launch sets for a job, without its secrets. `run` is the config's section `run`,
    `overrides` those of the command line; without `env`, env.toml is read. Raises UserError for a secret in env_vars,
    a password in the settings, and a wrong `run.wandb`."""
    # Unbuffered, so that the log has both streams in order, and all lines of a killed job.
    variables = {"PYTHONUNBUFFERED": "1", **env_dict(settings)}
    _refuse_secrets(settings)
    check_run_wandb(run.get("wandb") or {})
    wandb = {key: value for key, value in (run.get("wandb") or {}).items() if value not in (None, "", [])}
    if wandb.get("project") and wandb.get("enabled", True):
        variables |= {WANDB_VARIABLES[key]: str(value) for key, value in wandb.items() if key in WANDB_VARIABLES}
        if wandb.get("tags"):
            variables["WANDB_TAGS"] = ",".join(str(tag) for tag in wandb["tags"])
    env = env if env is not None else read_env_file()
    if reserved_table(env, "tracking").get("tensorboard"):
        variables[TENSORBOARD] = "1"
    env_file = f"{paths.job}/env.toml" if paths.names_registry else env.path
    if env_file:
        # A job in another working folder must find the same registry.
        variables["NEMOTRON_ENV_FILE"] = str(env_file)
    if paths.package:
        variables["NEMOTRON_HOME"] = paths.root
    if paths.code or paths.package:
        # For programs that the job starts; its own processes use job.json's sys_path, after the standard library.
        entries = [entry for entry in import_path(paths, harmless=True) if paths.is_on_target(entry)]
        variables["PYTHONPATH"] = ":".join([*entries, *filter(None, [variables.get("PYTHONPATH")])])
    added = [o[1:].lstrip("+").partition("=")[0] for o in overrides if o.startswith("+")]
    if added:
        variables["NEMOTRON_ADDED_KEYS"] = ",".join(added)
    if config_name:
        variables["NEMOTRON_CONFIG_NAME"] = config_name
    return {**variables, "NEMO_RUN_DIR": paths.job, "NEMOTRON_RUN_ID": run_id}


def references(settings: RunConfig) -> list[str]:
    """The variables of the profile whose values refer to others; the job expands them on its own machine."""
    return [name for name, text in env_dict(settings).items() if refers(text)]


# `NAME=VALUE` of a shell command, VALUE without anything that the shell expands.
_ASSIGNED = r"""(?<![\w.$-])([A-Za-z_]\w*)=("[^"$`]*"|'[^']*'|[^\s;&|<>()"'$`]+)(?=[\s;&|<>()]|\Z)"""


def _refuse_secrets(settings: RunConfig) -> None:
    """Raise UserError for a variable in env_vars or a field that holds the value of a secret variable of this
    environment, for a secret by its name that env_vars or a shell command gives a value, and for the password of an
    address."""
    for name, value in env_dict(settings).items():
        named = is_secret_name(name) and not is_path(value) and not is_switch(value)
        if secret := name if named else secret_in(value):
            what = f"{name}, a secret by its name" if secret == name else f"the value of {secret}, a secret"
            raise UserError(
                f"env_vars holds {what}: it would be written into every record of the job.",
                hint=f'Export it where you launch, and name it in the profile: secrets = ["{secret}"].',
            )
    values = vars(settings)
    texts = list(walk_strings({key: value for key, value in values.items() if key != "env_vars"}))
    holds_secret = secret_in("\n".join(text for _, text in texts)) is not None  # at once: each look reads all variables
    for name, text in texts:
        assigned = re.findall(_ASSIGNED, text) if name.partition("[")[0] in SHELL else ()
        by_name = [key for key, value in assigned if is_secret_name(key) and is_literal(value) and not is_path(value)]
        if by_name or (holds_secret and (variable := secret_in(text))):
            what = f"gives {by_name[0]}, a secret by its name, a value" if by_name else f"holds the value of {variable}"
            variable = by_name[0] if by_name else variable
            refer = f", and refer to it as ${variable}" if name.partition("[")[0] in SHELL else ""
            raise UserError(
                f"{name}: {what}, which would be written into every record of the job.",
                hint=f'Export it where you launch, name it in the profile, secrets = ["{variable}"]{refer}.',
            )
    for name, text in walk_strings(values):
        field = name.partition("[")[0].partition(".")[0]
        if (referred := re.search(r"\$\{secret:\s*(\w+)", text)) and field not in ("app_secret", "extra"):
            raise UserError(
                f"{name}: {referred[0]}}} is resolved in a job's config only; here it would be taken literally.",
                hint=f'Name it in the profile, secrets = ["{referred[1]}"]: the job then has the variable '
                f"{referred[1]}, and setup and startup_commands can use ${referred[1]}.",
            )
        shown = without_passwords(text)
        if shown != text:
            raise UserError(
                f"{name}: this address holds a password, which would be written into every record of the job: {shown}",
                hint="Leave it to a credentials file where the job runs; or export a variable where you launch, name "
                f"it in the profile's secrets, and refer to it: {shown.replace(MASK, '${VARIABLE}')}",
            )


def not_submitted(command: Command, single: bool) -> UserError:
    """The error for an interactive command that is launched with a profile, or (not `single`) by a sweep."""
    what = "can't be launched with a profile" if single else "can't be a job of a sweep"
    return UserError(
        f"{command.full_name} is interactive, on this terminal: it {what}.", hint="Leave out --run, --batch and -m."
    )


def how_it_starts(
    command: Command, mode: str, settings: RunConfig, paths: RemotePaths, resources: Resources
) -> tuple[str, list[str]]:
    """(IN_PROCESS, TORCHRUN, RAY, DETACHED or INTERACTIVE, the command line that starts the job): the handler's name
    for a job that starts no process."""
    handler = [command.handler_name or str(command.handler)]
    if command.interactive:
        return INTERACTIVE, handler
    if mode == "batch" or not is_local(settings.executor):
        return DETACHED, worker_command(paths.python, paths.package, paths.job)
    if resources.ray:
        return RAY, ray_command(paths.job)
    if resources.processes > 1:
        return TORCHRUN, torchrun_command(resources.processes, paths.job, settings.retries or 0)
    return IN_PROCESS, handler


# In a job's folder, where it differs from config.yaml: the config that a rerun starts from (ResolvedJob.composed).
COMPOSED_FILE = "composed.yaml"


def what_to_run(command: Command, resolved: ResolvedJob, resources: Resources) -> dict[str, Any]:
    """The entries of job.json by which the worker finds a recipe's command."""
    cls, paths = command.config_cls, resolved.paths
    if not isinstance(cls, str):
        module = cls.__module__
        if module == "__main__":
            main = sys.modules["__main__"]
            module = main.__spec__.name if main.__spec__ else str(getattr(main, "__file__", ""))
        cls = f"{module}:{cls.__qualname__}"
    return {
        "command": command.full_name,
        "handler": paths.move_name(command.handler_name),
        "config_cls": paths.move_name(cls),
        "script": paths.script(command.job_script, command.handler_name),
        **({"ray": True, "ray_working_dir": resolved.settings.ray_working_dir} if resources.ray else {}),
    }


def job_files(
    resolved: ResolvedJob,
    pins: Mapping[str, Pin | None],
    resources: Resources,
    environment: Mapping[str, str],
    secrets: Sequence[str],
    run: Mapping[str, Any],
    cwd: str | None = None,
) -> dict[str, str]:
    """Name in the job's folder → text, of the files that every job has. job.json is everything that the worker needs
    besides the config: `run` are its entries on what to run, `secrets` names of variables; the job starts in `cwd`, if
    not in the folder that its paths say."""
    paths, settings = resolved.paths, resolved.settings
    spec = {
        "kit": __version__,
        **run,
        "nproc_per_node": resources.processes,
        "executor": settings.executor,
        "torchrun": resources.torchrun,
        "retries": settings.retries or 0,
        "max_segments": settings.max_segments,
        "code": paths.code,
        "cwd": cwd or paths.cwd,
        "sys_path": import_path(paths),
        "secrets": list(secrets),
        "expand": references(settings),
        "environment": dict(environment),
    }
    inputs = {slot: pin.to_dict() for slot, pin in pins.items() if pin}
    return {
        "config.yaml": to_yaml(resolved.config),
        "job.json": json.dumps(spec, indent=2) + "\n",
        "artifacts.json": json.dumps({"inputs": inputs, "outputs": []}, indent=2) + "\n",
        **({"env.toml": registry_table(paths)} if paths.names_registry else {}),
        **({COMPOSED_FILE: to_yaml(resolved.composed)} if resolved.composed != resolved.config else {}),
    }


def problems_of(
    command: Command,
    launch: str,
    settings: RunConfig,
    resources: Resources,
    frozen: Mapping[str, Any],
    environment: Mapping[str, str],
) -> Iterator[Problem]:
    """The problems that can be found without the inputs: a Ray cluster that can't be had, packages that are not
    installed (found without importing them: torch alone takes a second), and secrets that the config refers to and that
    the job will not find. The environment of a machine behind ssh is not known here."""
    if resources.ray and settings.ray_mode == "cluster":
        what = "a job's Ray cluster ends with the job: none is kept running without one."
        yield Problem(what, field="ray_mode=cluster", hint='Set ray_mode = "job", or leave it out.')
    if resources.ray and resources.nodes > 1 and not executor_for(settings).joins_nodes:
        what = f"a Ray cluster over {resources.nodes} nodes is started on Slurm only."
        yield Problem(what, field=f"executor={settings.executor}")

    if launch == TORCHRUN and find_spec("torch") is None:
        yield Problem("torchrun needs torch, which is not installed: pip install 'nemotron-kit[train]'.")
    elif launch == RAY and find_spec("ray") is None:
        yield Problem("the job runs on Ray, which is not installed: pip install ray.")
    elif launch not in (IN_PROCESS, INTERACTIVE) and not command.script_path and not command.handler_name:
        yield Problem("the handler has no importable name, so no other process can call it: define it in a module.")

    if TENSORBOARD in environment and not any(map(find_spec, ("tensorboardX", "tensorboard"))):
        what = "[tracking] tensorboard is on in env.toml, and neither tensorboardX nor tensorboard is installed."
        yield Problem(what, hint="pip install 'nemotron-kit[tensorboard]'")
    elif "WANDB_PROJECT" in environment and find_spec("wandb") is None:
        yield Problem("W&B is on (run.wandb), but wandb is not installed: pip install 'nemotron-kit[wandb]'.")
    elif (
        "WANDB_PROJECT" not in environment | os.environ and read_env_file().table("artifacts").get("backend") == "wandb"
    ):
        what = "[artifacts] backend is wandb in env.toml, but W&B is off: artifacts would be registered in files only."
        yield Problem(what, hint='Name a project: --wandb.project, or [wandb] in env.toml; or set backend = "file".')

    local = is_local(settings.executor)
    for key, name in secrets_used(frozen):
        if name in environment:
            continue
        if local and name not in os.environ:
            what = f"${{secret:{name}}} is not set in this environment."
            yield Problem(what, field=key, hint=f"export {name}=…")
        elif not local and settings.tunnel != "ssh" and name not in (settings.secrets or ()):
            hint = f'Name it in the profile: secrets = ["{name}"].'
            yield Problem(f"${{secret:{name}}} does not reach the job.", field=key, hint=hint)


@dataclass(frozen=True, eq=False, repr=False)
class PlannedJob(Value):
    """What is known of a planned job, for the command's check, which documents it: training.cost.JobFacts."""

    resolved: ResolvedJob
    command: Command
    resources: Resources
    transports: TransportFactory | None
    seconds: float | None
    segments: int | None

    @property
    def home(self) -> str | None:
        return self.resolved.home

    @property
    def root(self) -> str | None:
        return self.resolved.paths.root if self.resolved.settings.remote_job_dir else None

    def free(self, folder: str) -> int | None:
        resolved = self.resolved
        if resolved.paths.is_remote:  # a dry-run connects to nothing
            if self.transports is None:
                return None
            return int(self.transports(resolved.settings).call("writable", folder=folder)[0]["free"])
        path = Path(folder)
        existing = next((each for each in (path, *path.parents) if each.exists()), None)
        return shutil.disk_usage(existing).free if existing else None

    def earlier_rate(self, keys: Sequence[str], of: str = "tokens") -> tuple[float, str] | None:
        config, command = self.resolved.config, self.command
        from nemotron_kit.runs.progress import rate_of_earlier_run  # few commands ask for it

        size = (self.resources.nodes, self.resources.processes)
        return rate_of_earlier_run(command.recipe, command.stage, config, size=size, keys=keys, of=of)


def preflight(
    resolved: ResolvedJob,
    command: Command,
    resources: Resources,
    executor: Executor,
    inputs: Inputs,
    transports: TransportFactory | None,
    connect: bool,
) -> list[Problem | Note]:
    """Fields that the config needs and the inputs lack, and the results of the command's own check (a Note: what it
    could not check). A check with a parameter `here` is also called for jobs of other machines, with the values known
    now; others are about this machine. It gets those of the facts below that it has parameters for (App.command)."""
    check, here = command.load_preflight(), is_local(resolved.settings.executor)
    if check is None and not inputs.pins:
        return []
    values, problems = _with_fields(resolved, inputs)
    if check is None or not (here or _takes(check, "here")):
        return problems
    # A missing input is a problem already; the rest is checked with its ${art:…} unresolved.
    whole = here and not (inputs.problems or problems)
    try:
        with pinned({slot: pin for slot, pin in inputs.pins.items() if pin}):
            values = job_config.resolve(resolved.config) if whole else values
            config: Any = job_config.typed(values, command.load_config_cls())
    except UserError as error:
        return [Problem(str(error))] if whole else problems
    limit = executor.variables().get("NEMOTRON_TIME_LIMIT")
    job = PlannedJob(resolved, command, resources, transports, float(limit) if limit else None, executor.segments())
    facts: dict[str, Any] = {
        "processes": resources.nodes * resources.processes,
        "gpu": gpu_of(resolved.settings),
        "home": job.home,
        "free": job.free,
        "job": job,
    }
    options: dict[str, Any] = {"connect": connect, **({} if here else {"here": False})}
    found = check(config, **options, **{name: value for name, value in facts.items() if _takes(check, name)})
    return [*problems, *(each if isinstance(each, Note) else Problem(each) for each in found)]


def _takes(check: Callable[..., Any], name: str) -> bool:
    parameters = signature(check).parameters.values()
    return any(parameter.name == name or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _with_fields(resolved: ResolvedJob, inputs: Inputs) -> tuple[dict[str, Any], list[Problem | Note]]:
    """(the config without `run`, with each `${art:slot,field}` in place that is known now, a problem for each that the
    artifact lacks)."""
    paths = resolved.paths
    problems: list[Problem | Note] = []

    def at(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: at(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
        if isinstance(value, list):
            return [at(item, f"{key}[{index}]") for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        for found in reversed(list(ART.finditer(value))):
            pin, name = inputs.pins.get(found["slot"]), field_of(found)
            if pin is None:
                continue
            try:
                if paths.is_remote:
                    field = remote_field(pin, name)
                else:
                    field = artifact_field(pin, name, registry=open_registry(paths.artifacts))
            except NemotronError as error:
                message = " ".join(str(error).split("\n"))
                problems.append(Problem(f"{found[0]}: {message}", field=key))
                continue
            if field is not None and found[0] == value:
                return field
            if field is not None:
                value = value[: found.start()] + str(field) + value[found.end() :]
        return value

    return at({key: value for key, value in resolved.config.items() if key != "run"}, ""), problems


RAY_FIELDS = ("ray_mode", "ray_working_dir")


def build_plan(
    composed: Composed,
    app: App,
    *,
    run_id: str,
    argv: Sequence[str],
    job: int = 0,
    connect: bool = True,
    transports: TransportFactory | None = None,
    recorded: RunConfig | None = None,
    single: bool = True,
    labels: Labels | None = None,
) -> Plan:
    """The plan of one composed job.

    `transports` (remote.ssh.transport_for) connects to the target, whose registry is then read; without it, and with
    `connect=False` (a dry-run), no connection is opened. What would stop the job is listed in `problems`; what makes
    the command itself wrong is raised as UserError. `recorded`: the settings of an earlier launch, used instead of the
    profile's. `single`: false for the jobs of a sweep, which share a script. `labels`: the run's,
    which W&B gets too.
    """
    command = composed.command
    transports = transports if connect and not command.interactive else None
    resolved = resolve_job(composed, run_id, job, recorded, transports)
    frozen, settings, paths = resolved.config, resolved.settings, resolved.paths
    if command.interactive and (frozen["run"]["mode"] != "local" or not is_local(settings.executor) or not single):
        raise not_submitted(command, single)
    missing = job_config.check(frozen, command.load_config_cls())
    inputs = resolve_inputs(command, frozen, app, composed, look_up_for(resolved, run_id, transports))
    notes = [*composed.notes]
    if settings.detach and frozen["run"]["mode"] == "run":
        if single:
            frozen["run"]["mode"] = "batch"
            notes.append("detach is set in the profile: the job is submitted and not followed, as with --batch.")
        else:
            notes.append("detach: no effect on a sweep; --batch detaches it.")
    executor, mode = executor_for(settings), frozen["run"]["mode"]
    resources = executor.resources(command.torchrun)
    if command.on_ray(frozen):
        resources = resources.on_ray()
    launch, command_line = how_it_starts(command, mode, settings, paths, resources)
    secrets = tuple(settings.secrets or ())
    added = executor.plan(
        PlanContext(
            resources=resources,
            paths=paths,
            inputs=inputs.pins,
            run_id=run_id,
            job=job,
            label=label_of(settings, command.recipe, command.stage),
            mode=mode,
            secrets=secrets,
            torchrun=command.torchrun,
            single=single,
        )
    )
    labels = labels or Labels()
    environment = job_environment(
        *(run_id, paths, frozen["run"], settings, composed.overrides, composed.config_name, composed.env)
    )
    environment = {**executor.variables(), **environment}
    environment |= labels.for_wandb(environment, None if single else job)
    problems = []
    for key in missing:
        hint = f"Give it: {key}=VALUE, --{key.replace('_', '-')} VALUE, or in a config file with -c."
        problems.append(Problem(f"{key} has no value.", hint=hint))
    problems += [*inputs.problems, *unshipped_problems(resolved, transports), *added.problems]
    if settings.dry_run and connect and not single:
        what = "dry_run is set in the profile: a sweep's jobs are shown by -m … --dry-run, or set --run.dry_run false."
        problems.append(Problem(what))
    problems += problems_of(command, launch, settings, resources, frozen, environment)
    problems += map(Problem, contradictions(composed.overrides, frozen, command.load_config_cls()))
    found = preflight(resolved, command, resources, executor, inputs, transports, connect) if not missing else []
    problems += [problem for problem in found if isinstance(problem, Problem)]
    notes += [*inputs.notes, *added.notes, *resolved.notes, *left_out(paths)]
    notes += [str(note) for note in found if isinstance(note, Note)]
    given = fields_given(settings, frozen["run"], composed.overrides)
    for_ray = [name for name in given if name in RAY_FIELDS]
    if for_ray and not resources.ray:
        notes.append(f"{', '.join(for_ray)}: no effect: {command.full_name} runs on no Ray cluster.")
    notes += executor.without_effect([name for name in given if name not in RAY_FIELDS], launch)
    run = what_to_run(command, resolved, resources)
    return Plan(
        labels=labels,
        run_id=run_id,
        recipe=command.recipe,
        stage=command.stage,
        folder=f"{nemotron_home()}/runs/{run_id}",
        argv=tuple(argv),
        hydra=tuple(composed.overrides),
        mode=mode,
        profile=frozen["run"]["profile"],
        executor=settings.executor,
        settings=settings,
        launch=launch,
        config_name=composed.config_name,
        config_file=str(composed.config_file) if composed.config_file else None,
        config=frozen,
        inputs=inputs.pins,
        references=inputs.references,
        launch_command=tuple(command_line),
        environment=environment,
        secrets=secrets,
        captured=resolved.captured,
        files={**job_files(resolved, inputs.pins, resources, environment, secrets, run), **added.files},
        problems=tuple(problems),
        notes=tuple(notes),
        job=job,
        paths=paths,
        repositories=resolved.fetch,
        single=single,
        **added.fields,
    )
