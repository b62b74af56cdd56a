"""Git repositories on the target, each commit in a folder of its own: for mounts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from nemotron_kit.errors import Unreachable, UserError
from nemotron_kit.target.clean import used

ASK_SECONDS, FETCH_SECONDS = 30, 900
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\Z")


def commit_of(payload: bytes, url: str, ref: str) -> tuple[str, bytes]:
    """The commit that a branch or a tag of the repository stands for; an annotated tag's is the one that it names."""
    del payload
    names = (f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}")
    lines = _git("ls-remote", "--", url, *names, seconds=ASK_SECONDS).splitlines()
    found = {name: commit for commit, _, name in (line.partition("\t") for line in lines)}
    commit = next((found[name] for name in names if name in found), None)
    if commit is None:
        raise UserError(f"{url} has no branch or tag {ref!r}.", hint="A commit is named by all of its 40 digits.")
    return commit, b""


def fetch_repository(payload: bytes, cache: str, url: str, ref: str, commit: str, folder: str) -> tuple[str, bytes]:
    """Have the commit's files in `<cache>/<folder>`, whole; one that is there is left alone."""
    del payload
    if not _COMMIT.match(commit) or not _FOLDER.match(folder):
        raise UserError(f"{url}: {commit!r} is no commit, or {folder!r} no folder's name.")
    place = Path(cache) / folder
    if not place.is_dir():
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder}-", dir=place.parent))
        try:
            _check_out(building, url, ref, commit)
            building.rename(place)
        except OSError:
            if not place.is_dir():  # else another launch was faster
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    used(place)
    return str(place), b""


def _check_out(folder: Path, url: str, ref: str, commit: str) -> None:
    inside = ("-C", str(folder))
    _git("init", "--quiet", "--", str(folder), seconds=ASK_SECONDS)
    try:
        _git(*inside, "fetch", "--quiet", "--depth=1", "--", url, commit, seconds=FETCH_SECONDS)
    except UserError:  # a server may give out branches and tags only
        _git(*inside, "fetch", "--quiet", "--", url, *({ref} - {commit}), seconds=FETCH_SECONDS)
    _git(*inside, "checkout", "--quiet", "--detach", commit, seconds=FETCH_SECONDS)


def _git(*words: str, seconds: float) -> str:
    """What git prints. It asks nobody for a password. UserError in git's own words, Unreachable when it hangs."""
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}
    try:
        done = subprocess.run(
            ["git", *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except FileNotFoundError as error:
        raise UserError("There is no git where the job runs, for auto_mount.", hint="Mount a folder.") from error
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"git {words[0]} has not ended for {seconds:.0f} s.") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"git could not fetch the repository: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace")
