"""Refuses secrets in overrides and configs: a secret is given as `${secret:NAME}`, which only the job resolves.

Checked after parsing, at every depth: by the names of keys and variables, and by the values of the environment's
secrets. Masking of what is written is in masking.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nemotron_kit.config.freeze import leaves
from nemotron_kit.errors import UserError
from nemotron_kit.masking import MASK, is_harmless, is_literal, is_secret_name, mask, secret_in, without_passwords

_OVERRIDE = re.compile(r"^(?:\+\+|\+)?([A-Za-z_][\w./@-]*)=(.*)$", re.DOTALL)
_NAME = r"[\w.-]+"
# `api_key: abc` within braces; not the `secret:NAME` of a reference.
_INSIDE = r"""(?<![\w.-])(?<!\$\{)(['"]?)([A-Za-z_][\w.-]*)\1(\s*:\s*)("[^"]*"|'[^']*'|\$\{[^}]*\}|[^,}\]]*)"""
# Variables that Hydra sets for a sweep's jobs: their values may be secret.
_ENV_SET = re.compile(r"^(\+{0,2}hydra\.job\.env_set(?:\.[^=]*)?=)(?!\$\{).*$", re.DOTALL)


def refuse_literal_secrets(overrides: Iterable[str]) -> None:
    """Refuse `hf.token=abc` on a command line, and `+free={api_key: abc}`: it would be stored in the shell's history
    and in every record."""
    for override in overrides:
        if without_passwords(override) == override and not any(map(is_secret_name, re.findall(_NAME, override))):
            continue
        for key, value in _given(override):
            if is_secret_name(key) and is_literal(value):
                raise UserError(
                    f"{key}: a secret must not be given on a command line.",
                    hint=f"Put it in the environment and refer to it: {key}='${{secret:{_variable(key)}}}'.",
                )
            if isinstance(value, str) and without_passwords(value) != value:
                raise UserError(
                    f"{key}: a password must not be given on a command line, not even in an address: "
                    f"{without_passwords(value)}",
                    hint=_referring(key, value),
                )


def refuse_secrets(values: Mapping[str, Any], location: Callable[[str], str]) -> None:
    """Refuse a frozen config that holds a secret, by a key's name, by a value of the environment's, or as the password
    in an address: it would be saved. `location` gives the start of the message for a dotted key: where it was given."""
    leaves = _leaves(values, "")
    by_value = secret_in("\n".join(value for _, value in leaves if isinstance(value, str))) is not None
    for key, value in leaves:
        name = re.sub(r"\[\d+\]", "", key)
        if is_secret_name(name) and is_literal(value) and not is_harmless(name, value):
            raise UserError(
                f"{location(name)}{key}: a secret by its name; its value would be saved with the config.",
                hint=f"Put it in the environment and refer to it: {name.rpartition('.')[2]}: "
                f"${{secret:{_variable(name)}}}",
            )
        variable = secret_in(value) if by_value and isinstance(value, str) else None
        if variable:
            raise UserError(
                f"{location(name)}{key}: holds the value of {variable}, a secret by its name, which would be saved.",
                hint=f"Write ${{secret:{variable}}} instead: only the job itself reads it.",
            )
        if isinstance(value, str) and without_passwords(value) != value:
            raise UserError(
                f"{location(name)}{key}: this address holds a password, which would be saved with the config: "
                f"{without_passwords(value)}",
                hint=_referring(key, value),
            )


def _referring(key: str, address: str) -> str:
    name = _variable(re.sub(r"\[\d+\]", "", key))
    whole = without_passwords(address).replace(MASK, f"${{secret:{name}_PASSWORD}}")
    return f"Put the password in the environment and refer to it: {whole}"


def masked_overrides(overrides: Iterable[str]) -> list[str]:
    """Overrides as they may be recorded: without secrets, by name and by value, and without the values that Hydra's
    env_set gives to environment variables."""

    def masked_inside(found: re.Match[str]) -> str:
        secret = is_secret_name(found[2]) and is_literal(found[4])
        return f"{found[1]}{found[2]}{found[1]}{found[3]}{MASK}" if secret else found[0]

    masked = []
    for given in overrides:
        override = _ENV_SET.sub(rf"\1{MASK}", given)
        match = _OVERRIDE.match(override)
        if match and is_secret_name(match[1]) and is_literal(match[2]):
            override = f"{override[: match.start(2)]}{MASK}"
        elif "{" in override:
            override = re.sub(_INSIDE, masked_inside, override)
        masked.append(mask(override))
    return masked


def _given(override: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of what an override sets, as Hydra parses it; all values of a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
        value: Any = parsed.value() if not parsed.is_sweep_override() else parsed._value
    except HydraException:  # reported by the composition
        match = _OVERRIDE.match(override)
        yield from [(match[1], match[2])] if match else []
        return
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    for each in values:
        yield from _leaves(each, str(parsed.key_or_group))


def _leaves(value: Any, key: str) -> list[tuple[str, Any]]:
    """`leaves` without empty blocks and lists; an item of a list has the list's key, a quoted string of Hydra's its
    text."""
    found = [(re.sub(r"\[\d+\]\Z", "", dotted), getattr(each, "text", each)) for dotted, each in leaves(value, key)]
    return [(dotted, each) for dotted, each in found if each not in ({}, [])]


def _variable(key: str) -> str:
    """A name for the environment variable that a key's secret belongs in."""
    return re.sub(r"\W", "_", key.rpartition(".")[2]).upper()
