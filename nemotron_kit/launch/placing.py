"""Resolves a composed job for its target: its settings, the paths of its files, and its config with those paths."""

from __future__ import annotations

import dataclasses
import json
import os
import posixpath
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from nemotron_kit.app import shadows_library
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.config.compose import Composed, hydra_visible
from nemotron_kit.config.config_files import key_location
from nemotron_kit.config.convert import type_hints
from nemotron_kit.config.foreign import check_targets
from nemotron_kit.config.freeze import freeze, keep_variables, walk_strings
from nemotron_kit.config.secrets import refuse_secrets
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import Problem, UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.home import nemotron_home
from nemotron_kit.spec.paths import (
    REMOTE_FOLDER,
    RemotePaths,
    below,
    ignored,
    moved,
    repositories_left_out,
    with_folder,
)
from nemotron_kit.spec.plan import is_local
from nemotron_kit.spec.resources import effective_settings
from nemotron_kit.spec.runconfig import RunConfig


def absolutized(values: Mapping[str, Any], cls: type, folder: str) -> dict[str, Any]:
    """`values`, a frozen config of the dataclass `cls`, with each relative path that is there in the working folder
    as one below `folder`, which the working folder is called where the job runs.

    Only what a field of type Path holds is taken for a path. One that isn't there may be a result, or a file that the
    job's own code finds in its own way: it stays relative, to where the job starts.
    """
    return {key: _anchored(value, type_hints(cls).get(key), folder) for key, value in values.items()}


def _anchored(value: Any, annotation: Any, folder: str) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _anchored(value, args[0], folder)
    if origin in (Union, types.UnionType):
        members = [each for each in args if each is not type(None)]
        return _anchored(value, members[0], folder) if len(members) == 1 else value
    if isinstance(value, Mapping):
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return absolutized(value, annotation, folder)
        return {key: _anchored(item, args[1], folder) for key, item in value.items()} if len(args) == 2 else value
    if isinstance(value, list):
        return [_anchored(item, args[0], folder) for item in value] if args else value
    is_path = isinstance(annotation, type) and issubclass(annotation, Path) and isinstance(value, str)
    return posixpath.normpath(posixpath.join(folder, value)) if is_path and _is_here(value) else value


def _is_here(text: str) -> bool:
    return not text.startswith(("/", "~")) and text not in ("", ".") and os.path.exists(text)  # noqa: PTH110 — any text


# Folders that differ between machines and images.
_SYSTEM = ("/usr", "/opt", "/etc", "/dev", "/proc", "/sys", "/bin", "/lib", "/var", "/run")


def check_paths(values: Mapping[str, Any], paths: RemotePaths, settings: RunConfig) -> dict[str, str]:
    """Field → path that exists on this machine and that is neither copied to nor mounted at the target: the job finds
    it only if the target has the same path.

    `values` is the frozen config before its paths are moved. Raises UserError for a relative path that leads out of the
    code.
    """
    if is_local(settings.executor):
        return {}
    mounted = [target for mount in settings.mounts or () for target in _mounted(mount, settings)]
    left: dict[str, str] = {}
    for key, text in walk_strings({key: value for key, value in values.items() if key != "run"}):
        if text.startswith("../") or text == "..":
            _check_relative(key, text, paths)
        elif text.startswith("/") and "\n" not in text and _stays_behind(text, paths, mounted, settings):
            left[key] = text
    return left


def _check_relative(key: str, text: str, paths: RemotePaths) -> None:
    base = paths.tree.inside if paths.tree else "."
    if posixpath.normpath(posixpath.join(base, text)).startswith(".."):
        what = f"the code that is sent ({paths.tree.root})" if paths.tree else "the job's folder"
        raise UserError(
            f"{key}: {text} leads out of {what}, so there is no such path on {paths.host}.",
            hint=f"Keep it inside, or give an absolute path on {paths.host}.",
        )


