"""Slurm on the machine where its commands are: submit once, observe many jobs at once, cancel.

Submitting is idempotent. The intent is on disk before sbatch is asked, and stands in the job's name; on any doubt the
name is looked up in squeue and in sacct. Only when both have answered, and no worker of it has left a trace, is a job
absent; what is not known stays unknown, and nothing is submitted again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.files import read_regular
from nemotron_kit.runs.job import is_last_word
from nemotron_kit.target import slurm_commands as commands
from nemotron_kit.target import submissions
from nemotron_kit.target.submissions import Submission

Answer = tuple[Any, bytes]

# A request that the controller has not read yet becomes a job after we gave up on it: absent is looked for twice.
_SETTLE_SECONDS = 2.0
# What would override the script's own header, or tell the job about the launch's own allocation.
_FOREIGN = re.compile(r"(SBATCH|SLURM|SRUN|SALLOC|PMIX?|OMPI|TORCHELASTIC)_(?!CONF\Z)|(RANK|LOCAL_RANK|WORLD_SIZE)\Z")
# sbatch has asked and been told: no more doubt. The rest of "submission failed" may be a reply that got lost.
_REFUSED = re.compile(r"Batch job submission failed: (.+)")
_UNCONFIGURED = re.compile(r"configuration source|fetch_config|slurm\.conf.*No such file", re.IGNORECASE)
_LOST = re.compile(
    r"timed out|unable to contact|zero bytes|transport endpoint|connection|communication|unexpected message|"
    r"unspecified|standby|temporarily|too many|try again",
    re.IGNORECASE,
)


def submit(
    payload: bytes,
    *,
    folder: str,
    intent: str,
    name: str,
    jobs: list[int],
    array: bool,
    script: str,
    options: list[str] | None = None,
    hidden: list[str] | None = None,
) -> Answer:
    """Submit `script` (a path below the run's `folder`) unless that was done before; the submission's record.

    The payload is JSON: `script` (its text, where the file isn't there yet) and `secrets` (name → value, for the job's
    environment alone). `options` are sbatch's own, over the script's; `hidden` are names of this environment that the
    job must not see. Raises Unreachable when it isn't known whether the job is queued, UserError when Slurm refused it.
    """
    run = Path(folder)
    given = json.loads(payload) if payload else {}
    for part in (submissions.FOLDER, f"{submissions.FOLDER}/code"):
        (run / part).mkdir(mode=0o700, exist_ok=True)
    with submissions.locked(run, intent) as lock:
        record = submissions.read(run, intent)
        if record and record.job:
            return asdict(record), b""
        if given.get("script") is not None:
            files.write_text(run / script, given["script"])
        if record is None:
            so_far = submissions.logged(run, jobs)
            record = Submission(intent, name, list(jobs), array, time.time(), logged=so_far)
            submissions.write(run, record)
        else:
            record = _settled(run, record)
        if record.job is None and not submissions.has_begun(run, record):
            env = _environment(given.get("secrets") or {}, hidden or [])
            record = _sbatch(run, record, [*(options or []), str(run / script)], env, lock)
    return asdict(record), b""


def find(run: Path, record: Submission, *, twice: bool = False) -> Submission:
    """The record with Slurm's id, if there is such a job. Raises Unreachable unless squeue and sacct have answered."""
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
    """The record with the id that was found under its name."""
    found = replace(record, job=job, refused=None)
    submissions.write(run, found)
    return found


def cancel(payload: bytes, *, folder: str, jobs: list[int]) -> Answer:
    """Cancel jobs of a run. Each is told first, so that its own record says cancelled, and that it must not come back.

    One that may or may not be queued is cancelled by its name.
    """
    del payload
    run = Path(folder)
    by_job = submissions.by_job(submissions.read_all(run))
    asked: dict[str, list[int]] = {}
    for number in jobs:
        _tell(run / "jobs" / str(number))
        if number in by_job:
            asked.setdefault(by_job[number].intent, []).append(number)
    ids: dict[str | None, list[str]] = {}
    for numbers in asked.values():
        record = by_job[numbers[0]]
        with contextlib.suppress(Unreachable):
            record = find(run, record)
        if record.job is None:
            commands.scancel((), name=record.name)
        elif len(numbers) == len(record.jobs):
            ids.setdefault(record.cluster, []).append(record.job)
        else:
            ids.setdefault(record.cluster, []).extend(str(record.slurm_id(number)) for number in numbers)
    for cluster, group in ids.items():
        commands.scancel(group, clusters=cluster)
    return {"cancelled": [number for group in ids.values() for number in group]}, b""


def _tell(job: Path) -> None:
    try:
        over = is_last_word(json.loads(read_regular(job / "exit.json")))
    except (FileNotFoundError, ValueError):
        over = False
    if job.is_dir() and not over:
        files.write_json(job / "cancel.json", {"at": time.time()})


def limits(payload: bytes, *, partition: str | None = None, count: bool = False) -> Answer:
    """What one array and the controller may hold, how many jobs it has now (with `count`; each task of an array is
    one), and the partition's time limit as Slurm writes it (None: no limit, or not known).

    Raises Unreachable when the controller does not answer: a good time to hear of it, as nothing was submitted yet.
    """
    del payload
    code, out, said = commands.run(["scontrol", "show", "config"], seconds=commands.ASK_SECONDS)
    if code != 0 and _UNCONFIGURED.search(said):
        raise UserError(
            f"Slurm's commands on this machine have no cluster to talk to: {said}",
            hint='Launch from a login node, or reach one: tunnel = "ssh" in the profile.',
        )
    if code != 0 and _LOST.search(said):
        raise Unreachable(f"scontrol: {said}")
    found = dict(re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", out, re.MULTILINE)) if code == 0 else {}
    return {
        "max_array_size": int(found.get("MaxArraySize", 1001)),
        "max_job_count": int(found.get("MaxJobCount", 10000)),
        "queued": _queued() if count else None,
        "time": _time_limit(partition) if partition else None,
    }, b""


def _queued() -> int:
    """Everybody's jobs, those that ended a moment ago among them; 0 where that can't be told."""
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=x"]
    code, out, _ = commands.run(words, seconds=commands.ASK_SECONDS)
    return out.count("x") if code == 0 else 0


def _time_limit(partition: str) -> str | None:
    code, out, _ = commands.run(
        ["sinfo", "--noheader", f"--partition={partition}", "--format=%l"], seconds=commands.ASK_SECONDS
    )
    text = out.split()[0] if code == 0 and out.split() else "infinite"
    return None if text == "infinite" else text


def _settled(run: Path, record: Submission) -> Submission:
    """An earlier attempt was made and its answer is not on record: what came of it."""
    return record if record.refused else _found(run, record, "an earlier attempt has had no answer")


def _sbatch(run: Path, record: Submission, words: list[str], env: dict[str, str], lock: int) -> Submission:
    asked = ["sbatch", "--parsable", "--export=ALL", *words]
    try:
        code, out, said = commands.run(asked, seconds=commands.SUBMIT_SECONDS, env=env, hold=lock)
    except Unreachable as error:
        code, out, said = 1, "", error.message
    answer = commands.job_id(out) if code == 0 else None
    if answer:
        done = replace(record, job=answer[0], cluster=answer[1])
        submissions.write(run, done)
        return done
    refusal = _REFUSED.search(said)
    if code != 0 and refusal and not _LOST.search(refusal[1]):
        return _refuse(run, record, f"Slurm refused the job: {said}")
    return _looked_up(run, record, said or f"sbatch answered {out.strip()[:200]!r}")


def _looked_up(run: Path, record: Submission, said: str) -> Submission:
    found = _found(run, record, said)
    return found if found.job else _refuse(run, record, f"Slurm has no such job: {said}")


def _found(run: Path, record: Submission, said: str) -> Submission:
    try:
        return find(run, record, twice=True)
    except (Unreachable, NemotronError) as error:
        raise Unreachable(
            f"It isn't known whether the job was submitted: {said}\n{error.message}",
            hint="It is not submitted again by itself. Once Slurm answers, `nemotron runs show` and `attach` find it.",
        ) from error


def _refuse(run: Path, record: Submission, said: str) -> Submission:
    submissions.write(run, replace(record, refused=said))
    raise UserError(said)


def _environment(secrets: dict[str, str], hidden: list[str]) -> dict[str, str]:
    """What the job inherits: this environment without the launch's own allocation and without secrets, but for those
    that the profile names."""
    kept = {k: v for k, v in os.environ.items() if not _FOREIGN.match(k) and k not in hidden}
    return {**kept, **secrets}
