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
from nemotron_kit.config.freeze import freeze, launch_environment, to_yaml
from nemotron_kit.config.secrets import is_secret_name
from nemotron_kit.envfile import find_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.home import nemotron_home
from nemotron_kit.plan.inputs import Inputs, resolve_inputs
from nemotron_kit.plan.plan import DETACHED, IN_PROCESS, TORCHRUN, Plan
from nemotron_kit.plan.settings import effective_settings, settings_dict

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig

WANDB_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "run_name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
}


def build_plan(
    composed: Composed, app: App, *, run_id: str, argv: Sequence[str], job: int = 0, connect: bool = True
) -> Plan:
    """The plan of one composed job.

    `connect=False` (a dry-run) opens no connection. What would stop the job is listed in `problems`; what makes the
    command itself wrong is raised as UserError.
    """
    command = composed.command
    folder = nemotron_home() / "runs" / run_id
    frozen = freeze(composed.config, f"{folder}/jobs/{job}")
    missing = job_config.check(frozen, command.load_config_cls())
    settings = effective_settings(frozen["run"], composed.overrides)
    inputs = resolve_inputs(command, frozen, app, composed)
    launch = _launch_kind(frozen["run"]["mode"], settings)
    environment = _environment(run_id, f"{folder}/jobs/{job}", frozen["run"], settings, composed.overrides)
    problems = [
        *(_missing_value(key, command) for key in missing),
        *inputs.problems,
        *_executor_problems(settings),
        *_handler_problems(command, launch),
        *_wandb_problems(environment),
    ]
    if not missing and settings.executor == "local":
        problems += _preflight(command, frozen, inputs, connect)
    spec = _job_spec(command, settings, composed.overrides)
    return Plan(
        run_id=run_id,
        recipe=command.recipe,
        stage=command.stage,
        folder=str(folder),
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
        launch_command=tuple(_launch_command(command, launch, settings, f"{folder}/jobs/{job}")),
        environment=environment,
        secrets=tuple(settings.secrets or ()),
        captured=launch_environment(composed.config),
        files=_files(frozen, spec, inputs, environment),
        problems=tuple(problems),
        notes=tuple(composed.notes),
        job=job,
    )


def _launch_kind(mode: str, settings: RunConfig) -> str:
    if mode == "batch":
        return DETACHED
    return TORCHRUN if (settings.nproc_per_node or 1) > 1 else IN_PROCESS


def _launch_command(command: Command, launch: str, settings: RunConfig, folder: str) -> list[str]:
    if launch == DETACHED:
        return [sys.executable, "-m", "nemotron_kit.worker", folder]
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


def _job_spec(command: Command, settings: RunConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """job.json: all that the worker needs besides the config."""
    cls = command.config_cls
    return {
        "kit": __version__,
        "command": command.words,
        "handler": command.handler_name,
        "config_cls": cls if isinstance(cls, str) else f"{_importable(cls.__module__)}:{cls.__qualname__}",
        "script": str(command.script_path) if command.script_path else None,
        "nproc_per_node": settings.nproc_per_node or 1,
        "cwd": str(Path.cwd()),
        "sys_path": [str(Path(entry).absolute()) for entry in sys.path if entry or entry == ""],
        "secrets": list(settings.secrets or ()),
    }


def _importable(module: str) -> str:
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    return main.__spec__.name if main.__spec__ else str(getattr(main, "__file__", ""))


def _files(
    frozen: Mapping[str, Any], spec: Mapping[str, Any], inputs: Inputs, environment: Mapping[str, str]
) -> dict[str, str]:
    pins = {slot: pin.to_dict() for slot, pin in inputs.pins.items() if pin}
    return {
        "config.yaml": to_yaml(frozen),
        "job.json": json.dumps({**spec, "environment": dict(environment)}, indent=2) + "\n",
        "artifacts.json": json.dumps({"inputs": pins, "outputs": []}, indent=2) + "\n",
    }


def _environment(
    run_id: str, job_folder: str, run: Mapping[str, Any], settings: RunConfig, overrides: Sequence[str]
) -> dict[str, str]:
    variables = _env_vars(settings)
    wandb = {key: value for key, value in (run.get("wandb") or {}).items() if value not in (None, "", [])}
    if wandb.get("project") and wandb.get("enabled", True):
        variables |= {WANDB_VARIABLES[key]: str(value) for key, value in wandb.items() if key in WANDB_VARIABLES}
        if wandb.get("tags"):
            variables["WANDB_TAGS"] = ",".join(str(tag) for tag in wandb["tags"])
    env_file = find_env_file()
    if env_file and settings.tunnel != "ssh":
        # A job in another working folder must find the same registry.
        variables["NEMOTRON_ENV_FILE"] = str(env_file)
    added = [o[1:].lstrip("+").partition("=")[0] for o in overrides if o.startswith("+")]
    if added:
        variables["NEMOTRON_ADDED_KEYS"] = ",".join(added)
    return {**variables, "NEMO_RUN_DIR": job_folder, "NEMOTRON_RUN_ID": run_id}


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
    if settings.executor != "local":
        return [
            f"executor {settings.executor!r} is not built into this version yet: jobs run on this machine only "
            '(a profile with executor = "local").'
        ]
    if (settings.nodes or 1) > 1:
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
