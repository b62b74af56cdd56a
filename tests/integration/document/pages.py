"""Our own pages (README, docs), executed: their shell lines in order, in one folder, and the files that they show.

Conventions of the pages: `# file: NAME` as the first line of a fence makes it a file, `(added)` behind it appends;
`# exits N` behind a shell line is what it must exit with; `# not run: WHY` leaves it out. A fence that is neither a
file nor shell is only shown, and must still be valid.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .extract import fences, shell_lines

_FILE = re.compile(r"(?:# @.*\n)?# file: (\S+)( \(added\))?\n")  # Hydra's `# @package …` must come first
_MARK = re.compile(r"\s+# (?:exits (\d+)|not run: (.+)|.*)$")
_PARSERS: dict[str, Callable[[str], Any]] = {
    "python": ast.parse,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "json": json.loads,
}
_SHOWN = ("text", "mermaid")


@dataclass(frozen=True)
class File:
    """A file that the reader makes."""

    name: str
    text: str
    added: bool


@dataclass(frozen=True)
class Line:
    """A line that the reader types; `skipped` says why it is not run here, "" for one that is."""

    text: str
    code: int = 0
    skipped: str = ""


def sections(page: Path) -> list[str]:
    """The headings under which a page has fences."""
    return list(dict.fromkeys(section for section, *_ in fences(page.read_text(encoding="utf-8"))))


def steps(page: Path, only: str | None = None) -> Iterator[File | Line]:
    """What the reader of a page, or of one section of it, does, in order.

    ValueError for a fence that breaks the conventions.
    """
    for section, number, language, text in fences(page.read_text(encoding="utf-8")):
        if only not in (None, section):
            continue
        where = f"{page.name}, {section}/{number}"
        if language == "bash":
            yield from map(_line, shell_lines(text))
        elif language in _PARSERS:
            _check(language, text, where)
            mark = _FILE.match(text)
            if mark:
                yield File(mark[1], text, bool(mark[2]))
        elif language not in _SHOWN:
            raise ValueError(f"{where}: a fence in {language or 'no language'}.")


def make(file: File, folder: Path) -> None:
    """Write what the page shows, below what is there for an added piece."""
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") + "\n" if file.added and path.exists() else ""
    path.write_text(before + file.text, encoding="utf-8")


def links(page: Path) -> list[str]:
    """The targets of a page's relative links."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them: lower case, spaces as dashes, the rest dropped."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _line(text: str) -> Line:
    mark = _MARK.search(text)
    if mark is None:
        return Line(text)
    return Line(text[: mark.start()], int(mark[1] or 0), mark[2] or "")


def _check(language: str, text: str, where: str) -> None:
    try:
        _PARSERS[language](text)
    except (ValueError, SyntaxError, yaml.YAMLError) as error:
        raise ValueError(f"{where}: not valid {language}: {error}") from error
