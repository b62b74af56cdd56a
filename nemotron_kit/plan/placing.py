"""A composed job, placed: its profile's settings, where its files will lie, and its config as it reads there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import shadows_library
from nemotron_kit.config.compose import Composed, hydra_visible
from nemotron_kit.config.files import key_place
from nemotron_kit.config.foreign import check_targets
from nemotron_kit.config.freeze import freeze, walk_strings
from nemotron_kit.config.secrets import refuse_secrets
from nemotron_kit.envfile import read_env_file
from nemotron_kit.plan.paths import Place, moved, place_of, with_folder
from nemotron_kit.plan.settings import effective_settings

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig

# What asks another machine: `call(op, payload, **args)`, as execution.reach.Reach has it.
Reach = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Placed:
    """`behind`: field → path that exists here and that nothing takes along (see plan.left_behind). `fetch`: the
    repositories that its mounts need (see plan.auto_mounts)."""

    config: dict[str, Any]
    settings: RunConfig
    place: Place
    behind: Mapping[str, str] = field(default_factory=dict)
    fetch: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def place_job(
    composed: Composed, run_id: str, job: int, recorded: RunConfig | None = None, reach: Reach | None = None
) -> Placed:
    """Freeze a composed job for the place that its profile names. UserError for a path that can't be right there.

    `recorded`: the settings of an earlier launch, in the profile's place.
    """
    with hydra_visible(composed.hydra):
        placed = _placed(composed, run_id, job, recorded, reach)
    check_targets(placed.config, composed.command, composed.config_name, " ".join(composed.overrides))
    refuse_secrets(placed.config, lambda key: _place_in(composed.config_file, key))
    return placed


def _place_in(file: Path | None, key: str) -> str:
    place = key_place(file, key) if file else ""
    return f"{place}: " if place != str(file or "") else ""


def _placed(composed: Composed, run_id: str, job: int, recorded: RunConfig | None, reach: Reach | None) -> Placed:
    from nemotron_kit.home import nemotron_home

    frozen = freeze(composed.config, f"{nemotron_home()}/runs/{run_id}/jobs/{job}")
    settings = effective_settings(frozen["run"], composed.overrides, recorded)
    settings, where = with_folder(settings, (lambda: str(reach(vars(settings)).root)) if reach else None)
    place = place_of(settings, run_id, job, registry=registry_here(settings))
    if settings.executor == "local":
        return Placed(frozen, settings, place)
    from nemotron_kit.plan.anchoring import anchored
    from nemotron_kit.plan.left_behind import check_paths

    fetch: tuple[dict[str, str], ...] = ()
    notes = where
    if any("auto_mount:" in mount for mount in settings.mounts or ()):
        from nemotron_kit.plan.auto_mounts import with_repositories

        settings, fetch, more = with_repositories(settings, place.root, reach)
        notes += more
    there = freeze(composed.config, place.job, pwd=place.environment["PWD"])
    behind = check_paths(there, place, settings)
    there = anchored(there, composed.command.load_config_cls(), place.environment["PWD"])
    # The `run` section is read by the launch, so its paths are those of this machine.
    config = {**moved(there, place), "run": frozen["run"]}
    return Placed(config, settings, place, behind, fetch, notes)


def registry_here(settings: RunConfig) -> str | None:
    """The registry that a job on this machine finds, unless its profile names another."""
    if settings.tunnel == "ssh" or settings.artifacts_root:
        return None
    from nemotron_kit.artifacts.registry import open_registry

    return str(open_registry().root)


def import_path(place: Place, *, harmless: bool = False) -> list[str]:
    """This process's import path as the job's: what lies in the code that is sent moves with it; on another machine
    the rest is not there, and the kit comes first. `harmless`: without folders that would hide the standard library."""
    here = [str(Path(entry).absolute()) for entry in sys.path]
    here = [entry for entry in here if not (harmless and shadows_library(entry))]
    entries = [place.move(entry) for entry in here if place.kit is None or place.move(entry) != entry]
    # The kit's own folders (a checkout's) are found through the kit.
    inside = [entry for entry in entries if not (place.kit and entry.startswith(place.kit))]
    return list(dict.fromkeys([*filter(None, [place.kit]), *inside]))


def registry_table(place: Place) -> str:
    """env.toml for the job: [artifacts] as it is here, its root as it is there."""
    table = {**read_env_file().table("artifacts"), "root": place.artifacts}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    return "\n".join(["[artifacts]", *lines]) + "\n"


def left_out(place: Place) -> list[str]:
    """A sentence on code in the tree that is not sent, and of which git says nothing."""
    from nemotron_kit.plan.packaging import repositories_left_out

    if place.tree is None:
        return []
    return [
        f"{name}: a git repository of its own that git ignores in {place.tree.root}, so it is not part of the code "
        "that is sent. If the job imports it, take it out of .gitignore."
        for name in repositories_left_out(place.tree)
    ]


def still_behind(placed: Placed, reach: Reach | None) -> list[str]:
    """A sentence for each field whose path the job will not find. With `reach` the target is asked."""
    return [*_ignored(placed), *_elsewhere(placed, reach)]


def _ignored(placed: Placed) -> list[str]:
    """Files in the code's own folder that git ignores, so that they are not sent."""
    place = placed.place
    if place.code is None or place.tree is None:
        return []
    from nemotron_kit.plan.packaging import ignored

    inside = f"{place.code}/"
    values = {key: value for key, value in placed.config.items() if key != "run"}
    found = {key: text.removeprefix(inside) for key, text in walk_strings(values) if text.startswith(inside)}
    files = {key: name for key, name in found.items() if os.path.isfile(f"{place.tree.root}/{name}")}  # noqa: PTH113
    not_sent = ignored(place.tree, sorted(set(files.values()))) if files else set()
    return [
        f"{key}: {name} is ignored by git, so it is not part of the code that is sent. Add it to the repository "
        f"(git add -f {name}), or name a place that {place.host} sees."
        for key, name in files.items()
        if name in not_sent
    ]


def _elsewhere(placed: Placed, reach: Reach | None) -> list[str]:
    if not placed.behind:
        return []
    place, missing = placed.place, dict(placed.behind)
    if reach is not None and place.apart:
        paths = list(missing.values())
        there, _ = reach({**vars(placed.settings)}).call("exist", paths=paths)
        missing = {key: path for key, path in missing.items() if not there[paths.index(path)]}
    where = f"is on this machine and not {f'on {place.host}' if place.apart else 'in the container'}"
    sent = f"the code that is sent is {place.tree.root}" if place.tree else "no code is sent"
    fix = "mount it (mounts = …)" if place.code and not place.apart else f"name a path on {place.host}, or mount it"
    return [f"{key}: {path} {where}: {sent}. Move it there, or {fix}." for key, path in missing.items()]
