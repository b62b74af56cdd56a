"""The logs of many ranks as one: whole lines, each with its rank in front, while they are being written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from nemotron_kit.files import open_regular

POLL_SECONDS = 0.2
CHUNK = 1 << 16
# A line without an end is not waited for beyond this.
LONGEST = 1 << 20


class Merged:
    """`with Merged({"rank 0": path, …}, write):` passes on what is appended to the files from then on, to the last byte
    that is there when the block ends."""

    def __init__(self, logs: Mapping[str, Path], write: Callable[[bytes], object]) -> None:
        self._sources = [_Source(label, path) for label, path in logs.items()]
        self._write = write
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="merge-logs", daemon=True)

    def __enter__(self) -> Merged:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._pump()
        self._pump()
        for source in self._sources:
            self._write(source.rest())

    def _pump(self) -> None:
        for source in self._sources:
            while piece := source.lines():
                self._write(piece)


class _Source:
    def __init__(self, label: str, path: Path) -> None:
        self._mark = f"[{label}] ".encode()
        self._path = path
        # What an earlier attempt wrote was passed on then.
        self._offset = path.stat().st_size if path.exists() else 0
        self._held = b""

    def lines(self) -> bytes:
        """The whole lines that have come since, marked; b"" when nothing has."""
        while True:
            try:
                with open_regular(self._path) as file:
                    file.seek(self._offset)
                    data = file.read(CHUNK)
            except FileNotFoundError:
                return b""
            if not data:
                return b""
            self._offset += len(data)
            whole, end, self._held = (self._held + data).rpartition(b"\n")
            if not end and len(self._held) > LONGEST:
                whole, end, self._held = self._held, b"\n", b""
            if end:
                return self._marked(whole)

    def rest(self) -> bytes:
        held, self._held = self._held, b""
        return self._marked(held) if held else b""

    def _marked(self, lines: bytes) -> bytes:
        return b"".join(self._mark + line + b"\n" for line in lines.split(b"\n"))
