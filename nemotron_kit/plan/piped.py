"""Artifacts piped from the step before: `{"slot": {"path": …, "type": …}}` on standard input."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_kit.app import Command
from nemotron_kit.artifacts import pipes
from nemotron_kit.errors import UserError

_UNREAD = "Standard input is a pipe that no nemotron step writes to: it is left unread. --art.{slot} - reads it."


def piped_overrides(command: Command, words: Sequence[str], notes: list[str], *, dry_run: bool = False) -> list[str]:
    """`run.<slot>=…` for each input that nothing on the command line (`words`) sets and that the piped JSON holds, and
    for each that it sets to `-`; what became of a pipe is said in `notes`.

    Matched by slot, else by the only artifact of the input's type. Standard input is the caller's: it is read where a
    step says that it writes there, where what lies in it is artifacts that fit, or where `-` asks for it, and never by
    a dry-run.
    """
    pairs = (word.removeprefix("run.").partition("=") for word in words if word.startswith("run."))
    given = {key: value for key, _, value in pairs}
    asked = [slot for slot in command.artifacts if given.get(slot, "").strip("'\"") == "-"]
    open_slots = [slot for slot in command.artifacts if slot not in given]
    if asked:
        return _asked_for(command, asked, open_slots, notes, dry_run)
    if not open_slots or not pipes.is_pipe(0):
        return []
    return _overrides(command, open_slots, _unasked(command, open_slots, notes, dry_run))


def _asked_for(command: Command, asked: list[str], open_slots: list[str], notes: list[str], dry_run: bool) -> list[str]:
    if dry_run:
        notes.append("A dry-run reads no standard input: what is shown is the input without it.")
        return [f"run.{slot}={_quoted(command.artifacts[slot].default_name)}" for slot in asked]
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(f"--art.{asked[0]} -: standard input is a terminal.", hint="Pipe a step's output into it.")
    artifacts = _parsed(pipes.read_all())
    for slot in asked:
        if not _match(slot, command, artifacts):
            held = ", ".join(f"{name or '(one)'}: {a.get('type', 'untyped')}" for name, a in artifacts.items())
            raise UserError(
                f"--art.{slot} -: standard input holds no artifact for it.", hint=f"It holds {held or 'none'}."
            )
    return _overrides(command, [*asked, *open_slots], artifacts)


def _unasked(command: Command, slots: list[str], notes: list[str], dry_run: bool) -> Mapping[str, Any]:
    if not dry_run and (text := pipes.from_step()) is not None:
        if not text.strip():
            # The step before may have failed: then what is read in its place is an older version.
            notes.append("Nothing came through the pipe; inputs are read as without one.")
        return _parsed(text)
    shown, ended = pipes.there_now()
    if not shown and ended:
        notes.append("Nothing came through the pipe; inputs are read as without one.")
        return {}
    text = shown.decode(errors="replace")
    artifacts = _ours(text if ended else text.partition("\n")[0], alone=ended or text.count("\n") == 1)
    if any(_match(slot, command, artifacts) for slot in slots):
        if not dry_run:
            pipes.take(len(shown))
        return artifacts
    if dry_run and pipes.step_writes():
        notes.append("A step writes to standard input, which a dry-run does not wait for: inputs are those without it.")
    else:
        notes.append(_UNREAD.format(slot=slots[0]))
    return {}


def _ours(text: str, *, alone: bool) -> Mapping[str, Any]:
    """The artifacts in what lies in a pipe, if that is what a step prints and nothing follows it."""
    try:
        found = _parsed(text) if alone else {}
    except UserError:
        return {}
    # One artifact by itself could be any list's first entry, unless it names the registry that it is in.
    return found if "" not in found or "registry" in found[""] else {}


def _parsed(text: str) -> Mapping[str, Any]:
    from nemotron_kit.artifacts.piped import parse_piped

    return parse_piped(text) if text.strip() else {}


def _overrides(command: Command, slots: list[str], artifacts: Mapping[str, Any]) -> list[str]:
    found = {slot: _match(slot, command, artifacts) for slot in slots}
    return [f"run.{slot}={_reference(artifact)}" for slot, artifact in found.items() if artifact]


def _match(slot: str, command: Command, artifacts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if slot in artifacts:
        return artifacts[slot]  # type: ignore[no-any-return]
    wanted = input_type(command, slot)
    same_type = [a for a in artifacts.values() if wanted and a.get("type") == wanted]
    if len(same_type) == 1:
        return same_type[0]  # type: ignore[no-any-return]
    # With one input and one artifact of a type that nothing contradicts there is no doubt either.
    if not wanted and len(artifacts) == 1 and len(command.artifacts) == 1:
        return next(iter(artifacts.values()))  # type: ignore[no-any-return]
    return None


def input_type(command: Command, slot: str) -> str | None:
    """The artifact class that an input takes: declared, or read off its default name (`XArtifact-…`)."""
    artifact = command.artifacts[slot]
    prefix = artifact.default_name.partition(":")[0].partition("-")[0]
    return artifact.type or (prefix if prefix.endswith("Artifact") else None)


def _reference(artifact: Mapping[str, Any]) -> str:
    """The registered version if the step saved one, else its path."""
    name, version = artifact.get("name"), artifact.get("version")
    text = f"{name}:v{version}" if name and isinstance(version, int) else str(artifact["path"])
    return _quoted(text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
