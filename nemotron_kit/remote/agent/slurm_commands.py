"""Runs Slurm's commands, one call for many jobs, and parses their output."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nemotron_kit.errors import Unreachable, UserError

ASK_SECONDS = 30.0
SUBMIT_SECONDS = 120.0
_JOB_ID = re.compile(r"(\d+)(?:;([A-Za-z0-9._-]+))?\Z")
_DAY = 86400
# What sacct has no time for is written so.
_NO_TIME = ("", "N/A", "Unknown", "None")
_ACCOUNT_FIELDS = "JobID,State,Start,JobName,ExitCode,DerivedExitCode"
# How Slurm writes that the kernel ended a process for want of memory: the signal was KILL.
_OUT_OF_MEMORY = 125
# What ends a worker before it can write its record. A script doesn't exit with one of these numbers by itself.
_DEADLY = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM})


@dataclass(frozen=True)
class Entry:
    """One job as squeue or sacct lists it. `id` is 12, or 12_3 for a task of an array; `state` is Slurm's name of the
    state. `code` is the exit code: 128+N if signal N is known to have ended the job's script or one of its steps."""

    id: str
    state: str
    name: str = ""
    reason: str | None = None
    start: str | None = None
    code: int | None = None


def run(
    arguments: Sequence[str], *, seconds: float, env: Mapping[str, str] | None = None, hold: int | None = None
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command. Raises Unreachable if it does not end in time,
    UserError if it is not installed. `hold` is a file that stays open until the command has ended, even if this process
    ends first."""
    if env is None:
        # Without the variables that change the commands' meaning or output format.
        foreign = ("SQUEUE_", "SACCT_", "SCANCEL_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    try:
        child = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            pass_fds=() if hold is None else (hold,),
            # Ctrl-C is for the launch; and a site's wrapper is stopped with what it started.
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{arguments[0]} is not there: Slurm's commands are not installed on this machine, or not on its PATH.",
            hint='Launch from a login node, or reach one: tunnel = "ssh" in the profile.',
        ) from error
    try:
        out, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        _kill(child)
        raise Unreachable(f"{arguments[0]} has not answered for {seconds:.0f} s.") from error
    except BaseException:
        if hold is None:  # else what has been asked of Slurm is answered, and found again by its name
            _kill(child)
        raise
    return child.returncode, out.decode(errors="replace"), errors.decode(errors="replace").strip()


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def queued(name: str | None = None, *, ids: Collection[str] = (), clusters: str | None = None) -> dict[str, Entry]:
    """The jobs of this user that slurmctld still knows (including recently finished ones), with array tasks listed one
    by one: all, those with a name, or a few by id."""
    arguments = ["squeue", "--noheader", "--array", "--states=all", f"--user={user_name()}", "--format=%i|%T|%S|%j|%r"]
    arguments += [f"--name={name}"] if name else []
    arguments += [f"--jobs={','.join(sorted(ids))}"] if ids else []
    arguments += [f"--clusters={clusters}"] if clusters else []
    code, out, error = run(arguments, seconds=ASK_SECONDS)
    if code != 0 and not (ids and "Invalid job id" in error):  # one that it has forgotten
        raise Unreachable(f"squeue: {error or f'exit code {code}'}")
    return _by_id(map(_queue_line, out.splitlines()))


def accounted(
    ids: Collection[str] = (), name: str | None = None, *, since: float | None = None, clusters: str | None = None
) -> dict[str, Entry]:
    """sacct's entries of jobs, by id or by name; jobs unknown to it are left out."""
    arguments = ["sacct", "--noheader", "--parsable2", "--allocations", f"--format={_ACCOUNT_FIELDS}"]
    if name is not None:
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime((since or time.time()) - _DAY))
        arguments += [f"--name={name}", f"--starttime={start}", f"--user={user_name()}"]
    else:
        arguments.append("--jobs=" + ",".join(sorted(ids)))
    arguments += [f"--clusters={clusters}"] if clusters else []
    code, out, error = run(arguments, seconds=ASK_SECONDS)
    # sacct without slurmdbd reports that on standard error, and may exit with 0.
    if code != 0 or (error and not out):
        raise Unreachable(f"sacct: {error or f'exit code {code}'}")
    return _by_id(map(_account_line, out.splitlines()))


