"""Which version of a name a reference means, and what to say when it means none."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_kit.artifacts.checking import describe_versions
from nemotron_kit.artifacts.errors import ArtifactNotFoundError, ArtifactVersionNotFoundError
from nemotron_kit.artifacts.records import ArtifactVersion
from nemotron_kit.artifacts.reference import LATEST, Reference
from nemotron_kit.artifacts.store import Store
from nemotron_kit.errors import UserError, nearest, sentence


def find_version(store: Store, ref: Reference) -> int:
    """The version of `ref.slug` that is meant.

    Raises ArtifactNotFoundError and ArtifactVersionNotFoundError (they say what is there), UserError for a digest that
    two contents share, DamagedRecordError.
    """
    versions = store.versions(ref.slug)
    if not versions:
        raise _no_such_name(store, ref)
    found = _choose(store, ref, versions)
    if found not in versions:
        raise _no_such_version(store, ref, versions)
    return found


def _choose(store: Store, ref: Reference, versions: list[int]) -> int:
    if ref.version is not None:
        return ref.version
    if ref.digest is not None:
        return _by_digest(store, ref, versions)
    if ref.alias == LATEST:
        return versions[-1]
    try:
        return store.pointer(ref.slug, "runs" if ref.run else "aliases", ref.run or ref.alias or "")
    except FileNotFoundError:
        # A run that was killed before it noted what it saved still stands in the record.
        saved = (v for v, record in _readable(store, ref, versions) if ref.run and record.producer == ref.run)
        return max(saved, default=-1)


def _by_digest(store: Store, ref: Reference, versions: list[int]) -> int:
    digests = {v: record.digest for v, record in _readable(store, ref, versions)}
    found = {v: digest for v, digest in digests.items() if digest.startswith(ref.digest or "")}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"v{v} ({digest[:12]}…)" for v, digest in found.items())
        raise UserError(f"{ref} is ambiguous: {shown}.", hint="Give more digits.")
    return max(found, default=-1)


def _readable(store: Store, ref: Reference, versions: list[int]) -> Iterator[tuple[int, ArtifactVersion]]:
    for version in versions:
        record = store.look(ref.slug, version)
        if isinstance(record, ArtifactVersion):
            yield version, record


def _no_such_name(store: Store, ref: Reference) -> ArtifactNotFoundError:
    where = f"in the registry {store.root}"
    hint = sentence(nearest(ref.slug, store.names())) or "Nothing has been saved there yet."
    if ref.entity:
        message = f"No artifact is called {ref.slug!r} {where}, and {ref}, as W&B's entity/project/Name, needs W&B."
        return ArtifactNotFoundError(ref.slug, message, hint=f"Local names have no entity: {ref.name}. {hint}")
    return ArtifactNotFoundError(ref.slug, f"No artifact is called {ref.slug!r} {where}.", hint=hint)


def _no_such_version(store: Store, ref: Reference, versions: list[int]) -> ArtifactVersionNotFoundError:
    aliases = store.aliases(ref.slug)
    close = nearest(ref.alias, [*aliases, LATEST]) if ref.alias else ""
    hint = describe_versions(versions, aliases)
    if close.startswith("did you mean"):
        hint = f"{close[0].upper()}{close[1:]} {hint}"
    what = ref.selector.lstrip(":")
    return ArtifactVersionNotFoundError(ref.slug, what, f"{ref.slug} has no {what}.", hint=hint)
