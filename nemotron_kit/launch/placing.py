"""Resolves a composed job for its target: its settings, the paths of its files, and its config with those paths; and
the git repositories that its container mounts."""

from __future__ import annotations

import dataclasses
import json
import os
import posixpath
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import urlsplit

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
from nemotron_kit.home import nemotron_home, user_folder
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
    if not (isinstance(annotation, type) and issubclass(annotation, Path) and isinstance(value, str)):
        return value
    is_relative = not value.startswith(("/", "~")) and value not in ("", ".")
    exists = is_relative and os.path.exists(value)  # noqa: PTH110 — any text
    return posixpath.normpath(posixpath.join(folder, value)) if exists else value


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
    mounted: list[str] = []  # where the job finds each mount `SOURCE:TARGET[:flags]`
    for mount in settings.mounts or ():
        if not mount.startswith("$"):
            source, _, rest = mount.partition(":")
            mounted += [rest.partition(":")[0] or source, *([] if settings.container_image else [source])]
    left: dict[str, str] = {}
    for key, text in walk_strings({key: value for key, value in values.items() if key != "run"}):
        if text.startswith("../") or text == "..":
            base = paths.tree.inside if paths.tree else "."
            if posixpath.normpath(posixpath.join(base, text)).startswith(".."):
                what = f"the code that is sent ({paths.tree.root})" if paths.tree else "the job's folder"
                raise UserError(
                    f"{key}: {text} leads out of {what}, so there is no such path on {paths.host}.",
                    hint=f"Keep it inside, or give an absolute path on {paths.host}.",
                )
        elif text.startswith("/") and "\n" not in text and _is_unshipped(text, paths, mounted, settings):
            left[key] = text
    return left


def _is_unshipped(text: str, paths: RemotePaths, mounted: list[str], settings: RunConfig) -> bool:
    if paths.move(text) != text or paths.is_on_target(text) or any(below(text, folder) for folder in mounted):
        return False
    if not paths.is_remote and not settings.container_image:
        return False  # the same files are there
    # The files in /dev/shm exist on this machine only.
    system = any(below(text, folder) for folder in _SYSTEM) and not below(text, "/dev/shm")  # noqa: S108
    return not system and text not in ("/", "/tmp") and os.path.exists(text)  # noqa: S108, PTH110 — any text


# A profile's settings → the Transport to the machine that they name.
TransportFactory = Callable[[RunConfig], Any]


