"""Hydra's and OmegaConf's exceptions in our words: what was wrong, where, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import Command
from nemotron_kit.config.convert import type_hints, type_name
from nemotron_kit.config.files import key_place
from nemotron_kit.errors import NemotronError, UserError, nearest, sentence

if TYPE_CHECKING:
    from nemotron_kit.config.compose import Prepared


@contextmanager
def translated(prepared: Prepared) -> Iterator[None]:
    """Turn what Hydra raises while composing `prepared` into a UserError; the original stays as its cause."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except NemotronError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise translate(error, prepared.command, prepared.registered.files) from error


def translate(error: Exception, command: Command, files: dict[str, Path]) -> UserError:
    """One UserError for one of Hydra's."""
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError

    origin = _origin(error)
    key = str(getattr(origin, "full_key", "") or "")
    given = _given(str(error), key, files)
    if isinstance(origin, ConfigAttributeError | ConfigKeyError) and "not in" in str(origin):
        return _unknown_key(_added_key(str(error)) or key, given, command)
    if isinstance(origin, ValidationError):
        return _wrong_type(origin, key, given, command)
    if nested := _nested_user_error(error):
        return nested
    text = str(error).split("\nConfig search path:")[0].strip()
    if text.startswith("Error merging override") and origin is not error:
        text = f"{given}: {str(origin).splitlines()[0]}"
    lines = [line for line in text.splitlines() if line.strip()]
    return UserError(lines[0] + ("" if lines[0].endswith(".") else "."), hint="\n".join(lines[1:]) or None)


def field_names(command: Command) -> list[str]:
    """Every dotted field of a command's config."""
    import dataclasses

    names: list[str] = []

    def walk(cls: Any, prefix: str) -> None:
        hints = type_hints(cls)
        for f in dataclasses.fields(cls):
            names.append(prefix + f.name)
            if isinstance(hints[f.name], type) and dataclasses.is_dataclass(hints[f.name]):
                walk(hints[f.name], f"{prefix}{f.name}.")

    walk(command.load_config_cls(), "")
    return names


def _origin(error: BaseException) -> BaseException:
    """The deepest cause that knows its key."""
    found, current = error, error
    while current.__cause__ is not None or current.__context__ is not None:
        current = current.__cause__ or current.__context__  # type: ignore[assignment]
        if getattr(current, "full_key", None):
            found = current
    return found


def _nested_user_error(error: BaseException) -> UserError | None:
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, UserError):
            return current
        current = current.__cause__ or current.__context__
    return None


def _added_key(text: str) -> str:
    match = re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text)
    return match[1] if match else ""


def _given(text: str, key: str, files: dict[str, Path]) -> str:
    """Where the value came from: the override as typed, or file:line."""
    override = re.search(r"Error merging override (.*)", text, re.DOTALL)
    if override:
        return override[1].strip()
    job = re.search(r"'job/[^']*?([^/']+)'", text)
    path = files.get(job[1]) if job else None
    return key_place(path, key) if path else ""


def _unknown_key(key: str, given: str, command: Command) -> UserError:
    names = field_names(command)
    parent, _, leaf = key.rpartition(".")
    local = [n.rpartition(".")[2] for n in names if n.rpartition(".")[0] == parent]
    same_leaf = [n for n in names if n.rpartition(".")[2] == leaf and n != key]
    hint = f"did you mean {', '.join(same_leaf[:3])}?" if same_leaf else nearest(leaf, local)
    place = f"in {given}" if given and given != key else "on the command line"
    return UserError(
        f"{key}: `{command.words}` has no such field (given {place}).",
        hint=f"{sentence(hint)} " * bool(hint) + f"Add a new one with +{key}=…",
    )


def _wrong_type(error: Any, key: str, given: str, command: Command) -> UserError:
    first = str(error).splitlines()[0]
    value = re.search(r"[Vv]alue '(.*?)'", first, re.DOTALL)
    expected = _expected(command, key)
    shown = f", got {value[1]!r}" if value else f": {first}"
    place = f" (given in {given})" if given else ""
    return UserError(f"{key}: expected {expected or 'another type'}{shown}{place}.")


def _expected(command: Command, key: str) -> str:
    import dataclasses

    current: Any = command.load_config_cls()
    for part in key.split("."):
        if not (isinstance(current, type) and dataclasses.is_dataclass(current)):
            return ""
        current = type_hints(current).get(re.sub(r"\[\d+\]$", "", part))
    return type_name(current) if current is not None else ""
