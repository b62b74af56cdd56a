"""Text for a terminal: colour if supported, wrapped lines, tables with sanitised cells."""

from __future__ import annotations

import json
import os
import sys

from nemotron_kit.errors import UserError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, TextIO

    from rich.table import Table

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


def cells(text: str) -> int:
    """The columns of a terminal that `text` takes: two for a wide character (East Asian, emoji), none for an accent."""
    # Help has dashes, quotes, an ellipsis and arrows, and does without rich.
    if text.isascii() or all(c < "\u0300" or "\u2010" <= c <= "\u2027" or "\u2190" <= c <= "\u21ff" for c in text):
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, columns: int) -> str:
    """`text` with blanks behind it, so that it takes `columns` columns."""
    return text + " " * (columns - cells(text))


def fitting(text: str, columns: int) -> int:
    """The number of characters at the start of `text` that fit into `columns` columns; one at least."""
    if text.isascii():
        return max(1, columns)
    end, used = 0, 0
    while end < len(text) and (used := used + cells(text[end])) <= columns:
        end += 1
    return max(1, end)


def wrap(text: str, columns: int) -> list[str]:
    """`text` in lines of at most `columns`, broken at spaces; a longer word gets its own line."""
    lines = [""]
    for word in text.split():
        if lines[-1] and cells(lines[-1]) + 1 + cells(word) > columns:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def fold(text: str, columns: int) -> list[str]:
    """`text` in lines of at most `columns`, broken at spaces, and within a word that is longer. Other spaces stay."""
    lines, columns = [], max(1, columns)  # beside an indent, a terminal of two columns has none left
    while cells(text) > columns:
        end = fitting(text, columns)
        at = text.rfind(" ", 0, end + 1)
        at = at if at > 0 and text[:at].strip() else end
        lines.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return [*lines, text]


