"""What would stop a planned job, a sentence each: found at launch, listed by a dry-run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import Command
from nemotron_kit.config import job as job_config
from nemotron_kit.config.freeze import secrets_used
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.plan.inputs import Inputs
from nemotron_kit.plan.paths import Place
from nemotron_kit.plan.plan import IN_PROCESS, TORCHRUN

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig

# ${art:slot} and ${art:slot,field} without interpolations inside; an escaped one is text.
_ART = re.compile(r"(?<!\\)\$\{art:\s*(?P<slot>[A-Za-z_]\w*)\s*(?:,(?P<field>[^${},]*))?\}")
# What a pin tells by itself, without the registry that it was made in.
_OF_PIN = frozenset({"", "path", "version", "name", "type", "qualified_name"})


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


def preflight(
    command: Command, frozen: Mapping[str, Any], inputs: Inputs, place: Place, connect: bool, here: bool
) -> list[str]:
    """What the inputs lack that the config asks of them, and what the command's own check finds (a Note: what it could
    not judge). A check that takes `here` is asked for jobs of other machines as well, with what is known of them now;
    any other would judge this machine."""
    from nemotron_kit.config.resolvers import pinned

    values, problems = _with_fields(frozen, inputs, place)
    check = command.load_preflight()
    if check is None or not (here or _takes_here(check)):
        return problems
    try:
        with pinned({slot: pin for slot, pin in inputs.pins.items() if pin}):
            # An input that isn't there is a problem already; the rest is checked all the same, its ${art:…} unresolved.
            known = here and not (inputs.problems or problems)
            config: Any = job_config.typed(job_config.resolve(frozen) if known else values, command.load_config_cls())
    except UserError as error:
        return [str(error)] if known else problems
    return [*problems, *(check(config, connect=connect, here=False) if not here else check(config, connect=connect))]


def _takes_here(check: Callable[..., Any]) -> bool:
    from inspect import signature

    parameters = signature(check).parameters.values()
    return any(parameter.name == "here" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _with_fields(frozen: Mapping[str, Any], inputs: Inputs, place: Place) -> tuple[dict[str, Any], list[str]]:
    """(the config with each `${art:slot,field}` in place that is known now, a problem for each that has no value)."""
    problems: list[str] = []

    def at(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: at(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
        if isinstance(value, list):
            return [at(item, f"{key}[{index}]") for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        for found in reversed(list(_ART.finditer(value))):
            try:
                field = _field(found, inputs, place)
            except NemotronError as error:
                problems.append(f"{key}: {found[0]}: " + " ".join(str(error).split("\n")))
                continue
            if field is not None and found[0] == value:
                return field
            if field is not None:
                value = value[: found.start()] + str(field) + value[found.end() :]
        return value

    return at({key: value for key, value in frozen.items() if key != "run"}, ""), problems


def _field(found: re.Match[str], inputs: Inputs, place: Place) -> Any:
    """The value of a reference; None where it can't be known here. UserError for a field that the artifact lacks."""
    from nemotron_kit.artifacts.fields import artifact_field
    from nemotron_kit.artifacts.registry import open_registry

    pin, name = inputs.pins.get(found["slot"]), (found["field"] or "path").strip("'\" ")
    if pin is None or (place.apart and name not in _OF_PIN):
        return None
    return artifact_field(pin, name, registry=open_registry(place.artifacts))


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
