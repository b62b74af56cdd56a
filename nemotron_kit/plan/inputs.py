"""The artifacts that a job reads: which reference each slot has, and the version that it is pinned to at launch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import RESERVED_SLOTS, App, Command
from nemotron_kit.config.files import load_mapping
from nemotron_kit.config.freeze import slots_used
from nemotron_kit.config.jobfiles import config_files
from nemotron_kit.errors import NemotronError, UserError, nearest, sentence

if TYPE_CHECKING:
    from nemotron_kit.artifacts.pin import Pin
    from nemotron_kit.config.compose import Composed


# Slot → (reference as given, what a part of one is relative to); slot → its pin, or why there is none.
Asked = Mapping[str, "tuple[str, str | None]"]
LookUp = Callable[[Asked], "Mapping[str, Pin | NemotronError | None]"]


@dataclass
class Inputs:
    """Per slot the reference as given and its pin (None where it could not be pinned: the reason stands in problems, or
    in notes where a launch will be able to)."""

    references: dict[str, str] = field(default_factory=dict)
    pins: dict[str, Pin | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def resolve_inputs(
    command: Command, frozen: Mapping[str, Any], app: App, composed: Composed, look_up: LookUp | None
) -> Inputs:
    """Pin every artifact that the composed job reads. `look_up` asks the registry; None: it can't be asked now.

    A declared input whose mapped field has been set to something else is dropped. A malformed reference is a UserError;
    an artifact that isn't there is a problem, with what there is and the command that makes it.
    """
    from nemotron_kit.artifacts.override import parse_override

    run = frozen.get("run", {})
    result = Inputs()
    asked: dict[str, tuple[str, str | None]] = {}
    for slot in _slots(command, frozen):
        text = run.get(slot)
        if text is None:
            result.problems.append(f"run.{slot} is not set: ${{art:{slot}}} needs it. Give --art.{slot} NAME.")
            continue
        result.references[slot] = str(text)
        asked[slot] = (str(text), _default(slot, command, composed))
        parse_override(*asked[slot], aliases=lambda _: ())
    found = look_up(asked) if look_up and asked else dict.fromkeys(asked)
    for slot, pin in found.items():
        if isinstance(pin, NemotronError):
            lines = [pin.message, pin.hint or "", makers(asked[slot][0], app, command)]
            result.problems.append(f"{slot}: " + " ".join(line for line in lines if line))
        elif pin is None:
            result.notes.append(f"{slot}: {asked[slot][0]} is pinned at launch, in the registry where the job runs.")
        result.pins[slot] = None if isinstance(pin, NemotronError) else pin
    return result


def _default(slot: str, command: Command, composed: Composed) -> str | None:
    """What `--art.X v10` is relative to: the config file's own reference, else the command's default."""
    if not any(override.lstrip("+").startswith(f"run.{slot}=") for override in composed.overrides):
        return None
    run = (load_mapping(composed.config_file).get("run") or {}) if composed.config_file else {}
    declared = command.artifacts.get(slot)
    return run.get(slot) or (declared.default_name if declared else None)


def _slots(command: Command, frozen: Mapping[str, Any]) -> list[str]:
    used = slots_used({key: value for key, value in frozen.items() if key != "run"}) | slots_used(frozen.get("run", {}))
    unknown = [key for key in frozen.get("run", {}) if key not in RESERVED_SLOTS | set(command.artifacts) | used]
    if unknown:
        known = sorted((RESERVED_SLOTS - {"run"}) | set(command.artifacts))
        raise UserError(
            f"run.{unknown[0]}: no such field, and nothing refers to ${{art:{unknown[0]}}}.",
            hint=sentence(nearest(unknown[0], known)),
        )
    # An input without mappings is read by the handler itself.
    unmapped = {slot for slot, artifact in command.artifacts.items() if not artifact.mappings and slot not in used}
    return sorted(used | {slot for slot in unmapped if not _files_refer(slot, command)})


def _files_refer(slot: str, command: Command) -> bool:
    """Where the command's config files refer to the input, a composed config that doesn't has dropped it."""
    return any(slot in slots_used(load_mapping(path)) for path in config_files(command).values())


def makers(reference: str, app: App, asking: Command) -> str:
    """`Make it with: nemotron …` for the commands of a recipe that produce the artifact; "" when none says so."""
    name = re.split(r"[:@]", reference.removeprefix("art://"))[0]
    for command in app.commands():
        for produced in command.produces:
            pattern = re.escape(produced).replace(re.escape("{config}"), "(?P<config>.+)")
            if match := re.fullmatch(pattern, name):
                config = match.groupdict().get("config")
                if config and config not in config_files(command):
                    continue
                option = f" -c {config}" if config and config != "default" else ""
                return f"Make it with: nemotron {command.words}{option}"
    unsure = [f"nemotron {c.words}" for c in app.commands() if c is not asking and _returns_artifact(c)]
    return f"Commands that save artifacts: {', '.join(unsure)}." if unsure else ""


def _returns_artifact(command: Command) -> bool:
    returned = getattr(command.handler, "__annotations__", {}).get("return") if callable(command.handler) else None
    return "Artifact" in (returned if isinstance(returned, str) else getattr(returned, "__name__", ""))
