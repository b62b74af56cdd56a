"""`nemotron runs logs ID`: what a job printed, safe on a terminal, byte for byte into a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from nemotron_kit.cli.toolargs import ToolParser, at_least
from nemotron_kit.errors import UserError
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.runs.logs import Neutraliser, follow, last_lines, log_file, log_names, read_from


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
    job = open_run(options.id).job(options.job)
    path = log_file(job, options.rank)
    if not path.exists() and (not options.follow or _is_over(job)):
        raise _no_log(job, options.rank)
    offset = 0 if options.tail is None else last_lines(path, options.tail)
    _write(follow(path, lambda: _is_over(job), offset=offset) if options.follow else read_from(path, offset))
    return 0


def _is_over(job: JobFolder) -> bool:
    """`unknown` counts: its exit record is there, but damaged, and nothing more will come."""
    state = job.state()
    return state.terminal or state.state == "unknown"


def _no_log(job: JobFolder, rank: int | None) -> UserError:
    what = "log" if rank is None else f"log of rank {rank}"
    there = log_names(job)
    if there:
        return UserError(
            f"{job.run_id}: job {job.number} has no {what}.",
            hint=f"It has: {', '.join(there)} (in {job.path / 'logs'}).",
        )
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
    neutraliser, encoding = Neutraliser(), sys.stdout.encoding or "utf-8"
    for piece in pieces:
        yield neutraliser.feed(piece).encode(encoding, "replace").decode(encoding)
    yield neutraliser.feed(b"", final=True).encode(encoding, "replace").decode(encoding)
