"""The paths of one job's files on the machine that runs it, and the code that a launch sends there."""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.files import map_leaves
from nemotron_kit.home import check_text, expand_user, nemotron_home
from nemotron_kit.lazy import Value
from nemotron_kit.spec.package import package_hash, package_roots
from nemotron_kit.spec.runconfig import RunConfig

if TYPE_CHECKING:
    from subprocess import CompletedProcess

WORKTREE, NONE = "worktree", "none"
_MOST_ENTRIES = 1000


@dataclass(frozen=True, eq=False, repr=False)
class CodeTree(Value):
    """The code tree of a job: `root` is its folder on this machine; `inside` is the launch folder relative to it, "."
    for the root itself. `git`: the root is in a git work tree."""

    root: str
    inside: str
    packager: str
    git: bool


def code_tree(settings: RunConfig) -> CodeTree | None:
    """The tree that is sent with a job; None for packager "none". Looks for a .git, starts no program. Raises UserError
    for packager "git" outside a repository and for a `subpath` that does not exist."""
    packager = settings.packager or WORKTREE
    if packager == NONE:
        return None
    cwd = Path.cwd().resolve()
    top = next((folder for folder in (cwd, *cwd.parents) if (folder / ".git").exists()), None)
    if packager == "git" and top is None:
        raise UserError(f"packager 'git': {cwd} is in no git repository.", hint='Use packager = "worktree".')
    root = top or cwd
    if settings.subpath:
        root = (root / settings.subpath).resolve()
        if not root.is_dir():
            raise UserError(f"subpath: {settings.subpath} is no folder of {top or cwd}.")
    inside = os.path.relpath(cwd, root) if cwd.is_relative_to(root) else "."
    return CodeTree(str(root), inside, packager, top is not None)


def ignored(tree: CodeTree, names: Sequence[str]) -> set[str]:
    """Which of these files of the tree git ignores (and does not track). Without git, or another packager: none."""
    return set(_git(tree, "check-ignore", "-z", "--stdin", text="".join(f"{name}\x00" for name in names)))


