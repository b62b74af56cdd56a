"""Queries over all runs on this machine, newest first. The folders are the truth; the index is a cache."""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, UserError, nearest, sentence
from nemotron_kit.runs.folder import RunFolder, RunSummary, runs_root
from nemotron_kit.runs.ids import first_id_since, is_run_id, sort_key
from nemotron_kit.runs.index import Index, Named
from nemotron_kit.runs.states import DAMAGED, TERMINAL

# How a folder is called whose run is being removed.
_REMOVED = ".removed"


def run_ids(root: Path | None = None) -> list[str]:
    """Every run id, newest first, from the names alone."""
    try:
        entries = os.scandir(root or runs_root())
    except FileNotFoundError:
        return []
    with entries:
        found = [e.name for e in entries if is_run_id(e.name) and e.is_dir(follow_symlinks=False)]
    return sorted(found, key=sort_key, reverse=True)


def list_runs(
    *,
    recipe: str | None = None,
    stage: str | None = None,
    states: Collection[str] = (),
    since: timedelta | None = None,
    limit: int | None = None,
    root: Path | None = None,
    update: Callable[[Sequence[RunSummary]], Sequence[RunSummary]] = list,
) -> list[RunSummary]:
    """Summaries of the newest `limit` runs that match, newest first; a run that can't be read is `damaged`.

    `stage` also matches the stages below it (`data/prep`). Without a filter only the runs that are shown are opened.
    `update` is called once, for all the runs whose states matter: it may know better how those stand that are not over.
    """
    root = root or runs_root()
    everything = run_ids(root)
    first = first_id_since(since) if since is not None else ""
    ids = [run_id for run_id in everything if run_id[: len(first)] >= first]
    if not (recipe or stage or states):
        return list(update([RunFolder(root / run_id).summary() for run_id in ids[:limit]]))
    with Index(root, everything) as index:
        found = index.search(ids, _named(recipe, stage), states)
        if not states:
            return list(update(list(islice(found, limit))))
        known = update(list(found))
    return list(islice((run for run in known if run.state in states), limit))


def open_run(reference: str, root: Path | None = None) -> RunFolder:
    """The run with this id, with this unique prefix or last six digits of one, or the "latest"."""
    root = root or runs_root()
    if is_run_id(reference) and (root / reference).is_dir():
        return RunFolder(root / reference)
    ids = run_ids(root)
    if not ids:
        raise UserError(f"No runs in {root}.", hint="A run appears there when a command is launched.")
    if reference == "latest":
        return RunFolder(root / ids[0])
    matching = [run_id for run_id in ids if reference and run_id.startswith(reference)]
    matching = matching or [run_id for run_id in ids if len(reference) == 6 and run_id.endswith(f"-{reference}")]
    if len(matching) == 1:
        return RunFolder(root / matching[0])
    if matching:
        shown = ", ".join(matching[:6]) + (", …" if len(matching) > 6 else "")
        raise UserError(f"{reference!r} is the start of {len(matching)} runs.", hint=f"Which: {shown}?")
    newest = f"The newest is {ids[0]}." if not difflib.get_close_matches(reference, ids) else nearest(reference, ids)
    raise UserError(f"No run {reference!r}.", hint=f"{sentence(newest)} `nemotron runs` lists them.")


def remove_run(
    run: RunFolder, *, referenced_by: Callable[[RunFolder], Collection[str]] = lambda _: (), force: bool = False
) -> None:
    """Delete a run's folder. Refused as `check_removable` says."""
    check_removable(run, referenced_by=referenced_by, force=force)
    take_away(run.path, lambda: referenced_by(run))


def take_away(folder: Path, referenced: Callable[[], Collection[str]]) -> None:
    """Delete a run's folder, unless artifacts lie in it (`referenced()` names them), also those that were saved while
    this went on: it is out of the way before it is asked for the last time, and a save looks for its files afterwards.

    UserError for one that stays.
    """
    # Gone at once under its name, so that no reader meets half of it.
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}{_REMOVED}")
    try:
        folder.rename(doomed)
        try:
            held = sorted(referenced())
        except BaseException:
            doomed.rename(folder)
            raise
        if held:
            doomed.rename(folder)
            raise _held(folder.name, held)
        shutil.rmtree(doomed)
    except OSError as error:
        raise NemotronError(f"{folder}: can't be removed: {error}.") from error


def collect_removed(referenced_by: Callable[[RunFolder], Collection[str]], root: Path | None = None) -> None:
    """End the removals of processes that were killed meanwhile, more than a day ago: what artifacts refer to is put
    back."""
    root = root or runs_root()
    with contextlib.suppress(FileNotFoundError), os.scandir(root) as entries:
        left = [
            Path(e.path) for e in entries if e.name.endswith(_REMOVED) and files.is_leftover(e, _REMOVED, ours=True)
        ]
        for doomed in left:
            stem = doomed.name[1:].removesuffix(_REMOVED).rpartition(".")[0]
            run_id = stem if is_run_id(stem) else stem.rpartition(".")[0]
            if not is_run_id(run_id):
                continue
            run = RunFolder(root / run_id)
            with contextlib.suppress(OSError):
                if referenced_by(run):
                    doomed.rename(run.path)
                else:
                    shutil.rmtree(doomed)


def check_removable(
    run: RunFolder, *, referenced_by: Callable[[RunFolder], Collection[str]] = lambda _: (), force: bool = False
) -> None:
    """UserError while a job is not over (`force` lifts that for one that is not known to be running), and while
    artifacts lie in the folder: `referenced_by(run)` names those."""
    # Nothing can be said of a damaged run without jobs but that it isn't running.
    state = run.state() if run.jobs() else run.summary().state
    if state not in (*TERMINAL, DAMAGED) and not (force and state != "running"):
        hint = f"Stop it first: nemotron runs cancel {run.id}." if state == "running" else "--force removes it."
        raise UserError(f"{run.id} is {state}.", hint=hint)
    artifacts = sorted(referenced_by(run))
    if artifacts:
        raise _held(run.id, artifacts)


def _held(run_id: str, artifacts: Sequence[str]) -> UserError:
    return UserError(
        f"{run_id} holds the files of {', '.join(artifacts[:6])}{', …' if len(artifacts) > 6 else ''}.",
        hint="Artifacts are by reference: without this folder they could not be loaded.",
    )


def _named(recipe: str | None, stage: str | None) -> Named:
    below = f"{stage.strip('/')}/" if stage else ""

    def named(its_recipe: str | None, its_stage: str | None) -> bool:
        return (not recipe or its_recipe == recipe) and (not below or f"{its_stage or ''}/".startswith(below))

    return named
