"""torchrun, started by a worker: `python -m nemotron_kit.worker.elastic <torchrun's arguments>`.

It is torch.distributed.run with two differences. TERM and USR1 are left to its ranks, which save and end by themselves
(torchrun would end at USR1, and at TERM lose its ranks' exit codes). Its exit code is that of the first rank that
failed, so that 75, "stopped with a checkpoint", is passed on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from nemotron_kit.runs.job import descendants


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun; the exit code."""
    # What torchrun would set, with a banner of five lines.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # torch's agents would keep one store over restarts (PET_MAX_RESTARTS), and a rank that starts again fast can find
    # the addresses of those that died in it, and wait for them for ever.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stay if "SLURM_JOB_ID" in os.environ else _pass_on)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    args: Any = parse_args(list(sys.argv[1:] if arguments is None else arguments))
    args.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"
    try:
        run(args)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        print(f"torchrun: rank {rank}: {_how(first.exitcode)}", file=sys.stderr)  # noqa: T201
        return int(first.exitcode) if first.exitcode > 0 else 128 - int(first.exitcode)
    return 0


def _stay(_: int, __: FrameType | None) -> None:
    """Ignore further signals: Slurm sends its signals to the ranks too, and a second one would kill a rank that has
    saved and is exiting, when Python has already removed its handlers."""


def _pass_on(number: int, _: FrameType | None) -> None:
    ranks = descendants(os.getpid())
    if not ranks and number == signal.SIGTERM:
        sys.exit(128 + number)  # no rank has started yet
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, number)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


if __name__ == "__main__":
    from nemotron_kit.worker.process import recording_end

    sys.exit(recording_end(main))
