"""`nemotron runs logs ID`: what a job printed, safe on a terminal, byte for byte into a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from nemotron_kit.cli.runs import is_asked
from nemotron_kit.cli.toolargs import ToolParser, at_least
from nemotron_kit.errors import UserError
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.runs.logs import Neutraliser, encodable, follow, last_lines, log_file, log_names, read_from
from nemotron_kit.runs.records import DamagedRecord


def logs(argv: list[str]) -> int:
    """Print one log of one job."""
    parser = ToolParser("nemotron runs logs", "What a run printed.")
    parser.add_argument("id", metavar="ID", help="a run's id, the start of one, its last six digits, or latest")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    parser.add_argument("-n", "--tail", type=at_least(0), metavar="N", help="only the last N lines")
    parser.add_argument("--job", type=at_least(0), default=0, metavar="N", help="of a run with many jobs: this one")
    parser.add_argument("--rank", type=at_least(0), metavar="N", help="of a job with many ranks: this one")
    options = parser.parse(argv)
    if options is None:
        return 0
    run = open_run(options.id)
    job = run.job(options.job)
    plan = _plan(run)
    if _lies_elsewhere(run, plan):
        _write(_remote(run, plan, job, options))
        return 0
    path = log_file(job, options.rank)
    over = _watch(run, job)
    if not path.exists() and (not options.follow or over()):
        raise _no_log(job, options.rank, log_names(job))
    offset = 0 if options.tail is None else last_lines(path, options.tail)
    _write(follow(path, over, offset=offset) if options.follow else read_from(path, offset))
    return 0


def _plan(run: RunFolder) -> Mapping[str, Any]:
    """The run's plan; of a damaged run only what lies here can be read."""
    try:
        return run.plan()
    except DamagedRecord:
        return {}


def _lies_elsewhere(run: RunFolder, plan: Mapping[str, Any]) -> bool:
    if not is_asked(plan.get("executor")):
        return False
    from nemotron_kit.execution.mirror import is_apart

    return is_apart(run, plan)


def _remote(run: RunFolder, plan: Mapping[str, Any], job: JobFolder, options: Any) -> Iterator[bytes]:
    from nemotron_kit.cli.runs_remote import RemoteLog

    log = RemoteLog(run, plan, job, "job" if options.rank is None else f"rank-{options.rank}")
    over, names = _watch(run, job), log.names()
    if log.name not in names and (not options.follow or over()):
        raise _no_log(job, options.rank, names)
    offset = 0 if options.tail is None else log.tail(options.tail)
    return log.follow(over, offset) if options.follow else log.read(offset)


def _watch(run: RunFolder, job: JobFolder) -> Callable[[], bool]:
    """Whether nothing more will come of a job. Its own word is enough; else whoever runs it is asked, now and then.

    `unknown` counts where nobody else can be asked: its exit record is there, but damaged.
    """
    if not is_asked(_plan(run).get("executor")):
        return lambda: job.state().terminal or job.state().state == "unknown"
    from nemotron_kit.execution.ledger import refresh

    def over() -> bool:
        if not job.state().terminal:
            refresh([run])
        return job.state().terminal

    return over


def _no_log(job: JobFolder, rank: int | None, there: Sequence[str]) -> UserError:
    what = "log" if rank is None else f"log of rank {rank}"
    if there:
        return UserError(f"{job.run_id}: job {job.number} has no {what}.", hint=f"It has: {', '.join(there)}.")
    state = job.state()
    why = f": {state.error}" if state.error else ""
    hint = None if state.terminal else "-f waits for it."
    return UserError(f"{job.run_id}: job {job.number} has no {what}; it is {state.state}{why}.", hint=hint)


def _write(pieces: Iterable[bytes]) -> None:
    if sys.stdout.isatty():
        for text in _harmless(pieces):
            sys.stdout.write(text)
            sys.stdout.flush()
        return
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _harmless(pieces: Iterable[bytes]) -> Iterator[str]:
    neutraliser = Neutraliser()
    for piece in pieces:
        yield encodable(neutraliser.feed(piece), sys.stdout.encoding)
    yield encodable(neutraliser.feed(b"", final=True), sys.stdout.encoding)
