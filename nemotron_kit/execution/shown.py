"""How far the logs of an attached run have been shown: what a later `attach` goes on from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from nemotron_kit import files
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.records import DamagedRecord, read_object

_NAME = "attached.json"


class Shown:
    """Job number → log → bytes that were shown, kept in the run's folder. Damaged, it is as if nothing had been."""

    def __init__(self, run: RunFolder) -> None:
        self._path = run.path / _NAME
        self._jobs: dict[str, dict[str, int]] = {}
        with contextlib.suppress(FileNotFoundError, DamagedRecord):
            for number, offsets in read_object(self._path).items():
                if isinstance(offsets, dict) and all(type(at) is int and at >= 0 for at in offsets.values()):
                    self._jobs[number] = offsets

    def of(self, job: int) -> dict[str, int]:
        return dict(self._jobs.get(str(job), {}))

    def keep(self, offsets: Mapping[int, Mapping[str, int]]) -> None:
        """Write down how far each job's logs have been shown by now."""
        new = {**self._jobs, **{str(number): dict(of) for number, of in offsets.items() if of}}
        if new == self._jobs:
            return
        with contextlib.suppress(OSError):  # a full disk must not end the watching
            files.write_json(self._path, new)
        # Only now: Ctrl-C in the middle of it must leave it to be written again.
        self._jobs = new

    def forget(self) -> None:
        """Show everything again."""
        self._jobs = {}
