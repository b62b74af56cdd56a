"""Commands that remove or relocate, killed at each call that changes files: given again, they end as if they had not
been killed. tests and scripts/faults use it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nemotron_kit.artifacts import Artifact
from nemotron_kit.artifacts.lineage import given_inputs
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.cli.tools import run as tool
from nemotron_kit.errors import NemotronError
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import RunFolder, create_run

try:
    from .file_calls import Died, dying_at, stepping_in
except ImportError:  # scripts/faults imports it as a module by itself
    from file_calls import Died, dying_at, stepping_in  # type: ignore[import-not-found, no-redef]

OLD = 40
_NEVER = 10**6


def make(folder: Path) -> dict[str, list[str]]:
    """A home with runs and versions, in `folder`; returns the commands to try, by name."""
    os.environ["NEMOTRON_HOME"] = str(folder / "home")
    failed, stage, holds = _run(OLD, 1), _run(OLD, 1), _run(OLD, 0)
    pipeline = _run(OLD + 1, None, kind="pipeline", stages=["data"])
    pipeline.add_stage(0, {"stage": "data", "run": stage.id, "why": "new"})
    for name in ("kept", "lost", "old/data", "old/more"):
        _save(folder / name, name.replace("/", "-"))
    _save(folder / "other/model", "model", data="old-data:v0")
    _save(holds.path / "jobs/0/model", "held")
    _save(holds.path / "jobs/0/data", "held")
    open_registry().set_alias("held", "good", 1)
    for name in ("old-more", "lost"):
        open_registry().set_alias(name, "good", 0)
    (folder / "lost/data.txt").unlink()
    _save(folder / "gone", "gone")
    shutil.rmtree(folder / "gone")
    shutil.copytree(folder / "old", folder / "new")
    leftover = open_registry().root / "kept/.tmp-0123456789abcdef"
    leftover.mkdir()
    (leftover / "version.json").write_text("{")
    building = failed.path.with_name(f".{failed.id[:-1]}0.999999999.01234567.tmp")
    shutil.copytree(failed.path, building)
    for path in (leftover, building):
        long_ago = time.time() - 10 * 86_400
        os.utime(path, (long_ago, long_ago))
    return {
        "runs rm": ["runs", "rm", holds.id, "--with-artifacts", "--force"],
        "runs rm older": ["runs", "rm", "--older-than", "30d", "--with-artifacts", "--force", "--json"],
        "artifacts rm": ["artifacts", "rm", "old-more:v0", "kept:v0", "--files", "--force"],
        "artifacts gc": ["artifacts", "gc", "--yes"],
        "artifacts relocate": ["artifacts", "relocate", str(folder / "old"), str(folder / "new")],
    }


def _run(age: int, code: int | None, **plan: object) -> RunFolder:
    now = datetime.now(UTC) - timedelta(days=age)
    jobs = [] if code is None else [{"config.yaml": "a: 1\n"}]
    run = create_run(new_run_id("r", "go", now=now), {"recipe": "r", "stage": "go", **plan}, jobs)
    for job in run.jobs():
        job.transition("running")
        job.finish(code or 0)
    return run


def _save(folder: Path, name: str, **inputs: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.txt").write_text(str(folder.name))
    with given_inputs({slot: open_registry().resolve(reference) for slot, reference in inputs.items()}):
        Artifact(path=folder).save(name=name)


def give(command: list[str]) -> None:
    """Give a command; what it prints is dropped."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert tool(command[0], command[1:]) == 0, command


def end_state(folder: Path) -> dict[str, str]:
    """Every file below the folder that a reader looks at, with a digest of its content; empty folders, too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        # Indexes are caches; stamps have the times of this copy; what a save leaves is for gc, a day later.
        if re.search(r"/(index|stamps)/|\.index\.json|/\.tmp-(?!0123)", name) or (
            path.is_dir() and any(path.iterdir())
        ):
            continue
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def kills(work: Path, name: str, *, first: int = 1, every: int = 1) -> Iterator[tuple[str, str | None]]:
    """Kill a command at each `every`-th of its calls that change files (of all: before and after it), and give it
    again: (what was tried, what is not as it should be)."""
    place = work / "place"
    command = make(place)[name]
    shutil.copytree(place, work / "whole", symlinks=True)

    def restored() -> None:
        shutil.rmtree(place)
        shutil.copytree(work / "whole", place, symlinks=True)

    with stepping_in(dying_at(_NEVER)) as made:
        give(command)
    expected = end_state(place)
    for k in range(first, len(made) + 1, every):
        for after in (False, True) if every == 1 else (k % 2 == 0,):
            restored()
            with contextlib.suppress(Died), stepping_in(dying_at(k, after=after)):
                give(command)
            error = None
            try:
                give(command)
            except NemotronError as found:  # it may be complete: then there is no such run any more
                error = found
            found_state = end_state(place)
            names = [each for each in found_state.keys() | expected if found_state.get(each) != expected.get(each)]
            what = f"{name}, death {'after' if after else 'at'} call {k} ({made[k - 1]})"
            yield what, f"{', '.join(sorted(names)[:4])} differ, {error}" if names else None


COMMANDS = ("runs rm", "runs rm older", "artifacts rm", "artifacts gc", "artifacts relocate")
