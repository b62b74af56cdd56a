"""Runs a job's child process: forwards signals that end it in order, and captures its output in the log."""

from __future__ import annotations

import builtins
import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import IO, Any, NoReturn

from nemotron_kit.polling import until
from nemotron_kit.runs.job import PREEMPTED, SLURM_STEP, JobFolder
from nemotron_kit.runs.metrics import flush_metrics
from nemotron_kit.runs.process_facts import descendants
from nemotron_kit.worker import NODES_FOLDER, python_module
from nemotron_kit.worker.streams import logging_to

INTERRUPTED = 130
# A shell's exit code for a process that TERM ended.
TERMINATED = 128 + 15


def exit_code(number: int) -> int:
    """The exit code of a process that requests `number`: the system keeps the low eight bits, and a failure must not
    become 0 by that."""
    return number & 0xFF or 1 if number else 0


def leave_fork(code: int) -> NoReturn:
    """End a child that a job's function forked and that came back from it: nothing of the launch is the child's to
    do. What it printed and measured is written first."""
    flush_metrics()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def run_file(program: str) -> None:
    """Run a script as `python SCRIPT` does, in this process. runpy would replace sys.argv[0] by the script's whole
    path."""
    main = ModuleType("__main__")
    main.__file__ = program
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    with io.open_code(program) as source:
        code = compile(source.read(), program, "exec", dont_inherit=True)
    exec(code, vars(main))  # noqa: S102


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `code` is the command line's exit code, `state` one of runs.states, `value` what the handler
    returned.

    `job_exit_code` is the exit code of the job's process, where that was another process: 128+N if signal N killed it.
    `signal` is the signal that ended a child to which the worker had sent none. `skipped` says why a job did not run:
    an earlier one with the same inputs had done its work.
    """

    code: int
    state: str
    error: str | None = None
    value: Any = None
    exception: BaseException | None = None
    signal: int | None = None
    job_exit_code: int | None = None
    skipped: str | None = None

    @property
    def recorded(self) -> int:
        """The exit code for the record: that of the job's process, where it had one."""
        return self.code if self.job_exit_code is None else self.job_exit_code


GRACE_SECONDS = 10.0
_SUBREAPER = 36  # prctl: PR_SET_CHILD_SUBREAPER


class Terminated(BaseException):
    """SIGTERM, as an exception: not an Exception, so that no handler's `except Exception` swallows it."""


@contextlib.contextmanager
def handled(
    names: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], object] | signal.Handlers
) -> Iterator[None]:
    """Within the block `handler` handles the named signals, also if the program that started this one had blocked them;
    in any but the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, handler) for name in names}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, before)  # one that has come meanwhile is handled here
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, old in before.items():
            signal.signal(name, old)


@contextlib.contextmanager
def beside(run: Callable[[threading.Event], None]) -> Iterator[None]:
    """Within the block `run` is called in a thread, with an event that is set when the block ends; then it is waited
    for."""
    ended = threading.Event()
    thread = threading.Thread(target=run, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def term_raises() -> contextlib.AbstractContextManager[None]:
    """Within the block SIGTERM raises Terminated in the main thread, unless the job installs its own handler."""

    def raise_terminated(_: int, __: FrameType | None) -> None:
        raise Terminated

    return handled((signal.SIGTERM,), raise_terminated)


def forwarded(
    child: subprocess.Popen[bytes], names: Iterable[signal.Signals], received: set[str]
) -> contextlib.AbstractContextManager[None]:
    """Within the block the named signals go to the child's process group, and appear in `received` (`TERM`)."""

    def forward(number: int, _: FrameType | None) -> None:
        received.add(_short(number))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    return handled(names, forward)


def noted(names: Iterable[signal.Signals], received: set[str]) -> contextlib.AbstractContextManager[None]:
    """Within the block the named signals do nothing but appear in `received` (`TERM`)."""
    return handled(names, lambda number, _: received.add(_short(number)))


def hangup_ignored() -> contextlib.AbstractContextManager[None]:
    """Within the block a closing terminal (SIGHUP) ends neither this process nor its children, as with nohup. An
    existing handler is kept."""
    is_default = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    return handled((signal.SIGHUP,) if is_default else (), signal.SIG_IGN)


def signal_name(number: int) -> str:
    """`SIGTERM`; a real-time signal has no name but the first and the last one: `signal 40`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _short(number: int) -> str:
    return signal_name(number).removeprefix("SIG")


def stop(child: subprocess.Popen[bytes]) -> int:
    """Send TERM to the child's process group and, after GRACE_SECONDS, KILL to it and all its descendants. Returns the
    exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        return child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        below = descendants(child.pid)  # torchrun's ranks are in other process groups
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        send_signal(below, signal.SIGKILL)
        return child.wait()


