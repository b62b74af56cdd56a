"""What a job prints goes to the terminal and to its log."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from io import RawIOBase
from typing import Any, TextIO

from nemotron_kit.masking import mask


@contextlib.contextmanager
def unless_gone(stream: TextIO) -> Iterator[None]:
    """Within the block a terminal or a reader that has gone ends nothing: from then on what is printed goes nowhere."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class Tee:
    """A text stream that also writes to a log, both without secrets.
    Everything else (isatty, fileno, encoding) is the stream's own."""

    def __init__(self, stream: TextIO, log: RawIOBase) -> None:
        self._stream = stream
        self._log = log

    def write(self, text: str) -> int:
        shown = mask(text)
        self._log.write(shown.encode("utf-8", "replace"))
        with unless_gone(self._stream):
            self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        with unless_gone(self._stream):
            self._stream.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def tee(log: RawIOBase) -> Iterator[None]:
    """Within the block, what this process prints is logged too."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Tee(sys.stdout, log), Tee(sys.stderr, log)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
