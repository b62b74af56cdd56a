"""What a person types as a value, spelled in Hydra's grammar so that exactly that arrives.

`${…}` is left alone: an interpolation keeps Hydra's meaning (write `\\${` for the characters themselves).
"""

from __future__ import annotations

import re

_PLAIN = re.compile(r"(\.{0,2}/|[A-Za-z_])[\w./:@-]*\Z", re.ASCII)
_SIMPLE = re.compile(r"[\w./:@+~-]+\Z", re.ASCII)
_WORD = re.compile(r"[\w.+-]+\Z", re.ASCII)
_SWEEP = re.compile(r"[\w.+-]+(, ?[\w.+-]+)*\Z|\w+\([\w.,+ -]*\)\Z", re.ASCII)
_KEYWORDS = {"true", "false", "null", "inf", "nan"}
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'\Z", re.DOTALL)


def quoted(text: str) -> str:
    """`text` as a quoted string: quotes escaped, and the backslashes that stand before a quote or the end doubled."""
    body = re.sub(r"(\\*)('|\Z)", lambda run: run[1] * 2 + ("\\'" if run[2] else ""), text)
    return f"'{body}'"


def string(text: str) -> str:
    """`text` so that it is read as that string: bare where it can't be read as anything else, else quoted."""
    return text if _PLAIN.match(text) and text.lower() not in _KEYWORDS else quoted(text)


def number(text: str) -> str:
    """A number, `null`, or a sweep such as `1,2` and `range(1,5)` as it stands; anything else as a string, which the
    field's type then refuses by its own name."""
    return text if _SWEEP.match(text) else quoted(text)


def value(text: str) -> str:
    """A value whose type nothing declares: a list, dict, number, boolean or null as Hydra reads it, else a string."""
    bracketed = text[:1] + text[-1:] in ("[]", "{}")
    return text if bracketed or _WORD.match(text) else string(text)


def encode(text: str, kind: str) -> str:
    """`text` as the value of a field of this kind (see fields.py)."""
    if kind in ("str", "path", "literal", "enum"):
        return string(text)
    if kind in ("bool", "int", "float"):
        return number(text)
    return value(text)


def single(raw: str) -> str | None:
    """The text that an override's value stands for when it is one plain word or one quoted string, else None."""
    match = _QUOTED.match(raw)
    if match:
        return re.sub(r"(\\+)('|\Z)", lambda run: run[1][: len(run[1]) // 2] + run[2], match[1])
    return raw if _SIMPLE.match(raw) else None
