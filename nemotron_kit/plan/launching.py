"""How a job is started: the command, and the files that tell the worker what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemotron_kit import __version__
from nemotron_kit.app import Command
from nemotron_kit.config.freeze import to_yaml
from nemotron_kit.plan.environment import references
from nemotron_kit.plan.inputs import Inputs
from nemotron_kit.plan.paths import Place
from nemotron_kit.plan.placing import import_path, registry_table
from nemotron_kit.plan.plan import DETACHED, IN_PROCESS, TORCHRUN
from nemotron_kit.plan.resources import Resources

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig


def launch_kind(mode: str, settings: RunConfig, resources: Resources) -> str:
    if mode == "batch" or settings.executor != "local":
        return DETACHED
    return TORCHRUN if resources.processes > 1 else IN_PROCESS


def launch_command(command: Command, launch: str, settings: RunConfig, place: Place, resources: Resources) -> list[str]:
    folder = place.job
    if place.kit:  # a folder with a __main__.py, which is the worker
        return [place.python, place.kit, folder]
    if launch == DETACHED or settings.executor != "local":
        return [place.python, "-P", "-m", "nemotron_kit.worker", folder]
    if launch == IN_PROCESS:
        return [command.handler_name or str(command.handler)]
    return torchrun_command(resources.processes, folder)


def torchrun_command(processes: int, folder: str) -> list[str]:
    """torchrun on this machine for a job folder: a worker on each rank, which runs the command's script if it has one,
    with `--config`."""
    start = [sys.executable, "-P", "-m", "nemotron_kit.execution.elastic", "--standalone"]
    return [*start, f"--nproc-per-node={processes}", *rank_command(folder)]


def rank_command(folder: str) -> list[str]:
    """torchrun's words for a rank that is a worker. By itself it would start `python -m`, which looks for modules in
    the working folder first: a json.py there would be everybody's json."""
    return ["--no-python", sys.executable, "-P", "-u", "-m", "nemotron_kit.worker", "--rank", folder]


def job_spec(command: Command, settings: RunConfig, place: Place, resources: Resources) -> dict[str, Any]:
    """job.json: all that the worker needs besides the config."""
    cls = command.config_cls
    return {
        "kit": __version__,
        "command": command.words,
        "handler": place.move_name(command.handler_name),
        "config_cls": place.move_name(
            cls if isinstance(cls, str) else f"{_importable(cls.__module__)}:{cls.__qualname__}"
        ),
        "script": place.script(command.script_path, command.handler_name),
        "nproc_per_node": resources.processes,
        "executor": settings.executor,
        "torchrun": resources.torchrun,
        "retries": settings.retries or 0,
        "max_segments": settings.max_segments,
        "code": place.code,
        "cwd": place.cwd,
        "sys_path": import_path(place),
        "secrets": list(settings.secrets or ()),
        "expand": references(settings),
    }


def _importable(module: str) -> str:
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    return main.__spec__.name if main.__spec__ else str(getattr(main, "__file__", ""))


def job_files(
    frozen: Mapping[str, Any], spec: Mapping[str, Any], inputs: Inputs, environment: Mapping[str, str], place: Place
) -> dict[str, str]:
    pins = {slot: pin.to_dict() for slot, pin in inputs.pins.items() if pin}
    return {
        "config.yaml": to_yaml(frozen),
        "job.json": json.dumps({**spec, "environment": dict(environment)}, indent=2) + "\n",
        "artifacts.json": json.dumps({"inputs": pins, "outputs": []}, indent=2) + "\n",
        **({"env.toml": registry_table(place)} if place.names_registry else {}),
    }
