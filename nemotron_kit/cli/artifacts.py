"""`nemotron artifacts`: lists registered artifacts, the versions of a name, and a version's lineage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.artifacts.manifest import METADATA
from nemotron_kit.artifacts.reference import Reference
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.artifacts.store import ArtifactVersion
from nemotron_kit.cli.output import print_facts, print_json, print_table, write_lines
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import UserError, listed

if TYPE_CHECKING:
    from nemotron_kit.artifacts.registry import LocalRegistry
    from nemotron_kit.artifacts.store import DamagedVersion


def show(argv: list[str]) -> int:
    """`nemotron artifacts [REFERENCE]`. Raises UserError for a reference to nothing, or to files that have changed."""
    options = ToolParser("artifacts").parse(argv)
    if options.reference == "gc":
        raise UserError("nemotron artifacts: gc must come first.", hint="nemotron artifacts gc --dry-run")
    if options.reference is None and (options.alias is not None or options.verify):
        raise UserError(
            f"nemotron artifacts: {'--verify' if options.verify else '--alias'} is about a version; none is named.",
            hint="For instance: nemotron artifacts Name:latest --verify.",
        )
    registry = open_registry()
    if options.reference is None:
        return _names(registry, options.json)
    reference = Reference.parse(options.reference)
    if reference.path is not None:
        raise UserError(
            f"{options.reference} is a folder, not a name in the registry.",
            hint="`nemotron artifacts` lists the names and their folders.",
        )
    names_version = any(mark in options.reference.removeprefix("art://") for mark in ":@")
    if not names_version and options.alias is None and not options.verify:
        return _versions(registry, reference.slug, options.json)
    version = registry.find(reference)
    if options.verify:
        registry.verify(version.pin, deep=True)
    if options.alias is not None:
        registry.set_alias(version.name, options.alias, version.version)
    if options.json:
        print_json({**version.to_dict(), **({"verified": True} if options.verify else {})})
        return 0
    facts = list(_facts(version))
    if options.verify:
        how = "read again" if version.identified_by == "sha256" else f"compared by {version.identified_by}"
        facts.append(("verified", f"{_count(version)} {how}: as registered"))
    print_facts(facts)
    return 0


def remove(argv: list[str]) -> int:
    """`nemotron artifacts rm REFERENCE …`: returns 0. Raises UserError for a version that others need."""
    options = ToolParser("artifacts", "rm").parse(argv)
    registry = open_registry()
    for text in options.references:
        if Reference.parse(text).path is not None:
            raise UserError(f"{text} is a folder, not a version.", hint="`nemotron artifacts` lists the names.")
        if not any(mark in text.removeprefix("art://") for mark in ":@"):
            versions = ", ".join(f"v{number}" for number in registry.versions(Reference.parse(text).slug or ""))
            hint = f"Name a version: {text}:v0. It has {versions or 'none'}."
            raise UserError(f"{text} is a name, not one version of it.", hint=hint)
    named = {text: _find_removable(registry, text) for text in options.references}
    found = list({record.pin.label: record for record in named.values() if record is not None}.values())
    from nemotron_kit.cli.runs.remove import readers_of  # listings need none of its rooms

    labels = [record.pin.label for record in found]
    readers = {} if options.force else readers_of(labels)
    for record in found:
        registry.check_removable(record.pin.label, force=options.force, without=labels)
        if runs := readers.get(record.pin.label):
            hint = "--force removes it nevertheless."
            raise UserError(f"{record.pin.label} was read by {listed(runs, 6)}.", hint=hint)
        others = [each for each in _others_with_its_files(registry, record) if each not in labels]
        if options.files and others:
            raise UserError(
                f"The files of {record.pin.label} are those of {listed(others, 6)}, too.", hint="Leave --files out."
            )
    for text in [text for text, record in named.items() if record is None]:
        if not options.dry_run:  # an earlier removal may have been killed before it had done this
            registry.remove_dangling(Reference.parse(text).slug)
        write_lines([f"{text} has been removed already."])
    size = 0
    for record in found:
        size += sum(entry.size for entry in record.files)
        if not options.dry_run:
            if options.files:
                _delete_files(record)
            registry.remove(record.pin.label, force=True)  # check_removable has checked all of them together
        verb = "would be removed" if options.dry_run else "removed"
        files = "with its files" if options.files else "its files stay"
        write_lines([f"{record.pin.label} {verb}; {files}: {_count(record)} in {record.root}"])
    if options.files:
        write_lines([f"{size / 1e6:,.1f} MB"])
    return 0


def _find_removable(registry: LocalRegistry, text: str) -> ArtifactVersion | None:
    """The version to remove; None for one that has been removed. Raises UserError for an alias, `latest`, a digest or a
    run: the command, given again after it was killed, could mean another version by that."""
    reference = Reference.parse(text)
    if reference.version is None:
        label = registry.find(reference).pin.label
        raise UserError(f"{text} can mean another version later: it is {label} now.", hint=f"Name the version: {label}")
    return None if registry.was_removed(reference.slug, reference.version) else registry.find(reference)


def _others_with_its_files(registry: LocalRegistry, record: ArtifactVersion) -> list[str]:
    """The labels of the other versions that share a file with this one, also by links."""
    deleted = registry.places(record, follow=False)
    return [
        other.pin.label
        for other in registry.everything()
        if isinstance(other, ArtifactVersion) and other.pin.label != record.pin.label
        if deleted & registry.places(other)
    ]


def _delete_files(record: ArtifactVersion) -> None:
    """Delete the registered files, and the folders that are empty then; other files stay."""
    root = Path(record.root)
    for entry in record.files:
        (root / entry.path).unlink(missing_ok=True)
    document = root / METADATA
    if document.is_file() and "type" in record.document:
        document.unlink()
    folders = {
        root,
        *(folder for entry in record.files for folder in (root / entry.path).parents if root in folder.parents),
    }
    for folder in sorted(folders, key=lambda each: -len(each.parts)):
        with contextlib.suppress(OSError):  # not empty, or gone
            folder.rmdir()


def usage(argv: list[str]) -> int:
    """`nemotron artifacts du`: the bytes of each name's versions, as registered; returns 0. Files that versions share
    count once."""
    options = ToolParser("artifacts", "du").parse(argv)
    registry = open_registry()
    rows: list[dict[str, Any]] = []
    for name in registry.names():
        versions = [registry.read_version(name, number) for number in registry.versions(name)]
        whole = [version for version in versions if isinstance(version, ArtifactVersion)]
        sizes = {Path(each.root, entry.path): entry.size for each in whole for entry in each.files}
        rows.append({"name": name, "versions": len(versions), "files": len(sizes), "bytes": sum(sizes.values())})
    rows.sort(key=lambda row: -row["bytes"])
    if options.json:
        print_json(rows)
    elif rows:
        table = [(f"{row['bytes'] / 1e6:,.1f}", str(row["versions"]), str(row["files"]), row["name"]) for row in rows]
        print_table(("MB", "VERSIONS", "FILES", "NAME"), table)
    else:
        write_lines([f"Nothing is registered in {registry.root} yet."])
    return 0


def _names(registry: LocalRegistry, as_json: bool) -> int:
    found = [
        registry.read_version(name, versions[-1]) for name in registry.names() if (versions := registry.versions(name))
    ]
    if as_json:
        print_json([_summary(registry, version) for version in found])
    elif not found:
        write_lines([f"Nothing is registered in {registry.root} yet."])
    else:
        rows = []
        for version in found:
            saved = version.created_at[:16] if isinstance(version, ArtifactVersion) else ""
            kind = version.type if isinstance(version, ArtifactVersion) else ""
            status, path = _status(registry, version)
            rows.append([version.name, f"v{version.version}", kind, saved, status, path])
        _print_marked(["NAME", "LATEST", "TYPE", "SAVED", "FILES", "PATH"], rows)
        _print_repair_hint(found)
    return 0


def _versions(registry: LocalRegistry, name: str, as_json: bool) -> int:
    numbers = registry.versions(name)
    if not numbers:
        registry.find(name)  # raises, listing the existing ones, for an unknown name
    versions = [registry.read_version(name, number) for number in numbers]
    if as_json:
        print_json([_summary(registry, version) for version in versions])
        return 0
    aliases = registry.aliases(name)
    labels = {v.version: " ".join(a for a, number in aliases.items() if number == v.version) for v in versions}
    rows = []
    for version in versions:
        status, path = _status(registry, version)
        facts = ["", "", ""]
        if isinstance(version, ArtifactVersion):
            facts = [version.digest[:12], version.created_at[:16], version.producer]
        rows.append([f"v{version.version}", labels[version.version], *facts, status, path])
    _print_marked(["VERSION", "ALIASES", "DIGEST", "SAVED", "RUN", "FILES", "PATH"], rows[::-1])
    _print_repair_hint(versions)
    for alias in registry.pointers(name, "aliases"):
        if alias not in aliases:
            write_lines([f"The alias {alias} is damaged: nemotron artifacts gc removes it."])
    return 0


def _status(registry: LocalRegistry, version: ArtifactVersion | DamagedVersion) -> tuple[str, str]:
    """(state of a version's files or record, "" if it is fine; its path, or the reason)."""
    if not isinstance(version, ArtifactVersion):
        return "damaged", version.error.message
    return registry.files_status(version), version.path


def _print_marked(header: list[str], rows: list[list[str]]) -> None:
    """Print a table; its column FILES is left out if all its cells are empty."""
    column = header.index("FILES")
    if not any(row[column] for row in rows):
        header, rows = header[:column] + header[column + 1 :], [row[:column] + row[column + 1 :] for row in rows]
    print_table(header, rows, styles={"damaged": "bold red", "gone": "bold red", "changed": "bold red"})


def _print_repair_hint(versions: Sequence[ArtifactVersion | DamagedVersion]) -> None:
    if any(not isinstance(version, ArtifactVersion) for version in versions):
        write_lines(["nemotron artifacts gc repairs or drops what is damaged; --dry-run lists them."])


def _count(version: ArtifactVersion) -> str:
    return f"{len(version.files)} {'file' if len(version.files) == 1 else 'files'}"


def _facts(version: ArtifactVersion) -> Iterator[tuple[str, object]]:
    yield "artifact", version.pin.label
    yield "type", version.type
    yield "path", version.path
    yield "digest", f"{version.digest} ({_count(version)}, by {version.identified_by})"
    yield "saved", version.created_at
    yield "run", version.producer
    for pin in version.inputs:
        yield "made from", f"{pin.label} at {pin.path}"
    for key, value in version.metadata.items():
        if isinstance(value, int | float | str):
            yield key, value


def _summary(registry: LocalRegistry, version: ArtifactVersion | DamagedVersion) -> dict[str, Any]:
    if not isinstance(version, ArtifactVersion):
        return {"name": version.name, "version": version.version, "files": "damaged", "error": version.error.message}
    return {
        **version.pin.to_dict(),
        "created_at": version.created_at,
        "producer": version.producer,
        "inputs": [pin.label for pin in version.inputs],
        "files": registry.files_status(version) or "whole",
    }