def _stays_behind(text: str, paths: RemotePaths, mounted: list[str], settings: RunConfig) -> bool:
    if paths.move(text) != text or paths.is_on_target(text) or any(below(text, folder) for folder in mounted):
        return False
    if not paths.is_remote and not settings.container_image:
        return False  # the same files are there
    # /dev/shm is a disk in memory: its files are as much of this machine alone as those of a home.
    system = any(below(text, folder) for folder in _SYSTEM) and not below(text, "/dev/shm")  # noqa: S108
    return not system and text not in ("/", "/tmp") and os.path.exists(text)  # noqa: S108, PTH110 — any text


def _mounted(mount: str, settings: RunConfig) -> Iterator[str]:
    """Where a mount `HERE:THERE[:flags]` can be found by the job."""
    if mount.startswith("$"):
        return
    here, _, rest = mount.partition(":")
    yield rest.partition(":")[0] or here
    if not settings.container_image:
        yield here


# A profile's settings → the Transport to the machine that they name.
TransportFactory = Callable[[RunConfig], Any]


@dataclass(frozen=True)
class ResolvedJob:
    """A composed job's frozen config as the job reads it, the settings of its profile, and the paths of its files.

    `composed` is the config with this machine's paths, and with ${oc.env:NEMO_RUN_DIR} and ${oc.env:PWD} kept: the
    input of a rerun. `behind`: field → path that exists here and is not sent (see check_paths). `fetch`: the
    repositories that its mounts need (see mounts.with_repositories). `home`: the home folder where it runs, as far as
    that is known; None for a job of this machine.
    """

    config: dict[str, Any]
    settings: RunConfig
    paths: RemotePaths
    composed: dict[str, Any] = field(default_factory=dict)
    behind: Mapping[str, str] = field(default_factory=dict)
    fetch: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    home: str | None = None


def resolve_job(
    composed: Composed,
    run_id: str,
    job: int,
    recorded: RunConfig | None = None,
    transports: TransportFactory | None = None,
) -> ResolvedJob:
    """Freeze a composed job for its profile's target. Raises UserError for a path that can't be valid there.

    `recorded`: the settings of an earlier launch, used in place of the profile's.
    """
    with hydra_visible(composed.hydra):
        placed = _placed(composed, run_id, job, recorded, transports)
    check_targets(placed.config, composed.command, composed.config_name, " ".join(composed.overrides))
    refuse_secrets(placed.config, lambda key: _place_in(composed.config_file, key))
    return placed


def _place_in(file: Path | None, key: str) -> str:
    paths = key_location(file, key) if file else ""
    return f"{paths}: " if paths != str(file or "") else ""


def _placed(
    composed: Composed, run_id: str, job: int, recorded: RunConfig | None, transports: TransportFactory | None
) -> ResolvedJob:
    folder = f"{nemotron_home()}/runs/{run_id}/jobs/{job}"
    frozen = freeze(composed.config, folder)
    settings = effective_settings(frozen["run"], composed.overrides, recorded, composed.command.resources)
    named = settings.remote_job_dir or f"~/{REMOTE_FOLDER}"
    settings, where = with_folder(settings, (lambda: str(transports(settings).root)) if transports else None)
    paths = executor_for(settings).paths(run_id, job, registry=registry_here(settings))
    if is_local(settings.executor):
        variables = {"NEMO_RUN_DIR": folder, "PWD": os.environ.get("PWD", "")}
        return ResolvedJob(frozen, settings, paths, keep_variables(frozen, composed.config, variables))

    fetch: tuple[dict[str, str], ...] = ()
    notes = where
    if any("auto_mount:" in mount for mount in settings.mounts or ()):
        from nemotron_kit.launch.mounts import with_repositories

        settings, fetch, more = with_repositories(settings, paths.root, transports)
        notes += more
    there = freeze(composed.config, paths.job, pwd=paths.environment["PWD"])
    again = {**keep_variables(there, composed.config, paths.environment), "run": frozen["run"]}
    behind = check_paths(there, paths, settings)
    there = absolutized(there, composed.command.load_config_cls(), paths.environment["PWD"])
    # The `run` section is read by the launch, so its paths are those of this machine.
    config = {**moved(there, paths), "run": frozen["run"]}
    home = str(Path.home()) if settings.tunnel != "ssh" else None
    if home is None and named.startswith("~/"):
        home = paths.root.removesuffix(named[1:])
    return ResolvedJob(config, settings, paths, again, behind, fetch, notes, home)


