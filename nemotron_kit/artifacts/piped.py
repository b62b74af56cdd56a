"""What one step prints for the next: `{"slot": {"path": …, "type": …, "name": …, "version": …}}`, one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from nemotron_kit.artifacts.errors import DamagedRecordError
from nemotron_kit.artifacts.pin import Pin
from nemotron_kit.artifacts.pipes import from_step
from nemotron_kit.errors import UserError

_HINT = 'What a step prints when its output is piped is {"slot": {"path": …, "type": …}}.'
Entry = dict[str, Any]


def parse_piped(text: str) -> dict[str, Entry]:
    """The artifacts by slot; other output may stand before the line. One artifact alone has the slot "".

    UserError if there are none.
    """
    found = _json_of(text)
    if isinstance(found.get("path"), str):
        return {"": found}
    entries = {slot: entry for slot, entry in found.items() if isinstance(entry, dict) and "path" in entry}
    if not entries or len(entries) < len(found):
        raise UserError("Standard input holds JSON, but no artifacts.", hint=_HINT)
    return entries


def pick(piped: dict[str, Entry], *, slot: str | None = None, types: Collection[str] | None = None) -> Entry:
    """The artifact of that slot, else the only one of these types (None: of any). UserError if there isn't just one."""
    if slot is not None and slot in piped:
        return piped[slot]
    fitting = {name: entry for name, entry in piped.items() if types is None or entry.get("type") in types}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    there = ", ".join(f"{name or '(one)'}: {entry.get('type', 'untyped')}" for name, entry in piped.items())
    wanted = " or ".join(sorted(types)) if types else "artifact"
    count = "no" if not fitting else "more than one"
    raise UserError(f"Standard input holds {count} {wanted}; it holds {there}.", hint="Name the one: --art.<slot>.")


def pins_from_step(slots: Collection[str]) -> dict[str, Pin]:
    """The pins of a script's inputs, where a step writes to its standard input (see `pipes`); {} without one."""
    text = from_step() if slots else None
    if not text or not text.strip():
        return {}
    piped = parse_piped(text)
    return {slot: piped_pin(pick(piped, slot=slot)) for slot in slots}


def piped_pin(entry: Entry) -> Pin:
    """The pin that a step printed; one without a version is a plain path."""
    try:
        return Pin.from_dict(entry)
    except DamagedRecordError as error:
        raise UserError(f"Standard input: {error.message}", hint=_HINT) from error


def _json_of(text: str) -> dict[str, Any]:
    lines = [line for line in text.splitlines() if line.strip()]
    for candidate in (text, lines[-1] if lines else ""):
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    raise UserError(
        "Standard input holds no artifacts: " + ("it is empty." if not lines else "it is not JSON."), hint=_HINT
    )
