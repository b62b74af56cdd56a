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
from nemotron_kit.config.freeze import Unresolved, freeze, keep_variables, launch_environment, walk_strings
from nemotron_kit.config.secrets import refuse_secrets
from nemotron_kit.envfile import EnvFile, read_env_file
from nemotron_kit.errors import Problem, UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.home import nemotron_home
from nemotron_kit.lazy import Value
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
    """`values`, a frozen config of the dataclass `cls`, with each relative path that exists in the working folder made
    absolute below `folder`, the path of the working folder where the job runs.

    Only the values of fields of type Path are paths. One that does not exist may be a result, or a file that the job's
    code finds by itself: it stays relative to the folder in which the job starts.
    """
    return {key: _absolutized(value, type_hints(cls).get(key), folder) for key, value in values.items()}


def _absolutized(value: Any, annotation: Any, folder: str) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _absolutized(value, args[0], folder)
    if origin in (Union, types.UnionType):
        members = [each for each in args if each is not type(None)]
        return _absolutized(value, members[0], folder) if len(members) == 1 else value
    if isinstance(value, Mapping):
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return absolutized(value, annotation, folder)
        return {key: _absolutized(item, args[1], folder) for key, item in value.items()} if len(args) == 2 else value
    if isinstance(value, list):
        return [_absolutized(item, args[0], folder) for item in value] if args else value
    is_path = isinstance(annotation, type) and issubclass(annotation, Path) and isinstance(value, str)
    return posixpath.normpath(posixpath.join(folder, value)) if is_path and _exists_in_cwd(value) else value


def _exists_in_cwd(text: str) -> bool:
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
        elif text.startswith("/") and "\n" not in text and _is_unshipped(text, paths, mounted, settings):
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


def _is_unshipped(text: str, paths: RemotePaths, mounted: list[str], settings: RunConfig) -> bool:
    if paths.move(text) != text or paths.is_on_target(text) or any(below(text, folder) for folder in mounted):
        return False
    if not paths.is_remote and not settings.container_image:
        return False  # the same files are there
    # The files in /dev/shm exist on this machine only.
    system = any(below(text, folder) for folder in _SYSTEM) and not below(text, "/dev/shm")  # noqa: S108
    return not system and text not in ("/", "/tmp") and os.path.exists(text)  # noqa: S108, PTH110 — any text


def _mounted(mount: str, settings: RunConfig) -> Iterator[str]:
    """The paths at which the job finds a mount `SOURCE:TARGET[:flags]`."""
    if mount.startswith("$"):
        return
    source, _, rest = mount.partition(":")
    yield rest.partition(":")[0] or source
    if not settings.container_image:
        yield source


# A profile's settings → the Transport to the machine that they name.
TransportFactory = Callable[[RunConfig], Any]


@dataclass(frozen=True, eq=False, repr=False)
class ResolvedJob(Value):
    """A composed job's frozen config as the job reads it, the settings of its profile, and the paths of its files.

    `composed` is the config with this machine's paths, and with ${oc.env:NEMO_RUN_DIR} and ${oc.env:PWD} kept: the
    input of a rerun. `unshipped_paths`: field → path that exists on this machine and is not sent (see check_paths).
    `fetch`: the repositories that its mounts need (see mounts.with_repositories). `home`: the home folder where it
    runs, as far as that is known; None for a job of this machine. `captured`: the variables of the launch's environment
    that the config refers to, with their values.
    """

    config: dict[str, Any]
    settings: RunConfig
    paths: RemotePaths
    composed: dict[str, Any] = field(default_factory=dict)
    unshipped_paths: Mapping[str, str] = field(default_factory=dict)
    fetch: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    home: str | None = None
    captured: Mapping[str, str] = field(default_factory=dict)


def resolve_job(
    composed: Composed,
    run_id: str,
    job: int,
    recorded: RunConfig | None = None,
    transports: TransportFactory | None = None,
) -> ResolvedJob:
    """Freeze a composed job for its profile's target. Raises UserError for a path that can't be valid there.

    `recorded`: the settings of an earlier launch, used instead of the profile's.
    """
    with hydra_visible(composed.hydra):
        resolved = _resolve(composed, run_id, job, recorded, transports)
    check_targets(resolved.config, composed.command, composed.config_name, " ".join(composed.overrides))
    refuse_secrets(resolved.config, lambda key: _location_of(composed.config_file, key))
    return resolved


def _location_of(file: Path | None, key: str) -> str:
    location = key_location(file, key) if file else ""
    return f"{location}: " if location != str(file or "") else ""


