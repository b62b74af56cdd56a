"""`nemotron artifacts`: what is registered, which versions a name has, and where a version came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nemotron_kit.cli.grid import print_facts, print_json, print_table, write_lines
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    from nemotron_kit.artifacts.local import LocalRegistry
    from nemotron_kit.artifacts.records import ArtifactVersion

SUMMARY = "list artifacts, versions and lineage"
HELP = """\
usage: nemotron artifacts [REFERENCE] [--alias WORD] [--verify] [--json]

Without a reference: every name in the registry. With a name: its versions. With a version (Name:v3, Name:alias): where
it lies, what it was made from and by which run.

options
  --alias WORD   make WORD stand for the version: nemotron artifacts Name:v3 --alias production
  --verify       read all of its files again and compare them with what was registered
  --json         for programs
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit code. Raises UserError for a reference to nothing, or to files that have changed."""
    from nemotron_kit.artifacts.reference import Reference
    from nemotron_kit.artifacts.registry import open_registry

    parser = ToolParser("nemotron artifacts", SUMMARY, add_help=False)
    parser.add_argument("reference", nargs="?")
    parser.add_argument("--alias")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--json", action="store_true")
    if {"-h", "--help"} & set(argv):
        write_lines(HELP.splitlines())
        return 0
    options: Any = parser.parse(argv)
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


def _names(registry: LocalRegistry, as_json: bool) -> int:
    newest = {name: registry.record(name, registry.versions(name)[-1]) for name in registry.names()}
    if as_json:
        print_json([_summary(version) for version in newest.values()])
    elif not newest:
        write_lines([f"Nothing is registered in {registry.root} yet."])
    else:
        rows = [[v.name, f"v{v.version}", v.type, v.created_at[:16], v.path] for v in newest.values()]
        print_table(["NAME", "LATEST", "TYPE", "SAVED", "PATH"], rows)
    return 0


def _versions(registry: LocalRegistry, name: str, as_json: bool) -> int:
    registry.find(name)  # says what there is, where there is none of that name
    versions = [registry.record(name, number) for number in registry.versions(name)]
    if as_json:
        print_json([_summary(version) for version in versions])
        return 0
    aliases = registry.aliases(name)
    words = {v.version: " ".join(a for a, number in aliases.items() if number == v.version) for v in versions}
    rows = [[f"v{v.version}", words[v.version], v.digest[:12], v.created_at[:16], v.producer, v.path] for v in versions]
    print_table(["VERSION", "ALIASES", "DIGEST", "SAVED", "RUN", "PATH"], rows[::-1])
    return 0


def _version(version: ArtifactVersion, as_json: bool, *, verified: bool) -> int:
    if as_json:
        print_json({**version.to_dict(), **({"verified": True} if verified else {})})
    else:
        facts = list(_facts(version))
        print_facts([*facts, ("verified", _verdict(version))] if verified else facts)
    return 0


def _verdict(version: ArtifactVersion) -> str:
    """What --verify found; anything else than this was an error."""
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


def _summary(version: ArtifactVersion) -> dict[str, Any]:
    return {
        **version.pin.to_dict(),
        "created_at": version.created_at,
        "producer": version.producer,
        "inputs": [pin.label for pin in version.inputs],
    }
