"""Artifacts piped from the step before: `{"slot": {"path": …, "type": …}}` on standard input."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Mapping
from typing import Any

from nemotron_kit.app import Command

MAX_BYTES = 16 << 20


def piped_overrides(command: Command, given: set[str], notes: list[str]) -> list[str]:
    """`run.<slot>=…` for each input that nothing on the command line sets and that the piped JSON holds; a pipe that
    brought nothing is said in `notes`.

    Matched by slot, else by the only artifact of the input's type. Standard input is read only where it is a pipe.
    """
    open_slots = [slot for slot in command.artifacts if slot not in given]
    if not open_slots or not _is_pipe():
        return []
    artifacts = _read()
    if not artifacts:
        # The step before may have failed: then what is read in its place is an older version.
        notes.append("Nothing came through the pipe; inputs are read as without one.")
    found = {slot: _match(slot, command, artifacts) for slot in open_slots}
    return [f"run.{slot}={_reference(artifact)}" for slot, artifact in found.items() if artifact]


def _is_pipe() -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(0).st_mode)
    except OSError:
        return False


def _read() -> Mapping[str, Any]:
    if not select.select([0], [], [], 2.0)[0]:
        print("waiting for artifacts on standard input (a pipe); `</dev/null` if there are none …", file=sys.stderr)  # noqa: T201
    from nemotron_kit.artifacts.piped import parse_piped

    text = sys.stdin.read(MAX_BYTES)
    return parse_piped(text) if text.strip() else {}


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
    return "'" + text.replace("'", "\\'") + "'"