def _resolve(
    composed: Composed, run_id: str, job: int, recorded: RunConfig | None, transports: TransportFactory | None
) -> ResolvedJob:
    folder = f"{nemotron_home()}/runs/{run_id}/jobs/{job}"
    config = Unresolved(composed.config)
    frozen = freeze(config, folder)
    settings = effective_settings(frozen["run"], composed.overrides, recorded, composed.command.resources)
    named = settings.remote_job_dir or f"~/{REMOTE_FOLDER}"
    settings, where = with_folder(settings, (lambda: str(transports(settings).root)) if transports else None)
    paths = executor_for(settings).paths(run_id, job, registry=local_registry(settings, composed.env))
    if is_local(settings.executor):
        variables = {"NEMO_RUN_DIR": folder, "PWD": os.environ.get("PWD", "")}
        again = keep_variables(frozen, config, variables)
        return ResolvedJob(frozen, settings, paths, again, captured=launch_environment(config))

    fetch: tuple[dict[str, str], ...] = ()
    notes = where
    if any("auto_mount:" in mount for mount in settings.mounts or ()):
        from nemotron_kit.launch.mounts import with_repositories

        settings, fetch, more = with_repositories(settings, paths.root, transports)
        notes += more
    target_config = freeze(config, paths.job, pwd=paths.environment["PWD"])
    rerun_config = {**keep_variables(target_config, config, paths.environment), "run": frozen["run"]}
    unshipped_paths = check_paths(target_config, paths, settings)
    target_config = absolutized(target_config, composed.command.load_config_cls(), paths.environment["PWD"])
    # The `run` section is read by the launch, so its paths are those of this machine.
    target_config = {**moved(target_config, paths), "run": frozen["run"]}
    home = str(Path.home()) if settings.tunnel != "ssh" else None
    if home is None and named.startswith("~/"):
        home = paths.root.removesuffix(named[1:])
    captured = launch_environment(config)
    return ResolvedJob(
        target_config, settings, paths, rerun_config, unshipped_paths, fetch, notes, home, captured=captured
    )


def local_registry(settings: RunConfig, env: EnvFile | None = None) -> str | None:
    """The root of this machine's registry; None for a job of another machine, or whose profile names a registry."""
    if settings.tunnel == "ssh" or settings.artifacts_root:
        return None
    return str(open_registry(env=env).root)


def import_path(paths: RemotePaths, *, harmless: bool = False) -> list[str]:
    """sys.path of this process as the job has it: folders in the code that is sent are translated; on another machine
    the others are dropped, and the package comes first. `harmless`: without folders that would hide the standard
    library."""
    entries = [str(Path(entry).absolute()) for entry in sys.path]
    entries = [entry for entry in entries if not (harmless and shadows_library(entry))]
    if not paths.moves:  # no code is sent
        return [] if paths.package else list(dict.fromkeys(entries))
    entries = [paths.move(entry) for entry in entries if paths.package is None or paths.move(entry) != entry]
    # nemotron_kit itself is imported from the package.
    inside = [entry for entry in entries if not (paths.package and entry.startswith(paths.package))]
    return list(dict.fromkeys([*filter(None, [paths.package]), *inside]))


def registry_table(paths: RemotePaths) -> str:
    """env.toml for the job: this machine's [artifacts], with the root of the target's registry."""
    table = {**read_env_file().table("artifacts"), "root": paths.artifacts}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    return "\n".join(["[artifacts]", *lines]) + "\n"


def left_out(paths: RemotePaths) -> list[str]:
    """Notes: a sentence for each git repository inside the code tree that git ignores, so that it is not sent."""
    if paths.tree is None:
        return []
    return [
        f"{name}: a git repository that git ignores in {paths.tree.root}, so it is not part of the code "
        "that is sent. If the job imports it, take it out of .gitignore."
        for name in repositories_left_out(paths.tree)
    ]


def unshipped_problems(resolved: ResolvedJob, transports: TransportFactory | None) -> list[Problem]:
    """A problem for each field whose path the job will not find. With `transports` the target is queried."""
    return [*_ignored(resolved), *_missing_on_target(resolved, transports)]


def _ignored(resolved: ResolvedJob) -> list[Problem]:
    """A problem for each file in the code tree that git ignores, so that it is not sent."""
    paths = resolved.paths
    if paths.code is None or paths.tree is None:
        return []
    inside = f"{paths.code}/"
    values = {key: value for key, value in resolved.config.items() if key != "run"}
    found = {key: text.removeprefix(inside) for key, text in walk_strings(values) if text.startswith(inside)}
    files = {key: name for key, name in found.items() if os.path.isfile(f"{paths.tree.root}/{name}")}  # noqa: PTH113
    not_sent = ignored(paths.tree, sorted(set(files.values()))) if files else set()
    return [
        Problem(
            f"{name} is ignored by git, so it is not part of the code that is sent.",
            field=key,
            hint=f"Add it to the repository (git add -f {name}), or name a path on {paths.host}.",
        )
        for key, name in files.items()
        if name in not_sent
    ]


def _missing_on_target(resolved: ResolvedJob, transports: TransportFactory | None) -> list[Problem]:
    if not resolved.unshipped_paths:
        return []
    paths, missing = resolved.paths, dict(resolved.unshipped_paths)
    if transports is not None and paths.is_remote:
        missing_paths = list(missing.values())
        exists, _ = transports(resolved.settings).call("exist", paths=missing_paths)
        missing = {key: path for key, path in missing.items() if not exists[missing_paths.index(path)]}
    where = f"is on this machine and not {f'on {paths.host}' if paths.is_remote else 'in the container'}"
    sent = f"the code that is sent is {paths.tree.root}" if paths.tree else "no code is sent"
    fix = "mount it (mounts = …)" if paths.code and not paths.is_remote else f"name a path on {paths.host}, or mount it"
    hint = f"Move it there, or {fix}."
    return [Problem(f"{path} {where}: {sent}.", field=key, hint=hint) for key, path in missing.items()]
