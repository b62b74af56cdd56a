"""Text for a terminal: colour if supported, wrapped lines, tables with sanitised cells."""

from __future__ import annotations

import json
import os
import sys

from nemotron_kit.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, TextIO

    from rich.table import Table

    Rows = Iterable[tuple[str, str]]

NARROW, WIDE = 40, 110


def colour(stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`: never with NO_COLOR, always with FORCE_COLOR, else for a terminal that
    isn't dumb."""
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
    """`text` in lines of at most `columns`, broken at spaces; a longer word gets its own line."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > columns:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def table(rows: Rows, columns: int, paint: Paint, indent: str = "  ") -> list[str]:
    """Names on the left, descriptions on the right; a long name has its own line."""
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


# rich styles by cell text, for whatever column holds states.
STYLES = {
    "succeeded": "green",
    "failed": "bold red",
    "damaged": "bold red",
    "running": "cyan",
    "pending": "dim",
    "cancelled": "yellow",
    "preempted": "yellow",
    "unreachable": "magenta",
    "unknown": "magenta",
}


def clean(value: object) -> str:
    """`value` as one line of text without control characters; "" for None."""
    return printable("" if value is None else str(value)).replace("\r", " ").replace("\n", " ").replace("\t", " ")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, styles: Mapping[str, str] = STYLES) -> None:
    """Print rows under a header; the last column takes the rest of the width."""
    cells = [[clean(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich(header, cells, styles)
        return
    write_lines(aligned([list(header), *cells]))


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Print `name  value` lines, never broken; a name is written once for values that follow each other under it."""
    names = [name if number == 0 or facts[number - 1][0] != name else "" for number, (name, _) in enumerate(facts)]
    rows = [[clean(name), clean(value)] for name, (_, value) in zip(names, facts, strict=True)]
    if not sys.stdout.isatty():
        write_lines(aligned(rows))
        return
    from rich.console import Console
    from rich.text import Text

    console, width = Console(highlight=False), max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        line = Text(f"{name.ljust(width)}  ", style="bold").append(value, style=STYLES.get(value, "not bold"))
        console.print(line, soft_wrap=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Each row as a line, columns two spaces apart, no blanks at the end."""
    widths = [max((len(cell) for cell in column), default=0) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def write_lines(lines: Sequence[str]) -> None:
    """Print lines with control characters made visible, and a ? for characters that the stream's encoding lacks."""
    text = printable("".join(f"{line}\n" for line in lines))
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def print_status(text: str) -> None:
    """Print text on standard error, control characters made visible: standard output belongs to the job."""
    print(printable(text), file=sys.stderr)  # noqa: T201


def print_json(value: Any) -> None:
    """Print a value as indented JSON; NaN and infinities become null."""
    from nemotron_kit.files import finite  # help imports this module, and needs no pathlib

    sys.stdout.write(json.dumps(finite(value), indent=2) + "\n")


def terminal_width() -> int:
    """Columns of the terminal; a large number if standard output is no terminal, so that no column is left out."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 16


def _rich(titles: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str]) -> None:
    from rich.console import Console

    table = rich_table(titles, rows, styles)
    fixed = sum((column.min_width or 0) + 2 for column in table.columns[:-1])
    # On a narrow terminal the lines are longer than it is wide: better broken by it than cut by us.
    Console(highlight=False, width=max(terminal_width(), fixed + 30)).print(table)


def rich_table(titles: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str]) -> Table:
    """A table of rich's; only the last column wraps. The cells are clean."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for number, title in enumerate(titles[:-1]):
        width = max(len(title), *(len(row[number]) for row in rows)) if rows else len(title)
        table.add_column(title, no_wrap=True, min_width=width)
    table.add_column(titles[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    return table
