"""Quotes texts for the three grammars that read them: Hydra's overrides, OmegaConf's values, shell scripts.

Each function is named after its grammar. Nothing heavy is imported.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from nemotron_kit.errors import UserError

_PLAIN = re.compile(r"(\.{0,2}/|[A-Za-z_])[\w./:@-]*\Z", re.ASCII)
_SIMPLE = re.compile(r"[\w./:@+~-]+\Z", re.ASCII)
_WORD = r"(?a)[\w.+-]+\Z"
_SWEEP = r"(?a)[\w.+-]+(, ?[\w.+-]+)*\Z|\w+\([\w.,+ -]*\)\Z"
_KEY = r"(?a)[A-Za-z_/$%*@?|](?:[\w/$%*@?|.+-]|\\.)*\Z"
_KEYWORDS = {"true", "false", "null", "inf", "nan"}
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'\Z|\"((?:[^\"\\]|\\.)*)\"\Z", re.DOTALL)


def hydra_quoted(text: str) -> str:
    """`text` in quotes, as Hydra reads them: quotes are escaped, and backslashes before a quote or the end are doubled;
    other backslashes are literal."""
    body = re.sub(r"(\\*)('|\Z)", lambda run: run[1] * 2 + ("\\'" if run[2] else ""), text)
    return f"'{body}'"


def hydra_text(text: str) -> str:
    """`text` in Hydra's grammar as a string: quoted only if it could be read as something else."""
    return text if _PLAIN.match(text) and text.lower() not in _KEYWORDS else hydra_quoted(text)


def hydra_number(text: str) -> str:
    """A number, `null`, or a sweep such as `1,2` and `range(1,5)` unchanged; other text as a string, for which the
    field's type then gives the error."""
    return text if re.match(_SWEEP, text) else hydra_quoted(text)


def hydra_untyped(text: str) -> str:
    """A value of unknown type: a list, dict, number, boolean or null if Hydra reads it as one, else a string."""
    bracketed = text[:1] + text[-1:] in ("[]", "{}")
    return text if bracketed or re.match(_WORD, text) else hydra_text(text)


def hydra_field(text: str, kind: str) -> str:
    """`text` as the value of a field of this kind (see cli/indexing.py)."""
    if kind in ("str", "path", "literal", "enum"):
        return hydra_text(text)
    if kind in ("bool", "int", "float"):
        return hydra_number(text)
    return hydra_untyped(text)


def hydra_data(value: Any) -> str:
    """A plain value, including lists and mappings. Raises UserError for a key that Hydra's grammar can't represent."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
    if isinstance(value, str):
        return hydra_quoted(value)
    if isinstance(value, list):
        return f"[{','.join(hydra_data(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_hydra_key(key)}:{hydra_data(item)}" for key, item in value.items()) + "}"
    raise UserError(f"{value!r} can't be written in an override.")


def _hydra_key(key: Any) -> str:
    """A mapping's key, in which Hydra reads escapes, but no quotes."""
    if not isinstance(key, str):
        return hydra_data(key)
    escaped = re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", key)
    if not re.match(_KEY, escaped) or key.lower() in _KEYWORDS:
        raise UserError(f"The key {key!r} can't be written in an override.", hint="Give the block in a config file.")
    return escaped


def hydra_unquoted(value: str) -> str | None:
    """The string that an override's value denotes, if it is one plain word or one quoted string; else None."""
    match = _QUOTED.match(value)
    if match is None:
        return value if _SIMPLE.match(value) else None
    quote, body = value[0], match[1] if value[0] == "'" else match[2]
    return re.sub(rf"(\\+)({quote}|\Z)", lambda run: run[1][: len(run[1]) // 2] + run[2], body)


_BEFORE_INTERPOLATION = re.compile(r"(\\*)\$\{")


def omegaconf_escaped(text: str) -> str:
    """`text` with its interpolations escaped for OmegaConf: `${` becomes `\\${`."""
    return _BEFORE_INTERPOLATION.sub(lambda found: found[1] * 2 + "\\${", text)


def omegaconf_unescaped(text: str) -> str:
    """The inverse of `omegaconf_escaped`."""
    return _BEFORE_INTERPOLATION.sub(
        lambda found: "\\" * (len(found[1]) // 2) + "${" if len(found[1]) % 2 else found[0], text
    )


# `$NAME` and `${NAME}`, as a shell has them, but nothing else that a shell would do; `\$NAME` is the text.
_REFERENCE = r"(?P<escape>\\)?\$(?:(?P<plain>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\})"


def refers(text: str) -> bool:
    """Whether an environment variable's value refers to another variable."""
    return re.search(_REFERENCE, text) is not None


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`text` with each `$NAME` replaced by the variable's value, or by nothing if it is not set."""
    return re.sub(
        _REFERENCE,
        lambda m: m[0][1:] if m["escape"] else variables.get(m["plain"] or m["braced"], ""),
        text,
    )


def shell_path(path: str) -> str:
    """A path, quoted for a shell, which expands a `~/` at its beginning to the home folder there."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def shell_word(text: str) -> str:
    """`text` quoted as one word of a shell script, in which only references to variables are expanded."""
    words, end = [], 0
    for match in re.finditer(_REFERENCE, text):
        if match.start() > end:
            words.append(shlex.quote(text[end : match.start()]))
        words.append(shlex.quote(match[0][1:]) if match["escape"] else f'"{match[0]}"')
        end = match.end()
    return "".join([*words, shlex.quote(text[end:]) if text[end:] or not words else ""])
