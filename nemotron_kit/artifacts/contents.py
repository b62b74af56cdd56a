"""Which version of a name has which content, and which number is the next: found without reading every version.

    <Name>/index/<digest>/v<N>   an empty file: vN has, or was to have, the content of that digest
    <Name>/index/complete        every version that was there before the index is in it
    <Name>/index/newest          a number; the newest version is that one or one of the next

A version's line is written before the version gets its name, so no version is without one, whenever its writer dies.
A line of a writer that died promises nothing: the version's own record is read, and it alone says what it holds. The
folder may be deleted: the next save makes it anew.
"""

from __future__ import annotations

import contextlib
import os

from nemotron_kit.artifacts.errors import DamagedRecordError
from nemotron_kit.artifacts.staging import make_below, touch
from nemotron_kit.artifacts.store import VERSION_FOLDER, Store
from nemotron_kit.files import fsync_dir, sync_file_system, synced_later

FOLDER = "index"
_COMPLETE, _NEWEST = "complete", "newest"
# A hint that is further behind than this is no help.
_FAR = 64


class Contents:
    """The index of one name."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._folder = store.folder(name) / FOLDER

    def versions_of(self, digest: str) -> list[int]:
        """The versions that may have this content, newest first. Makes the index, if there is none."""
        if not (self._folder / _COMPLETE).exists():
            self._make()
        # Opening a folder makes a file server's client forget which names were not there a moment ago.
        with contextlib.suppress(OSError):
            os.close(os.open(self._folder, os.O_RDONLY))
        try:
            lines = os.listdir(self._folder / digest)  # noqa: PTH208 — names only
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted((int(line[1:]) for line in lines if VERSION_FOLDER.match(line)), reverse=True)

    def announce(self, digest: str, version: int) -> None:
        """Write the line of a version that is about to get its name."""
        folder = self._folder / digest
        make_below(self._store.folder(self._name), folder, self._store.modes)
        touch(folder / f"v{version}", self._store.modes)
        fsync_dir(folder)

    def next_number(self) -> int:
        """The lowest number that no version has, or had."""
        number = self._hint()
        if number is not None:
            for candidate in range(number + 1, number + _FAR):
                if not self._store.is_taken(self._name, candidate):
                    return candidate
        return max(self._store.numbers(self._name), default=-1) + 1

    def note_newest(self, version: int) -> None:
        """Say where to begin to look for the next number. Not synced: it is a hint."""
        file, aside = self._folder / _NEWEST, self._folder / f".tmp-{os.urandom(8).hex()}"
        with contextlib.suppress(OSError):  # the next save lists the versions then
            touch(aside, self._store.modes, f"{version}\n")
            aside.replace(file)

    def _hint(self) -> int | None:
        try:
            text = (self._folder / _NEWEST).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        known = VERSION_FOLDER.match(f"v{text}") is not None and self._store.is_taken(self._name, int(text))
        return int(text) if known else None

    def _make(self) -> None:
        """Lines for the versions of a registry that had no index."""
        make_below(self._store.folder(self._name), self._folder, self._store.modes)
        with synced_later():
            for version in self._store.versions(self._name):
                with contextlib.suppress(DamagedRecordError):  # it equals nothing
                    self.announce(self._store.record(self._name, version).digest, version)
        sync_file_system(self._folder)
        touch(self._folder / _COMPLETE, self._store.modes)
        fsync_dir(self._folder)
