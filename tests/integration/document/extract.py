"""The user's document, taken apart: every fenced snippet by its section and number, every shell line by its own."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
USUAL_PLACE = REPOSITORY.parent / "shared" / "spec" / "cli-framework.md"
LANGUAGES = ("python", "bash", "yaml", "toml")
IGNORED = ("mermaid",)
_HEADING = re.compile(r"#{1,6} +(.*?)\s*\Z")
_FENCE = re.compile(r"```(\w*)\s*\Z")


@dataclass(frozen=True)
class Snippet:
    """One thing that a reader would type. `id` is `Section/2` (the section's second snippet); a line of a shell snippet
    is `Section/2:1`."""

    id: str
    language: str
    text: str


def find_document() -> Path | None:
    """What `$NEMOTRON_DOCUMENT` names (it must be there), else the file beside the checkout; None where none is."""
    named = os.environ.get("NEMOTRON_DOCUMENT")
    if named:
        return Path(named)
    return USUAL_PLACE if USUAL_PLACE.is_file() else None


def snippets(document: str) -> dict[str, Snippet]:
    """Every snippet of a Markdown text by id. ValueError for a fence in a language that nobody has thought of."""
    found: dict[str, Snippet] = {}
    for section, number, language, text in fences(document):
        if language in IGNORED:
            continue
        if language not in LANGUAGES:
            raise ValueError(f"{section}/{number}: a fenced snippet in {language or 'no language'}.")
        name = f"{section}/{number}"
        texts = (
            {f"{name}:{n}": line for n, line in enumerate(shell_lines(text), 1)} if language == "bash" else {name: text}
        )
        for key, each in texts.items():
            if key in found:
                raise ValueError(f"{key}: two sections of this name.")
            found[key] = Snippet(key, language, each)
    return found


def shell_lines(text: str) -> list[str]:
    """The commands of a shell snippet: comments left out, lines that end in a backslash joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def fences(document: str) -> list[tuple[str, int, str, str]]:
    """(section, number in it, language, text) of each fence, in order. A `#` inside a fence is no heading."""
    found: list[tuple[str, int, str, str]] = []
    section, count = "", 0
    language: str | None = None
    lines: list[str] = []
    for line in document.splitlines():
        fence, heading = _FENCE.match(line), _HEADING.match(line)
        if language is not None:
            if fence and not fence[1]:
                found.append((section, count, language, "\n".join(lines) + "\n"))
                language = None
            else:
                lines.append(line)
        elif fence:
            language, lines, count = fence[1], [], count + 1
        elif heading:
            section, count = heading[1], 0
    if language is not None:
        raise ValueError(f"{section}/{count}: the fence is never closed.")
    return found