@cache
def repositories_left_out(tree: CodeTree) -> tuple[str, ...]:
    """Repositories inside the tree that git ignores there, so that they are not sent: the folders that it ignores, and
    what lies directly in them."""
    folders = _git(tree, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
    found: list[str] = []
    for folder in folders:
        if folder.endswith("/"):
            nearby = [os.path.join(tree.root, folder).rstrip("/")]  # noqa: PTH118
            with suppress(OSError):  # those of a folder that can't be read are not found
                nearby += [entry.path for entry in islice(os.scandir(nearby[0]), _MOST_ENTRIES)]
            # os.path.exists is False where Path.exists raises PermissionError.
            found += [os.path.relpath(path, tree.root) for path in nearby if os.path.exists(f"{path}/.git")]  # noqa: PTH110
    return tuple(found)


def run_git(
    folder: str | Path,
    *arguments: str,
    given: bytes = b"",
    seconds: float | None = None,
    variables: Mapping[str, str] | None = None,
) -> CompletedProcess[bytes]:
    """Run a git command that concerns the repository in `folder`, with `given` as its input. Raises FileNotFoundError
    without git, TimeoutExpired after `seconds`.

    Git's variables, which inside a hook (GIT_DIR, GIT_INDEX_FILE) name another repository, are left out but for those
    that say how to connect; `variables` are added, and yield to those.
    """
    import subprocess

    kept = ("GIT_SSH", "GIT_PROXY_", "GIT_SSL_", "GIT_ASKPASS", "GIT_CONFIG_")
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key.startswith(kept)}
    return subprocess.run(
        # fsmonitor is a program that the repository's config names: it must not be run.
        ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.quotepath=false", *arguments],
        input=given,
        capture_output=True,
        check=False,
        timeout=seconds,
        env={**(variables or {}), **env, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
    )


def _git(tree: CodeTree, *arguments: str, text: str = "") -> list[str]:
    """The names that git prints; [] where git does not decide what is sent, and without git, which packing reports."""
    if not tree.git or tree.packager not in (WORKTREE, "git"):
        return []
    try:
        done = run_git(tree.root, *arguments, given=text.encode("utf-8", "surrogateescape"))
    except FileNotFoundError:
        return []
    return [name.decode("utf-8", "surrogateescape") for name in done.stdout.split(b"\x00") if name]


IN_A_CLOUD = "/nemo_run"
# The folder for runs in the target's home, unless the profile names one.
REMOTE_FOLDER = ".nemotron"


# Fields of RemotePaths → their names in plan.json.
_STORED_AS = {"package": "kit", "is_remote": "apart", "separate_registry": "own_registry"}


@dataclass(frozen=True, eq=False, repr=False)
class RemotePaths(Value):
    """Where a job's files lie on its target, as absolute paths there: another machine, a container, or this machine.

    `root` is the folder that holds runs/ and code/, `run` and `job` the run's and the job's folders, `code` the job's
    copy of `tree` (None: no code is sent), `cwd` the folder that the job starts in, `package` the folder with
    nemotron_kit (None: the installed one is used), `artifacts` the registry's root. `moves` are pairs (prefix on this
    machine, prefix on the target), the longest first. `is_remote`: the target is another machine, reached by ssh.
    `host` names the target in messages. `separate_registry`: the registry is not the default one there.
    """

    root: str
    run: str
    job: str
    code: str | None
    cwd: str
    python: str
    package: str | None
    artifacts: str
    tree: CodeTree | None = None
    moves: tuple[tuple[str, str], ...] = ()
    is_remote: bool = False
    host: str = "this machine"
    separate_registry: bool = False

    def move(self, text: str) -> str:
        """The path on the target of a path of this machine; one that is not sent stays as it is."""
        if self.is_on_target(text) or below(text, sys.prefix):
            return text
        for local, target in self.moves:
            if below(text, local):
                return target + text[len(local) :]
        return text

    def is_on_target(self, text: str) -> bool:
        """Whether a path is in the target's run root or registry."""
        return any(below(text, root) for root in (self.root, self.artifacts))

    def move_back(self, text: str) -> str:
        """The path on this machine of a path on the target: the inverse of `move`."""
        root = self.tree.root if self.tree else None
        for local, target in sorted(self.moves, key=lambda move: (-len(move[1]), move[0] != root)):
            if below(text, target):
                return local + text[len(target) :]
        return text

    def move_name(self, name: str) -> str:
        """`path/to/file.py:object` with its path moved; `module:object` as it is."""
        path, colon, rest = name.rpartition(":")
        return f"{self.move(path)}{colon}{rest}" if path.endswith(".py") else name

    def script(self, path: Path | None, handler: str) -> str | None:
        """A command's script on the target. That of an installed package is `@module`, which the worker resolves.

        Raises UserError for one that is neither sent nor of the handler's module.
        """
        if path is None:
            return None
        text = str(path.absolute())
        if self.package is None or self.move(text) != text:
            return self.move(text)
        module = handler.partition(":")[0]
        file = getattr(find_spec(module), "origin", None) if module and not module.endswith(".py") else None
        if file is None or os.path.realpath(file) != os.path.realpath(path):
            sent = self.tree.root if self.tree else "nothing"
            raise UserError(
                f"The command's script {path} is not part of the code that is sent to {self.host} ({sent}).",
                hint="Launch from the folder that holds it, or install the recipe as a package here and there.",
            )
        return f"@{module}"

    @property
    def names_registry(self) -> bool:
        """Whether the job needs an env.toml with its registry: a launch on its machine would find another one."""
        return self.is_remote or self.separate_registry

    def to_dict(self) -> dict[str, Any]:
        """JSON data, for plan.json."""
        stored = {_STORED_AS.get(name, name): value for name, value in vars(self).items()}
        return {**stored, "tree": vars(self.tree) if self.tree else None, "moves": dict(self.moves)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], folder: str, job: int) -> RemotePaths:
        """The inverse of `to_dict`. Fields missing in an older record have the values for job `job` of a record in
        `folder`."""
        known = {name: value for name in _FIELDS if (value := stored.get(_STORED_AS.get(name, name))) is not None}
        run = known.setdefault("run", folder)
        kept = (known.get("tree") or {}).items()
        tree = {name: value for name, value in kept if name in _NO_TREE and value is not None}
        known["tree"] = CodeTree(**{**_NO_TREE, **tree}) if tree else None
        known["moves"] = tuple((known.get("moves") or {}).items())
        root = posixpath.dirname(posixpath.dirname(run))
        none = {"root": root, "job": f"{run}/jobs/{job}", "code": None, "package": None}
        return cls(**{**none, "cwd": "", "python": "", "artifacts": "", **known})

    @property
    def environment(self) -> dict[str, str]:
        """What `${oc.env:PWD}` and `${oc.env:NEMO_RUN_DIR}` are in the job's config."""
        inside = posixpath.join(self.code, self.tree.inside) if self.code and self.tree else None
        return {"NEMO_RUN_DIR": self.job, "PWD": posixpath.normpath(inside) if inside else self.cwd}


