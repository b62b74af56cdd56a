"""`nemotron runs logs|attach`: prints the logs of jobs, sanitized on a terminal, unchanged into a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from nemotron_kit.cli.output import clean, print_status
from nemotron_kit.cli.runs.list import chosen_jobs
from nemotron_kit.cli.runs.show import distinct_overrides
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.launch.attach import CHUNK, SKIPPED, LogOffsets
from nemotron_kit.launch.attach import attach as follow_jobs
from nemotron_kit.launch.queue import SweepQueue
from nemotron_kit.launch.status import Watch, refresh
from nemotron_kit.polling import Pace
from nemotron_kit.remote.agent.operations import Piece
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import TERMINAL, DamagedRunRecord, JobFolder
from nemotron_kit.runs.logs import TerminalSanitizer, encodable, follow, last_lines, log_names, read_from
from nemotron_kit.spec.plan import Plan, check_followed, is_local, stored_plan
from nemotron_kit.worker.process import Outcome


class LocalLog:
    """One log of one job whose folder is on this machine."""

    def __init__(self, job: JobFolder, name: str) -> None:
        self.job, self.name = job, name
        self._path = job.path / "logs" / f"{name}.log"

    def names(self) -> list[str]:
        """The names of the existing logs: `job`, `rank-0`, …"""
        return log_names(self.job)

    def tail(self, lines: int) -> int:
        """The offset at which the last `lines` lines begin; 0 while there is no log."""
        return last_lines(self._path, lines)

    def read(self, offset: int) -> Iterator[bytes]:
        """The log from byte `offset` on, in pieces."""
        return read_from(self._path, offset)

    def follow(self, is_over: Callable[[], bool], offset: int) -> Iterator[bytes]:
        """The log as it grows, until `is_over()` and its end is reached."""
        return follow(self._path, is_over, offset=offset)


class RemoteLog:
    """One log of one job on another machine. Every method raises Unreachable if the target does not answer."""

    def __init__(self, plan: Plan, job: JobFolder, name: str) -> None:
        self.job, self.name = job, name
        self._executor = executor_for(plan.settings)
        self._transport = self._executor.transport
        self._folder = f"{plan.paths.run}/jobs/{job.number}"

    def names(self) -> list[str]:
        """The names of the existing logs: `job`, `rank-0`, …"""
        found, _ = self._transport.call("log_names", job=self._folder)
        return [str(name) for name in found]

    def tail(self, lines: int) -> int:
        """The offset at which the last `lines` lines begin."""
        offset, _ = self._transport.call("log_offset", job=self._folder, name=self.name, lines=lines)
        return int(offset)

    def read(self, offset: int) -> Iterator[bytes]:
        """The log from byte `offset` on, in pieces; from its beginning if it has become shorter."""
        return (piece.data for piece in self._pieces(offset))

    def _pieces(self, offset: int) -> Iterator[Piece]:
        while pieces := self._executor.read_logs(self.job, {self.name: offset}, CHUNK, only=True):
            (piece,) = pieces
            offset = piece.offset + len(piece.data)
            yield piece

    def follow(self, is_over: Callable[[], bool], offset: int) -> Iterator[bytes]:
        """The log as it grows, until `is_over()` and its end is reached. Retries while the target does not answer."""
        pace, lost = Pace(0.5, 1.5, 10.0), False
        while True:
            over, grown = is_over(), False
            try:
                for piece in self._pieces(offset):
                    offset, grown = piece.offset + len(piece.data), True
                    yield piece.data
                lost = False
            except Unreachable as error:
                if not lost:
                    print_status(f"unreachable, still trying: {clean(error.message)}")
                lost = True
            if over and not lost:
                return
            if grown:
                pace.restart()
            pace.wait()


def logs(argv: list[str]) -> int:
    """`nemotron runs logs`: print one log of one job, or each job's log under a heading; returns the exit code."""
    options = ToolParser("runs", "logs").parse(argv)
    run, chosen = chosen_jobs(options.id, options.job)
    jobs = chosen or run.jobs() or [run.job()]
    plan, name = _plan(run), "job" if options.rank is None else f"rank-{options.rank}"
    if len(jobs) > 1:
        return _follow_all(run, jobs, options) if options.follow else _print_all(run, jobs, name, options)
    log = _log(plan, jobs[0], name)
    watch = Watch(run, [log.job])

    def over() -> bool:
        """Whether the job has ended: by its exit record, else by its back end, queried at intervals."""
        ask = watch.is_remote and not log.job.state().terminal
        watch.update(refresh([run]).get(run.id) if ask else None)
        return watch.over

    names = log.names()
    if name not in names and (not options.follow or over()):
        raise _no_log(run, log.job, options, names)
    if options.follow and options.rank is None and (plan.settings.nodes or 1) > 1:
        return _follow_all(run, jobs, options)
    offset = 0 if options.tail is None else log.tail(options.tail)
    others = _of_other_nodes(plan, log, names)
    _write(log.follow(over, offset) if options.follow else chain(log.read(offset), _below(others, options.tail)))
    if options.follow and watch.state not in TERMINAL:
        check_followed(run)
        state = log.job.state()
        raise Unreachable(f"{log.job.reference}: its state is not known: {watch.why or state.error or state.state}")
    return 0


