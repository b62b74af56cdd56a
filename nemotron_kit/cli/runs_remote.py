"""A log that lies on another machine, read on from an offset, in bounded memory, each byte once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nemotron_kit.cli.grid import clean
from nemotron_kit.errors import Unreachable
from nemotron_kit.execution.attach import CHUNK
from nemotron_kit.execution.backends.base import Backend, backend_for
from nemotron_kit.execution.mirror import folder_there
from nemotron_kit.execution.reach import reach_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.target.logs import Piece

_FASTEST, _SLOWEST = 0.5, 10.0


class RemoteLog:
    """One log of one job. Everything raises Unreachable where the target does not answer."""

    def __init__(self, run: RunFolder, plan: Mapping[str, Any], job: JobFolder, name: str) -> None:
        self.job, self.name = job, name
        self._backend: Backend = backend_for(plan)
        self._reach = reach_for(plan.get("settings") or {})
        self._folder = f"{folder_there(run, plan)}/jobs/{job.number}"

    def names(self) -> list[str]:
        """The logs that there are: `job`, `rank-0`, …"""
        found, _ = self._reach.call("log_names", job=self._folder)
        return [str(name) for name in found]

    def tail(self, lines: int) -> int:
        """The offset at which the last `lines` lines begin."""
        offset, _ = self._reach.call("log_offset", job=self._folder, name=self.name, lines=lines)
        return int(offset)

    def read(self, offset: int) -> Iterator[bytes]:
        """What there is from `offset` on, in pieces; from its beginning where the log was cut."""
        return (piece.data for piece in self._pieces(offset))

    def _pieces(self, offset: int) -> Iterator[Piece]:
        while pieces := self._backend.read_logs(self.job, {self.name: offset}, CHUNK, only=True):
            (piece,) = pieces
            offset = piece.offset + len(piece.data)
            yield piece

    def follow(self, is_over: Callable[[], bool], offset: int) -> Iterator[bytes]:
        """The log as it grows, until `is_over()` and its end is reached. A lost connection is waited out."""
        pause, lost = _FASTEST, False
        while True:
            over, grown = is_over(), False
            try:
                for piece in self._pieces(offset):
                    offset, grown = piece.offset + len(piece.data), True
                    yield piece.data
                lost = False
            except Unreachable as error:
                if not lost:
                    sys.stderr.write(f"out of sight, still trying: {clean(error.message)}\n")
                lost = True
            if over and not lost:
                return
            pause = _FASTEST if grown else min(pause * 1.5, _SLOWEST)
            time.sleep(pause)
