"""A job in a child process: its output in the log, its signals forwarded, its exit code ours."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from nemotron_kit.execution.outcome import INTERRUPTED, TERMINATED, Outcome
from nemotron_kit.execution.signals import adopt_orphans, forwarded, noted, stop, stop_orphans
from nemotron_kit.execution.tee import logging_to
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.states import PREEMPTED


def run_child(command: Sequence[str], environment: Mapping[str, str], cwd: str, job: JobFolder) -> Outcome:
    """Run `command` in a process group of its own until it ends, and what it leaves behind when it is killed.

    What it prints goes into the job's log without passing through this process, which it may outlive; its record then
    says so. Ctrl-C: TERM, then KILL after a grace.
    """
    seen: set[str] = set()
    adopt_orphans()
    with job.open_log() as log, logging_to(log) as channels:
        child = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=channels.ends[0],
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        channels.close_ends()
        try:
            with forwarded(child, (signal.SIGTERM, signal.SIGUSR1), seen):
                job.note_child(child.pid)
                outcome = from_exit_code(child.wait())
        except KeyboardInterrupt:
            stop(child)
            return Outcome(INTERRUPTED, "cancelled", "interrupted")
        except BaseException:
            stop(child)
            raise
    if outcome.signal is not None:
        stop_orphans()
    if "TERM" in seen and outcome.state == "failed":
        return Outcome(TERMINATED, "cancelled", "terminated", own=outcome.own)
    return outcome


def supervise(command: Sequence[str], cwd: str, seen: set[str], *, slurm: bool) -> Outcome:
    """Run `command`, which prints to where this process does, until it ends. TERM and USR1 are noted in `seen`.

    They are passed on, but not where Slurm sends them to every process: a second one would kill a program
    that has saved and is on its way out. USR1 (the time limit is near) means nothing to a program without a handler.
    """
    child = subprocess.Popen(
        list(command), cwd=cwd, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=ignore_usr1
    )
    names = (signal.SIGTERM, signal.SIGUSR1)
    with noted(names, seen) if slurm else forwarded(child, names, seen):
        return from_exit_code(child.wait())


def ignore_usr1() -> None:
    """A program that is started from here does not end at USR1, unless it chooses to."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def from_exit_code(code: int) -> Outcome:
    """The outcome of a process's exit code: a launch exits with 1 for any failure, and the record says which it was."""
    if code == 0:
        return Outcome(0, "succeeded")
    if code < 0:
        name = signal.Signals(-code).name
        return Outcome(1, "failed", f"killed by {name} (exit code {128 - code})", signal=-code, own=128 - code)
    if code == PREEMPTED:
        return Outcome(PREEMPTED, "preempted", "stopped with a checkpoint (exit code 75)")
    return Outcome(1, "failed", f"exit code {code}", own=code)