def adopt_orphans() -> None:
    """Make orphaned descendants of this process its own children from now on (on Linux)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def stop_orphans(grace: float = GRACE_SECONDS) -> None:
    """Send TERM to every descendant of this process, KILL after `grace` seconds: the ranks of a torchrun that was
    killed would go on."""
    send_signal(descendants(os.getpid()), signal.SIGTERM)
    until(lambda: not _left(), 0.05, within=grace)
    send_signal(descendants(os.getpid()), signal.SIGKILL)


def _left() -> bool:
    """Whether a child still runs; children that have ended are reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def send_signal(processes: Iterable[int], number: int) -> None:
    """Send a signal to each of the processes that still runs."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, number)


# The variable that names the job's folder to a worker's child, which records its exit code there.
_CHILD_OF = "NEMOTRON_CHILD_OF"


def recording_end(run: Callable[[], int]) -> int:
    """The exit code of `run`, in a process that may be a worker's child: then it is on record, too, as the worker may
    be killed before."""
    folder, code = os.environ.pop(_CHILD_OF, None), 1
    try:
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):  # its worker records it, if it lives
                JobFolder(Path(folder)).record_child_end(exit_code(code))
    return code


def start_detached(
    command: Sequence[str],
    log: IO[Any] | int,
    *,
    environment: Mapping[str, str] | None = None,
    talks: bool = False,
    answers: bool = True,
) -> subprocess.Popen[Any]:
    """Start a program that is detached from this process: it gets no Ctrl-C and no SIGHUP, and may outlive this
    process. Its output goes to `log`; of one that `talks`, in lines of text over pipes, only its errors."""
    return subprocess.Popen(
        list(command),
        env={**os.environ, **(environment or {})},
        stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
        stdout=(subprocess.PIPE if answers else subprocess.DEVNULL) if talks else log,
        stderr=log,
        start_new_session=True,
        text=talks,
    )


def start_worker(
    job: JobFolder, environment: Mapping[str, str] | None = None, python: str = ""
) -> subprocess.Popen[bytes]:
    """Start the worker of a job on this machine, by this Python or another, in its own session; what it prints outside
    of the job goes to logs/worker.log."""
    command = python_module("nemotron_kit.worker", str(job.path), python=python)
    with job.open_log("worker") as log:
        return start_detached(command, log, environment=environment)


def collect_again() -> None:
    """Turn garbage collection on if a worker's entry point has turned it off, without what is loaded by then, which
    stays: to search it again and again, and once more at exit, takes a quarter of the time in which a job starts.

    Called before any code of the job's runs. Its objects are never exempt (see cli.main.leave).
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def run_child(command: Sequence[str], cwd: str, job: JobFolder) -> Outcome:
    """Run `command` in its own process group until it ends, and stop the processes that it leaves when a signal kills
    it.

    What it prints goes into the job's log without passing through this process, which it may outlive: then
    the child's own record has its exit code. Ctrl-C: TERM, then KILL after GRACE_SECONDS.
    """
    collect_again()
    received: set[str] = set()
    # A launch inside a job has that job's variables.
    environment = {name: text for name, text in os.environ.items() if name not in (SLURM_STEP, NODES_FOLDER)}
    adopt_orphans()
    with job.open_log() as log, logging_to(log, job.path) as channels:
        child = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**environment, _CHILD_OF: str(job.path)},
            stdin=subprocess.DEVNULL,
            stdout=channels.ends[0],
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            channels.close_ends()
            with forwarded(child, (signal.SIGTERM, signal.SIGUSR1), received):
                job.record_child(child.pid)
                outcome = from_exit_code(child.wait())
        except KeyboardInterrupt:
            stop(child)
            return Outcome(INTERRUPTED, "cancelled", "interrupted")
        except BaseException:
            stop(child)
            raise
    if outcome.signal is not None:
        stop_orphans()
    return _terminated(outcome, received)


def _terminated(outcome: Outcome, received: set[str]) -> Outcome:
    """`outcome`, or, of a job that has failed as TERM told it to stop, that it was cancelled."""
    if "TERM" in received and outcome.state == "failed":
        return Outcome(TERMINATED, "cancelled", "terminated", job_exit_code=outcome.job_exit_code)
    return outcome


def supervise(command: Sequence[str], cwd: str, received: set[str], *, slurm: bool) -> Outcome:
    """Run `command`, which has the stdout and stderr of this process, until it ends. TERM and USR1 are added to
    `received`.

    They are passed on, but not where Slurm sends them to every process: a second one would kill a program
    that has saved and is on its way out. USR1 (the time limit is near) means nothing to a program without a handler.
    """
    collect_again()
    child = subprocess.Popen(
        list(command), cwd=cwd, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=ignore_usr1
    )
    names = (signal.SIGTERM, signal.SIGUSR1)
    with noted(names, received) if slurm else forwarded(child, names, received):
        outcome = from_exit_code(child.wait())
    return outcome if slurm else _terminated(outcome, received)  # Slurm itself tells why it sent a signal


def ignore_usr1() -> None:
    """Let this process and the programs that it starts ignore USR1, unless they install a handler; it reaches them also
    if the program that started this one had blocked it."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1,))


def from_exit_code(code: int) -> Outcome:
    """The outcome of a process with this exit code (negative: the signal, as subprocess has it). For any failure the
    command's exit code is 1; the process's is in `job_exit_code`."""
    if code == 0:
        return Outcome(0, "succeeded")
    if code < 0:
        error = f"killed by {signal_name(-code)} (exit code {128 - code})"
        return Outcome(1, "failed", error, signal=-code, job_exit_code=128 - code)
    if code == PREEMPTED:
        return Outcome(PREEMPTED, "preempted", "stopped with a checkpoint (exit code 75)")
    return Outcome(1, "failed", f"exit code {code}", job_exit_code=code)
