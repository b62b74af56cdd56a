"""The folder of one launch: its id, its plan, its jobs. It appears atomically, under its final name.

    <run id>/                   date, time, recipe, stage and six random digits: 20261130-005212-nano3-pretrain-5e2af8
    ├── plan.json               how the launch was made: its command line, config, profile, pinned inputs, job files
    ├── labels.json             name, tags and note, as `nemotron runs rename|tag|note` set them
    ├── unfinished              while a sweep's launch may add jobs; it stays, with the error, if the launch has failed
    └── jobs/0/, jobs/1/, …     a folder for each job

A pipeline's run has no jobs: the records of its stages, which are runs, are in `stages/`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import home_in, home_names, is_run_id, located, moved, runs_root, started_at
from nemotron_kit.lazy import Value
from nemotron_kit.masking import mask, masked
from nemotron_kit.runs.job import (
    DAMAGED,
    STARTER,
    TERMINAL,
    DamagedRunRecord,
    JobFolder,
    JobState,
    now_iso,
    parse_time,
    read_object,
    read_object_if_any,
    run_state,
)
from nemotron_kit.runs.process_facts import is_gone, is_process, process_facts

# The keys of plan.json that are read back, with their types (see job.read_object); spec.plan checks `settings`.
_TEXTS = {None: str}
_TREE = {**dict.fromkeys(("root", "inside", "packager"), str), "git": bool}
_PATHS = ("root", "run", "job", "code", "cwd", "python", "kit", "artifacts", "host")
_NUMBERS = ("nodes", "processes", "cpus_per_task", "gpus_per_task")
PLAN_SHAPE: dict[str, Any] = {
    **dict.fromkeys(("recipe", "stage", "executor", "profile", "mode", "kind", "command_line", "rerun_of"), str),
    **dict.fromkeys(("launch", "config_name", "config_file"), str),
    **dict.fromkeys(("config", "settings", "request", "launcher"), dict),
    **dict.fromkeys(("references", "environment", "captured_at_launch", "files"), _TEXTS),
    **{key: [str] for key in ("secrets", "launch_command", "problems", "notes", "mounts", "after", "wait_first")},
    "hydra": (str, list),
    "code": {**dict.fromkeys(("folder", "commit", "kit", "python"), str), "dirty": bool},
    "place": {
        **dict.fromkeys(_PATHS, str),
        **dict.fromkeys(("apart", "own_registry"), bool),
        "tree": _TREE,
        "moves": _TEXTS,
    },
    "inputs": {None: dict},
    "resources": {**dict.fromkeys(_NUMBERS, int), **dict.fromkeys(("torchrun", "ray"), bool), "notes": [str]},
    "container": {"name": str, "image": str, "words": [str]},
    "repositories": [_TEXTS],
    "dependency": [(str, int)],
    "attempt": int,
    "part_of": str,
    **dict.fromkeys(("direction", "objective"), str),
    "stages": [str],
    "home": [str],
}
# The kind of a pipeline's run, which has no jobs: its stages are runs.
PIPELINE = "pipeline"
_STAGES = "stages"
# The key of the error in the record that replaces an unreadable stage's.
DAMAGE = "damage"
LABELS = "labels.json"
_UNFINISHED = "unfinished"
_STAGE_SHAPE: dict[str, Any] = {
    **dict.fromkeys(("stage", "run", "why", "producer", "state"), str),
    "skipped": bool,
    "outputs": [dict],
    "inputs": {None: dict},
    "fingerprint": dict,
}


@dataclass(frozen=True, eq=False, repr=False)
class RunSummary(Value):
    """The facts of a run in a listing. Times are in seconds since the epoch; `error` is why it failed or is damaged,
    `reason` what a pending run waits for."""

    id: str
    state: str
    recipe: str | None = None
    stage: str | None = None
    executor: str | None = None
    profile: str | None = None
    created: float | None = None
    started: float | None = None
    finished: float | None = None
    code: int | None = None
    jobs: int = 0
    error: str | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class RunFolder(Value):
    """`$NEMOTRON_HOME/runs/<run id>`."""

    path: Path

    @property
    def id(self) -> str:
        """The run id: the folder's name."""
        return self.path.name

    def plan(self) -> dict[str, Any]:
        """The content of plan.json, paths inside the home as they are now. Raises DamagedRunRecord if it is missing or
        can't be read."""
        try:
            plan = read_object(self.path / "plan.json", PLAN_SHAPE)
        except FileNotFoundError as error:
            raise DamagedRunRecord(f"{self.path / 'plan.json'}: no such file.") from error
        if plan.get("launcher") is not None and not is_process(plan["launcher"]):
            raise DamagedRunRecord(f"{self.path / 'plan.json'}: launcher: not a process.")
        home = self.path.parent.parent
        found: dict[str, Any] = moved(plan, home_in(plan, self.path), home)
        return found if found is plan else {**found, "home": home_names(home)}

    def jobs(self) -> list[JobFolder]:
        """Its jobs by number; empty if the folder is damaged."""
        try:
            names = os.listdir(self.path / "jobs")  # noqa: PTH208 — names only
        except OSError:
            return []
        return [JobFolder(self.path / "jobs" / name) for name in sorted(filter(str.isdecimal, names), key=int)]

    def job(self, number: int = 0) -> JobFolder:
        """Job `number`. Raises UserError if the run has no such job."""
        folder = self.path / "jobs" / str(number)
        exists = os.path.isdir(folder)  # noqa: PTH112 — pathlib's raises for a name that is too long
        if not exists and self.is_pipeline:
            named = [f"{self.id}/{at} ({each['stage'].replace('/', ' ')})" for at, each in enumerate(self.stages())]
            again = f"To continue it: {self.plan().get('command_line')}"
            hint = f"Name one: {', '.join(named)}.\n{again}" if named else again
            raise UserError(f"{self.id} is a pipeline, whose stages are runs.", hint=hint)
        if not exists:
            known = ", ".join(str(job.number) for job in self.jobs()[:12]) or "none"
            raise UserError(f"{self.id} has no job {str(number)[:20]}.", hint=f"Its jobs: {known}.")
        return JobFolder(folder)

    def add_job(
        self, number: int, texts: Mapping[str, str], *, attached: bool = False, starts_here: bool = False
    ) -> JobFolder:
        """Add one more `pending` job (the next of a sweep); the arguments are those of `create_run`."""
        final, starts = self.path / "jobs" / str(number), _starts(attached, starts_here)
        if final.is_dir() and not (final / "state").exists():
            # Hydra's basic launcher makes the folder, for its log, before it calls the task.
            final.chmod(0o700)
            try:
                return _fill_job(JobFolder(final), texts, starts, files.write_text)
            except BaseException:  # such as a full disk: without a state, no one could read or end this job
                shutil.rmtree(final, ignore_errors=True)
                raise
        building = final.with_name(f".{number}.{secrets.token_hex(4)}.tmp")
        try:
            _fill_job(JobFolder(building), texts, starts, files.write_new)
            _rename_new(building, final)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        files.fsync_dir(final.parent)
        return JobFolder(final)

    def labels(self) -> dict[str, Any]:
        """The user's labels: `{"name", "tags", "note"}`; None and [] for those that are not set. Raises
        DamagedRunRecord."""
        stored = read_object_if_any(self.path / LABELS, {"name": str, "tags": [str], "note": str}) or {}
        return {key: stored.get(key) or empty for key, empty in (("name", None), ("tags", []), ("note", None))}

    def label(self, *, edit_tags: Callable[[list[str]], list[str]] | None = None, **changes: Any) -> dict[str, Any]:
        """Set some of its labels and return all; each replaces the earlier value. `edit_tags` gets the tags and returns
        the new ones. Commands that change labels at the same time wait for each other."""
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            known = self.labels()
            if edit_tags is not None:
                changes["tags"] = edit_tags(known["tags"])
            files.write_json(self.path / LABELS, {**known, **changes})
            return {**known, **changes}
        finally:
            os.close(folder)

    @property
    def is_pipeline(self) -> bool:
        """Whether the run is a pipeline's: it has no jobs, and its stages are runs."""
        try:
            return self.plan().get("kind") == PIPELINE
        except DamagedRunRecord:
            return False

    def add_stage(self, number: int, record: Mapping[str, Any]) -> None:
        """Record the decision on stage `number` of a pipeline: `stage`, `why`, and either `skipped` with the `outputs`
        of an earlier run, or the id of the stage's `run`."""
        folder = self.path / _STAGES
        folder.mkdir(mode=0o700, exist_ok=True)
        files.write_json(folder / f"{number:03d}.json", masked({"at": now_iso(), **record}))

    def stages(self) -> list[dict[str, Any]]:
        """The records of a pipeline's stages in order; for an unreadable one, its `stage` and the error (DAMAGE)."""
        found: list[dict[str, Any]] = []
        for file in sorted((self.path / _STAGES).glob("[0-9]*.json")):
            with contextlib.suppress(FileNotFoundError):
                try:
                    record = read_object(file, _STAGE_SHAPE)
                    for needed in (("stage",), ("run", "skipped")):
                        if not any(record.get(key) for key in needed):
                            raise DamagedRunRecord(f"{file}: {needed[0]}: missing.")
                    found.append(located(record, self.path))
                except DamagedRunRecord as error:
                    name = [*(self.plan().get("stages") or ()), "?"][len(found) :][:1]
                    found.append({"stage": "".join(name) or "?", DAMAGE: error.message})
        return found

    def stage_run(self, record: Mapping[str, Any]) -> RunFolder | None:
        """The run named in a stage's record; None if the stage was skipped or its run was removed."""
        folder = self.path.parent / str(record.get("run"))
        exists = os.path.isdir(folder)  # noqa: PTH112 — pathlib's raises for a name that is too long
        return RunFolder(folder) if record.get("run") and exists else None

    def stage_runs(self) -> list[RunFolder]:
        """The runs of a pipeline's stages that exist, in order."""
        return [run for record in self.stages() if (run := self.stage_run(record)) is not None]

    def all_jobs_added(self) -> None:
        """Record that the run has all of its jobs (see `create_run`). This removes a file, as a full disk allows."""
        (self.path / _UNFINISHED).unlink(missing_ok=True)

    def launch_failed(self, error: str) -> None:
        """Record that the launch has failed, and jobs may be missing, though those that exist have succeeded."""
        with contextlib.suppress(OSError):
            files.write_text(self.path / _UNFINISHED, mask(error))

    def state_of(self, states: Iterable[str]) -> str:
        """The run's state from those of all of its jobs. If these have succeeded and the launch may still add jobs, it
        is running, or failed once the launch has ended."""
        state = run_state(states)
        failure = self._launch_failure() if state == "succeeded" else None
        if failure is None:
            return state
        try:
            return "failed" if failure or is_gone(self.plan().get("launcher") or {}) else "running"
        except DamagedRunRecord:
            return DAMAGED

    def launcher_at_work(self) -> dict[str, Any] | None:
        """The facts of the process that may still add jobs; None if the run has all of them, or its launch has
        ended."""
        launcher = self.plan().get("launcher") if self._launch_failure() == "" else None
        return launcher if launcher and not is_gone(launcher) else None

    def _launch_failure(self) -> str | None:
        """None for a run that has all of its jobs, else why its launch failed; "" if it has not, or could not record
        why."""
        try:
            return files.read_regular(self.path / _UNFINISHED, limit=1 << 20).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return None
        except OSError:
            return ""

    def state(self) -> str:
        """The run's state from those of its jobs; without jobs (a pipeline, a damaged run) that of its summary."""
        jobs = self.jobs()
        return self.state_of(job.state().state for job in jobs) if jobs else self.summary().state

    def summary(self, known: Sequence[JobState] | None = None) -> RunSummary:
        """The run's summary. Never raises for the folder's content: an unreadable run is `damaged`, with the reason.
        `known`: the current states of all of its jobs, for a caller that has just read them."""
        stamp = started_at(self.id)
        created = stamp.timestamp() if stamp else None
        try:
            plan = self.plan()
        except DamagedRunRecord as error:
            reason = error.message.replace(f"{self.path}/", "")
            return RunSummary(self.id, DAMAGED, created=created, error=reason)
        planned = RunSummary(
            id=self.id,
            state=DAMAGED,
            recipe=_text(plan.get("recipe")),
            stage=_text(plan.get("stage")),
            executor=_text(plan.get("executor")),
            profile=_text(plan.get("profile")),
            created=parse_time(plan.get("created_at")) or created,
        )
        if plan.get("kind") == PIPELINE:
            return self._of_stages(plan, planned)
        jobs = list(known) if known is not None else [job.state() for job in self.jobs()]
        state, lacks = self.state_of(job.state for job in jobs), None
        # A run is made with its jobs; only those of a sweep come later, from its launch.
        launcher = plan.get("launcher") or {}
        if not jobs and (not (launcher or plan.get("kind")) or is_gone(launcher)):
            state, lacks = DAMAGED, "jobs: there are none, and its launch has ended."
        elif state == "failed" and all(job.state == "succeeded" for job in jobs):
            lacks = self._launch_failure() or "its launch was interrupted, and jobs may be missing"
        ended = [job.finished for job in jobs if job.finished is not None]
        return replace(
            planned,
            state=state,
            started=min((job.started for job in jobs if job.started is not None), default=None),
            finished=max(ended, default=None) if len(ended) == len(jobs) and state != "running" else None,
            code=next((job.code for job in jobs if job.code), 0 if state == "succeeded" else None),
            jobs=len(jobs),
            error=lacks or next((str(job.error) for job in jobs if job.error), None),
            reason=next((_text(job.facts.get("reason")) for job in jobs if job.state == "pending"), None),
        )

    def _of_stages(self, plan: Mapping[str, Any], planned: RunSummary) -> RunSummary:
        """The summary of a pipeline from those of its stages. It has failed if its launch ended before all stages were
        started, and is damaged if a stage's record can't be read."""
        records, names = self.stages(), plan.get("stages") or []
        every = [self._of_stage(record) for record in records]
        damage = next((each.error for each in every if each.state == DAMAGED), None)
        known = [each for each in every if each.state != DAMAGED]
        state = run_state(each.state for each in known) if known else "succeeded"
        remaining, launcher = names[len(records) :], plan.get("launcher") or {}
        error = next(
            (f"{each.stage}: {each.error}" for each in known if each.error and each.state != "succeeded"), None
        )
        if remaining and state == "succeeded":
            state = "failed" if is_gone(launcher) else "running"
            error = f"its launch ended before {remaining[0]}" if state == "failed" else None
        elif state == "pending" and any(each.started is not None for each in known):
            state = "running"
        if damage is not None and state in TERMINAL:
            state, error = DAMAGED, damage
        started = [each.started for each in known if each.started is not None]
        ended = [each.finished for each in known if each.finished is not None]
        made = planned.created
        return replace(
            planned,
            state=state,
            started=min(started, default=made),
            finished=max(ended, default=made) if state in TERMINAL else None,
            code=next((each.code for each in known if each.code), 0 if state == "succeeded" else None),
            error=error,
        )

    def _of_stage(self, record: Mapping[str, Any]) -> RunSummary:
        name = _text(record.get("stage"))
        if damage := record.get(DAMAGE):
            return RunSummary(self.id, DAMAGED, stage=name, error=str(damage).replace(f"{self.path}/", ""))
        if record.get("skipped"):
            return RunSummary(self.id, "succeeded", stage=name, code=0)
        run = self.stage_run(record)
        if run is None:
            ended = record.get("state")
            return RunSummary(
                self.id,
                ended if ended in TERMINAL else "unknown",
                stage=name,
                error=None if ended == "succeeded" else f"{record.get('run')} was removed",
            )
        found = run.summary()
        error = f"{run.id}: {found.error}" if found.state == DAMAGED else found.error
        return replace(found, stage=name, error=error)


