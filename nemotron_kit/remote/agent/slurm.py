"""Submits jobs to Slurm once and cancels them, on the machine that has Slurm's commands. A submission is recorded
before it is made."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, NotSent, Unreachable, UserError
from nemotron_kit.remote.agent import slurm_commands as commands
from nemotron_kit.runs.job import DamagedRunRecord, JobFolder, is_final_end, read_object

FOLDER = "slurm"
_INTENT = re.compile(r"[0-9a-f]{12}\Z")
_NUMBER = re.compile(r"[0-9]{1,19}\Z")


@dataclass(frozen=True)
class Submission:
    """The record of one sbatch call. `jobs` are the run's job numbers, by array index; `job` is Slurm's id once it is
    known.

    `at` is the time of the first attempt, in seconds since the epoch by the target's clock; `logged` is the number of
    bytes that its jobs had logged in earlier attempts (None: no log). `refused` is Slurm's message if it is known that
    no such job exists. `links` are the jobs of the same name that go on after the first one, one after another.
    """

    intent: str
    name: str
    jobs: list[int]
    array: bool
    at: float
    job: str | None = None
    cluster: str | None = None
    refused: str | None = None
    logged: int | None = None
    links: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """Slurm's ids of the jobs that were submitted, in the order in which they run."""
        return [*([self.job] if self.job else []), *self.links]

    def slurm_id(self, number: int) -> str | None:
        """Slurm's id of one job of the run."""
        if self.job is None:
            return None
        return f"{self.job}_{self.jobs.index(number)}" if self.array else self.job


_RECORD = {
    **dict.fromkeys(("intent", "name", "job", "cluster", "refused"), str),
    "jobs": [int],
    "array": bool,
    "at": float,
    "logged": int,
    "links": [str],
}
_NEEDED = ("intent", "name", "jobs", "array", "at")


def path_of(run: Path, intent: str) -> Path:
    """The path of a submission's record. Raises NemotronError for a text that is no intent (12 hex digits)."""
    if not _INTENT.match(intent):
        raise NemotronError(f"{intent!r} is no intent.")
    return run / FOLDER / f"{intent}.json"


def read(run: Path, intent: str) -> Submission | None:
    """The record; None if there is none. Raises NemotronError if it is damaged: then nothing may be submitted."""
    path = path_of(run, intent)
    try:
        values = read_object(path, _RECORD)
    except FileNotFoundError:
        return None
    except DamagedRunRecord as error:
        raise NemotronError(f"damaged: {error.message}") from error
    if None in [values.get(name) for name in _NEEDED]:
        raise NemotronError(f"damaged: {path}: it needs {', '.join(_NEEDED)}.")
    # The name goes into Slurm's command lines and into names of files.
    if not values["name"].isprintable() or "/" in values["name"]:
        raise NemotronError(f"damaged: {path}: name: {values['name']!r} is no job's.")
    if values.get("job") is not None and not _NUMBER.match(values["job"]):
        raise NemotronError(f"damaged: {path}: job: {values['job']!r} is no number of Slurm's.")
    if not all(_NUMBER.match(link) for link in values.get("links") or ()):
        raise NemotronError(f"damaged: {path}: links: {values['links']!r} are no numbers of Slurm's.")
    return Submission(**{f.name: values[f.name] for f in fields(Submission) if values.get(f.name) is not None})


def write(run: Path, submission: Submission) -> None:
    """Write the record of a submission into its run's folder."""
    files.write_json(path_of(run, submission.intent), asdict(submission))


def read_all(run: Path) -> list[Submission]:
    """Every submission of a run, oldest first."""
    try:
        names = os.listdir(run / FOLDER)  # noqa: PTH208 — names only
    except FileNotFoundError:
        return []
    intents = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    found = [read(run, intent) for intent in intents if _INTENT.match(intent)]
    return sorted((s for s in found if s is not None), key=lambda s: s.at)


def has_begun(run: Path, submission: Submission) -> bool:
    """Whether a worker of the submission has written a record: then Slurm has, or had, its job."""
    now = logged(run, submission.jobs)
    return now is not None and (submission.logged is None or now > submission.logged)


def logged(run: Path, jobs: Sequence[int]) -> int | None:
    """The number of bytes that the jobs have logged; None if none of them has a log."""
    sizes = []
    for number in jobs:
        with contextlib.suppress(FileNotFoundError):
            sizes.append((run / "jobs" / str(number) / "logs" / "job.log").stat().st_size)
    return sum(sizes) if sizes else None


def submissions_by_job(submissions: Sequence[Submission]) -> dict[int, Submission]:
    """The latest submission of each job of a run."""
    return {number: submission for submission in submissions for number in submission.jobs}


