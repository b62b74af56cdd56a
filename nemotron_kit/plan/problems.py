"""What would stop a planned job, a sentence each: found at launch, listed by a dry-run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import Command
from nemotron_kit.config import job as job_config
from nemotron_kit.config.freeze import secrets_used
from nemotron_kit.errors import UserError
from nemotron_kit.plan.inputs import Inputs
from nemotron_kit.plan.plan import IN_PROCESS, TORCHRUN

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig


def problems_of(
    command: Command, launch: str, settings: RunConfig, frozen: Mapping[str, Any], environment: Mapping[str, str]
) -> list[str]:
    """The problems that need no look at the inputs."""
    return [
        *_executor_problems(command, settings),
        *_handler_problems(command, launch),
        *_wandb_problems(environment),
        *_secret_problems(frozen, settings, environment),
    ]


def missing_value(key: str, command: Command) -> str:
    option = "--" + key.replace("_", "-")
    return f"{key} has no value. Give it: {key}=VALUE, {option} VALUE, or in a config file with -c."


def _executor_problems(command: Command, settings: RunConfig) -> list[str]:
    # A command that is one process has one node, whatever the profile says; its plan notes that.
    if settings.executor == "local" and (settings.nodes or 1) > 1 and command.torchrun is not False:
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


def preflight(command: Command, frozen: Mapping[str, Any], inputs: Inputs, connect: bool) -> list[str]:
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


def _secret_problems(frozen: Mapping[str, Any], settings: RunConfig, environment: Mapping[str, str]) -> Iterator[str]:
    """Secrets that the config refers to and that the job would look for in vain. What a machine behind ssh has in its
    own environment is not known here."""
    local = settings.executor == "local"
    for key, name in secrets_used(frozen):
        if name in environment:
            continue
        if local and name not in os.environ:
            yield f"{key}: ${{secret:{name}}} is not set in this environment. export {name}=…"
        elif not local and settings.tunnel != "ssh" and name not in (settings.secrets or ()):
            yield f'{key}: ${{secret:{name}}} does not reach the job. Name it in the profile: secrets = ["{name}"].'