def create_run(
    run_id: str,
    plan: Mapping[str, Any],
    jobs: Sequence[Mapping[str, str]],
    *,
    attached: bool = False,
    starts_here: bool = False,
    root: Path | None = None,
    labels: Mapping[str, Any] | None = None,
    more_jobs: bool = False,
) -> RunFolder:
    """Make a run's folder with its plan and one `pending` job for each of `jobs`.

    `plan` is JSON data; listings read `recipe`, `stage`, `created_at` (by default now), and `runs show` also
    `command_line`, `hydra`, `profile`, `inputs`. A job is `{relative file name: text}`, `config.yaml` among them.
    `attached`: the jobs run in this process, so they have failed if it ends before they do. `starts_here`: this process
    starts them on this machine, so they have failed if it ends before their workers have started. `more_jobs`: this
    process will add jobs; unless it calls `all_jobs_added` before it ends, the run has failed.
    """
    if not is_run_id(run_id):
        raise UserError(f"{run_id!r} is not a run id.", hint="Make one with new_run_id(recipe, stage).")
    root = root or runs_root()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NemotronError(
            f"{root}, the folder for runs, can't be made: {error.filename}: {error.strerror}.",
            hint="Name another one: export NEMOTRON_HOME=…",
        ) from error
    final = root / run_id
    files.collect_leftovers(root, ours=True)
    # Its name begins with a dot, so listings ignore the leftovers of a killed launch.
    building = files.aside(final)
    starts = _starts(attached, starts_here)
    try:
        (building / "jobs").mkdir(mode=0o700, parents=True)
        building.chmod(0o700)
        stored = {"created_at": now_iso(), **plan, "home": home_names(root.parent)}
        files.write_json(building / "plan.json", masked(stored))
        for number, texts in enumerate(jobs):
            _fill_job(JobFolder(building / "jobs" / str(number)), texts, starts, files.write_new)
        files.fsync_dir(building)
        if labels:
            files.write_json(building / LABELS, masked(labels))
        if more_jobs:
            files.write_text(building / _UNFINISHED, "")
        _rename_new(building, final)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise NemotronError(
            f"{root}: the run can't be recorded there: {error.strerror or error}.",
            hint="Make it writable, free some space, or name another folder: export NEMOTRON_HOME=…",
        ) from error
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    files.fsync_dir(root)
    return RunFolder(final)


