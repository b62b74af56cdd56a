"""Has the target fetch the repositories that jobs mount (plan.auto_mounts)."""

from __future__ import annotations

from collections.abc import Iterable

from nemotron_kit.execution.reach import Reach
from nemotron_kit.plan.plan import Plan


def fetch_repositories(reach: Reach, plans: Iterable[Plan]) -> None:
    """Each repository once; nothing where it is there already."""
    wanted = {record["folder"]: record for plan in plans for record in plan.extra.get("repositories", ())}
    for record in wanted.values():
        reach.call("fetch_repository", **record)
