"""Makes the plan of one job from what was composed. Reads env.toml and a registry on this machine; writes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit import __version__
from nemotron_kit.app import App, Command
from nemotron_kit.config import job as job_config
from nemotron_kit.config.compose import Composed
from nemotron_kit.config.freeze import launch_environment, to_yaml
from nemotron_kit.config.secrets import is_secret_name
from nemotron_kit.envfile import find_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.home import nemotron_home
from nemotron_kit.plan.inputs import Inputs, resolve_inputs
from nemotron_kit.plan.paths import Place
from nemotron_kit.plan.pinning import look_up_for
from nemotron_kit.plan.placing import Reach, import_path, place_job, registry_table, still_behind
from nemotron_kit.plan.plan import DETACHED, IN_PROCESS, TORCHRUN, Plan
from nemotron_kit.plan.resources import Resources, resources_of
from nemotron_kit.plan.sbatch import Sbatch, sbatch_for
from nemotron_kit.plan.settings import settings_dict

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig

WANDB_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "run_name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
}


def build_plan(
    composed: Composed,
    app: App,
    *,
    run_id: str,
    argv: Sequence[str],
    job: int = 0,
    connect: bool = True,
    reach: Reach | None = None,
    recorded: RunConfig | None = None,
    alone: bool = True,
) -> Plan:
    """The plan of one composed job.

    `reach` gives the way to another machine (execution.reach.reach_for), whose registry is then asked; without it, and
    with `connect=False` (a dry-run), no connection is opened. What would stop the job is listed in `problems`; what
    makes the command itself wrong is raised as UserError. `recorded`: the settings of an earlier launch, which stand in
    the profile's place. `alone`: not one of a sweep's jobs, which share a script.
    """
    command = composed.command
    reach = reach if connect else None
    placed = place_job(composed, run_id, job, recorded)
    frozen, settings, place = placed.config, placed.settings, placed.place
    missing = job_config.check(frozen, command.load_config_cls())
    inputs = resolve_inputs(command, frozen, app, composed, look_up_for(placed, run_id, reach))
    launch = _launch_kind(frozen["run"]["mode"], settings)
    resources = resources_of(settings, command.torchrun)
    sbatch = _of_executor(command, settings, resources, place, inputs, run_id, job, frozen["run"]["mode"], alone)
    environment = job_environment(run_id, place, frozen["run"], settings, composed.overrides, composed.config_name)
    problems = [
        *(_missing_value(key, command) for key in missing),
        *inputs.problems,
        *still_behind(placed, reach),
        *_executor_problems(settings),
        *sbatch.problems,
        *_handler_problems(command, launch),
        *_wandb_problems(environment),
    ]
    if not missing and settings.executor == "local":
        problems += _preflight(command, frozen, inputs, connect)
    spec = _job_spec(command, settings, place, resources)
    return Plan(
        run_id=run_id,
        recipe=command.recipe,
        stage=command.stage,
        folder=f"{nemotron_home()}/runs/{run_id}",
        argv=tuple(argv),
        hydra=tuple(composed.overrides),
        mode=frozen["run"]["mode"],
        profile=frozen["run"]["profile"],
        executor=settings.executor,
        settings=settings_dict(settings),
        launch=launch,
        config_name=composed.config_name,
        config_file=str(composed.config_file) if composed.config_file else None,
        config=frozen,
        inputs=inputs.pins,
        references=inputs.references,
        launch_command=tuple(_launch_command(command, launch, settings, place)),
        environment=environment,
        secrets=tuple(settings.secrets or ()),
        captured=_captured(composed, place),
        files={**_files(frozen, spec, inputs, environment, place), **sbatch.files},
        problems=tuple(problems),
        notes=(*composed.notes, *inputs.notes, *sbatch.notes),
        job=job,
        place=place.to_dict(),
        extra=sbatch.extra,
    )


def _captured(composed: Composed, place: Place) -> dict[str, str]:
    """The variables whose values at launch went into the config; PWD as the job's, where it has a copy of the code."""
    found = launch_environment(composed.config)
    return {name: place.environment["PWD"] if name == "PWD" and place.code else text for name, text in found.items()}