def open_job(path: Path | str) -> JobFolder:
    """The job folder at `path`, the value of NEMO_RUN_DIR. Raises UserError if `path` is no job folder."""
    folder = Path(path).absolute()
    if not (folder.name.isdecimal() and folder.parent.name == "jobs" and folder.is_dir()):
        raise UserError(f"{path} is not a job folder.", hint="It should be …/runs/<run id>/jobs/<n>.")
    return JobFolder(folder)


def _starts(attached: bool, starts_here: bool) -> dict[str, Any]:
    """The facts about this process in the state of a new job: that it is the job's process, or starts it here."""
    return {"process" if attached else STARTER: process_facts()} if attached or starts_here else {}


def _fill_job(
    job: JobFolder, texts: Mapping[str, str], starts: Mapping[str, Any], write: Callable[[Path, str], None]
) -> JobFolder:
    job.path.mkdir(mode=0o700, exist_ok=True)
    for name in texts:
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
            raise ValueError(f"{name!r} is no file name inside a job folder.")
        for depth in range(1, len(parts)):
            job.path.joinpath(*parts[:depth]).mkdir(mode=0o700, exist_ok=True)
    for name, text in texts.items():
        write(job.path / name, text)
    job.transition("pending", **starts)
    return job


def _rename_new(folder: Path, final: Path) -> None:
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise NemotronError(f"{final} exists already.", hint="Launch again: the run id will be another.") from error


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