def registry_here(settings: RunConfig) -> str | None:
    """The registry that a job on this machine finds, unless its profile names another."""
    if settings.tunnel == "ssh" or settings.artifacts_root:
        return None
    return str(open_registry().root)


def import_path(paths: RemotePaths, *, harmless: bool = False) -> list[str]:
    """sys.path of this process as the job has it: folders in the code that is sent are translated; on another machine
    the others are dropped, and the package comes first. `harmless`: without folders that would hide the standard
    library."""
    here = [str(Path(entry).absolute()) for entry in sys.path]
    here = [entry for entry in here if not (harmless and shadows_library(entry))]
    if not paths.moves:  # the job starts where the launch was made, or on what the target has
        return [] if paths.package else list(dict.fromkeys(here))
    entries = [paths.move(entry) for entry in here if paths.package is None or paths.move(entry) != entry]
    # nemotron_kit's own folders (a checkout's) are found through the package.
    inside = [entry for entry in entries if not (paths.package and entry.startswith(paths.package))]
    return list(dict.fromkeys([*filter(None, [paths.package]), *inside]))


def registry_table(paths: RemotePaths) -> str:
    """env.toml for the job: [artifacts] as it is here, its root as it is there."""
    table = {**read_env_file().table("artifacts"), "root": paths.artifacts}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    return "\n".join(["[artifacts]", *lines]) + "\n"


def left_out(paths: RemotePaths) -> list[str]:
    """Notes: a sentence for each git repository inside the code tree that git ignores, so that it is not sent."""
    if paths.tree is None:
        return []
    return [
        f"{name}: a git repository of its own that git ignores in {paths.tree.root}, so it is not part of the code "
        "that is sent. If the job imports it, take it out of .gitignore."
        for name in repositories_left_out(paths.tree)
    ]


def still_behind(placed: ResolvedJob, transports: TransportFactory | None) -> list[Problem]:
    """A problem for each field whose path the job will not find. With `transports` the target is queried."""
    return [*_ignored(placed), *_elsewhere(placed, transports)]


def _ignored(placed: ResolvedJob) -> list[Problem]:
    """Files in the code's own folder that git ignores, so that they are not sent."""
    paths = placed.paths
    if paths.code is None or paths.tree is None:
        return []
    inside = f"{paths.code}/"
    values = {key: value for key, value in placed.config.items() if key != "run"}
    found = {key: text.removeprefix(inside) for key, text in walk_strings(values) if text.startswith(inside)}
    files = {key: name for key, name in found.items() if os.path.isfile(f"{paths.tree.root}/{name}")}  # noqa: PTH113
    not_sent = ignored(paths.tree, sorted(set(files.values()))) if files else set()
    return [
        Problem(
            f"{name} is ignored by git, so it is not part of the code that is sent.",
            field=key,
            hint=f"Add it to the repository (git add -f {name}), or name a place that {paths.host} sees.",
        )
        for key, name in files.items()
        if name in not_sent
    ]


def _elsewhere(placed: ResolvedJob, transports: TransportFactory | None) -> list[Problem]:
    if not placed.behind:
        return []
    paths, missing = placed.paths, dict(placed.behind)
    if transports is not None and paths.is_remote:
        missing_paths = list(missing.values())
        there, _ = transports(placed.settings).call("exist", paths=missing_paths)
        missing = {key: path for key, path in missing.items() if not there[missing_paths.index(path)]}
    where = f"is on this machine and not {f'on {paths.host}' if paths.is_remote else 'in the container'}"
    sent = f"the code that is sent is {paths.tree.root}" if paths.tree else "no code is sent"
    fix = "mount it (mounts = …)" if paths.code and not paths.is_remote else f"name a path on {paths.host}, or mount it"
    hint = f"Move it there, or {fix}."
    return [Problem(f"{path} {where}: {sent}.", field=key, hint=hint) for key, path in missing.items()]
