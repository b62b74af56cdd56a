"""The artifact inputs of a job: the reference of each slot, and the version that it is pinned to at launch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import RESERVED_SLOTS, App, Command
from nemotron_kit.artifacts import pipe
from nemotron_kit.artifacts.pipe import parse_piped
from nemotron_kit.artifacts.reference import Pin, parse_override
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.config.config_files import config_files, load_mapping
from nemotron_kit.config.freeze import slots_used, walk_strings
from nemotron_kit.errors import NemotronError, Problem, UserError, near
from nemotron_kit.launch.placing import ResolvedJob, TransportFactory
from nemotron_kit.quoting import hydra_quoted, hydra_unquoted, omegaconf_escaped, omegaconf_unescaped

if TYPE_CHECKING:
    from nemotron_kit.config.compose import Composed


_UNREAD = "Standard input is a pipe that no nemotron step writes to: it is left unread. --art.{slot} - reads it."


def piped_overrides(
    command: Command, overrides: Sequence[str], notes: list[str], *, dry_run: bool = False
) -> list[str]:
    """`run.<slot>=…` for each input that the piped JSON holds and that `overrides` (the command line) does not set, and
    for each that it sets to `-`; a description is added to `notes`.

    Matched by slot, else by the only artifact of the input's type. Standard input otherwise belongs to the job: it is
    read only if a step is marked as its writer, if it holds matching artifacts, or if `-` requests it, and never by a
    dry-run.
    """
    pairs = (override.removeprefix("run.").partition("=") for override in overrides if override.startswith("run."))
    given = {key: value for key, _, value in pairs}
    asked = [slot for slot in command.artifacts if hydra_unquoted(given.get(slot, "")) == "-"]
    open_slots = [slot for slot in command.artifacts if slot not in given]
    if asked:
        return _asked_for(command, asked, open_slots, notes, dry_run)
    if not open_slots or not pipe.is_pipe(0):
        return []
    return _overrides(command, open_slots, _unasked(command, open_slots, notes, dry_run))


def _asked_for(command: Command, asked: list[str], open_slots: list[str], notes: list[str], dry_run: bool) -> list[str]:
    if dry_run:
        notes.append("A dry-run reads no standard input: what is shown is the input without it.")
        inputs = ((slot, command.artifacts[slot]) for slot in asked)
        return [f"run.{slot}={'null' if a.optional else hydra_quoted(a.default_name)}" for slot, a in inputs]
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise UserError(f"--art.{asked[0]} -: standard input is {what}.", hint="Pipe a step's output into it.")
    artifacts = _parsed(pipe.read_all())
    for slot in asked:
        if not _match(slot, command, artifacts):
            held = ", ".join(f"{name or '(one)'}: {a.get('type', 'untyped')}" for name, a in artifacts.items())
            raise UserError(
                f"--art.{slot} -: standard input holds no artifact for it.", hint=f"It holds {held or 'none'}."
            )
    return _overrides(command, [*asked, *open_slots], artifacts)


def _unasked(command: Command, slots: list[str], notes: list[str], dry_run: bool) -> Mapping[str, Any]:
    if not dry_run and (text := pipe.from_step()) is not None:
        if not text.strip():
            # The step before may have failed: then an older version is read.
            notes.append("Nothing came through the pipe; inputs are read as without one.")
        return _parsed(text)
    shown, ended = pipe.peek_input()
    if not shown and ended:
        notes.append("Nothing came through the pipe; inputs are read as without one.")
        return {}
    text = shown.decode(errors="replace")
    artifacts: Mapping[str, Any] = {}
    if ended or text.count("\n") == 1:  # else something follows: it is no step's output
        with suppress(UserError):
            artifacts = _parsed(text if ended else text.partition("\n")[0])
    # One artifact by itself could be any list's first entry, unless it names the registry that it is in.
    if "" in artifacts and "registry" not in artifacts[""]:
        artifacts = {}
    if any(_match(slot, command, artifacts) for slot in slots):
        if not dry_run:
            pipe.consume(len(shown))
        return artifacts
    if dry_run and pipe.step_writes():
        notes.append("A step writes to standard input, which a dry-run does not wait for: inputs are those without it.")
    else:
        notes.append(_UNREAD.format(slot=slots[0]))
    return {}


def _parsed(text: str) -> Mapping[str, Any]:
    return parse_piped(text) if text.strip() else {}


def _overrides(command: Command, slots: list[str], artifacts: Mapping[str, Any]) -> list[str]:
    """`run.<slot>=…` for each slot that an artifact matches: its registered version if the step saved one, else its
    path."""
    found = []
    for slot in slots:
        if artifact := _match(slot, command, artifacts):
            name, version = artifact.get("name"), artifact.get("version")
            text = f"{name}:v{version}" if name and isinstance(version, int) else str(artifact["path"])
            found.append(f"run.{slot}={hydra_quoted(omegaconf_escaped(text))}")
    return found


def _match(slot: str, command: Command, artifacts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if slot in artifacts:
        return artifacts[slot]  # type: ignore[no-any-return]
    # The artifact class that the input takes: declared, or read off its default name (`XArtifact-…`).
    declared = command.artifacts[slot]
    prefix = declared.default_name.partition(":")[0].partition("-")[0]
    wanted = declared.type or (prefix if prefix.endswith("Artifact") else None)
    same_type = [a for a in artifacts.values() if wanted and a.get("type") == wanted]
    if len(same_type) == 1:
        return same_type[0]  # type: ignore[no-any-return]
    # One input without a type, and one artifact.
    if not wanted and len(artifacts) == 1 and len(command.artifacts) == 1:
        return next(iter(artifacts.values()))  # type: ignore[no-any-return]
    return None


# Slot → (reference as given, the default that a partial one is relative to).
Asked = Mapping[str, "tuple[str, str | None]"]
# (asked, slot → fields of the artifact to fetch with the pin from another machine) → slot → pin, or why there is none.
LookUp = Callable[[Asked, Mapping[str, "set[str]"]], "Mapping[str, Pin | NemotronError | None]"]
# ${art:slot} and ${art:slot,field} without interpolations inside; an escaped one is text.
ART = re.compile(r"(?<!\\)\$\{art:\s*(?P<slot>[A-Za-z_]\w*)\s*(?:,(?P<field>[^${},]*))?\}")


@dataclass(eq=False, repr=False)
class Inputs:
    """The references of the input slots, and the versions that they are pinned to.

    A slot that could not be pinned has None; the reason is in the problems, or in the notes if a launch will be able to
    pin it.
    """

    references: dict[str, str] = field(default_factory=dict)
    pins: dict[str, Pin | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def resolve_inputs(
    command: Command, frozen: Mapping[str, Any], app: App, composed: Composed, look_up: LookUp | None
) -> Inputs:
    """Pin every artifact that the composed job reads. `look_up` queries the registry; None: it can't be queried now.

    A declared input whose mapped field has been set to something else is dropped. A malformed reference raises
    UserError; a missing artifact is a problem, with the existing ones and the command that makes it.
    """
    run = frozen.get("run", {})
    result = Inputs()
    asked: dict[str, tuple[str, str | None]] = {}
    for slot in input_slots(command, frozen):
        text = run.get(slot)
        if text is None:
            hint = f"Give --art.{slot} NAME."
            result.problems.append(Problem(f"run.{slot} is not set: ${{art:{slot}}} needs it.", hint=hint))
            continue
        # The frozen config keeps escapes: a path may hold `${`.
        result.references[slot] = omegaconf_unescaped(str(text))
        # `--art.X v10` is relative to the reference of the config file, else to the command's default.
        default = None
        if any(override.lstrip("+").startswith(f"run.{slot}=") for override in composed.overrides):
            in_file = (load_mapping(composed.config_file).get("run") or {}) if composed.config_file else {}
            declared = command.artifacts.get(slot)
            default = in_file.get(slot) or (declared.default_name if declared else None)
        asked[slot] = (result.references[slot], default)
        parse_override(*asked[slot], aliases=lambda _: ())
    fields: dict[str, set[str]] = {}  # slot → the fields that the config asks for; its path is in the pin
    for _, text in walk_strings(frozen) if asked else ():
        for found in ART.finditer(text):
            if (name := field_of(found)) not in ("", "path"):
                fields.setdefault(found["slot"], set()).add(name)
    pins = look_up(asked, fields) if look_up and asked else dict.fromkeys(asked)
    for slot, pin in pins.items():
        if isinstance(pin, NemotronError):
            lines = [pin.hint or "", makers(asked[slot][0], app, composed)]
            result.problems.append(Problem(pin.message, slot=slot, hint=" ".join(filter(None, lines))))
        elif pin is None:
            result.notes.append(f"{slot}: {asked[slot][0]} is pinned at launch, in the registry where the job runs.")
        result.pins[slot] = None if isinstance(pin, NemotronError) else pin
    if command.artifacts:
        result.problems += _references_as_paths(command, frozen)
    return result


_VERSION = re.compile(r"(art://)?[A-Za-z][\w.-]*:(v[0-9]+|latest)\Z")


def _references_as_paths(command: Command, frozen: Mapping[str, Any]) -> list[Problem]:
    """The problems of fields that are filled with an artifact's path, and were set to a reference instead."""
    texts = dict(walk_strings(frozen))
    return [
        Problem(
            f"{text} is no path that exists.",
            field=target,
            hint=f"To read that version of an artifact: --art.{slot} {text}",
        )
        for slot, artifact in command.artifacts.items()
        for source, target in artifact.mappings.items()
        if source in ("", "path") and _VERSION.match(text := texts.get(target, "")) and not os.path.lexists(text)
    ]


