"""Lists, opens and removes runs. The run folders are authoritative; the index of summaries is a cache."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, UserError, listed, nearest, sentence
from nemotron_kit.files import StampedCache, stamp
from nemotron_kit.home import first_id_since, is_run_id, runs_root, sort_key
from nemotron_kit.runs.folder import RunFolder, RunSummary
from nemotron_kit.runs.job import DAMAGED, TERMINAL, DamagedRunRecord

_NAME = ".index.json"
# `.<run>.<process>.<random>.removed`; older versions left the process out.
_REMOVED = re.compile(rf"\.(?P<run>.+?)(?:\.(?P<process>[0-9]+))?\.[0-9a-f]{{8}}{re.escape(files.REMOVED)}\Z")
_VERSION = 5
# The summaries of larger sweeps are not cached: all their jobs would be read to know whether an entry is valid. Nor are
# those of runs without jobs: a pipeline's summary follows from the runs of its stages.
_MOST_JOBS = 16
# Up to so many summaries are read faster from their folders than from the index.
_FEW = 256
_COLUMNS = tuple(field.name for field in fields(RunSummary))[1:]  # the id is the key
_RECIPE, _STAGE, _STATE, _JOBS = map(_COLUMNS.index, ("recipe", "stage", "state", "jobs"))

# A filter by (recipe, stage).
Named = Callable[[str | None, str | None], bool]


class RunIndex(StampedCache):
    """A cache of run summaries: run id → [stamp of plan.json, stamps of the exit records, the summary's values]."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / _NAME, _VERSION)
        self._root = root

    def search(self, run_ids: Iterable[str], named: Named, states: Collection[str]) -> Iterator[RunSummary]:
        """The summaries of the runs whose recipe and stage pass `named`, and that are in one of `states` (empty: in
        any) or unfinished: the caller determines the current state of an unfinished run."""
        for run_id in run_ids:
            try:
                row = self._row(run_id, named, states)
            # The entry is missing or of another version, or the run's files were deleted.
            except (TypeError, ValueError, LookupError, OSError):
                row = None
            if row:
                yield RunSummary(run_id, *row)
            elif row is None:
                summary = self._fresh(RunFolder(self._root / run_id))
                over = summary.state in TERMINAL and bool(states) and summary.state not in states
                if named(summary.recipe, summary.stage) and not over:
                    yield summary

    def _row(self, run_id: str, named: Named, states: Collection[str]) -> list[Any] | None:
        """The values of the run's summary; [] if it does not match, None if its folder has to be read.

        A run's recipe and stage never change; its state changes with a new exit record, so the exit records' stamps are
        always compared.
        """
        if run_id not in self.entries:
            return None
        plan, exits, row = self.entries[run_id]
        folder = f"{self._root}/{run_id}"
        if DAMAGED not in states and not named(row[_RECIPE], row[_STAGE]):
            return []
        if len(row) != len(_COLUMNS) or exits != _exits(folder, row[_JOBS]):
            return None
        if states and row[_STATE] not in states and DAMAGED not in states:
            return []
        found: list[Any] = row
        return found if plan == stamp(f"{folder}/plan.json") else None

    def _fresh(self, run: RunFolder) -> RunSummary:
        """The summary from the run's folder, added to the cache if the run has ended. The stamps are taken first, so
        that a change while the folder is read makes the entry invalid."""
        jobs, folder = len(run.jobs()), str(run.path)
        stamps: list[list[int]] = []
        with contextlib.suppress(OSError):
            stamps = [stamp(f"{folder}/plan.json"), _exits(folder, jobs)] if 0 < jobs <= _MOST_JOBS else []
        summary = run.summary()
        if stamps and summary.state in TERMINAL:
            self.add(run.id, [*stamps, [getattr(summary, name) for name in _COLUMNS]])
        return summary


# Below, paths are strings and rows are lists: for 10,000 runs pathlib and dataclasses take longer than all the rest.


def _exits(run: str, jobs: int) -> list[int]:
    """When a job was last added (a sweep adds them one after another), and the stamps of all exit records: with
    plan.json, they determine the summary of a run that has ended."""
    added = os.stat(f"{run}/jobs").st_mtime_ns  # noqa: PTH116
    return [added, *(value for number in range(jobs) for value in stamp(f"{run}/jobs/{number}/exit.json"))]


def run_ids(root: Path | None = None) -> list[str]:
    """Every run id, newest first; only the names of folders are read."""
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
    tags: Collection[str] = (),
    limit: int | None = None,
    root: Path | None = None,
    update: Callable[[Sequence[RunSummary]], Sequence[RunSummary]] = list,
) -> list[RunSummary]:
    """Summaries of the newest `limit` runs that match, newest first; a run that can't be read is `damaged`.

    `stage` also matches the stages below it (`data/prep`); a run must have all of `tags`. Without a filter only `limit`
    runs are read. `update` is called once, with all runs whose states matter, and returns them with the current states
    of those that have not ended.
    """
    root = root or runs_root()
    everything = run_ids(root)
    first = first_id_since(since) if since is not None else ""
    ids = [run_id for run_id in everything if run_id[: len(first)] >= first]
    if tags:
        ids = [run_id for run_id in ids if set(tags) <= set(labels_of(run_id, root)["tags"])]
    if not (recipe or stage or states) and limit is not None and limit <= _FEW:
        return list(update([RunFolder(root / run_id).summary() for run_id in ids[:limit]]))
    below = f"{stage.strip('/')}/" if stage else ""

    def named(its_recipe: str | None, its_stage: str | None) -> bool:
        return (not recipe or its_recipe == recipe) and (not below or f"{its_stage or ''}/".startswith(below))

    with RunIndex(root) as index:
        index.keep_only(everything)
        found = index.search(ids, named, states)
        if not states:
            return list(update(list(islice(found, limit))))
        known = update(list(found))
    return list(islice((run for run in known if run.state in states), limit))