def _of_executor(
    command: Command,
    settings: RunConfig,
    resources: Resources,
    place: Place,
    inputs: Inputs,
    run_id: str,
    job: int,
    mode: str,
    alone: bool,
) -> Sbatch:
    if settings.executor == "local":
        return Sbatch()
    if settings.executor == "docker":
        from nemotron_kit.plan.docker import docker_for

        return docker_for(settings, resources, place, inputs.pins, run_id=run_id, job=job, mode=mode)
    if settings.executor != "slurm":
        from nemotron_kit.plan.cloud import cloud_for

        return cloud_for(settings, run_id=run_id, job=job, mode=mode)
    label = f"{command.recipe}-{command.stage}"
    return sbatch_for(
        settings, resources, place, inputs.pins, run_id=run_id, job=job, label=label, mode=mode, alone=alone
    )


def _launch_kind(mode: str, settings: RunConfig) -> str:
    if mode == "batch" or settings.executor != "local":
        return DETACHED
    return TORCHRUN if (settings.nproc_per_node or 1) > 1 else IN_PROCESS


def _launch_command(command: Command, launch: str, settings: RunConfig, place: Place) -> list[str]:
    folder = place.job
    if place.kit:  # a folder with a __main__.py, which is the worker
        return [place.python, place.kit, folder]
    if launch == DETACHED or settings.executor != "local":
        return [place.python, "-m", "nemotron_kit.worker", folder]
    if launch == IN_PROCESS:
        return [command.handler_name or str(command.handler)]
    return torchrun_command(command.script_path, settings.nproc_per_node or 1, folder)


def torchrun_command(script: str | Path | None, processes: int, folder: str) -> list[str]:
    """torchrun on this machine for a job folder: the script if the command has one, else the worker on each rank."""
    target = (
        [str(script), "--config", f"{folder}/config.yaml"]
        if script
        else ["-m", "nemotron_kit.worker", "--rank", folder]
    )
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *target]


def _job_spec(command: Command, settings: RunConfig, place: Place, resources: Resources) -> dict[str, Any]:
    """job.json: all that the worker needs besides the config."""
    cls = command.config_cls
    scheduled = settings.executor != "local"
    return {
        "kit": __version__,
        "command": command.words,
        "handler": place.move_name(command.handler_name),
        "config_cls": place.move_name(
            cls if isinstance(cls, str) else f"{_importable(cls.__module__)}:{cls.__qualname__}"
        ),
        "script": place.script(command.script_path, command.handler_name),
        "nproc_per_node": resources.processes if scheduled else settings.nproc_per_node or 1,
        "executor": settings.executor,
        "torchrun": resources.torchrun if scheduled else (settings.nproc_per_node or 1) > 1,
        "retries": settings.retries or 0,
        "max_segments": settings.max_segments,
        "code": place.code,
        "cwd": place.cwd,
        "sys_path": import_path(place),
        "secrets": list(settings.secrets or ()),
    }


def _importable(module: str) -> str:
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    return main.__spec__.name if main.__spec__ else str(getattr(main, "__file__", ""))


def _files(
    frozen: Mapping[str, Any], spec: Mapping[str, Any], inputs: Inputs, environment: Mapping[str, str], place: Place
) -> dict[str, str]:
    pins = {slot: pin.to_dict() for slot, pin in inputs.pins.items() if pin}
    return {
        "config.yaml": to_yaml(frozen),
        "job.json": json.dumps({**spec, "environment": dict(environment)}, indent=2) + "\n",
        "artifacts.json": json.dumps({"inputs": pins, "outputs": []}, indent=2) + "\n",
        **({"env.toml": registry_table(place)} if place.names_registry else {}),
    }


