"""Whether a version's files are still those that were saved, and the sentences for what is missing or changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.errors import ArtifactChangedError, DamagedRecordError
from nemotron_kit.artifacts.manifest import first_change
from nemotron_kit.artifacts.metadata import read_document
from nemotron_kit.artifacts.records import ArtifactVersion
from nemotron_kit.artifacts.sealed import canonical
from nemotron_kit.artifacts.store import Store
from nemotron_kit.artifacts.walk import METADATA, look

# The largest file that a list reads to tell whether it is as saved, in bytes.
_LARGE = 64 << 20


def require_unchanged(store: Store, record: ArtifactVersion, *, deep: bool = False) -> None:
    """ArtifactChangedError if a file of the version is not as it was saved, naming the first such file.

    DamagedRecordError if its metadata.json is cut off or was changed by hand. Only `deep` reads files whose size and
    times are the recorded ones.
    """
    root = Path(record.root)
    stamps = {} if deep else store.stamps(record.name, record.version)
    change = first_change(root, record.files, seen=stamps, deep=deep)
    if change is None and "type" in record.document:
        change = _metadata_change(root, record)
    if change is not None:
        what, hint = _by_whom(store, root, record)
        raise ArtifactChangedError(f"{record.pin.label}'s files {what}: {change} (in {root}).", hint=hint)


def condition(store: Store, record: ArtifactVersion) -> str:
    """What a list says of a version's files: "" while they are as saved, else `gone`, `changed`, or `other times` where
    a large file has its size and another time, and only reading it (`--verify`) would tell."""
    root = Path(record.root)
    if not root.exists():
        return "gone"
    stamps = store.stamps(record.name, record.version)
    large = {entry.path: (entry.stamp, stamps.get(entry.path)) for entry in record.files if entry.size > _LARGE}
    if first_change(root, record.files, seen=stamps, unread=large) is not None:
        return "changed" if all((root / entry.path).exists() for entry in record.files) else "gone"
    try:
        if "type" in record.document and _metadata_change(root, record) is not None:
            return "changed"
    except DamagedRecordError:
        return "changed"
    found = {path: look(str(root / path)) for path in large}
    return "other times" if any(now and now.stamp not in large[path] for path, now in found.items()) else ""


def describe_versions(versions: list[int], aliases: Mapping[str, int]) -> str:
    """What versions and aliases there are: `It has v0 to v4; aliases: prod (v2).`"""
    contiguous = len(versions) > 2 and versions == list(range(versions[0], versions[-1] + 1))
    shown = f"v{versions[0]} to v{versions[-1]}" if contiguous else ", ".join(f"v{v}" for v in versions[-12:])
    named = ", ".join(f"{alias} (v{version})" for alias, version in sorted(aliases.items()))
    return f"It has {shown}; aliases: {named}." if named else f"It has {shown}, and no alias but latest."


def _metadata_change(root: Path, record: ArtifactVersion) -> str | None:
    document = read_document(root)
    if document is None:
        return f"{METADATA} is missing"
    for key in ("type", *record.fields):
        now, then = document.get(key), record.document.get(key)
        if now != then and canonical(now) != canonical(then):  # NaN differs from itself
            return f"{METADATA} says {key} {_short(now)}, not {_short(then)}"
    return None


def _by_whom(store: Store, root: Path, record: ArtifactVersion) -> tuple[str, str]:
    """What happened to the files, as far as a later version in the same folder, or its metadata.json, can tell."""
    for version in reversed(store.versions(record.name)):
        if version > record.version and (later := _read(store, record.name, version)) and later.root == record.root:
            return (
                f"were overwritten by {_run(later.producer)} (as v{version})",
                f"Use {later.pin.label}, or save again.",
            )
    try:
        document = read_document(root) or {}
    except DamagedRecordError:
        document = {}
    hint = "Make the artifact again."
    if (document.get("created_at"), document.get("producer")) in ((None, None), (record.created_at, record.producer)):
        return "were changed since they were saved", hint
    return f"were overwritten by {_run(document.get('producer'))}", hint


def _read(store: Store, name: str, version: int) -> ArtifactVersion | None:
    try:
        return store.record(name, version)
    except DamagedRecordError:
        return None


def _run(producer: Any) -> str:
    return f"run {producer}" if isinstance(producer, str) and producer != "local" else "a local run"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
