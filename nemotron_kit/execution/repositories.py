"""Has the target make what jobs mount: repositories (plan.auto_mounts), and the kit's own folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nemotron_kit.artifacts.registry import artifact_settings
from nemotron_kit.envfile import read_env_file
from nemotron_kit.execution.reach import Reach
from nemotron_kit.plan.plan import Plan


def fetch_repositories(reach: Reach, plans: Iterable[Plan]) -> None:
    """Each repository once; nothing where it is there already."""
    wanted = {record["folder"]: record for plan in plans for record in plan.extra.get("repositories", ())}
    for record in wanted.values():
        reach.call("fetch_repository", **record)


def make_mounted(reach: Reach, place: Mapping[str, Any]) -> None:
    """The code's folder and the registry, which every container is given: on a first launch they aren't there yet."""
    mode = artifact_settings(read_env_file())["mode"]
    reach.call("make_mounted", root=place["root"], registry=place["artifacts"], mode=mode)
