"""Reads a job's logs: from an offset, in bounded memory, with terminal control sequences made visible."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from nemotron_kit.errors import printable
from nemotron_kit.files import open_regular
from nemotron_kit.polling import Pace
from nemotron_kit.runs.job import JobFolder

CHUNK = 64 * 1024
_UNFINISHED = re.compile(r"\x1b(\[[0-9;:]{0,32})?\Z")


class TerminalSanitizer:
    """Decodes a log's bytes to text that is safe to print: control and escape characters are made visible.

    The input may be fed in pieces: an incomplete sequence at the end of a piece is kept until the next one.
    Invalid UTF-8 becomes U+FFFD; newline, tab and carriage return (progress bars) pass.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    @property
    def held(self) -> int:
        """The number of bytes kept because they end in an incomplete sequence."""
        return len(self._decoder.getstate()[0]) + len(self._held)

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """The text of the next piece of the log; with `final`, incomplete sequences are not kept."""
        text = self._held + self._decoder.decode(data, final)
        cut = None if final else _UNFINISHED.search(text)
        self._held = text[cut.start() :] if cut else ""
        text = text[: cut.start()] if cut else text
        return printable(text)


def encodable(text: str, encoding: str | None) -> str:
    """`text` with a question mark for each character that `encoding` (None: UTF-8) lacks."""
    return text.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")


def log_names(job: JobFolder) -> list[str]:
    """The names of the existing logs: `job`, `rank-0`, …"""
    return sorted(path.stem for path in (job.path / "logs").glob("*.log"))


def read_from(path: Path, offset: int) -> Iterator[bytes]:
    """Yield the file's content from byte `offset` on, in pieces; nothing if it does not exist."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        while piece := file.read(CHUNK):
            yield piece


def last_lines(path: Path, count: int) -> int:
    """The byte offset at which the last `count` lines of a file begin; 0 if it has fewer, or does not exist."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return 0
    with file:
        position = end = file.seek(0, os.SEEK_END)
        if count == 0:
            return end
        while position > 0:
            start = max(0, position - CHUNK)
            file.seek(start)
            block = file.read(position - start)
            newline = len(block)
            while (newline := block.rfind(b"\n", 0, newline)) >= 0:
                begins = start + newline + 1
                count -= begins < end  # the newline that ends the file begins no line
                if count == 0:
                    return begins
            position = start
        return 0


def follow(
    path: Path, is_over: Callable[[], bool], *, offset: int = 0, poll: float = 0.1, slowest: float = 1.0
) -> Iterator[bytes]:
    """The log from `offset` on, as it grows, until `is_over()` and its end is reached. Each byte is read once.

    A file that became shorter was replaced: it is read from its start. Polls every `poll` seconds, at longer intervals
    (up to `slowest`) while nothing is added.
    """
    pace = Pace(poll, 1.5, slowest)
    while True:
        over = is_over()  # before reading, so that all output up to the end is read
        if path.exists() and path.stat().st_size < offset:
            offset = 0
        grown = False
        for piece in read_from(path, offset):
            offset += len(piece)
            grown = True
            yield piece
        if over:
            return
        if grown:
            pace.restart()
        pace.wait()
