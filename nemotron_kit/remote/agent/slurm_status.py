"""The state of Slurm jobs: from the worker's record first, then squeue, then sacct. An unknown state never counts
as success."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemotron_kit.errors import NemotronError, Unreachable, printable
from nemotron_kit.remote.agent import slurm
from nemotron_kit.remote.agent import slurm_commands as commands
from nemotron_kit.remote.agent.slurm import FOLDER, Submission
from nemotron_kit.remote.agent.slurm_commands import Entry
from nemotron_kit.runs.job import AGAIN, DamagedRunRecord, JobFolder, is_final_end, is_sound

_READ = 20_000
_LONGEST = 300
# A line of Slurm's or of Pyxis' (which forwards enroot's).
_SLURM = re.compile(r"(?:srun|slurmstepd(?:-([^\s:]+))?|pyxis): (?:fatal: |error: )?(?:pyxis: *)?")
# Lines without a reason: progress, and that something failed.
_AROUND = re.compile(
    r"\[INFO\]|warning: |cluster configuration lacks|spank: |Failed to invoke spank|printing enroot log|child \d+ |"
    r"import(?:ing|ed) docker image|created \d+ |Parallel unsquashfs|\d+ inodes|couldn't create enroot start|"
    r"container was not started|\[ERROR\] \S+ exited|(?:\S+: )?tasks? [\d,-]+: |Terminating|\*\*\* |launch/slurm|"
    r"Force Terminated|Job \d+ step creation|Step created|\Z"
)
# Printed by the script: srun names its output by a number that differs from an array task's id.
_NUMBER = re.compile(r"^nemotron: job (\d+) ", re.MULTILINE)
_SETUP_FAILED = re.compile(r"^nemotron: (setup: .+)$", re.MULTILINE)
# What the command that failed said: Apptainer, Tcl modules, Lmod, bash of a command that is not there.
_SAID = re.compile(
    r"^(?:(?:FATAL|ERROR): +|Lmod has detected the following error: *|\S+: line \d+: (?=.*not found$))(.+)$",
    re.MULTILINE,
)


def failure_reason(run: Path, job: int, name: str, slurm_id: str) -> str | None:
    """`, before the job began: …` or `: …`, a reason of a line or two for a job that left no record; None where none is
    to be found. `name` and `slurm_id` are those of the submission.

    A worker that began (it has a log) may have been ended because another node's could not.
    """
    began = (run / "jobs" / str(job) / "logs" / "job.log").exists()
    folder = run / FOLDER
    script = _text(folder / f"sbatch_{name}_{slurm_id}.out")
    last = _text(folder / f"sbatch_{name}_{slurm_id}.out", end=True)
    if not began and (failed := list(_SETUP_FAILED.finditer(last))):
        said = _SAID.findall(last[: failed[-1].start()])[-1:]
        words = [printable(line)[:_LONGEST] for line in (failed[-1][1], *said)]
        return f", before the job began: {': '.join(words)}"
    number = (_NUMBER.findall(script) or [slurm_id])[-1]
    logs = sorted(folder.glob(f"log-{name}_{number}_*.out"), key=lambda path: path.stat().st_mtime)
    lines = reason_lines(_text(logs[-1]), slurm_only=began) if logs else []
    lines = lines or reason_lines(script, slurm_only=True)
    return f"{'' if began else ', before the job began'}: {'; '.join(lines)}" if lines else None


def reason_lines(text: str, *, slurm_only: bool = False) -> list[str]:
    """Slurm's first two lines that name a reason, with the node in front; without such lines, the program's last
    error, unless `slurm_only`."""
    lines = [printable(line.strip())[:_LONGEST] for line in text.splitlines() if line.strip()]
    found: dict[str, str] = {}
    for match in filter(None, map(_SLURM.match, lines)):
        argument = match.string[match.end() :].strip()
        if not _AROUND.match(argument):
            found.setdefault(argument, f"{match[1]}: {argument}" if match[1] and not found else argument)
    others = [line for line in lines if not _SLURM.match(line)]
    fatal = [line.removeprefix("FATAL:").lstrip() for line in others if line.startswith("FATAL:")]  # Apptainer's
    errors = fatal or [line for line in others if "rror" in line] or others
    last_error = [line.removeprefix("error: ") for line in errors[-1:]]
    return list(found.values())[:2] or ([] if slurm_only else last_error)


def _text(path: Path, *, end: bool = False) -> str:
    """The first or the last bytes of a file, enough to contain a reason."""
    try:
        with path.open("rb") as file:
            if end:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _READ))
            return file.read(_READ).decode(errors="replace")
    except OSError:
        return ""


JobStatus = dict[str, Any]

# SPECIAL_EXIT: queued again and held by the site's epilog, which may do that to a job that failed.
_PENDING = frozenset({
    *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    *("POWER_UP_NODE", "EXPEDITING"),
})  # fmt: skip
_RUNNING = frozenset({
    *("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING", "UPDATE_DB"),
})  # fmt: skip
_REASONS = {
    "TIMEOUT": "stopped by Slurm at its time limit",
    "DEADLINE": "stopped by Slurm at its deadline",
    "OUT_OF_MEMORY": "killed by Slurm: out of memory",
    "NODE_FAIL": "a node of it failed",
    "BOOT_FAIL": "a node of it did not boot",
    "PREEMPTED": "preempted by Slurm, and not queued again",
    "REVOKED": "revoked by Slurm",
}
# Slurm has no exit code for most jobs that it stopped: 128 + the number of the signal that it sends.
_STOPPED, _KILLED = 128 + 15, 128 + 9
_CODES = {
    **dict.fromkeys(("CANCELLED", "TIMEOUT", "DEADLINE", "PREEMPTED"), _STOPPED),
    "OUT_OF_MEMORY": _KILLED,
}
# Accounting may lag behind the queue, and a shared file system behind the node.
_LAG_SECONDS = 120.0
_FEW = 20
_FORGOTTEN = "Slurm has forgotten the job"


def observe(*, runs: Mapping[str, list[int]]) -> dict[str, dict[str, JobStatus]]:
    """Run folder → job number → its state, in at most one squeue and one sacct for each cluster.

    A job is `{"state", "code", "error", "reason", "start", "slurm_id"}`. If Slurm did not answer, its state is
    `unreachable`, with the reason.
    """
    jobs = [_Job(Path(folder), number) for folder, numbers in runs.items() for number in numbers]
    by_run: dict[str, dict[int, Submission]] = {}
    damaged: dict[str, str] = {}
    for folder in runs:
        try:
            by_run[folder] = slurm.submissions_by_job(slurm.read_all(Path(folder)))
        except NemotronError as error:  # concerns this run only
            damaged[folder] = error.message
    for job in jobs:
        job.submission = by_run.get(str(job.run), {}).get(job.number)
    by_cluster: dict[str | None, list[_Job]] = {}
    for job in jobs:
        if not job.settled() and str(job.run) in damaged:
            _unless_recorded(job, "unknown", damaged[str(job.run)])
        elif not job.settled():
            by_cluster.setdefault(job.submission.cluster if job.submission else None, []).append(job)
    for cluster, open_jobs in by_cluster.items():
        _ask(open_jobs, cluster)
    found: dict[str, dict[str, JobStatus]] = {folder: {} for folder in runs}
    for job in jobs:
        found[str(job.run)][str(job.number)] = job.status
    return found


class _Job:
    """A job whose state is being determined."""

    def __init__(self, run: Path, number: int) -> None:
        self.run, self.number = run, number
        self.submission: Submission | None = None
        self.link: str | None = None
        self.status: JobStatus = {"state": "unknown", "error": "not submitted yet"}
        self.record: Mapping[str, Any] | None = None
        with suppress(DamagedRunRecord):
            record = JobFolder(run / "jobs" / str(number)).exit_record()
            self.record = record if record and is_sound(record) else None

    @property
    def slurm_id(self) -> str | None:
        return self.link or (self.submission.slurm_id(self.number) if self.submission else None)

    def choose_link(self, entries: Mapping[str, Entry]) -> None:
        """Of a chain, the job that runs; else the one that waits next; else the last one that ran."""
        ids = self.submission.ids if self.submission and self.submission.links else []
        listed = [(number, entry) for number in ids if (entry := entries.get(number))]
        chosen = (
            [number for number, entry in listed if entry.state in _RUNNING]
            or [number for number, entry in listed if entry.state in _PENDING]
            or [number for number, entry in listed if entry.start][-1:]
        )
        self.link = chosen[0] if chosen else self.link

    def settled(self) -> bool:
        """Take the state from the job's record; returns whether it is final. A worker that was ended by a signal
        knows neither the reason nor whether the job is requeued."""
        if self.record is None:
            return False
        if self.record.get(AGAIN):
            self.set("pending", reason=self.record.get("error"))
        else:
            self.set(self.record["state"], self.record.get("code"), self.record.get("error"))
        return is_final_end(self.record)

    def set(self, state: str, code: int | None = None, error: str | None = None, **more: str | None) -> None:
        self.status = {"state": state, "code": code, "error": error, "slurm_id": self.slurm_id, **more}


def _ask(jobs: list[_Job], cluster: str | None) -> None:
    queue: dict[str, Entry] | None = None
    try:
        queue = commands.queued(ids=_few_ids(jobs), clusters=cluster)
        _name(jobs, queue)
    except (Unreachable, NemotronError) as error:
        for job in jobs:
            _unless_recorded(job, "unreachable", error.message)
    for job in jobs:
        job.choose_link(queue or {})
    # A job without an id was never submitted, or `_name` has found out what became of it: sacct can't add to that.
    left = [job for job in jobs if job.slurm_id and (queue is None or not _from_queue(job, queue))]
    ids = {job.slurm_id.partition("_")[0] for job in left if job.slurm_id}
    ids.update(number for job in left if job.submission for number in job.submission.links)
    if not ids:
        return
    try:
        accounts = commands.accounted(ids, clusters=cluster)
    except (Unreachable, NemotronError) as error:
        for job in left:
            entry = commands.entry_of(queue or {}, job.slurm_id or "")
            if entry:  # slurmctld has not forgotten it yet
                _final(job, entry)
            else:
                _unless_recorded(job, "unreachable", error.message)
        return
    for job in left:
        job.choose_link(accounts)
        entry = commands.entry_of(accounts, job.slurm_id or "")
        if entry and entry.state not in _PENDING | _RUNNING:
            _final(job, entry)
        elif queue is not None:  # else `unreachable` already: accounting does not know the state of a live job
            recent = _is_recent(job.submission.at if job.submission else 0.0)
            _unless_recorded(job, "running" if recent else "unknown", None if recent else _FORGOTTEN)


def _few_ids(jobs: Sequence[_Job]) -> set[str]:
    """The ids to query squeue for; empty to query all of the user's jobs, if these are as few or if an id is
    unknown."""
    ids: set[str | None] = set()
    for job in jobs:
        ids.update((job.submission and job.submission.ids) or [None])
    known = {number for number in ids if number}
    return known if len(known) == len(ids) <= _FEW else set()


def _name(jobs: Iterable[_Job], queue: Mapping[str, Entry]) -> None:
    """Look up, by name, jobs whose sbatch call got no answer."""
    ids = {entry.name: number.partition("_")[0] for number, entry in queue.items()}
    found: dict[str, Submission] = {}  # by name: the tasks of an array share a submission
    for job in jobs:
        record = job.submission
        if record is None or record.job:
            continue
        if record.refused and not slurm.has_begun(job.run, record):
            job.set("failed", 1, record.refused)
            continue
        if record.name not in found:
            known = ids.get(record.name)
            found[record.name] = slurm.adopt(job.run, record, known) if known else slurm.find(job.run, record)
        job.submission = found[record.name]
        if job.submission.job:
            continue
        # Neither squeue nor sacct, both of which have answered, has a job of that name.
        if slurm.has_begun(job.run, record):
            _unless_recorded(job, "unknown", _FORGOTTEN)
        elif _is_recent(record.at):
            job.set("unknown", None, "sbatch was asked, and Slurm does not show the job yet")
        else:
            job.set("failed", 1, "it never reached Slurm: neither squeue nor sacct has a job of its name")


def _is_recent(submitted: float) -> bool:
    """Whether Slurm may not show what was submitted then yet. A time far in the future, of a damaged record, would be
    recent for ever."""
    return abs(time.time() - submitted) < _LAG_SECONDS


def _from_queue(job: _Job, queue: Mapping[str, Entry]) -> bool:
    """Take the state from squeue's entry; returns whether it is complete, so that sacct need not be queried."""
    entry = commands.entry_of(queue, job.slurm_id or "")
    if entry is None:
        return False
    if entry.state in _PENDING:
        job.set("pending", reason=entry.reason, start=entry.start)
        return True
    if entry.state in _RUNNING:
        if job.record is None or not job.record.get(AGAIN):  # one that a signal ended is explained later
            job.set("running", start=entry.start)
        return True
    return False


def _final(job: _Job, entry: Entry) -> None:
    again = job.record is not None and job.record.get(AGAIN)
    code = entry.code or _CODES.get(entry.state, 1)
    if entry.state == "CANCELLED":
        job.set("cancelled", code, "cancelled in Slurm")
    elif entry.state in _REASONS:
        job.set("failed", code, _REASONS[entry.state])
    elif again:
        job.set("failed", code, "stopped with a checkpoint, and not queued again")
    elif job.record is None and entry.state == "COMPLETED" and not entry.code:
        job.set("succeeded", 0)
    elif job.record is None:
        record, number = job.submission, job.slurm_id
        reason = failure_reason(job.run, job.number, record.name, number) if record and number else None
        job.set("failed", code, f"Slurm reports {entry.state}, exit code {code}{reason or ''}")


def _unless_recorded(job: _Job, state: str, error: str | None) -> None:
    if job.record is None:
        job.set(state, None, error)
