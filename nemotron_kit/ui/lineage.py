"""The lineage graph: which runs made which versions out of which data."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nemotron_kit.artifacts.store import ArtifactVersion
from nemotron_kit.home import is_run_id

# Nodes of one graph; a larger one is cut, and says so.
_MOST = 300
# Of a label that stands between two columns.
_LABEL, _COLUMN = 22, 155


@dataclass(frozen=True)
class GraphNode:
    """`kind`: `data` (a path that is not registered), `artifact` or `run`. `name` is the run's id, the version's label
    or the path."""

    kind: str
    name: str

    @property
    def key(self) -> str:
        """Identifies the node in its graph."""
        return f"{self.kind} {self.name}"

    @property
    def short(self) -> str:
        """A label of at most 22 characters: a run without its date, the end of a path."""
        text = "-".join(self.name.split("-")[2:]) if self.kind == "run" else self.name
        return text if len(text) <= _LABEL else f"…{text[1 - _LABEL :]}"


@dataclass
class Graph:
    """Nodes by their keys, and edges: (key of a source, key of what was made from it). `cut`: nodes were left out."""

    nodes: dict[str, GraphNode] = field(default_factory=dict)
    edges: set[tuple[str, str]] = field(default_factory=set)
    cut: bool = False

    def add(self, node: GraphNode) -> str:
        """Add a node unless the graph has it; returns its key."""
        self.nodes.setdefault(node.key, node)
        return node.key

    @property
    def size(self) -> dict[str, int]:
        """The pixels that its columns, and the fullest of them, need."""
        counts = Counter(self.columns().values())
        return {"width": _COLUMN * len(counts), "height": min(4000, 140 + 44 * max(counts.values(), default=1))}

    def columns(self) -> dict[str, int]:
        """Each node's distance from the data: one more than the greatest of those above it."""
        below: dict[str, list[str]] = defaultdict(list)
        waiting = dict.fromkeys(self.nodes, 0)
        for above, under in self.edges:
            below[above].append(under)
            waiting[under] += 1
        found = dict.fromkeys(self.nodes, 0)
        ready = deque(key for key, count in waiting.items() if count == 0)
        while ready:
            key = ready.popleft()
            for under in below[key]:
                found[under] = max(found[under], found[key] + 1)
                waiting[under] -= 1
                if waiting[under] == 0:
                    ready.append(under)
        return found

    def listed(self) -> list[tuple[int, GraphNode]]:
        """(column, node), from the data to the models: the graph as a list, for the keyboard and screen readers."""
        column = self.columns()
        return sorted(
            ((column[key], node) for key, node in self.nodes.items()), key=lambda each: (each[0], each[1].key)
        )


def graph_of(versions: Iterable[ArtifactVersion], about: ArtifactVersion | None = None) -> Graph:
    """The graph of all `versions`, or of what `about` was made from and what was made from it."""
    every = {version.pin.label: version for version in versions}
    graph = Graph()
    chosen = every if about is None else dict(_family(every, about))
    for version in list(chosen.values())[::-1]:
        if len(graph.nodes) >= _MOST:
            graph.cut = True
            break
        made = graph.add(GraphNode("artifact", version.pin.label))
        sources = [GraphNode("data" if pin.version is None else "artifact", pin.label) for pin in version.inputs]
        above = [graph.add(node) for node in sources]
        if is_run_id(version.producer):
            run = graph.add(GraphNode("run", version.producer))
            graph.edges |= {(key, run) for key in above} | {(run, made)}
        else:
            graph.edges |= {(key, made) for key in above}
    return graph


def _family(every: dict[str, ArtifactVersion], about: ArtifactVersion) -> Iterator[tuple[str, ArtifactVersion]]:
    """`about`, what it was made from and what was made from it, each once."""
    made_from: dict[str, list[str]] = {label: [pin.label for pin in v.inputs] for label, v in every.items()}
    used_by: dict[str, list[str]] = defaultdict(list)
    for label, inputs in made_from.items():
        for name in inputs:
            used_by[name].append(label)
    every.setdefault(about.pin.label, about)
    found: dict[str, None] = {}
    for ways in (made_from, used_by):
        left = [about.pin.label]
        while left:
            label = left.pop()
            if label in found and label != about.pin.label:
                continue
            found[label] = None
            left += [name for name in ways.get(label, ()) if name in every and name not in found]
    yield from ((label, every[label]) for label in found)