def labels_of(run_id: str, root: Path | None = None) -> dict[str, Any]:
    """A run's name, tags and note; empty if their record is damaged."""
    try:
        return RunFolder((root or runs_root()) / run_id).labels()
    except DamagedRunRecord:
        return {"name": None, "tags": [], "note": None}


def open_run(reference: str, root: Path | None = None) -> RunFolder:
    """The run with this id, this unique prefix of an id, these last six digits of one, or this name; "latest" is the
    last launch (a pipeline, not a stage of it). Raises UserError for an unknown or ambiguous reference."""
    root = root or runs_root()
    name, _, behind = reference.partition("/")
    if re.fullmatch(r"\d+(-\d+)?", behind):
        whole = open_run(name, root).id
        what = "one job" if behind.isdecimal() else "some jobs of a run"
        raise UserError(f"{reference!r} is {what}; this command takes whole runs.", hint=f"Its run: {whole}")
    if is_run_id(reference) and (root / reference).is_dir():
        return RunFolder(root / reference)
    ids = run_ids(root)
    if not ids:
        raise UserError(f"No runs in {root}.", hint="Launching a command creates one.")
    if reference == "latest":
        last = RunFolder(root / ids[0])
        with contextlib.suppress(DamagedRunRecord):
            pipeline = str(last.plan().get("part_of"))
            if is_run_id(pipeline) and (root / pipeline).is_dir():
                return RunFolder(root / pipeline)
        return last
    matching = [run_id for run_id in ids if reference and run_id.startswith(reference)]
    matching = matching or [run_id for run_id in ids if len(reference) == 6 and run_id.endswith(f"-{reference}")]
    matching = matching or [run_id for run_id in ids if reference and labels_of(run_id, root)["name"] == reference]
    if len(matching) == 1:
        return RunFolder(root / matching[0])
    if matching:
        raise UserError(f"{reference!r} matches {len(matching)} runs.", hint=f"Which one: {listed(matching, 6)}?")
    newest = f"The newest is {ids[0]}." if not difflib.get_close_matches(reference, ids) else nearest(reference, ids)
    raise UserError(f"No run {reference!r}.", hint=f"{sentence(newest)} `nemotron runs` lists them.")


def remove_run(
    run: RunFolder, *, referenced_by: Callable[[RunFolder], Collection[str]] = lambda _: (), force: bool = False
) -> None:
    """Delete a run's folder. Raises UserError if it can't be removed; see `check_removable`."""
    check_removable(run, referenced_by=referenced_by, force=force)
    remove_unreferenced(run.path, lambda: referenced_by(run))


def remove_unreferenced(folder: Path, referenced: Callable[[], Collection[str]]) -> None:
    """Delete a run's folder. Raises UserError, and keeps it, if `referenced()` names artifacts stored in it.

    The folder is renamed before `referenced()` is called, so an artifact that is saved meanwhile is found; a save in
    turn checks that its files still exist.
    """
    # Renamed first, so that no process reads a half-deleted run.
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}{files.REMOVED}")
    try:
        try:
            folder.rename(doomed)
        except FileNotFoundError:
            if folder.parent.is_dir():  # another command has removed it
                return
            raise
        try:
            held = sorted(referenced())
        except BaseException:
            doomed.rename(folder)
            raise
        if held:
            doomed.rename(folder)
            raise _held(folder.name, held)
        shutil.rmtree(doomed, onerror=_unless_gone)
    except OSError as error:
        raise NemotronError(f"{folder}: can't be removed: {error}.") from error


def _unless_gone(call: object, path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
    """Another process may complete the same removal."""
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def collect_removed(
    referenced_by: Callable[[RunFolder], Collection[str]], root: Path | None = None, *, dry_run: bool = False
) -> list[str]:
    """Complete the removals of processes that were killed, and restore folders with artifacts; returns the ids of the
    removed runs. With `dry_run`: those that would be."""
    root, done = root or runs_root(), []
    try:
        with os.scandir(root) as entries:
            every = sorted(entries, key=lambda each: each.name)
    except FileNotFoundError:
        return []
    for entry in every:
        match = _REMOVED.match(entry.name)
        if match is None or not is_run_id(match["run"]):
            continue
        # This process has no removal under way. A process id of another host may be in use on this one: the folder is
        # then left until later.
        process = int(match["process"] or os.getpid())
        if process != os.getpid() and files.process_exists(process):
            continue
        run, doomed = RunFolder(root / match["run"]), Path(entry.path)
        with contextlib.suppress(OSError):
            held = referenced_by(run)
            if not dry_run and held:
                doomed.rename(run.path)
            elif not dry_run:
                shutil.rmtree(doomed)
            done += [] if held else [run.id]
    return done


def check_removable(
    run: RunFolder, *, referenced_by: Callable[[RunFolder], Collection[str]] = lambda _: (), force: bool = False
) -> None:
    """Raise UserError if a job has not ended (`force` allows it unless the job is running), or if `referenced_by(run)`
    names artifacts stored in the folder."""
    state = run.state()
    if state not in (*TERMINAL, DAMAGED) and not (force and state != "running"):
        hint = f"Stop it first: nemotron runs cancel {run.id}." if state == "running" else "--force removes it."
        raise UserError(f"{run.id} is {state}.", hint=hint)
    artifacts = sorted(referenced_by(run))
    if artifacts:
        raise _held(run.id, artifacts)


def _held(run_id: str, artifacts: Sequence[str]) -> UserError:
    return UserError(
        f"{run_id} holds the files of {listed(artifacts, 6)}.",
        hint="An artifact refers to its files: without this folder it could not be loaded.",
    )