def hanging(first: str, text: str, columns: int) -> list[str]:
    """`first`, and after it `text` in as many lines as are needed, all indented as far as the first one."""
    indent = min(cells(first), columns // 2)
    if cells(first) > indent:
        body = first.strip()
        start = " " * min(len(first) - len(first.lstrip()), indent)
        named = [start + ("  " if n else "") + line for n, line in enumerate(fold(body, columns - len(start) - 2))]
        return [*named, *(" " * indent + line for line in fold(text, columns - indent))]
    return [(" " * indent if number else first) + line for number, line in enumerate(fold(text, columns - indent))]


def fitted(line: str, columns: int) -> list[str]:
    """A line of a page of text in lines of at most `columns`; in a line of a list, the description keeps its place."""
    if cells(line) <= columns:
        return [line]
    body = line.lstrip()
    _, gap, text = body.partition("usage: " if line.startswith("usage: ") else "  ")
    first = line[: len(line) - len(text.lstrip())] if gap and text.strip() else line[: len(line) - len(body)]
    return hanging(first, line[len(first) :], columns)


# Yellow can't be read on a light ground.
WARNING = "dark_orange3"
# rich styles by cell text, for whatever column holds states.
STYLES = {
    "succeeded": "green",
    "failed": "bold red",
    "damaged": "bold red",
    "running": "cyan",
    "pending": "dim",
    "cancelled": WARNING,
    "preempted": WARNING,
    "unreachable": "magenta",
    "unknown": "magenta",
}


def clean(value: object) -> str:
    """`value` as one line of text without control characters; "" for None."""
    return printable("" if value is None else str(value)).replace("\r", " ").replace("\n", " ").replace("\t", " ")


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, styles: Mapping[str, str] = STYLES, keep: str = ""
) -> None:
    """Print rows under a header. In a narrow terminal long cells are wrapped; if that isn't enough, columns are left
    out, that with the title `keep` last, and the last line names them."""
    header, cleaned = [clean(title) for title in header], [[clean(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        write_lines(aligned([header, *cleaned]))
        return
    from rich.console import Console

    table = rich_table(header, cleaned, styles, terminal_width(), clean(keep))
    Console(highlight=False, width=terminal_width()).print(table)


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Print `name  value` lines; a name is written once for values that follow each other under it. On a terminal, long
    values are wrapped; elsewhere each is one line."""
    names = [name if number == 0 or facts[number - 1][0] != name else "" for number, (name, _) in enumerate(facts)]
    rows = [[clean(name), clean(value)] for name, (_, value) in zip(names, facts, strict=True)]
    if not sys.stdout.isatty():
        write_lines(aligned(rows))
        return
    from rich.console import Console
    from rich.text import Text

    console, width = Console(highlight=False), max((cells(name) for name, _ in rows), default=0) + 2
    for name, value in rows:
        style, first = STYLES.get(value, "not bold"), padded(name, width)
        for line in hanging(first, value, terminal_width()):
            at = min(len(first), len(line))
            console.print(Text(line[:at], style="bold").append(line[at:], style=style), soft_wrap=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Each row as a line, columns two spaces apart, no blanks at the end."""
    widths = [max((cells(cell) for cell in column), default=0) for column in zip(*rows, strict=True)]
    return ["  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def write_lines(lines: Sequence[str]) -> None:
    """Print lines with control characters made visible, and a ? for characters that the stream's encoding lacks."""
    text = printable("".join(f"{line}\n" for line in lines))
    encoding = _encoding()
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


# A line of a page that is shorter is the last one of its paragraph.
_PROSE = 60


def write_page(text: str) -> None:
    """Print a page of text; on a terminal that is narrower, paragraphs and lists are wrapped again."""
    lines, columns = text.splitlines(), terminal_width()
    if max(map(cells, lines), default=0) <= columns:
        write_lines(lines)
        return
    blocks: list[list[str]] = []
    for line in lines:
        prose = bool(line) and not line.startswith((" ", "usage: ")) and "  " not in line
        if prose and blocks and len(blocks[-1][-1]) > _PROSE and not blocks[-1][-1].startswith((" ", "usage: ")):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    write_lines([part for block in blocks for part in fitted(" ".join(block), columns)])


def ask(question: str) -> str:
    """The answer typed on the terminal, without blanks at its ends. Raises UserError if the input ends (Ctrl-D)."""
    try:
        return input(question).strip()
    except EOFError:
        print()  # noqa: T201
        raise UserError("The input ended before the question was answered.", hint="Nothing was changed.") from None


def print_status(text: str) -> None:
    """Print text on standard error, control characters made visible: standard output belongs to the job."""
    from nemotron_kit.worker.streams import print_notice  # which a help page has no use for

    print_notice(text)


def print_csv(rows: Iterable[Sequence[object]]) -> None:
    """Print rows as CSV, control characters made visible. A text that a spreadsheet would take for a formula has a ' in
    front; numbers have not."""
    import csv
    import io

    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_csv_cell(cell) for cell in row] for row in rows])
    sys.stdout.write(out.getvalue())


def _csv_cell(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        try:
            float(cell)
        except ValueError:
            return f"'{printable(cell)}"
    return printable(cell)


def print_json(value: Any) -> None:
    """Print a value as indented JSON; NaN and infinities become null."""
    from nemotron_kit.files import finite  # help imports this module, and needs no pathlib

    sys.stdout.write(json.dumps(finite(value), indent=2) + "\n")


def escaped() -> bool:
    """Whether JSON for standard output needs escapes for other characters than ASCII: its encoding is not UTF-8."""
    return _encoding().lower().replace("-", "") != "utf8"


def can_print(text: str) -> bool:
    """Whether standard output's encoding has all characters of `text`."""
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        return False
    return True


def _encoding() -> str:
    """Standard output's encoding; a notebook's, or a program's own, may have none."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def terminal_width() -> int:
    """Columns of the terminal; a large number if standard output is no terminal, so that no column is left out."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 16


# Titles of columns that are left out first, in this order; then those on the right.
_LEFT_OUT_FIRST = ("JOB", "EXIT", "AGE", "TOOK", "SAVED", "NAME")
# Columns of the terminal that a column of longer cells keeps before another column is left out.
_LEAST_WIDTH = 16


def fit(
    titles: Sequence[str], rows: Sequence[Sequence[str]], columns: int, keep: str = ""
) -> tuple[dict[int, int], list[str]]:
    """Number → width of each column to print in so many columns of a terminal, and the titles of those to leave out,
    of which `keep` is the last.

    Columns of long cells are narrowed first, those of several words before those of one, such as a run's id; the first
    column, and those of short words, are not.
    """
    natural = {n: max(map(cells, (title, *(row[n] for row in rows)))) for n, title in enumerate(titles)}
    least = {n: natural[n] if n == 0 else min(natural[n], max(_LEAST_WIDTH, cells(titles[n]))) for n in natural}
    order = [titles.index(title) for title in _LEFT_OUT_FIRST if title in titles[1:]]
    order += [n for n in range(len(titles) - 1, 0, -1) if n not in order]
    order.sort(key=lambda n: titles[n] == keep)
    left_out = []
    while len(least) > 2 and sum(least.values()) + len(least) - 1 > columns:
        number = next(n for n in order if n in least)
        order.remove(number)
        del least[number]
        left_out.append(titles[number])
    widths = {n: natural[n] for n in least}
    longest = {n: max((cells(word) for row in rows for word in row[n].split()), default=0) for n in widths}
    # A path that fills most of the line is broken all the same.
    floors = {n: max(least[n], longest[n]) if longest[n] <= columns * 2 // 3 else least[n] for n in widths}
    while (excess := sum(widths.values()) + len(widths) - 1 - columns) > 0:
        shrinkable = [n for n in widths if widths[n] > floors[n]]
        if not shrinkable and floors != least:  # only by breaking words
            floors = least
            continue
        if not shrinkable:  # one or two columns in a very narrow terminal
            widest = max(widths, key=lambda n: widths[n])
            widths[widest] = max(1, widths[widest] - excess)
            break
        widest = max(shrinkable, key=lambda n: widths[n])
        second = max((widths[n] for n in shrinkable if n != widest), default=0)
        widths[widest] = max(floors[widest], min(widths[widest] - 1, second), widths[widest] - excess)
    return widths, left_out


def narrow_lines(rows: Sequence[Sequence[str]], columns: int) -> list[str] | None:
    """Each row as lines of at most so many columns of a terminal, as `aligned` does it where there is no limit; None
    where the cells of a row have no room beside each other."""
    widths, left_out = fit([""] * len(rows[0]), rows, columns) if rows else ({}, [])
    if left_out or sum(widths.values()) + len(widths) - 1 > columns:
        return None
    lines = []
    for row in rows:
        folded = {n: fold(row[n], width) for n, width in widths.items()}
        for at in range(max(map(len, folded.values()))):
            parts = (padded(folded[n][at] if at < len(folded[n]) else "", width) for n, width in widths.items())
            lines.append(" ".join(parts).rstrip())
    return lines


def rich_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str], columns: int, keep: str = ""
) -> Table:
    """A table of rich's for so many columns of a terminal. Titles and cells are clean."""
    from rich.table import Table
    from rich.text import Text

    widths, left_out = fit(titles, rows, columns, keep)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for number, width in widths.items():
        table.add_column(Text(titles[number]), width=width, overflow="fold")  # a str would be markup
    for row in rows:
        table.add_row(*(Text(row[number], style=styles.get(row[number], "")) for number in widths))
    if left_out:
        table.caption, table.caption_justify = Text(f"too narrow for {', '.join(left_out)}"), "left"
    return table
