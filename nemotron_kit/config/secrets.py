"""Which names mean a secret, and what is refused because of it. Secrets are references: `${secret:NAME}`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nemotron_kit.errors import UserError
from nemotron_kit.masking import is_secret_name

_OVERRIDE = re.compile(r"^(?:\+\+|\+)?([A-Za-z_][\w./@-]*)=(.*)$", re.DOTALL)

# Variables that Hydra sets for a sweep's jobs: their values are nobody's business.
_ENV_SET = re.compile(r"^(\+{0,2}hydra\.job\.env_set(?:\.[^=]*)?=)(?!\$\{).*$", re.DOTALL)


def refuse_literal_secrets(overrides: Iterable[str]) -> None:
    """Refuse `hf.token=abc` on a command line: it would stand in the shell's history and in every record."""
    for override in overrides:
        match = _OVERRIDE.match(override)
        if not match or not is_secret_name(match[1]):
            continue
        value = match[2].strip().strip("'\"")
        if value and value not in ("null", "???") and not value.startswith("${"):
            name = match[1].rpartition(".")[2].upper()
            raise UserError(
                f"{match[1]}: a secret must not stand on a command line.",
                hint=f"Put it in the environment and refer to it: {match[1]}='${{secret:{name}}}'.",
            )


def masked_words(words: Iterable[str]) -> list[str]:
    """Overrides as they may be recorded: without the values that Hydra's env_set gives to environment variables."""
    return [_ENV_SET.sub(r"\1***", word) for word in words]
