"""YAML that is small on disk and endless in memory: refused before anything is built from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError

MAX_DEPTH = 64
# What all aliases together may unfold to: far above what a person writes, and read in a moment.
MAX_NODES = 100_000


def refuse_bombs(path: Path, text: str) -> None:
    """Raise UserError, with the line, for YAML nested too deeply, with an alias inside of what it stands for, or with
    aliases of aliases that unfold to more than anybody wrote."""
    import yaml

    # Parsing twice would double the time of an ordinary config: only what could be one is looked at.
    nested = max(text.count("[") + text.count("{"), text.count("- "), max(map(_indent, text.split("\n"))) // 2)
    if "*" not in text and nested <= MAX_DEPTH:
        return
    counter = _Counter()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if wrong := counter.wrong(event):
                mark = event.start_mark
                raise UserError(f"{path}:{mark.line + 1 if mark else 1}: {wrong}.")
    except yaml.YAMLError:
        return  # the loader words it, with its place


class _Counter:
    """How many nodes the document unfolds to, event by event."""

    def __init__(self) -> None:
        self.open: list[tuple[str | None, int]] = [(None, 0)]  # (anchor, nodes so far) of each collection
        self.size: dict[str, int] = {}  # anchor → nodes, of those that are closed

    def wrong(self, event: Any) -> str | None:
        import yaml

        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in self.open):
                return f"the alias *{event.anchor} stands inside of what it stands for"
            self._add(self.size.get(event.anchor or "", 1))
        elif isinstance(event, yaml.ScalarEvent):
            self._add(1)
            self._close(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.open.append((event.anchor, 1))
            if len(self.open) > MAX_DEPTH + 1:
                return f"nested deeper than {MAX_DEPTH} levels"
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes = self.open.pop()
            self._add(nodes)
            self._close(anchor, nodes)
        return f"its aliases unfold to more than {MAX_NODES} values" if self.open[-1][1] > MAX_NODES else None

    def _add(self, nodes: int) -> None:
        anchor, before = self.open[-1]
        self.open[-1] = (anchor, before + nodes)

    def _close(self, anchor: str | None, nodes: int) -> None:
        if anchor:
            self.size[anchor] = nodes


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
