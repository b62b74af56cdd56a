"""Text for a terminal: colour where one is wanted, lines that fit. By hand, since a help page must come at once."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    Rows = Iterable[tuple[str, str]]

NARROW, WIDE = 40, 110


def colour(stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`: NO_COLOR says no, FORCE_COLOR yes, else a terminal that isn't dumb."""
    if os.environ.get("NO_COLOR"):
        return False
    forced = os.environ.get("FORCE_COLOR")
    if forced is not None:
        return forced not in ("", "0")
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width(stream: TextIO) -> int:
    """Columns to fill: $COLUMNS, else the terminal's, else 80; between 40 and 110."""
    try:
        columns = int(os.environ.get("COLUMNS", "")) or 80
    except ValueError:
        try:
            columns = os.get_terminal_size(stream.fileno()).columns or 80
        except (OSError, ValueError):
            columns = 80
    return max(NARROW, min(columns, WIDE))


class Paint:
    """Wraps text in colours, or leaves it as it is when `on` is false."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def heading(self, text: str) -> str:
        return self._in("1", text)

    def name(self, text: str) -> str:
        return self._in("36", text)

    def quiet(self, text: str) -> str:
        return self._in("2", text)

    def bad(self, text: str) -> str:
        return self._in("31", text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text


def wrap(text: str, columns: int) -> list[str]:
    """`text` in lines of at most `columns`, broken at spaces; a longer word stands on a line of its own."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > columns:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def table(rows: Rows, columns: int, paint: Paint, indent: str = "  ") -> list[str]:
    """Names on the left, what they mean on the right; a long name has a line to itself."""
    rows = list(rows)
    left = min(max((len(name) for name, _ in rows), default=0), columns * 2 // 5)
    lines = []
    for name, text in rows:
        first, *more = wrap(text, max(columns - left - len(indent) - 2, 20))
        if len(name) > left:
            lines.append(indent + paint.name(name))
            more = [first, *more] if first else more
        else:
            lines.append(f"{indent}{paint.name(name)}{' ' * (left - len(name))}  {first}".rstrip())
        lines += [f"{indent}{' ' * left}  {line}" for line in more]
    return lines
