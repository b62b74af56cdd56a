"""`nemotron artifacts`: lists registered artifacts, the versions of a name, and a version's lineage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nemotron_kit.artifacts.commit import files_status
from nemotron_kit.artifacts.reference import Reference
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.artifacts.store import ArtifactVersion
from nemotron_kit.cli.output import print_facts, print_json, print_table, write_lines
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    from nemotron_kit.artifacts.registry import LocalRegistry
    from nemotron_kit.artifacts.store import DamagedVersion


def look(argv: list[str]) -> int:
    """`nemotron artifacts [REFERENCE]`. Raises UserError for a reference to nothing, or to files that have changed."""
    parser = ToolParser("artifacts")
    parser.add_argument("--alias", metavar="WORD")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--json", action="store_true")
    options: Any = parser.parse(argv)
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
            f"{options.reference} is a folder, and no name of the registry's.",
            hint="`nemotron artifacts` lists the names, and the folder that each stands for.",
        )
    whole = any(mark in options.reference.removeprefix("art://") for mark in ":@")
    if not whole and options.alias is None and not options.verify:
        return _versions(registry, reference.slug, options.json)
    version = registry.find(reference)
    if options.verify:
        registry.verify(version.pin, deep=True)
    if options.alias is not None:
        registry.set_alias(version.name, options.alias, version.version)
    return _version(version, options.json, verified=options.verify)


def collect(argv: list[str]) -> int:
    """`nemotron artifacts gc ARGUMENTS`: the exit code."""
    parser = ToolParser("artifacts", "gc")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse(argv)
    if options is None:
        return 0
    registry, dry_run, as_json = open_registry(), options.dry_run, options.json
    found, left = registry.mend(dry_run=dry_run), registry.gc(dry_run=dry_run)
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "records": [
                    {"what": each.what, "file": str(each.file), "why": each.why, "remedy": each.remedy}
                    for each in found
                ],
                "leftovers": [str(path) for path in left],
            }
        )
        return 0
    would = "would be " if dry_run else ""
    rows = [[f"{would}{each.remedy}", each.what, each.why] for each in found]
    rows += [[f"{would}removed", "left by a save that was killed", str(path)] for path in left]
    if rows:
        print_table(["", "WHAT", "WHY"], rows)
    else:
        write_lines([f"Nothing to repair or to collect in {registry.root}."])
    return 0


def _names(registry: LocalRegistry, as_json: bool) -> int:
    found = [registry.look(name, versions[-1]) for name in registry.names() if (versions := registry.versions(name))]
    if as_json:
        print_json([_summary(registry, version) for version in found])
    elif not found:
        write_lines([f"Nothing is registered in {registry.root} yet."])
    else:
        rows = []
        for version in found:
            saved = version.created_at[:16] if isinstance(version, ArtifactVersion) else ""
            kind = version.type if isinstance(version, ArtifactVersion) else ""
            status, path = _condition(registry, version)
            rows.append([version.name, f"v{version.version}", kind, saved, status, path])
        _print_marked(["NAME", "LATEST", "TYPE", "SAVED", "FILES", "PATH"], rows)
        _advise(found)
    return 0


def _versions(registry: LocalRegistry, name: str, as_json: bool) -> int:
    numbers = registry.versions(name)
    if not numbers:
        registry.find(name)  # raises, listing the existing ones, for an unknown name
    versions = [registry.look(name, number) for number in numbers]
    if as_json:
        print_json([_summary(registry, version) for version in versions])
        return 0
    aliases = registry.aliases(name)
    labels = {v.version: " ".join(a for a, number in aliases.items() if number == v.version) for v in versions}
    rows = []
    for version in versions:
        status, path = _condition(registry, version)
        facts = ["", "", ""]
        if isinstance(version, ArtifactVersion):
            facts = [version.digest[:12], version.created_at[:16], version.producer]
        rows.append([f"v{version.version}", labels[version.version], *facts, status, path])
    _print_marked(["VERSION", "ALIASES", "DIGEST", "SAVED", "RUN", "FILES", "PATH"], rows[::-1])
    _advise(versions)
    for alias in registry.pointers(name, "aliases"):
        if alias not in aliases:
            write_lines([f"The alias {alias} is damaged: nemotron artifacts gc removes it."])
    return 0


def _condition(registry: LocalRegistry, version: ArtifactVersion | DamagedVersion) -> tuple[str, str]:
    """(state of a version's files or record, "" if it is fine; its path, or the reason)."""
    if not isinstance(version, ArtifactVersion):
        return "damaged", version.error.message
    return files_status(registry, version), version.path


def _print_marked(header: list[str], rows: list[list[str]]) -> None:
    """Print a table; its column FILES is left out if all its cells are empty."""
    column = header.index("FILES")
    if not any(row[column] for row in rows):
        header, rows = header[:column] + header[column + 1 :], [row[:column] + row[column + 1 :] for row in rows]
    print_table(header, rows, styles={"damaged": "bold red", "gone": "bold red", "changed": "bold red"})


def _advise(versions: Sequence[ArtifactVersion | DamagedVersion]) -> None:
    if any(not isinstance(version, ArtifactVersion) for version in versions):
        write_lines(["nemotron artifacts gc repairs or drops what is damaged; --dry-run lists them."])


def _version(version: ArtifactVersion, as_json: bool, *, verified: bool) -> int:
    if as_json:
        print_json({**version.to_dict(), **({"verified": True} if verified else {})})
    else:
        facts = list(_facts(version))
        print_facts([*facts, ("verified", _verdict(version))] if verified else facts)
    return 0


def _verdict(version: ArtifactVersion) -> str:
    """The result of --verify; raises any other error."""
    by = "read again" if version.identified_by == "sha256" else f"compared by {version.identified_by}"
    return f"{_count(version)} {by}: as registered"


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
        "files": files_status(registry, version) or "whole",
    }