def job_environment(
    run_id: str,
    place: Place,
    run: Mapping[str, Any],
    settings: RunConfig,
    overrides: Sequence[str],
    config_name: str | None = None,
) -> dict[str, str]:
    variables = _env_vars(settings)
    wandb = {key: value for key, value in (run.get("wandb") or {}).items() if value not in (None, "", [])}
    if wandb.get("project") and wandb.get("enabled", True):
        variables |= {WANDB_VARIABLES[key]: str(value) for key, value in wandb.items() if key in WANDB_VARIABLES}
        if wandb.get("tags"):
            variables["WANDB_TAGS"] = ",".join(str(tag) for tag in wandb["tags"])
    env_file = f"{place.job}/env.toml" if place.names_registry else find_env_file()
    if env_file:
        # A job in another working folder must find the same registry.
        variables["NEMOTRON_ENV_FILE"] = str(env_file)
    if place.kit:
        variables["NEMOTRON_HOME"] = place.root
    if place.code or place.kit:
        paths = [entry for entry in import_path(place) if place.is_there(entry)]
        variables["PYTHONPATH"] = ":".join([*paths, *filter(None, [variables.get("PYTHONPATH")])])
    added = [o[1:].lstrip("+").partition("=")[0] for o in overrides if o.startswith("+")]
    if added:
        variables["NEMOTRON_ADDED_KEYS"] = ",".join(added)
    if config_name:
        variables["NEMOTRON_CONFIG_NAME"] = config_name
    return {**variables, "NEMO_RUN_DIR": place.job, "NEMOTRON_RUN_ID": run_id}


def _env_vars(settings: RunConfig) -> dict[str, str]:
    from nemotron_kit.plan.runconfig import env_dict

    variables = env_dict(settings)
    for name in variables:
        if is_secret_name(name):
            raise UserError(
                f"env_vars holds {name}, a secret by its name: it would stand in every record of the job.",
                hint=f'Export it where you launch, and name it in the profile: secrets = ["{name}"].',
            )
    return variables


def _missing_value(key: str, command: Command) -> str:
    option = "--" + key.replace("_", "-")
    return f"{key} has no value. Give it: {key}=VALUE, {option} VALUE, or in a config file with -c."


def _executor_problems(settings: RunConfig) -> list[str]:
    if settings.executor == "local" and (settings.nodes or 1) > 1:
        return [f"nodes={settings.nodes}: the local executor has one node. Use nproc_per_node for more processes."]
    return []


def _handler_problems(command: Command, launch: str) -> list[str]:
    """What a plain install lacks for this job. Found without importing it: torch alone takes a second."""
    from importlib.util import find_spec

    if launch == TORCHRUN and find_spec("torch") is None:
        return ["torchrun needs torch, which is not installed: pip install 'nemotron-kit[train]'."]
    if launch != IN_PROCESS and not command.script_path and not command.handler_name:
        return ["the handler has no importable name, so no other process can call it: define it in a module."]
    return []


def _wandb_problems(environment: Mapping[str, str]) -> list[str]:
    from importlib.util import find_spec

    if "WANDB_PROJECT" in environment and find_spec("wandb") is None:
        return ["W&B is on (run.wandb), but wandb is not installed: pip install 'nemotron-kit[wandb]'."]
    return []


def _preflight(command: Command, frozen: Mapping[str, Any], inputs: Inputs, connect: bool) -> list[str]:
    from nemotron_kit.config.resolvers import pinned

    check = command.load_preflight()
    if check is None:
        return []
    try:
        with pinned({slot: pin for slot, pin in inputs.pins.items() if pin}):
            # An input that isn't there is a problem already; the rest is checked all the same, its ${art:…} unresolved.
            values = frozen if inputs.problems else job_config.resolve(frozen)
            config: Any = job_config.typed(values, command.load_config_cls())
    except UserError as error:
        return [] if inputs.problems else [str(error)]
    return check(config, connect=connect)