def _log(plan: Plan, job: JobFolder, name: str) -> LocalLog | RemoteLog:
    if not is_local(plan.executor) and plan.has_separate_folder:
        return RemoteLog(plan, job, name)
    return LocalLog(job, name)


def _of_other_nodes(plan: Plan, log: LocalLog | RemoteLog, names: Sequence[str]) -> list[LocalLog | RemoteLog]:
    """The logs of a job's other nodes, when `log` is that of the whole job: each node's lines are in its own."""
    others = [name for name in names if name.startswith("node-") and log.name == "job"]
    return [_log(plan, log.job, name) for name in sorted(others, key=lambda name: (len(name), name))]


def _below(logs: Sequence[LocalLog | RemoteLog], tail: int | None) -> Iterator[bytes]:
    """Yield each log below a line with its name."""
    for log in logs:
        yield f"\n==> {log.name} <==\n".encode()
        yield from log.read(0 if tail is None else log.tail(tail))


def _print_all(run: RunFolder, jobs: Sequence[JobFolder], name: str, options: Any) -> int:
    plan = _plan(run)
    logs = [_log(plan, job, name) for job in jobs]
    if not is_local(plan.executor):
        refresh([run])
    names = [log.names() for log in logs]
    if not any(log.name in of_job for log, of_job in zip(logs, names, strict=True)):
        raise _no_log(run, logs[0].job, options, names[0])
    _write(_under_headings(plan, logs, names, options.tail))
    return 0


def _under_headings(
    plan: Plan, logs: Sequence[LocalLog | RemoteLog], names: Sequence[Sequence[str]], tail: int | None
) -> Iterator[bytes]:
    """Yield the logs of several jobs, each below a line with the job's number, state and overrides, in the format of
    `tail` for several files; `names` are those of the logs that each job has."""
    all_overrides = distinct_overrides([log.job for log in logs])
    for at, (log, of_job, overrides) in enumerate(zip(logs, names, all_overrides, strict=True)):
        exists = log.name in of_job
        facts = [
            log.job.state().state,
            *([overrides] if overrides else []),
            *([] if exists else [f"no {log.name} log"]),
        ]
        blank = "\n" if at else ""
        yield f"{blank}==> job {log.job.number}: {clean(', '.join(facts))} <==\n".encode()
        end = b"\n"
        pieces = log.read(0 if tail is None else log.tail(tail)) if exists else ()
        for piece in chain(pieces, _below(_of_other_nodes(plan, log, of_job), tail)):
            yield piece
            end = piece[-1:] or end
        if end != b"\n":
            yield b"\n"


def _follow_all(run: RunFolder, jobs: list[JobFolder], options: Any) -> int:
    """Follow the logs of several jobs from their beginning, or from the last lines on; records no offsets, unlike
    `attach`."""
    if options.rank is not None:
        hint = f"nemotron runs logs {run.id}/0 -f --rank {options.rank}"
        raise UserError("--rank with -f needs one job.", hint=hint)
    if not all(job.state().terminal for job in jobs):
        check_followed(run)
    _wait_for_submission(run, jobs)
    submitted, plan = _submitted(run, jobs), stored_plan(run)
    begins: dict[int, dict[str, int]] = {}
    for job in submitted if options.tail is not None else ():
        names = [name for name in _log(plan, job, "job").names() if not name.startswith(SKIPPED)]
        begins[job.number] = {name: _log(plan, job, name).tail(options.tail) for name in names}
    outcome = follow_jobs(run, executor_for(plan.settings), submitted, offsets=LogOffsets(None, begins))
    if outcome.state == "detached":
        return outcome.code
    if outcome.state not in TERMINAL:
        check_followed(run)
        raise Unreachable(f"{run.id}: its state is not known: {outcome.error or outcome.state}")
    return 0