_FIELDS = tuple(field.name for field in fields(RemotePaths))
_NO_TREE: dict[str, Any] = {"root": "", "inside": ".", "packager": WORKTREE, "git": False}


def with_folder(settings: RunConfig, root: Callable[[], str] | None) -> tuple[RunConfig, tuple[str, ...]]:
    """The settings with `remote_job_dir` as an absolute path where it is below the home on another machine, and notes
    on that. `root` asks that machine; without it (a dry-run) the path is a guess, which the note says."""
    named = settings.remote_job_dir or f"~/{REMOTE_FOLDER}"
    if settings.tunnel != "ssh" or not named.startswith("~/") or not (settings.host and settings.user):
        return settings, ()
    if root is not None:
        return replace(settings, remote_job_dir=root()), ()
    shown = f"/home/{settings.user}{named[1:]}"
    return replace(settings, remote_job_dir=shown), (
        f"remote_job_dir is {named} of {settings.user} on {settings.host}: shown as {shown}, and queried at launch.",
    )


def local_paths(settings: RunConfig, run_id: str, job: int, *, registry: str | None = None) -> RemotePaths:
    """The paths of a job that is a process of this machine."""
    root, cwd = str(nemotron_home()), _working_folder()
    run = f"{root}/runs/{run_id}"
    named, python = _here(settings.artifacts_root), sys.executable
    if settings.python:
        python = str(expand_user(settings.python))
    artifacts = named or registry or f"{root}/artifacts"
    return RemotePaths(
        root, run, f"{run}/jobs/{job}", None, cwd, python, None, artifacts, separate_registry=named is not None
    )


def sent_paths(
    settings: RunConfig,
    run_id: str,
    job: int,
    *,
    registry: str | None = None,
    image: bool = False,
    other_python: bool = False,
) -> RemotePaths:
    """The paths of a job to which code is sent: in folders of this machine, or of the one that `tunnel = "ssh"` leads
    to. In a container (`image`) there is another Python, without nemotron_kit, as with
    `other_python`. Connects to nothing.

    Raises UserError when a profile with `tunnel = "ssh"` leaves out what only the user can know.
    """
    cwd, is_remote = _working_folder(), settings.tunnel == "ssh"
    root = _root(settings, is_remote)
    run = f"{root}/runs/{run_id}"
    folder = f"{run}/jobs/{job}"
    registry_there = settings.artifacts_root if is_remote else _here(settings.artifacts_root)
    artifacts = registry_there or (f"{root}/artifacts" if is_remote else registry or f"{root}/artifacts")
    workdir = settings.workdir if is_remote or image else _here(settings.workdir)
    tree = code_tree(settings)
    code = f"{folder}/code" if tree else None
    package = f"{root}/kit/{package_hash()}" if is_remote or image or other_python else None
    inside = posixpath.normpath(posixpath.join(code, tree.inside)) if code and tree else None
    # Over ssh the profile's is the login node's, which no image has at that path.
    named = None if is_remote and image else settings.python
    return RemotePaths(
        root=root,
        run=run,
        job=folder,
        code=code,
        cwd=workdir or inside or (folder if package else cwd),
        python=named or ("python3" if package else sys.executable),
        package=package,
        artifacts=artifacts,
        tree=tree,
        moves=tuple(_moves(tree, code, package)),
        is_remote=is_remote,
        host=(settings.host if is_remote else None) or ("the container" if image else "this machine"),
        separate_registry=image or settings.artifacts_root is not None,
    )


