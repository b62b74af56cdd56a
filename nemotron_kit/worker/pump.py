"""The process that copies a job's output from its channels into the log, with secrets masked, and to the streams where
it would have gone.

streams.Channels starts it as a plain script, `python -I -S pump.py JSON`, so it imports only the standard library
until it has read the path of nemotron_kit. It is not a thread: an extension that writes while it holds the
interpreter's lock would wait for that thread for ever. It lives as long as any process holds a writing end: output of
children that outlive the job is logged, too.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import termios
import time
from contextlib import suppress
from fcntl import ioctl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from nemotron_kit.masking import MaskedStream


READ_BYTES = 1 << 16
# What could be the beginning of a secret is held back for so long at most. A child that goes on writing keeps no job
# from ending.
HELD_SECONDS, SETTLE_SECONDS, ENDING_SECONDS = 0.2, 0.02, 1.0


class Source:
    """One channel's reading end, and where it goes: into a log and to `target`, both descriptors, either None."""

    def __init__(self, fd: int, log: int | None, target: int | None, masks: MaskedStream) -> None:
        self.fd, self.log, self.target, self.masks = fd, log, target, masks
        self.held = False
        self.lost = 0  # bytes that could not be written into the log since the last that could

    def read(self) -> bytes:
        """The next bytes; b"" at the end, which on a pseudo-terminal is an error."""
        try:
            return os.read(self.fd, READ_BYTES)
        except OSError:
            return b""

    def write_log(self, data: bytes) -> OSError | None:
        """Append to the log. What can't be written (the disk is full) is left out, and a line in its stead gives the
        number of bytes, once something can be written again. Returns the error that left out the first of them."""
        if self.log is None or not (data or self.lost):
            return None
        note = b"\n[nemotron: %d bytes of output could not be written here]\n" % self.lost if self.lost else b""
        first, (left, error) = not self.lost, write_all(self.log, note + data)
        if error is None:
            self.lost = 0
        else:
            self.lost = left if left <= len(data) else self.lost + len(data)
        return error if first else None

    def resize(self) -> None:
        """Give a pseudo-terminal the size of the real terminal."""
        if self.target is not None:
            with suppress(OSError):
                ioctl(self.fd, termios.TIOCSWINSZ, ioctl(self.target, termios.TIOCGWINSZ, b"\0" * 8))


class Pump:
    """Copies from the sources until all writing ends are closed."""

    def __init__(self, sources: list[Source], control: int, learn: Callable[[], None]) -> None:
        """`learn` is called before anything is masked; it notes the secrets that the job has used by now."""
        self.learn = learn
        self.sources = {source.fd: source for source in sources}
        self.control = control
        self.ending: float | None = None
        self.poller = select.poll()
        for fd in (control, *self.sources):
            self.poller.register(fd, select.POLLIN)

    def run(self) -> None:
        """Copy until the last writing end is closed; announce on `control` when all that the job itself wrote is
        copied."""
        while self.sources:
            seconds = HELD_SECONDS if any(source.held for source in self.sources.values()) else None
            seconds = seconds if self.ending is None else SETTLE_SECONDS
            ready = {fd for fd, _ in self.poller.poll(seconds and seconds * 1000)}
            if self.control in ready:
                # The job has ended, by its process's message or with that process; children may still run.
                message = b""
                with suppress(OSError):
                    message = os.read(self.control, 1)
                if message:
                    self.ending = time.monotonic() + ENDING_SECONDS
                else:
                    self.poller.unregister(self.control)
            for source in [self.sources[fd] for fd in self.sources if fd in ready]:
                self._move(source)
            if not ready:
                for source in self.sources.values():
                    self._write(source, source.masks.rest())
                    source.held = False
            if self.ending is not None and (not ready or time.monotonic() > self.ending):
                self.ending = None
                with suppress(OSError):
                    os.write(self.control, b"d")

    def _move(self, source: Source) -> None:
        source.resize()
        data = source.read()
        if data:
            self.learn()
            shown = source.masks.feed(data)
            source.held = len(shown) != len(data)
            self._write(source, shown)
            return
        self._write(source, source.masks.rest())
        self.poller.unregister(source.fd)
        os.close(source.fd)
        del self.sources[source.fd]

    def _write(self, source: Source, data: bytes) -> None:
        if (error := source.write_log(data)) and source.target is not None:
            write_all(source.target, f"error: the log can't be written: {error.strerror}\n".encode())
        # A terminal that was closed, or a reader that has gone, is no reason to stop a job.
        if source.target is not None and write_all(source.target, data)[1]:
            source.target = None


def write_all(fd: int, data: bytes) -> tuple[int, OSError | None]:
    """Write all of `data`. Returns the number of bytes that are left, and the error that prevented the rest, if any."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError as error:
            return len(view), error
    return 0, None


def main() -> None:
    """Pump until the last writing end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGTSTP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    asked = json.loads(sys.argv[1])
    sys.path.insert(0, asked["path"])
    from nemotron_kit.masking import USED, MaskedStream, note_secrets, note_used_in

    note_secrets(asked["secrets"])
    folder, size_read = asked["job"], [0]

    def learn() -> None:
        try:
            size = os.stat(f"{folder}/{USED}").st_size  # noqa: PTH116
        except OSError:  # no job, or it has used none
            return
        if size != size_read[0]:
            size_read[0] = size
            note_used_in(folder)

    sources = [Source(fd, log, target, MaskedStream()) for fd, log, target in asked["sources"]]
    Pump(sources, asked["control"], learn).run()


if __name__ == "__main__":
    main()