def field_of(reference: re.Match[str]) -> str:
    """The field that a match of ART asks for."""
    return (reference["field"] or "path").strip("'\" ")


def input_slots(command: Command, frozen: Mapping[str, Any]) -> list[str]:
    """The inputs that a frozen config reads. UserError for a key of `run` that means nothing."""
    run, used = frozen.get("run", {}), slots_used(frozen)
    unknown = [key for key in run if key not in RESERVED_SLOTS | set(command.artifacts) | used]
    if unknown:
        known = sorted((RESERVED_SLOTS - {"run"}) | set(command.artifacts))
        raise UserError(
            f"run.{unknown[0]}: no such field, and nothing refers to ${{art:{unknown[0]}}}.",
            hint=near(unknown[0], known),
        )
    for slot, artifact in command.artifacts.items():
        # An input without mappings is read by the handler itself; but if a config file of the command refers to it, a
        # composed config that does not has dropped it.
        if artifact.mappings or slot in used or (artifact.optional and run.get(slot) is None):
            continue
        if not any(slot in slots_used(load_mapping(path)) for path in config_files(command).values()):
            used.add(slot)
    return sorted(used)


def makers(reference: str, app: App, asking: Composed) -> str:
    """`Make it with: nemotron …` for the commands of a recipe that produce the artifact; "" if none declares it. Its
    config is the one that the artifact's name implies, else that of `asking`, if it has one of that name."""
    name = re.split(r"[:@]", reference.removeprefix("art://"))[0]
    for command in app.commands():
        for produced in command.produces:
            pattern = re.escape(produced).replace(re.escape("{config}"), "(?P<config>.+)")
            if match := re.fullmatch(pattern, name):
                config = match.groupdict().get("config")
                if config and config not in config_files(command):
                    continue
                if config is None and asking.config_name in config_files(command):
                    config = asking.config_name
                option = f" -c {config}" if config and config != "default" else ""
                return f"Make it with: nemotron {command.full_name}{option}"
    unsure = []
    for command in app.commands():
        hints = getattr(command.handler, "__annotations__", {}) if callable(command.handler) else {}
        returned = hints.get("return")
        returned = returned if isinstance(returned, str) else getattr(returned, "__name__", "")
        if command is not asking.command and "Artifact" in returned:
            unsure.append(f"nemotron {command.full_name}")
    return f"Commands that save artifacts: {', '.join(unsure)}." if unsure else ""


