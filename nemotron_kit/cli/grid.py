"""Tables on standard output: rich's on a terminal, aligned plain text elsewhere. Cells are never trusted."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_kit.errors import printable
from nemotron_kit.files import finite

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
    """One line that is safe to print."""
    return printable("" if value is None else str(value)).replace("\r", " ").replace("\n", " ").replace("\t", " ")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, styles: Mapping[str, str] = STYLES) -> None:
    """Print rows under a header; the last column takes what room is left."""
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
    """Print lines, harmless to the terminal, with a ? for what the stream can't show."""
    text = printable("".join(f"{line}\n" for line in lines))
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(finite(value), indent=2) + "\n")


def terminal_width() -> int:
    """Columns of the terminal; a great many where standard output is none, so that nothing is left out."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 16


def _rich(titles: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    fixed = 0
    for number, title in enumerate(titles[:-1]):
        width = max(len(title), *(len(row[number]) for row in rows)) if rows else len(title)
        table.add_column(title, no_wrap=True, min_width=width)
        fixed += width + 2
    table.add_column(titles[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    # On a narrow terminal the lines are longer than it is wide: better broken by it than cut by us.
    Console(highlight=False, width=max(terminal_width(), fixed + 30)).print(table)
