"""Folders that a container gets besides its own: git repositories, and the files of runs it waits for."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.spec.plan import Plan

if TYPE_CHECKING:
    from nemotron_kit.spec.runconfig import RunConfig


_AUTO = re.compile(r"(?:\$\{)?auto_mount:(.*?)\}?\Z", re.DOTALL)
_GIT = re.compile(r"git\+([^,\s]+)@([A-Za-z0-9][A-Za-z0-9._/-]{0,199})(?:,(/[A-Za-z0-9._/@+=-]*))?\Z")
_URL = re.compile(r"(?:https?|ssh|git|file)://[A-Za-z0-9._~/@:+%=-]+\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
# (where it is asked from, URL, ref) → commit: a sweep's jobs all mean the same one.
_commits: dict[tuple[Any, str, str], str] = {}

TransportFactory = Callable[["RunConfig"], Any]


class Mounted(NamedTuple):
    """A profile's settings with its mounts as folders, the repositories that the target fetches for them, and notes for
    the user.
    """

    settings: RunConfig
    fetch: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def with_repositories(settings: RunConfig, root: str, transports: TransportFactory | None) -> Mounted:
    """The settings with each auto_mount as `FOLDER:TARGET`, in `[cache] git_dir` below the target's `root`.

    Without `transports` nobody is asked which commit a branch or a tag is, and the folder is named after that. Raises
    UserError for a mount that can't be read and for a ref that the repository doesn't have.
    """
    found, cache = Mounted(settings), f"{root}/repositories"
    named = read_env_file().table("cache").get("git_dir")
    if named:
        cache = posixpath.join(root, posixpath.normpath(str(named)))
    for mount in settings.mounts or ():
        match = _AUTO.match(mount)
        if match:
            found = _replaced(found, mount, match[1], cache, transports)
    return found


def _replaced(found: Mounted, mount: str, text: str, cache: str, transports: TransportFactory | None) -> Mounted:
    url, ref, target = _parts(mount, text)
    name = re.sub(r"[^A-Za-z0-9._-]|\A\.+", "-", url.rstrip("/").rpartition("/")[2].removesuffix(".git"))[:64]
    commit = ref if _COMMIT.match(ref) else _commit(found.settings, url, ref, transports)
    folder = f"{name}-{commit[:12] if commit else re.sub('[^A-Za-z0-9._-]', '-', ref)}"
    mounted = f"{cache}/{folder}:{target or f'/opt/{name}'}"
    mounts = [mounted if each == mount else each for each in found.settings.mounts or ()]
    note = f"{url}: which commit {ref} is, is asked at launch"
    return Mounted(
        replace(found.settings, mounts=mounts),
        (*found.fetch, {"cache": cache, "url": url, "ref": ref, "commit": commit, "folder": folder}),
        found.notes if commit else (*found.notes, note),
    )


def _parts(mount: str, text: str) -> tuple[str, str, str | None]:
    match = _GIT.match(text)
    if match is None or not _URL.match(match[1]) or ".." in f"{match[2]}{match[3] or ''}":
        raise UserError(
            f"mounts: {mount!r}: no repository with a ref can be read from it.",
            hint="One is ${auto_mount:git+https://host/name@main,/opt/name}: a URL, a branch, tag or commit, a folder.",
        )
    if urlsplit(match[1]).password:
        raise UserError(
            f"mounts: the URL of {match[1].rpartition('@')[2]} holds a password, which would stand in every record.",
            hint="Leave it to git's credential helper where the job runs, or use ssh.",
        )
    return match[1], match[2], match[3]


def _commit(settings: RunConfig, url: str, ref: str, transports: TransportFactory | None) -> str:
    if transports is None:
        return ""
    key = ((settings.tunnel, settings.host), url, ref)
    if key not in _commits:
        _commits[key] = transports(settings).call("commit_of", url=url, ref=ref)[0]
    return _commits[key]


def with_folders(plan: Plan, folders: Sequence[str]) -> Plan:
    """The plan of a job that finds `folders` at the same paths; as it is where that needs no mount."""
    if not folders or plan.problems or not plan.settings.container_image:
        return plan
    if plan.executor == "docker" and plan.container:
        return _docker(plan, folders)
    return _slurm(plan, folders) if plan.executor == "slurm" else plan


def _docker(plan: Plan, folders: Sequence[str]) -> Plan:
    from nemotron_kit.executors.docker import mount

    assert plan.container  # noqa: S101 — asked before
    arguments = list(plan.container.words)
    at = arguments.index("--entrypoint=")
    arguments[at:at] = [argument for folder in folders for argument in mount(folder, writable=False)]
    return replace(plan, container=replace(plan.container, words=tuple(arguments)))


def _slurm(plan: Plan, folders: Sequence[str]) -> Plan:
    from nemotron_kit.executors.slurm import script as slurm_script
    from nemotron_kit.spec.resources import label_of, resources_of

    mounts = (*(plan.mounts or ()), *folders)
    if slurm_script.FILE not in plan.files:
        return replace(plan, mounts=mounts)
    intent, place = slurm_script.intent_of(plan.run_id, [plan.job]), plan.place
    script = slurm_script.Script(
        slurm_script.job_name(intent, label_of(plan.settings, plan.recipe, plan.stage)),
        place.run,
        slurm_script.command_of(place.python, place.package, place.job),
        mounts=mounts,
    )
    resources = plan.resources or resources_of(plan.settings, None)
    text = slurm_script.render(plan.settings, resources, script, batch=plan.mode == "batch")
    return replace(plan, mounts=mounts, files={**plan.files, slurm_script.FILE: text})
