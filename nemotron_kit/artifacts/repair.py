"""Finds damaged records of a registry and repairs those whose content can be proved by their sha256.

A version whose record can't be repaired is renamed to `dropped-v<N>`: readers skip it, and its number is not given
again. The artifact's files are never touched.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.store import DROPPED, RECORD, DamagedVersion, Store, write_checksummed
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.files import CHECKSUM, decoded, fsync_dir, read_checksummed, render_checksummed, sha256_of
from nemotron_kit.lazy import Value

# The longest text in which every byte is tried as the surplus one.
_TRIED = 8192


@dataclass(frozen=True, eq=False, repr=False)
class DamageFinding(Value):
    """A damaged record: `what` it describes, its `file`, `why` it can't be read, and the `remedy` (`repaired`,
    `dropped` or `removed`) that `apply` carries out."""

    what: str
    file: Path
    why: str
    remedy: str
    apply: Callable[[], None]


def findings(store: Store) -> Iterator[DamageFinding]:
    """Every damaged record. The versions are only checked if registry.json is readable."""
    if broken := list(_registry_record(store)):
        yield from broken
        return
    for record in store.everything():
        if isinstance(record, DamagedVersion) and isinstance(record.error, DamagedRecordError):
            yield _version(store, record)
    for name in store.entries():
        for kind in ("aliases", "runs"):
            for pointer in store.pointers(name, kind):
                yield from _pointer(store, name, kind, pointer)


def _registry_record(store: Store) -> Iterator[DamageFinding]:
    file = store.identity_folder / "registry.json"
    try:
        _ = store.uuid
    except DamagedRecordError as error:
        uuid = _common_uuid(store)
        if uuid is None:
            raise UserError(
                f"{error.message} It can't be made again: the versions' records don't agree on the registry's uuid.",
                hint="Restore it from a backup, or begin another registry: [artifacts] root in env.toml.",
            ) from error
        document, what = {"format": 1, "uuid": uuid}, "the registry's record"
        yield DamageFinding(
            what, file, error.message, "repaired", lambda: write_checksummed(file, document, store.modes)
        )


def _common_uuid(store: Store) -> str | None:
    found = set()
    for name in store.names():
        for version in store.versions(name):
            with contextlib.suppress(NemotronError, FileNotFoundError):
                found.add(read_checksummed(store.folder(name) / f"v{version}" / RECORD, "record").get("registry"))
    return str(found.pop()) if len(found) == 1 else None


def _version(store: Store, record: DamagedVersion) -> DamageFinding:
    document = _recovered(record.text)
    if document is not None and (document.get("name"), document.get("version")) == (record.name, record.version):
        return DamageFinding(
            record.label,
            record.file,
            record.error.message,
            "repaired",
            lambda: write_checksummed(record.file, document, store.modes),
        )
    return DamageFinding(record.label, record.file, record.error.message, "dropped", lambda: _drop(store, record))


def _pointer(store: Store, name: str, kind: str, pointer: str) -> Iterator[DamageFinding]:
    file = store.folder(name) / kind / pointer
    try:
        store.pointer(name, kind, pointer)
    except DamagedRecordError as error:
        what = f"{name}:{pointer}" if kind == "aliases" else f"{name}@run:{pointer}"
        # Without a pointer, the run is found in the versions' records.
        yield DamageFinding(what, file, error.message, "removed", lambda: file.unlink(missing_ok=True))
    except FileNotFoundError:
        return


def _recovered(text: str) -> dict[str, Any] | None:
    """The document whose sha256 is recorded in the text, if removing one surplus byte, or text around the document,
    restores it; else None."""
    candidates = [text, text.strip().lstrip("\ufeff")]
    with contextlib.suppress(ValueError, RecursionError):
        candidates.append(text[: json.JSONDecoder().raw_decode(text)[1]])
    if len(text) <= _TRIED:
        candidates += [text[:at] + text[at + 1 :] for at in range(len(text))]
    for candidate in candidates:
        try:
            body = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(body, dict) and body.pop(CHECKSUM, None) == sha256_of(body):
            document = decoded(body)
            if render_checksummed(document) == candidate:
                return document
    return None


def _drop(store: Store, record: DamagedVersion) -> None:
    folder = store.folder(record.name)
    (folder / f"v{record.version}").rename(folder / f"{DROPPED}v{record.version}")
    fsync_dir(folder)