def _working_folder() -> str:
    check_text(Path.cwd(), "The working folder", "Rename it, or launch from another one.")
    return str(Path.cwd())


def cloud_paths(settings: RunConfig, *, registry: str | None = None) -> RemotePaths:
    """Where NeMo-Run puts a job's folder in all of the clouds. The image's Python has nemotron_kit installed."""
    _working_folder()
    tree = code_tree(settings)
    artifacts = settings.artifacts_root or registry or f"{_root(settings, False)}/artifacts"
    job, code = f"{IN_A_CLOUD}/job", f"{IN_A_CLOUD}/code" if tree else None
    inside = posixpath.normpath(posixpath.join(code, tree.inside)) if code and tree else job
    return RemotePaths(
        root=IN_A_CLOUD,
        run=IN_A_CLOUD,
        job=job,
        code=code,
        cwd=settings.workdir or inside,
        python=settings.python or "python3",
        package=None,
        artifacts=artifacts,
        tree=tree,
        moves=tuple(_moves(tree, code, None)),
        host=settings.executor,
        separate_registry=True,
    )


def moved(values: Mapping[str, Any], paths: RemotePaths) -> dict[str, Any]:
    """A frozen config with its paths translated to the target's; the section `run` is not touched."""
    there: dict[str, Any] = map_leaves(values, lambda each: paths.move(each) if isinstance(each, str) else each)
    return {**there, "run": values["run"]} if "run" in values else there


def below(text: str, folder: str) -> bool:
    """Whether a path is `folder` or inside it, as text."""
    return text == folder or text.startswith(folder.rstrip("/") + "/")


def _here(path: str | None) -> str | None:
    """A path that a profile gives for this machine, absolute."""
    return str(expand_user(path).absolute()) if path else None


def _root(settings: RunConfig, is_remote: bool) -> str:
    named = settings.remote_job_dir
    if not is_remote:
        return _here(named) or str(nemotron_home())
    for field in ("host", "user"):
        if not getattr(settings, field):
            raise UserError(f"tunnel 'ssh' needs {field}.", hint="Set it in the profile.")
    if not named or not named.startswith("/"):  # `with_folder` comes before
        what = f"{named!r} is no absolute path" if named else "is not set"
        raise UserError(
            f"remote_job_dir {what}: jobs and their code need a folder on {settings.host}.",
            hint='Name one that its nodes see, as in remote_job_dir = "/lustre/me/nemotron".',
        )
    for field in ("artifacts_root", "workdir"):
        value = getattr(settings, field)
        if value and not value.startswith("/"):
            raise UserError(f"{field}: {value!r} is no absolute path on {settings.host}.")
    return posixpath.normpath(named)


def _moves(tree: CodeTree | None, code: str | None, package: str | None) -> Iterator[tuple[str, str]]:
    found: dict[str, str] = {}
    if tree and code:
        for spelling in _spellings(tree.root):
            found[spelling] = code
    for root, name in package_roots() if package else ():
        for spelling in _spellings(str(root)):
            found[spelling] = f"{package}/{name}"
    yield from sorted(found.items(), key=lambda pair: -len(pair[0]))


def _spellings(path: str) -> Iterator[str]:
    """`path`, and as the shell calls it where it came here through a link."""
    yield path
    logical, physical = os.environ.get("PWD", ""), os.path.realpath(".")
    if os.path.realpath(logical or "/") != physical or not (physical + "/").startswith(path + "/"):
        return
    rest = physical[len(path) :]
    if rest and logical.endswith(rest):
        yield logical[: -len(rest)]
    elif not rest:
        yield logical
