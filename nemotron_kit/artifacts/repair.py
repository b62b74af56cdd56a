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

from nemotron_kit.artifacts.commit import ensure_registry
from nemotron_kit.artifacts.store import DamagedVersion, Store, write_checksummed
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.files import CHECKSUM, decoded, read_checksummed, render_checksummed, sha256_of
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
            yield from _version(store, record)
    for name in store.entries():
        for kind in ("aliases", "runs"):
            for pointer in store.pointers(name, kind):
                yield from _pointer(store, name, kind, pointer)


def _registry_record(store: Store) -> Iterator[DamageFinding]:
    file, what = store.identity_file, "the registry's record"
    try:
        if store.uuid and not file.exists():
            why = f"{file}: this registry record is missing."
            yield DamageFinding(what, file, why, "repaired", lambda: ensure_registry(store))
    except DamagedRecordError as error:
        named = store.recorded_uuids()
        if len(named) != 1:
            raise UserError(
                f"{error.message} It can't be made again: the versions' records don't agree on the registry's uuid.",
                hint="Restore it from a backup, or begin another registry: [artifacts] root in env.toml.",
            ) from error
        document = {"format": 1, "uuid": named.pop()}
        yield DamageFinding(
            what, file, error.message, "repaired", lambda: write_checksummed(file, document, store.modes)
        )


def _version(store: Store, record: DamagedVersion) -> Iterator[DamageFinding]:
    document, error = _recovered(record.text), record.error.message
    if document is None or (document.get("name"), document.get("version")) != (record.name, record.version):
        yield DamageFinding(
            record.label, record.file, error, "dropped", lambda: store.drop(record.name, record.version)
        )
    # An intact record needs no repair: a newer version wrote it, or it was copied from another registry.
    elif not _is_intact(record.file):
        yield DamageFinding(
            record.label, record.file, error, "repaired", lambda: write_checksummed(record.file, document, store.modes)
        )


def _is_intact(file: Path) -> bool:
    try:
        return bool(read_checksummed(file, "version record"))
    except (DamagedRecordError, FileNotFoundError):
        return False


def _pointer(store: Store, name: str, kind: str, pointer: str) -> Iterator[DamageFinding]:
    file = store.folder(name) / kind / pointer
    try:
        store.pointer(name, kind, pointer)
    except DamagedRecordError as error:
        what = f"{name}:{pointer}" if kind == "aliases" else f"{name}@run:{pointer}"
        # Without a pointer, the run is found in the versions' records.
        yield DamageFinding(what, file, error.message, "removed", lambda: file.unlink(missing_ok=True))
    except (NemotronError, FileNotFoundError):  # removed meanwhile, or another member's: it is not known to be damaged
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