@dataclass(frozen=True, eq=False, repr=False)
class ResolvedJob(Value):
    """A composed job's frozen config as the job reads it, the settings of its profile, and the paths of its files.

    `composed` is the config with this machine's paths, and with ${oc.env:NEMO_RUN_DIR} and ${oc.env:PWD} kept: the
    input of a rerun. `unshipped_paths`: field → path that exists on this machine and is not sent (see check_paths).
    `fetch`: the repositories that its mounts need (see with_repositories). `home`: the home folder where it
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
    command = composed.command
    folder = f"{nemotron_home()}/runs/{run_id}/jobs/{job}"
    with hydra_visible(composed.hydra):
        config = Unresolved(composed.config)
        frozen = freeze(config, folder)
        settings = effective_settings(frozen["run"], composed.overrides, recorded, command.resources)
        named = settings.remote_job_dir or f"~/{REMOTE_FOLDER}"
        settings, notes = with_folder(settings, (lambda: str(transports(settings).root)) if transports else None)
        paths = executor_for(settings).paths(run_id, job, registry=local_registry(settings, composed.env))
        captured = launch_environment(config)
        if paths.code and "PWD" in captured:  # the job has a copy of the code
            captured["PWD"] = paths.environment["PWD"]
        if is_local(settings.executor):
            variables = {"NEMO_RUN_DIR": folder, "PWD": os.environ.get("PWD", "")}
            again = keep_variables(frozen, config, variables)
            resolved = ResolvedJob(frozen, settings, paths, again, captured=captured)
        else:
            fetch: tuple[dict[str, str], ...] = ()
            if any("auto_mount:" in mount for mount in settings.mounts or ()):
                settings, fetch, more = with_repositories(settings, paths.root, transports)
                notes += more
            at_target = freeze(config, paths.job, pwd=paths.environment["PWD"])
            # The `run` section is read by the launch, so its paths are those of this machine.
            again = {**keep_variables(at_target, config, paths.environment), "run": frozen["run"]}
            unshipped = check_paths(at_target, paths, settings)
            at_target = absolutized(at_target, command.load_config_cls(), paths.environment["PWD"])
            at_target = {**moved(at_target, paths), "run": frozen["run"]}
            here = user_folder()
            home = str(here) if here and settings.tunnel != "ssh" else None
            if home is None and named.startswith("~/"):
                home = paths.root.removesuffix(named[1:])
            resolved = ResolvedJob(at_target, settings, paths, again, unshipped, fetch, notes, home, captured)

    def location(key: str) -> str:
        file = composed.config_file
        found = key_location(file, key) if file else ""
        return f"{found}: " if found != str(file or "") else ""

    check_targets(resolved.config, command, composed.config_name, " ".join(composed.overrides))
    refuse_secrets(resolved.config, location)
    return resolved


_AUTO = r"(?s)(?:\$\{)?auto_mount:(.*?)\}?\Z"
_GIT = r"git\+([^,\s]+)@([A-Za-z0-9][A-Za-z0-9._/-]{0,199})(?:,(/[A-Za-z0-9._/@+=-]*))?\Z"
_URL = r"(?:https?|ssh|git|file)://[A-Za-z0-9._~/@:+%=-]+\Z"
# (target, URL, ref) → commit, so that all jobs of a sweep mount the same one.
_commits: dict[tuple[Any, str, str], str] = {}


def with_repositories(
    settings: RunConfig, root: str, transports: TransportFactory | None
) -> tuple[RunConfig, tuple[dict[str, str], ...], tuple[str, ...]]:
    """(the settings with each auto_mount as `FOLDER:TARGET`, in `[cache] git_dir` below the target's `root`; the
    repositories that the target fetches for them; notes for the user).

    Without `transports` a branch or tag is not resolved to a commit, and the folder is named after it. Raises
    UserError for a mount or a git_dir that can't be read and for a ref that the repository doesn't have.
    """
    cache = f"{root}/repositories"
    if named := read_env_file().table("cache").get("git_dir"):
        if str(named).startswith("~"):
            raise UserError(
                f"[cache] git_dir: {named!r}: a home folder is not expanded here.",
                hint=f"Give an absolute path, or one relative to the folder for jobs, {root}.",
            )
        cache = posixpath.join(root, posixpath.normpath(str(named)))
    mounts, fetch, notes = list[str](), list[dict[str, str]](), list[str]()
    for mount in settings.mounts or ():
        auto = re.match(_AUTO, mount)
        if auto is None:
            mounts.append(mount)
            continue
        match = re.match(_GIT, auto[1])
        if match is None or not re.match(_URL, match[1]) or ".." in f"{match[2]}{match[3] or ''}":
            raise UserError(
                f"mounts: {mount!r}: no repository with a ref can be read from it.",
                hint="One is ${auto_mount:git+https://host/name@main,/opt/name}: a URL, a branch, tag or commit, a "
                "folder.",
            )
        url, ref, target = match.groups()
        if urlsplit(url).password:
            raise UserError(
                f"mounts: the URL of {url.rpartition('@')[2]} holds a password, which every record would have.",
                hint="Leave it to git's credential helper where the job runs, or use ssh.",
            )
        commit = ref if re.match(r"[0-9a-f]{40}\Z", ref) else ""
        if not commit and transports is not None:
            key = ((settings.tunnel, settings.host), url, ref)
            if key not in _commits:
                _commits[key] = transports(settings).call("commit_of", url=url, ref=ref)[0]
            commit = _commits[key]
        if not commit:
            notes.append(f"{url}: {ref} is resolved to a commit at launch")
        name = re.sub(r"[^A-Za-z0-9._-]|\A\.+", "-", url.rstrip("/").rpartition("/")[2].removesuffix(".git"))[:64]
        folder = f"{name}-{commit[:12] if commit else re.sub('[^A-Za-z0-9._-]', '-', ref)}"
        mounts.append(f"{cache}/{folder}:{target or f'/opt/{name}'}")
        fetch.append({"cache": cache, "url": url, "ref": ref, "commit": commit, "folder": folder})
    return replace(settings, mounts=mounts) if fetch else settings, tuple(fetch), tuple(notes)


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
    """A problem for each field whose path the job will not find: git ignores the file, so that it is not sent, or it
    is not in the code. With `transports` the target is queried."""
    paths, problems = resolved.paths, list[Problem]()
    if paths.code is not None and paths.tree is not None:
        inside = f"{paths.code}/"
        values = {key: value for key, value in resolved.config.items() if key != "run"}
        found = {key: text.removeprefix(inside) for key, text in walk_strings(values) if text.startswith(inside)}
        files = {key: name for key, name in found.items() if os.path.isfile(f"{paths.tree.root}/{name}")}  # noqa: PTH113
        not_sent = ignored(paths.tree, sorted(set(files.values()))) if files else set()
        for key, name in files.items():
            if name in not_sent:
                what = f"{name} is ignored by git, so it is not part of the code that is sent."
                hint = f"Add it to the repository (git add -f {name}), or name a path on {paths.host}."
                problems.append(Problem(what, field=key, hint=hint))
    missing = dict(resolved.unshipped_paths)
    if missing and transports is not None and paths.is_remote:
        exists, _ = transports(resolved.settings).call("exist", paths=list(missing.values()))
        missing = {key: path for (key, path), there in zip(missing.items(), exists, strict=True) if not there}
    if not missing:
        return problems
    where = f"is on this machine and not {f'on {paths.host}' if paths.is_remote else 'in the container'}"
    sent = f"the code that is sent is {paths.tree.root}" if paths.tree else "no code is sent"
    fix = "mount it (mounts = …)" if paths.code and not paths.is_remote else f"name a path on {paths.host}, or mount it"
    hint = f"Move it there, or {fix}."
    return problems + [Problem(f"{path} {where}: {sent}.", field=key, hint=hint) for key, path in missing.items()]