def _plan(run: RunFolder) -> Plan:
    """The run's plan; an empty one for a damaged run, whose logs on this machine can still be read."""
    try:
        return stored_plan(run)
    except DamagedRunRecord:
        return Plan.from_dict({}, run.path)


def _no_log(run: RunFolder, job: JobFolder, options: Any, names: Sequence[str]) -> NemotronError:
    what = "log" if options.rank is None else f"log of rank {options.rank}"
    if names:
        return UserError(f"{job.run_id}: job {job.number} has no {what}.", hint=f"It has: {', '.join(names)}.")
    state = job.state()
    if options.follow and not state.terminal:
        try:
            check_followed(run)
        except DamagedRunRecord as error:
            return error
    why = f": {state.error}" if state.error else ""
    hint = None if state.terminal else "-f waits until there is one."
    return UserError(f"{job.run_id}: job {job.number} has no {what}; it is {state.state}{why}.", hint=hint)


def _write(pieces: Iterable[bytes]) -> None:
    if not sys.stdout.isatty():
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return
    sanitizer = TerminalSanitizer()
    for piece in pieces:
        sys.stdout.write(encodable(sanitizer.feed(piece), sys.stdout.encoding))
        sys.stdout.flush()
    sys.stdout.write(encodable(sanitizer.feed(b"", final=True), sys.stdout.encoding))
    sys.stdout.flush()


def attach(argv: list[str]) -> int:
    """`nemotron runs attach`: print a run's logs until it ends; returns the exit code. Ctrl-C only stops following."""
    options = ToolParser("runs", "attach").parse(argv)
    run, chosen = chosen_jobs(options.id, options.job)
    jobs = (run.jobs() or [run.job()]) if chosen is None else chosen
    if not all(job.state().terminal for job in jobs):
        check_followed(run)
    _wait_for_submission(run, jobs)
    submitted, plan, offsets = _submitted(run, jobs), stored_plan(run), LogOffsets(run)
    if options.all:
        offsets.forget()
    cancels = bool(plan.settings.cancel_on_interrupt)
    executor = executor_for(plan.settings)
    return report_end(run, follow_jobs(run, executor, submitted, offsets=offsets, cancel_on_interrupt=cancels))


def _wait_for_submission(run: RunFolder, jobs: list[JobFolder]) -> None:
    """Wait while a process of this machine waits for other runs before it submits this one."""
    announced, pace = False, Pace(0.2, 1.2, 5.0)
    while (state := jobs[0].state()).state == "pending" and state.facts.get("reason") and SweepQueue(run).waiting:
        if not announced:
            print_status(f"waits for {clean(state.facts['reason'])}")
        announced = True
        pace.wait()


def _submitted(run: RunFolder, jobs: list[JobFolder]) -> list[JobFolder]:
    """The jobs that were submitted; those of a large sweep above its limit may still wait. Raises UserError if none
    was."""
    waiting = set(SweepQueue(run).waiting)
    submitted = [job for job in jobs if job.number not in waiting]
    if not submitted:
        hint = f"nemotron runs resume {run.id}" if waiting else f"nemotron runs show {run.id}"
        raise UserError(f"{run.id}: no job has been submitted yet.", hint=hint)
    if len(submitted) < len(jobs):
        print_status(f"{len(jobs) - len(submitted)} jobs wait to be submitted: nemotron runs resume {run.id}")
    return submitted


def report_end(run: RunFolder, outcome: Outcome, started: float | None = None) -> int:
    """Print how the run ended, on standard error; returns the exit code."""
    if outcome.state == "detached":
        commands = [f"  nemotron runs {command} {run.id}" for command in ("attach", "cancel")]
        print_status("\n".join([f"Detached from {run.id}, which keeps running.", *commands]))
        return outcome.code
    summary = run.summary()
    started = started or summary.started
    took = (summary.finished or time.time()) - started if started else None
    how = outcome.state + (f" in {took:.1f} s" if took is not None and outcome.state == "succeeded" else "")
    why = f": {outcome.error}" if outcome.error and outcome.state != "succeeded" else ""
    print_status(f"{run.id}: {clean(how + why)} · nemotron runs show {run.id}")
    return outcome.code
