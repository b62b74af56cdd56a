"""Artifact references, resolved in the registry of the machine where the job will run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.local import LocalRegistry
from nemotron_kit.artifacts.override import parse_override
from nemotron_kit.artifacts.staging import make_folder
from nemotron_kit.artifacts.store import MODES
from nemotron_kit.errors import NemotronError
from nemotron_kit.target.agent import error_to_dict


def resolve(
    payload: bytes, root: str, references: Mapping[str, tuple[str, str | None]], mode: str = "private"
) -> tuple[dict[str, Any], bytes]:
    """Slot → `{"pin": …}` or `{"error": …}` for each (reference, what a part of one is relative to).

    Creates nothing: a registry that isn't there is an empty one.
    """
    del payload
    registry = LocalRegistry(root, mode=mode)
    return {slot: _one(registry, text, default) for slot, (text, default) in references.items()}, b""


def registry_facts(payload: bytes, root: str) -> tuple[dict[str, Any], bytes]:
    """The registry at `root`: its uuid ("" while nothing was saved) and how many names it has."""
    del payload
    registry = LocalRegistry(root)
    return {"uuid": registry.uuid, "names": len(registry.names())}, b""


def make_mounted(payload: bytes, root: str, registry: str, mode: str = "private") -> tuple[None, bytes]:
    """The folders that every container is given, where they are missing: the code below `root`, and the registry.

    A mount of what isn't there ends a job before it begins, or makes a folder that is nobody's.
    """
    del payload
    make_folder(Path(root, "code"), MODES["private"])
    make_folder(Path(registry), MODES[mode])
    return None, b""


def _one(registry: LocalRegistry, text: str, default: str | None) -> dict[str, Any]:
    try:
        reference = parse_override(text, default, aliases=registry.aliases)
        return {"pin": registry.resolve(reference).to_dict()}
    except NemotronError as error:
        return {"error": error_to_dict(error)}
