"""A commit: a draft becomes a version of the registry, which appears whole, unless a version has the same content."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nemotron_kit.artifacts.manifest import FileEntry, first_change, identity, scan
from nemotron_kit.artifacts.reference import ArtifactChangedError, ArtifactVersionNotFoundError, Pin
from nemotron_kit.artifacts.store import (
    DROPPED,
    RECORD,
    VERSION_FOLDER,
    ArtifactVersion,
    Draft,
    Store,
    make_folder,
    publish,
    staged,
    touch,
    write_checksummed,
)
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.files import DAY_S, REMOVED, fsync_dir, sync_file_system, synced_later

logger = logging.getLogger(__name__)
# How long to wait for a missing folder to reappear, in seconds: `runs rm` restores what it may not remove. The last one
# only applies while a removal is in progress.
_PAUSES = (0.05, 0.2, 0.5, 30.0)
_STEP = 0.25


def commit(store: Store, draft: Draft, hash_limit: int | None) -> ArtifactVersion:
    """Register `draft`, or return the existing version if one has the same content and intact files.

    Raises ArtifactNotFoundError if the folder `draft.root` does not exist, ArtifactChangedError if a file in it changes
    or disappears during the commit, NemotronError if the registry can't be written (no partial version is visible then)
    or has been moved.
    """
    name, folder_id = draft.name, _folder_id(draft.root)
    files = scan(draft.root, hash_limit, draft.sums)
    with store.writing():
        ensure_registry(store)
        folder = store.folder(name)
        if not folder.is_dir():
            for other in store.entries():
                if other != name and other.casefold() == name.casefold() and store.versions(other):
                    raise UserError(
                        f"{name!r} differs from the registered {other!r} in case only.", hint="Use one of them."
                    )
            make_folder(folder, store.modes, below=store.root)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            digest = identity(draft.type, files, draft.fields)
            record = _Commit(store, draft, files, digest, folder_id, opened).run()
        finally:
            os.close(opened)
        store.set_run(name, draft.producer, record.version)
        require_registered(store, record.pin)
        # Once a day the leftovers of killed writers of this name are removed; the search takes time proportional to the
        # number of versions.
        collected = folder / _INDEX / "collected"
        with contextlib.suppress(OSError):  # only the cleaning is skipped
            if not collected.exists() or time.time() - collected.stat().st_mtime > DAY_S:
                touch(collected, store.modes)
                os.utime(collected)
                store.collect_garbage([name], DAY_S)
    return record


def ensure_registry(store: Store) -> None:
    """Create the registry's folder and uuid on its first use, or a registry.json that is missing. Safe if two processes
    do so at once."""
    known, file = store.uuid, store.identity_file
    if known and file.exists():
        return
    import uuid

    # Neither a registry nor a home that was moved meanwhile is created again.
    if not known and store.folder_existed:
        make_folder(store.root, store.modes, below=store.root.parent)
    elif not known:
        make_folder(store.root, store.modes)
    with staged(store.root, store.modes) as stage:
        write_checksummed(stage / file.name, {"format": 1, "uuid": known or str(uuid.uuid4())}, store.modes)
        if not publish(stage, file.parent) and not file.exists():  # the folder exists without its file
            os.replace(stage / file.name, file)  # noqa: PTH105
            fsync_dir(file.parent)


@dataclass
class _Commit:
    """One commit: from a draft to a version that can be loaded."""

    store: Store
    draft: Draft
    files: tuple[FileEntry, ...]
    digest: str
    folder_id: tuple[int, int] | None
    opened: int  # a descriptor of the name's folder, which may be moved meanwhile

    def run(self) -> ArtifactVersion:
        store, name = self.store, self.draft.name
        folder, mark = store.folder(name), os.urandom(16).hex()
        number = _next_number(store, name)  # first, so that every version with a lower number is among the candidates
        candidates: Iterable[int] = _indexed_versions(store, name, self.digest)
        with staged(folder, store.modes) as stage:
            while True:
                existing = self._equal(candidates, number)
                if existing is not None:
                    self._require_files()
                    return existing
                _announce(store, name, self.digest, number)
                record = self._record(number, mark)
                store.write_record(stage / RECORD, record)
                self._require_files()
                published = publish(stage, folder / f"v{number}")
                if not published:  # or so it was reported, of a rename that has happened
                    written = self._read(number)
                    published = written is not None and written.commit == mark
                if published:
                    try:
                        _note_newest(store, name, number)
                        self._require_files()
                    except ArtifactChangedError:
                        self._withdraw(number)
                        raise
                    return record
                # The version that took the number may have this content: compare it, also if the index lacks it.
                taken, number = number, _next_number(store, name)
                candidates = range(number - 1, taken - 1, -1)

    def _withdraw(self, number: int) -> None:
        """Drop a version that this process committed and whose files were removed; its number is not used again."""
        with contextlib.suppress(OSError):  # then listings mark its files as gone
            os.rename(f"v{number}", f"{DROPPED}v{number}", src_dir_fd=self.opened, dst_dir_fd=self.opened)
            os.fsync(self.opened)

    def _equal(self, candidates: Iterable[int], number: int) -> ArtifactVersion | None:
        """The newest version with the draft's content; None if there is none, or if the files of the name's newest
        version are gone (`latest` would then keep naming a version that can't be loaded)."""
        folder = self.store.folder(self.draft.name)
        for version in candidates:
            record = self._read(version)
            if record is None or record.digest != self.digest or not self._is_loadable(record):
                continue
            above = (n for n in range(number - 1, version, -1) if (folder / f"v{n}").exists())
            newest = next(above, None)
            if newest is None:
                return record
            latest = self._read(newest)
            stamps = self.store.stamps(record.name, newest)
            change = first_change(Path(latest.root), latest.files, stamps=stamps) if latest else None
            if latest and change is None:
                logger.warning(
                    "%s has the same content, so this is no new version; latest stays v%d.", record.pin.label, newest
                )
                return record
            lost = f"can't be read: {change}" if latest else "is damaged"
            logger.warning(
                "%s has this content; a new version is made of it, since v%d, the newest, %s.",
                record.pin.label,
                newest,
                lost,
            )
            return None
        return None

    def _read(self, version: int) -> ArtifactVersion | None:
        try:
            return self.store.record(self.draft.name, version)
        except ArtifactVersionNotFoundError:  # announced by a writer that was killed
            return None
        except DamagedRecordError as error:
            logger.warning("%s It is not changed, and a new version is made.", error.message)
            return None

    def _is_loadable(self, record: ArtifactVersion) -> bool:
        """Whether a version with equal content can be loaded. If its files are in the draft's folder, their new time
        stamps are recorded."""
        stamps = self.store.stamps(record.name, record.version)
        if record.root != str(self.draft.root):
            return first_change(Path(record.root), record.files, stamps=stamps) is None
        now = {entry.path: entry.stamp for entry in self.files}
        if now != {**{entry.path: entry.stamp for entry in record.files}, **stamps}:
            self.store.set_stamps(record.name, record.version, now)
        return True

    def _require_files(self) -> None:
        """Raise ArtifactChangedError if the files were removed or moved during the commit (`runs rm`, a moved folder).

        A removal renames the run's folder first and restores it if a version inside it has appeared by then; a commit
        checks, after its version has appeared, that the files still exist. So the two can't both succeed.
        """
        gone = self._missing_file()
        for pause in _PAUSES:
            end = time.monotonic() + pause
            while gone is not None and time.monotonic() < end and (pause <= 1 or _being_removed(self.draft.root)):
                time.sleep(min(pause, _STEP))
                gone = self._missing_file()
        if gone is not None:
            raise ArtifactChangedError(
                f"{gone} was removed while the artifact was being saved.",
                hint="Nothing was registered. Write the files again, and save.",
            )

    def _missing_file(self) -> Path | None:
        root = self.draft.root
        if _folder_id(root) != self.folder_id:
            return root
        return next((root / e.path for e in self.files if not os.path.lexists(root / e.path)), None)

    def _record(self, number: int, mark: str) -> ArtifactVersion:
        draft = self.draft
        return ArtifactVersion(
            name=draft.name,
            version=number,
            type=draft.type,
            digest=self.digest,
            path=str(draft.path),
            root=str(draft.root),
            files=self.files,
            fields=dict(draft.fields),
            document=dict(draft.document),
            created_at=draft.created_at,
            producer=draft.producer,
            inputs=draft.inputs,
            registry=self.store.uuid,
            commit=mark,
        )


def _folder_id(root: Path) -> tuple[int, int] | None:
    """(device, inode) of the folder at `root`; None if it does not exist."""
    try:
        info = root.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _being_removed(root: Path) -> bool:
    """Whether the folder, or a folder that contains it, has been renamed for a removal, which may still be undone."""
    missing = next((folder for folder in (*reversed(root.parents), root) if not folder.exists()), None)
    return missing is not None and any(missing.parent.glob(f".{glob.escape(missing.name)}.*{REMOVED}"))


# The content index of a name: `index/<digest>/v<N>`, an empty file for each version with that digest, by which an equal
# version is found without reading every record.
_INDEX, _COMPLETE, _NEWEST = "index", "complete", "newest"
# How many numbers are tried after the recorded newest one before all versions are listed.
_FAR = 64


def _indexed_versions(store: Store, name: str, digest: str) -> list[int]:
    """The versions that may have this content, newest first. Builds the index of a name that has none yet."""
    folder = store.folder(name) / _INDEX
    if not (folder / _COMPLETE).exists():
        make_folder(folder, store.modes, below=store.folder(name))
        if versions := store.versions(name):
            with synced_later():
                for version in versions:
                    with contextlib.suppress(DamagedRecordError):  # a damaged version equals no content
                        _announce(store, name, store.record(name, version).digest, version)
            sync_file_system(folder)
        touch(folder / _COMPLETE, store.modes)
        fsync_dir(folder)
    # Opening the folder makes an NFS client drop its cache of names that did not exist.
    with contextlib.suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY))
    try:
        lines = os.listdir(folder / digest)  # noqa: PTH208 — names only
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((int(line[1:]) for line in lines if VERSION_FOLDER.match(line)), reverse=True)


