"""On which line of a TOML file a key stands: tomllib doesn't say, and an error without the line is half an error."""

from __future__ import annotations

import json
import re

_PART = r'(?:"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|[A-Za-z0-9_-]+)'
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_SKIP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)+")
_HEADER = re.compile(rf"\[\[?[ \t]*({_DOTTED})[ \t]*\]\]?")
_KEY = re.compile(rf"({_DOTTED})[ \t]*=")
# One step through a value: a whole string or comment, or one character.
_STEP = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|.', re.DOTALL)

Key = tuple[str, ...]


def key_lines(text: str) -> dict[Key, int]:
    """The line, from 1, of every table header and key of a valid TOML text; keys inside inline tables are left out."""
    lines: dict[Key, int] = {}
    table: Key = ()
    position = 0
    while position < len(text):
        if match := _SKIP.match(text, position):
            position = match.end()
            continue
        number = text.count("\n", 0, position) + 1
        if match := _HEADER.match(text, position):
            table = _parts(match[1])
            lines.setdefault(table, number)
            position = match.end()
        elif match := _KEY.match(text, position):
            lines.setdefault(table + _parts(match[1]), number)
            position = _end_of_value(text, match.end())
        else:  # a byte-order mark, or nothing that valid TOML holds
            position += 1
    return lines


def line_of(lines: dict[Key, int], *key: str) -> int | None:
    """The line of `key`, else of the nearest table that holds it."""
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return lines[key[:length]]
    return None


def _end_of_value(text: str, position: int) -> int:
    """The position of the newline after a value: a newline inside brackets, braces or a string doesn't end it."""
    depth = 0
    while match := _STEP.match(text, position):
        step = match[0]
        if step == "\n" and depth == 0:
            break
        depth += (step in "[{") - (step in "]}") if len(step) == 1 else 0
        position = match.end()
    return position


def _parts(dotted: str) -> Key:
    return tuple(_unquote(part) for part in re.findall(_PART, dotted))


def _unquote(part: str) -> str:
    if part.startswith("'"):
        return part[1:-1]
    if part.startswith('"'):
        try:
            return str(json.loads(part))
        except ValueError:  # \U0001F600 is TOML's alone
            return part[1:-1]
    return part
