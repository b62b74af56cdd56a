"""How a version comes to be: compare, prepare, rename; lost the number to another writer, compare and try the next.

A writer takes number N+1 only after it has seen that none of v0…vN has its content, and a rename onto a taken number
fails. So identical content makes one version however many save it at once, and numbers have no gaps.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

from nemotron_kit.artifacts.errors import DamagedRecordError
from nemotron_kit.artifacts.manifest import FileEntry, first_change, identity, scan
from nemotron_kit.artifacts.records import RECORD, ArtifactVersion, Draft
from nemotron_kit.artifacts.reference import SLUG
from nemotron_kit.artifacts.staging import make_folder, publish, replace_sealed, staged, write_sealed, writing_to
from nemotron_kit.artifacts.store import Store, pointer_document
from nemotron_kit.errors import UserError

logger = logging.getLogger(__name__)


def commit(store: Store, draft: Draft, hash_limit: int | None) -> ArtifactVersion:
    """Register `draft`; the existing version if one has the same content and its files are still there.

    Raises ArtifactNotFoundError without a folder `draft.root`, ArtifactChangedError if a file in it changes meanwhile,
    NemotronError if the registry can't be written (nothing half-written is visible then).
    """
    files = scan(draft.root, hash_limit)
    with writing_to(store.root):
        ensure_registry(store)
        _ensure_name(store, draft.name)
        record = _Commit(store, draft, files, identity(draft.type, files, draft.fields)).run()
        if SLUG.match(draft.producer) and draft.producer != "local":
            document = pointer_document(draft.name, draft.producer, record.version)
            replace_sealed(store.folder(draft.name) / "runs" / draft.producer, document, store.modes)
    return record


def ensure_registry(store: Store) -> None:
    """Make the registry's folder and uuid, if this is its first use; of two that do so at once, one wins."""
    if store.uuid:
        return
    import uuid

    make_folder(store.root, store.modes)
    with staged(store.root, store.modes) as stage:
        write_sealed(stage / "registry.json", {"format": 1, "uuid": str(uuid.uuid4())}, store.modes)
        publish(stage, store.identity_folder)


def _ensure_name(store: Store, name: str) -> None:
    if not store.folder(name).is_dir():
        for other in store.names():
            if other != name and other.casefold() == name.casefold():
                raise UserError(
                    f"{name!r} differs from the registered {other!r} in case only.", hint="Use one of them."
                )
        make_folder(store.folder(name), store.modes)


@dataclass
class _Commit:
    store: Store
    draft: Draft
    files: tuple[FileEntry, ...]
    digest: str
    compared: int = -1

    def run(self) -> ArtifactVersion:
        mark = secrets.token_hex(16)
        with staged(self.store.folder(self.draft.name), self.store.modes) as stage:
            while True:
                number, existing = self._next()
                if existing is not None:
                    self._say_so(existing)
                    return existing
                record = self._record(number, mark)
                write_sealed(stage / RECORD, record.to_dict(), self.store.modes)
                target = self.store.folder(self.draft.name) / f"v{number}"
                if publish(stage, target) or self._is_mine(number, mark):
                    return record

    def _next(self) -> tuple[int, ArtifactVersion | None]:
        """The number to try, or the version that has this content already. Each version is looked at once."""
        versions = self.store.versions(self.draft.name)
        for version in versions:
            if version > self.compared:
                record = self._read(version)
                if record and record.digest == self.digest and self._still_there(record):
                    return version, record
                self.compared = version
        return (versions[-1] + 1 if versions else 0), None

    def _say_so(self, existing: ArtifactVersion) -> None:
        newest = self.store.versions(self.draft.name)[-1]
        if newest != existing.version:
            logger.warning("%s has this content already; latest stays v%d.", existing.pin.label, newest)

    def _read(self, version: int) -> ArtifactVersion | None:
        try:
            return self.store.record(self.draft.name, version)
        except DamagedRecordError as error:
            logger.warning("%s It is left alone, and a new version is made.", error.message)
            return None

    def _still_there(self, record: ArtifactVersion) -> bool:
        """Whether a version of equal content can be loaded; in this very folder it can, and its new stamps are kept."""
        stamps = self.store.stamps(record.name, record.version)
        if record.root != str(self.draft.root):
            return first_change(Path(record.root), record.files, seen=stamps) is None
        now = {entry.path: entry.stamp for entry in self.files}
        if now != {**{entry.path: entry.stamp for entry in record.files}, **stamps}:
            file = self.store.folder(record.name) / "stamps" / f"v{record.version}"
            replace_sealed(file, {"files": {path: list(stamp) for path, stamp in now.items()}}, self.store.modes)
        return True

    def _is_mine(self, number: int, mark: str) -> bool:
        record = self._read(number)
        return record is not None and record.commit == mark

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