def _announce(store: Store, name: str, digest: str, version: int) -> None:
    """Add a version to the index; called before the version is published."""
    folder = store.folder(name) / _INDEX / digest
    make_folder(folder, store.modes, below=store.folder(name))
    touch(folder / f"v{version}", store.modes)
    fsync_dir(folder)


def _next_number(store: Store, name: str) -> int:
    """The lowest number above all that versions have or had."""
    try:
        text = (store.folder(name) / _INDEX / _NEWEST).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        text = ""
    if VERSION_FOLDER.match(f"v{text}") and store.is_taken(name, int(text)):
        for number in range(int(text) + 1, int(text) + _FAR):
            if not store.is_taken(name, number):
                return number
    return max(store.numbers(name), default=-1) + 1


def _note_newest(store: Store, name: str, version: int) -> None:
    """Record where the search for the next number may begin. Not synced: a wrong value only costs time."""
    folder = store.folder(name) / _INDEX
    aside = folder / f".tmp-{os.urandom(8).hex()}"
    with contextlib.suppress(OSError):  # then the next save lists the versions
        touch(aside, store.modes, f"{version}\n")
        aside.replace(folder / _NEWEST)


def require_registered(store: Store, pin: Pin) -> None:
    """Raise NemotronError if the version is not in the registry at `store.root`: the folder was moved during the
    commit."""
    again = Store(store.root, store.modes)
    with contextlib.suppress(DamagedRecordError, ArtifactVersionNotFoundError):
        if again.uuid == store.uuid and again.record(pin.name, pin.version or 0).digest == pin.digest:
            return
    raise NemotronError(
        f"The artifact registry {store.root} was moved or removed while {pin.label} was being saved.",
        hint="Save again, to the registry's new path or after moving it back.",
    )