# Cached for one launch, so that all jobs of a sweep read the same version, whatever is saved meanwhile.
_launch: list[str] = []
_answers: dict[tuple[str, str, str | None], Pin | NemotronError | None] = {}
# Fields of what was found in a registry on another machine: a value, or why there is none.
_fields: dict[tuple[Pin, str], Any] = {}


def look_up_for(resolved: ResolvedJob, run_id: str, transports: TransportFactory | None) -> LookUp | None:
    """The function that queries the registry of `resolved`; None if that is on another machine and `transports` is None
    (a dry-run)."""
    if resolved.paths.is_remote and transports is None:
        return None
    if _launch != [run_id]:
        _launch[:] = [run_id]
        _answers.clear()
        _fields.clear()

    def look_up(asked: Asked, fields: Mapping[str, set[str]]) -> Mapping[str, Pin | NemotronError | None]:
        root = resolved.paths.artifacts
        new = {slot: pair for slot, pair in asked.items() if (root, *pair) not in _answers}
        if resolved.paths.is_remote and transports:
            # Another job of the launch may need other fields of an artifact that is pinned already.
            known = {slot: _answers[root, *pair] for slot, pair in asked.items() if slot not in new}
            pins = {slot: pin for slot, pin in known.items() if pin and not isinstance(pin, NemotronError)}
            more: dict[str, tuple[str, str | None]] = {
                slot: (pin.label, None)
                for slot, pin in pins.items()
                if any((pin, name) not in _fields for name in fields.get(slot, ()))
            }
            found = _resolve_remotely(resolved, {**new, **more}, fields, transports) if new or more else {}
        else:
            registry, found = open_registry(root), {}
            for slot, (text, default) in new.items():
                try:
                    found[slot] = registry.resolve(parse_override(text, default, aliases=registry.aliases))
                except NemotronError as error:
                    found[slot] = error
        _answers.update({(root, *asked[slot]): answer for slot, answer in found.items() if slot in new})
        return {slot: _answers[root, *pair] for slot, pair in asked.items()}

    return look_up