def entry_of(entries: Mapping[str, Entry], number: str) -> Entry | None:
    """The entry of a job among those of squeue or sacct. Array tasks that never ran share one entry, named after the
    array only, if each of them was cancelled by itself."""
    return entries.get(number) or entries.get(number.partition("_")[0])


def job_id(output: str) -> tuple[str, str | None] | None:
    """The id (and cluster) on the last line that sbatch printed; other lines, printed by a site's wrapper, are
    ignored."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    match = _JOB_ID.match(lines[-1]) if lines else None
    return (match[1], match[2]) if match else None


def time_seconds(text: str) -> int | None:
    """A time limit in Slurm's format (`04:00:00`, `1-12`, `90`) in seconds; None for an unlimited one, which `0` is,
    too."""
    days, _, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in parts) or (days and not days.isdecimal()):
        return None
    numbers = [int(part) for part in parts]
    if days:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = 0, *(*numbers, 0)[:2]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds or None


def scancel(ids: Iterable[str], *, name: str | None = None, clusters: str | None = None) -> None:
    """Request the cancellation of jobs. Jobs that have ended already are no error."""
    arguments = ["scancel", "--quiet"]
    arguments += [f"--clusters={clusters}"] if clusters else []
    arguments += [f"--name={name}", f"--user={user_name()}"] if name else sorted(ids)
    code, _, error = run(arguments, seconds=ASK_SECONDS)
    harmless = ("Invalid job id", "already completing or completed")
    if code != 0 and not any(text in error for text in harmless):
        raise Unreachable(f"scancel: {error or f'exit code {code}'}")


def _by_id(found: Iterable[Entry | None]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for entry in found:
        if entry is None:
            continue
        array, bracket, tasks = entry.id.partition("_[")
        if not bracket:
            entries[entry.id] = entry
        for task in _numbers(tasks.partition("]")[0]) if bracket else ():
            entries.setdefault(f"{array}_{task}", entry)
    return entries


def _numbers(text: str) -> Iterator[int]:
    """The task numbers in Slurm's notation of an array: `0-3,7%2` is 0, 1, 2, 3, 7."""
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            yield from range(int(first), int(last or first) + 1)


def user_name() -> str:
    """This user's name, or number where it has no name, as in a container; Slurm takes both."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _queue_line(line: str) -> Entry | None:
    parts = line.split("|", 4)
    if len(parts) != 5 or not parts[0][:1].isdigit():
        return None
    number, state, start, name, reason = (part.strip() for part in parts)
    wait_reason = None if reason in _NO_TIME else reason
    return Entry(number, state.split()[0], name, wait_reason, None if start in _NO_TIME else start)


def _account_line(line: str) -> Entry | None:
    parts = line.split("|")
    if len(parts) != 6 or not parts[0][:1].isdigit():
        return None
    number, state, start, name, code, derived = parts
    argument = state.split()[0] if state else ""
    return Entry(number, argument, name, None, None if start in _NO_TIME else start, _exit_code(code, derived))


def _exit_code(code: str, derived: str) -> int | None:
    """The exit code from `code:signal` of the script and of its worst step: if a signal ended the step, srun, and hence
    the script, exits with the number of that signal."""
    exited, signalled = _pair(code)
    if signalled:
        return 128 + signalled
    worst, step = _pair(derived)
    # slurmctld now and then hears of the step's end after the script's (3 of 140), and then never counts it: 0:0. Of a
    # step on many nodes it has another node's code: a lower one, as the highest code of a step is srun's.
    missed = exited in _DEADLY and not step and (worst or 0) < exited
    # Of a script's code above 128 sacct shows what is above 128, and of a step's the whole: Apptainer's 255 is 127:0.
    whole = worst == 128 + (exited or 0)
    return 128 + exited if exited and (exited == step or missed or whole) else exited


def _pair(text: str) -> tuple[int | None, int]:
    first, _, second = text.partition(":")
    signal = int(second) if second.isdecimal() else 0
    return int(first) if first.isdecimal() else None, 9 if signal == _OUT_OF_MEMORY else signal
