"""Git repositories that are mounted into a container: their commits, and the folders that they are mounted from."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    from nemotron_kit.spec.runconfig import RunConfig


_AUTO = re.compile(r"(?:\$\{)?auto_mount:(.*?)\}?\Z", re.DOTALL)
_GIT = re.compile(r"git\+([^,\s]+)@([A-Za-z0-9][A-Za-z0-9._/-]{0,199})(?:,(/[A-Za-z0-9._/@+=-]*))?\Z")
_URL = re.compile(r"(?:https?|ssh|git|file)://[A-Za-z0-9._~/@:+%=-]+\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
# (target, URL, ref) → commit, so that all jobs of a sweep mount the same one.
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

    Without `transports` a branch or tag is not resolved to a commit, and the folder is named after it. Raises
    UserError for a mount or a git_dir that can't be read and for a ref that the repository doesn't have.
    """
    found, cache = Mounted(settings), f"{root}/repositories"
    named = read_env_file().table("cache").get("git_dir")
    if named:
        if str(named).startswith("~"):
            raise UserError(
                f"[cache] git_dir: {named!r}: a home folder is not expanded here.",
                hint=f"Give an absolute path, or one relative to the folder for jobs, {root}.",
            )
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
    note = f"{url}: {ref} is resolved to a commit at launch"
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
            f"mounts: the URL of {match[1].rpartition('@')[2]} holds a password, which every record would have.",
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