def remote_field(pin: Pin, name: str) -> Any:
    """A field of an artifact that this launch has found on another machine, None where it was not asked for; raises
    what was wrong with it there."""
    value = pin.path if name in ("", "path") else _fields.get((pin, name))
    if isinstance(value, NemotronError):
        raise value
    return value


def pin_slots(
    config: Mapping[str, Any], resolved: ResolvedJob, run_id: str, transports: TransportFactory | None
) -> dict[str, Pin]:
    """Slot → pin, for a config of another program: of each `${art:slot}` in it, what `run.<slot>` refers to. Raises
    UserError for an artifact that is not there."""
    run: Any = config.get("run")
    used = sorted(slots_used(config) & set(run)) if isinstance(run, Mapping) else []
    asked = {slot: (str(run[slot]), None) for slot in used if isinstance(run[slot], str) and "${" not in run[slot]}
    look_up = look_up_for(resolved, run_id, transports)
    found = look_up(asked, {}) if look_up and asked else {}
    for slot, pin in found.items():
        if isinstance(pin, NemotronError):
            raise UserError(f"run.{slot}: {pin.message}", hint=pin.hint)
    return {slot: pin for slot, pin in found.items() if pin is not None and not isinstance(pin, NemotronError)}


def _resolve_remotely(
    resolved: ResolvedJob, asked: Asked, fields: Mapping[str, set[str]], transports: TransportFactory
) -> dict[str, Pin | NemotronError | None]:
    from nemotron_kit.remote.agent.operations import error_from_dict

    paths = resolved.paths
    for slot, (text, _) in asked.items():
        if text.startswith("."):
            raise UserError(
                f"{slot}: {text} is a path on this machine, but the job runs on {paths.host}.",
                hint=f"Name an artifact of its registry ({paths.artifacts}), or an absolute path there.",
            )
    answers, _ = transports(resolved.settings).call(
        "resolve",
        root=paths.artifacts,
        references={slot: list(pair) for slot, pair in asked.items()},
        fields={slot: sorted(names) for slot, names in fields.items() if slot in asked},
    )
    found: dict[str, Pin | NemotronError | None] = {}
    for slot, answer in answers.items():
        if "pin" in answer:
            pin = found[slot] = Pin.from_dict(answer["pin"])
            for name, value in answer["fields"].items():
                _fields[pin, name] = error_from_dict(value["error"]) if "error" in value else value["value"]
        else:
            error: Any = error_from_dict(answer["error"])
            found[slot] = NemotronError(f"on {paths.host}: {error.message}", hint=error.hint)
    return found
