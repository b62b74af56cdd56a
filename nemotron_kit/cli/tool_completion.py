"""What Tab offers behind `nemotron runs`, `artifacts`, `profiles` and `completion`."""

# pathlib alone costs as much as the rest of a help page.
# ruff: noqa: PTH118, PTH208
from __future__ import annotations

import os
import re

from nemotron_kit.cli import env, options, tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nemotron_kit.cli.index import Index

    Answers = Iterator[tuple[str, str]]

# The options of each, so that Tab imports none of them; tests/unit/cli/test_completion.py holds them to the help pages.
OPTIONS = {
    "runs": ("--recipe", "--stage", "--state", "--since", "--limit", "--json"),
    "runs show": ("--job", "--json"),
    "runs attach": ("--job", "--all"),
    "runs logs": ("--follow", "--tail", "--job", "--rank"),
    "runs wait": ("--patience",),
    "runs cancel": ("--job", "--grace"),
    "runs resume": (),
    "runs shell": ("--job", "--node"),
    "runs rerun": ("--run", "--batch", "--dry-run"),
    "runs diff": ("--json",),
    "runs rm": ("--force", "--here"),
    "artifacts": ("--alias", "--verify", "--dry-run", "--json"),
    "profiles": ("--json",),
    "profiles show": ("--all", "--json"),
    "profiles check": ("--json",),
    "profiles login": ("--close",),
    "profiles clean": ("--unused", "--dry-run", "--json"),
}
STATES = ("pending", "running", "succeeded", "failed", "cancelled", "preempted", "unreachable", "unknown")
_NO_VALUE = {"--json", "--all", "--follow", "--force", "--here", "--verify", "--close", "--dry-run"}


def after_tool(name: str, words: Sequence[str], current: str, index: Index) -> Answers:
    """(what may stand in place of `current`, what it means), behind one of nemotron's own commands."""
    bare = [word for word in words if not options.is_option(word)]
    page = " ".join(bare[:2]) if " ".join(bare[:2]) in OPTIONS else name
    last = words[-1]
    if options.is_option(last) and "=" not in last and last.startswith("--") and last not in _NO_VALUE:
        yield from _values(last, index)
    elif current.startswith("-"):
        yield from ((option, "") for option in OPTIONS.get(page, ()))
    elif name == "artifacts":
        yield from [("gc", "")] if len(bare) == 1 else []
        yield from artifacts(current)
    elif len(bare) == 1:
        yield from ((each, "") for each in tree.TOOLS[name][2])
    elif name == "runs":
        yield from runs()
    elif name == "profiles":
        yield from profiles()


def _values(option: str, index: Index) -> Answers:
    if option == "--state":
        yield from ((state, "") for state in STATES)
    elif option == "--recipe":
        yield from ((name, "") for name in index.root["children"])
    elif option in ("--run", "--batch"):
        yield from profiles()


def runs() -> Answers:
    """The runs' ids, the newest first, and the word for it."""
    yield from ((each, "") for each in ("latest", *reversed(listing(os.path.join(env.home(), "runs")))))


def profiles() -> Answers:
    """The profiles of env.toml."""
    for name, table in env.tables().items():
        if name not in env.RESERVED and isinstance(table, dict):
            yield name, str(table.get("executor", "local"))


def artifacts(current: str) -> Answers:
    """Names; after `Name:`, its versions and aliases. Read off the folders of the registry on this machine."""
    name, colon, _ = current.partition(":")
    root = env.artifacts_root()
    if not colon:
        yield from ((each, "") for each in listing(root))
        return
    numbers = sorted(int(each[1:]) for each in listing(os.path.join(root, name)) if re.fullmatch(r"v\d+", each))
    versions = [f"v{number}" for number in numbers]
    for each in ("latest", *versions, *listing(os.path.join(root, name, "aliases"))):
        yield f"{name}:{each}", ""


def listing(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []
