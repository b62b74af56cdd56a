"""What is small on disk and endless in memory: YAML, refused before anything is built from it, and interpolations,
which are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError

MAX_DEPTH = 64
# What all aliases together may unfold to: far above what a person writes, and read in a moment.
MAX_NODES = 100_000
# How many interpolations one value may lead to, and one config: far above what a person writes, and over in seconds.
MAX_INTERPOLATIONS, MAX_IN_CONFIG = 5_000, 50_000
MAX_TEXT = 4 << 20


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


@contextmanager
def bounded_interpolations(*, total: int | None = None) -> Iterator[None]:
    """Within the block a value whose interpolations multiply (`${a}${a}`, line by line) is a UserError, not a day's
    work: OmegaConf resolves each of them anew, wherever it is referred to. `total`: all of the block's together."""
    import omegaconf

    container: Any = vars(omegaconf)["base"].Container
    resolve = container.resolve_parse_tree
    depth = this = every = 0

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth, this, every
        this = this + 1 if depth else 1
        every += 1
        if this > MAX_INTERPOLATIONS or (total is not None and every > total):
            raise UserError("the interpolations here multiply: they come to too many to be resolved.")
        depth += 1
        try:
            value = resolve(self, *args, **kwargs)
        finally:
            depth -= 1
        if isinstance(value, str) and len(value) > MAX_TEXT:
            place = self._get_full_key(kwargs.get("key"))
            raise UserError(f"{place}: an interpolation gives more than {MAX_TEXT >> 20} MiB of text.")
        return value

    container.resolve_parse_tree = counted
    try:
        yield
    finally:
        container.resolve_parse_tree = resolve