@contextmanager
def locked(run: Path, intent: str) -> Iterator[int]:
    """Within the block no other process of this machine submits the intent. Yields the open lock file: a child that
    inherits it (sbatch) holds the lock even if this process is killed."""
    path = path_of(run, intent).with_suffix(".lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


# A request that the controller has not read yet may become a job after the call timed out: query twice.
_SETTLE_SECONDS = 2.0
# Variables that would override the script's header, or describe the allocation that the launch itself runs in.
_FOREIGN = re.compile(r"(SBATCH|SLURM|SRUN|SALLOC|PMIX?|OMPI|TORCHELASTIC)_(?!CONF\Z)|(RANK|LOCAL_RANK|WORLD_SIZE)\Z")
# The controller has answered sbatch with a refusal. Other "submission failed" errors may be a lost reply.
_REFUSED = re.compile(r"Batch job submission failed: (.+)")
# A cluster that takes no job that one of its partitions would not take.
_ALL_APPLY = re.compile(r"^EnforcePartLimits\s*=\s*(ALL|YES)\b", re.MULTILINE)
_UNCONFIGURED = re.compile(r"configuration source|fetch_config|slurm\.conf.*No such file", re.IGNORECASE)
_LOST = re.compile(
    r"timed out|unable to contact|zero bytes|transport endpoint|connection|communication|unexpected message|"
    r"unspecified|standby|temporarily|too many|try again",
    re.IGNORECASE,
)


def submit(
    *,
    folder: str,
    intent: str,
    name: str,
    jobs: list[int],
    array: bool,
    script: str,
    options: list[str] | None = None,
    hidden: list[str] | None = None,
    links: int = 1,
    payload: bytes = b"",
) -> dict[str, Any]:
    """Submit `script` (a path below the run's `folder`) unless it was submitted before; returns the submission's
    record.

    The payload is JSON: `script` (its text, if the file does not exist yet) and `secrets` (name → value, passed to the
    job's environment only). `options` are sbatch options that override the script's; `hidden` are names of variables of
    this environment that are withheld from the job.
    `links` is how many jobs of the name there are to be. Raises Unreachable if it is not known whether the job is
    queued, NotSent if the controller was away and has no such job, UserError if Slurm refused it.
    """
    run = Path(folder)
    given = json.loads(payload) if payload else {}
    for part in (FOLDER, f"{FOLDER}/code"):
        (run / part).mkdir(mode=0o700, exist_ok=True)
    with locked(run, intent) as lock:
        record = read(run, intent)
        if record and len(record.ids) >= links:
            return asdict(record)
        if given.get("script") is not None:
            files.write_text(run / script, given["script"])
        if record is None:
            so_far = logged(run, jobs)
            record = Submission(intent, name, list(jobs), array, time.time(), logged=so_far)
            write(run, record)
        elif record.job is None and not record.refused:
            record = _found(run, record, "an earlier attempt has had no answer")
        # Without the launch's allocation, and without secrets except those that the profile names.
        env = {k: v for k, v in os.environ.items() if not _FOREIGN.match(k) and k not in (hidden or ())}
        env |= given.get("secrets") or {}
        arguments = ["sbatch", "--parsable", "--export=ALL", *(options or []), str(run / script)]
        sbatch = partial(commands.run, arguments, seconds=commands.SUBMIT_SECONDS, env=env, hold=lock)
        if record.job is None and not has_begun(run, record):
            record = _sbatch(run, record, sbatch)
        while record.job and len(record.ids) < links:
            record = _link(run, record, links, sbatch)
    return asdict(record)


def find(run: Path, record: Submission, *, twice: bool = False) -> Submission:
    """The record with Slurm's id, if Slurm has such a job. Raises Unreachable unless squeue and sacct have answered."""
    if record.job:
        return record
    for attempt in range(2 if twice else 1):
        if attempt:
            time.sleep(_SETTLE_SECONDS)
        entries = commands.queued(record.name) or commands.accounted(name=record.name, since=record.at)
        if entries:
            # Of an array every task is listed; the id in front is the same.
            return adopt(run, record, next(iter(entries)).partition("_")[0])
    return record


def adopt(run: Path, record: Submission, job: str) -> Submission:
    """The record with the id of the job that was found by its name."""
    found = replace(record, job=job, refused=None)
    write(run, found)
    return found


def cancel(*, folder: str, jobs: list[int]) -> dict[str, Any]:
    """Cancel jobs of a run. A cancel request is written first, so that the worker records `cancelled` and the job
    is not requeued. A job of which it is not known whether it is queued is cancelled by its name."""
    run = Path(folder)
    by_job = submissions_by_job(read_all(run))
    asked: dict[str, list[int]] = {}
    for number in jobs:
        job = JobFolder(run / "jobs" / str(number))
        try:
            over = is_final_end(job.exit_record() or {})
        except DamagedRunRecord:
            over = False
        if job.path.is_dir() and not over:
            job.request_cancel()
        if number in by_job:
            asked.setdefault(by_job[number].intent, []).append(number)
    ids: dict[str | None, list[str]] = {}
    for numbers in asked.values():
        record = by_job[numbers[0]]
        with contextlib.suppress(Unreachable):
            record = find(run, record)
        if record.job is None or record.links:
            commands.scancel((), name=record.name, clusters=record.cluster)
        elif len(numbers) == len(record.jobs):
            ids.setdefault(record.cluster, []).append(record.job)
        else:
            ids.setdefault(record.cluster, []).extend(str(record.slurm_id(number)) for number in numbers)
    for cluster, group in ids.items():
        commands.scancel(group, clusters=cluster)
    return {"cancelled": [number for group in ids.values() for number in group]}


def limits(*, partition: str | None = None, count: bool = False) -> dict[str, Any]:
    """The limits of an array and of the controller, with `count` the current number of jobs (each task of an array is
    one), and the partition's time limit in Slurm's format (None: no limit, or unknown; partition "": the default one;
    of several, `a,b`, the longest, or the shortest where Slurm enforces all of them).
    Raises Unreachable if the controller does not answer; nothing has been submitted then."""
    code, out, errors = commands.run(["scontrol", "show", "config"], seconds=commands.ASK_SECONDS)
    if code != 0 and _UNCONFIGURED.search(errors):
        raise UserError(
            f"Slurm's commands on this machine are not configured for a cluster: {errors}",
            hint='Launch from a login node, or reach one: tunnel = "ssh" in the profile.',
        )
    if code != 0 and _LOST.search(errors):
        raise Unreachable(f"scontrol: {errors}")
    queued = None
    if count:  # of all users, including those that ended a moment ago
        arguments = ["squeue", "--noheader", "--array", "--states=all", "--format=x"]
        failed, listed, _ = commands.run(arguments, seconds=commands.ASK_SECONDS)
        queued = 0 if failed else listed.count("x")
    found = dict(re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", out, re.MULTILINE)) if code == 0 else {}
    return {
        "max_array_size": int(found.get("MaxArraySize", 1001)),
        "max_job_count": int(found.get("MaxJobCount", 10000)),
        "queued": queued,
        "time": None if partition is None else _time_limit(partition, all_apply=_ALL_APPLY.search(out) is not None),
    }


def _time_limit(partition: str, *, all_apply: bool) -> str | None:
    """The limit of a partition; of several the longest, as a job gets one that allows what it asks for, or the shortest
    if `all_apply`."""
    code, out, _ = commands.run(
        ["sinfo", "--noheader", *([f"--partition={partition}"] if partition else []), "--format=%l %P"],
        seconds=commands.ASK_SECONDS,
    )
    lines = [line.split() for line in out.splitlines() if partition or line.rstrip().endswith("*")]
    limits = [line[0] for line in lines if line] if code == 0 else []
    # Others are infinite, or n/a.
    known = [(seconds, limit) for limit in limits if (seconds := commands.time_seconds(limit))]
    if not known or (len(known) < len(limits) and not all_apply):
        return None
    return min(known)[1] if all_apply else max(known)[1]


def _sbatch(run: Path, record: Submission, sbatch: Callable[[], tuple[int, str, str]]) -> Submission:
    try:
        code, out, message = sbatch()
        lost = code != 0 and _LOST.search(message) is not None
    except Unreachable as error:
        code, out, message, lost = 1, "", error.message, True
    answer = commands.job_id(out) if code == 0 else None
    if answer:
        done = replace(record, job=answer[0], cluster=answer[1], refused=None)
        write(run, done)
        return done
    refusal = _REFUSED.search(message)
    if code != 0 and refusal and not _LOST.search(refusal[1]):
        return _refuse(run, record, f"Slurm refused the job: {message}")
    message = message or f"sbatch answered {out.strip()[:200]!r}"
    record = _found(run, record, message)
    if record.job:
        return record
    if lost:  # which is no fault of the job's
        write(run, replace(record, refused=message))
        raise NotSent(f"Not submitted: {message}", hint="Try again once Slurm answers.")
    # sbatch itself refuses some options, in words of many kinds.
    return _refuse(run, record, f"Slurm {'refused the job' if code else 'has no such job'}: {message}")


def _link(run: Path, record: Submission, links: int, sbatch: Callable[[], tuple[int, str, str]]) -> Submission:
    """The record with one more job of its name. One whose answer was lost may be there besides: it ends at once when
    the job is over. Where Slurm takes no more of them, none stays."""
    code, out, message = sbatch()
    answer = commands.job_id(out) if code == 0 else None
    if answer:
        more = replace(record, links=[*record.links, answer[0]])
        write(run, more)
        return more
    refusal = _REFUSED.search(message)
    if not refusal or _LOST.search(refusal[1]):
        raise Unreachable(f"{len(record.ids)} of {links} jobs are submitted: {message or out.strip()[:200]}")
    commands.scancel((), name=record.name, clusters=record.cluster)
    count = len(record.ids)
    reason = f"Slurm took {count} of the {links} jobs of this chain, which are cancelled: {message}"
    return _refuse(run, replace(record, job=None, links=[]), reason)


def _found(run: Path, record: Submission, message: str) -> Submission:
    try:
        return find(run, record, twice=True)
    except (Unreachable, NemotronError) as error:
        raise Unreachable(
            f"It isn't known whether the job was submitted: {message}\n{error.message}",
            hint="It is not submitted again by itself. Once Slurm answers, `nemotron runs show` and `attach` find it.",
        ) from error


def _refuse(run: Path, record: Submission, message: str) -> Submission:
    write(run, replace(record, refused=message))
    raise UserError(message)
