"""The pages of artifacts: the names, the versions of one, a version, the lineage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nemotron_kit.artifacts.reference import Reference
from nemotron_kit.artifacts.registry import LocalRegistry, open_registry
from nemotron_kit.artifacts.store import ArtifactVersion
from nemotron_kit.ui.figures import Figure, lineage
from nemotron_kit.ui.lineage import Graph, graph_of
from nemotron_kit.ui.page import Links, WebPage, as_text, pin_link, run_link

# Files of a version that are listed.
_ROWS = 500


class ArtifactPages:
    """Makes the pages of the registry."""

    def __init__(self, links: Links) -> None:
        self.links = links

    def artifacts(self) -> WebPage:
        """Every name, with its latest version."""
        registry = open_registry()
        rows = []
        for name in registry.names():
            versions = registry.versions(name)
            if versions:
                version = registry.read_version(name, versions[-1])
                rows.append(self._version_row(registry, version) | {"versions": len(versions)})
        return WebPage("artifacts.html", "Artifacts", {"rows": rows, "root": str(registry.root)}, anchor="artifacts")

    def _version_row(self, registry: LocalRegistry, version: Any) -> dict[str, Any]:
        row = {
            "name": version.name,
            "version": version.version,
            "url": self.links.artifact(version.name, version.version),
            "name_url": self.links.artifact(version.name),
        }
        if not isinstance(version, ArtifactVersion):
            return {**row, "files": "damaged", "why": version.error.message}
        return {
            **row,
            "type": version.type,
            "saved": version.created_at[:16].replace("T", " "),
            "digest": version.digest[:12],
            "path": version.path,
            "run": version.producer,
            "run_url": run_link(self.links, version.producer),
            "files": registry.files_status(version),
        }

    def artifact_name(self, name: str) -> WebPage:
        """The versions of a name. Raises ArtifactNotFoundError."""
        registry = open_registry()
        numbers = registry.versions(name)
        if not numbers:
            registry.find(Reference.parse(name))
        aliases = registry.aliases(name)
        rows = [self._version_row(registry, registry.read_version(name, number)) for number in reversed(numbers)]
        for row in rows:
            row["aliases"] = [alias for alias, number in aliases.items() if number == row["version"]]
        return WebPage("artifact_name.html", name, {"name": name, "rows": rows}, anchor=f"artifact-{name}")

    def artifact(self, name: str, number: int) -> WebPage:
        """A version: its files, what it was made from, what was made from it. Raises ArtifactNotFoundError."""
        registry = open_registry()
        version = registry.find(Reference.parse(f"{name}:v{number}"))
        every = list(sound_versions(registry))
        drawn, figures = self._drawn(graph_of(every, version))
        data = {
            "name": name,
            "version": number,
            "name_url": self.links.artifact(name),
            "row": self._version_row(registry, version),
            "aliases": [alias for alias, at in registry.aliases(name).items() if at == number],
            "digest": f"{version.digest} (by {version.identified_by})",
            "made_from": [pin_link(self.links, pin.to_dict()) for pin in version.inputs],
            "used_by": [
                pin_link(self.links, each.pin.to_dict())
                for each in every
                if version.pin.label in (pin.label for pin in each.inputs)
            ],
            "metadata": [
                (key, value if isinstance(value, str) else as_text(value)) for key, value in version.metadata.items()
            ],
            "files": [(entry.path, getattr(entry, "size", None)) for entry in version.files[:_ROWS]],
            "more_files": max(0, len(version.files) - _ROWS),
            **drawn,
        }
        return WebPage("artifact.html", f"{name}:v{number}", data, figures, anchor=f"artifact-{name}-v{number}")

    def lineage(self) -> WebPage:
        """The whole registry's graph."""
        graph = graph_of(sound_versions(open_registry()))
        return WebPage("lineage.html", "Lineage", *self._drawn(graph), anchor="lineage")

    def lineage_of(self, runs: Sequence[str]) -> WebPage:
        """The graph of what these runs read and saved, and what that was made from."""
        every = list(sound_versions(open_registry()))
        ours = [version for version in every if version.producer in runs]
        graph = Graph()
        for version in ours:
            found = graph_of(every, version)
            graph.nodes |= found.nodes
            graph.edges |= found.edges
            graph.cut |= found.cut
        return WebPage("lineage.html", "Lineage", *self._drawn(graph), anchor="lineage")

    def _drawn(self, graph: Graph) -> tuple[dict[str, Any], list[Figure]]:
        """(what the template lists of a graph, its chart)."""
        found: dict[str, str | None] = {}
        for key, node in graph.nodes.items():
            if node.kind == "run":
                found[key] = run_link(self.links, node.name)
            elif node.kind == "artifact":
                name, _, number = node.name.rpartition(":v")
                found[key] = self.links.artifact(name, int(number))
            else:
                found[key] = None
        listed = [(column, node.kind, node.name, found[node.key]) for column, node in graph.listed()]
        figure = lineage(graph, found)
        return {"nodes": listed, "cut": graph.cut, "edges": len(graph.edges)}, [figure] if figure else []


def sound_versions(registry: LocalRegistry) -> Iterator[ArtifactVersion]:
    """Every version whose record can be read."""
    return (version for version in registry.everything() if isinstance(version, ArtifactVersion))
