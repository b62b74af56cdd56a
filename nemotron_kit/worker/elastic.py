"""torchrun, started by a worker: `python -m nemotron_kit.worker.elastic <torchrun's arguments>`.

It is torch.distributed.run with these differences. TERM and USR1 are left to its ranks, which save and end by
themselves (torchrun would end at USR1, and at TERM lose its ranks' exit codes). Its exit code is that of the first rank
that failed, so that 75, "stopped with a checkpoint", is passed on. With --max-restarts all ranks of all nodes start
again when one has died, each time with a new rendezvous; but not after 75, a signal, or a mistake that the command has
named (exit code 2). torchrun's own restarts know none of that, and there are none across nodes that have fixed ranks.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from nemotron_kit import files
from nemotron_kit.polling import until
from nemotron_kit.runs.job import PREEMPTED, SLURM_STEP, read_object_if_any
from nemotron_kit.runs.process_facts import descendants
from nemotron_kit.worker import NODES_FOLDER, RESTART
from nemotron_kit.worker.process import beside, send_signal, signal_name

_RESTARTS = "restarts-"
# How long a node waits for the others, after a rank has died, until it gives the attempt up.
TOGETHER_SECONDS = 120.0
_POLL_SECONDS = 1.0
_MISTAKE = 2
_signals: set[int] = set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun; the exit code."""
    # What torchrun would set, with a banner of five lines.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # torch's agents would keep one store over restarts (PET_MAX_RESTARTS), and a rank that starts again fast can find
    # the addresses of those that died in it, and wait for them for ever.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stay if SLURM_STEP in os.environ else _pass_on)
    gc.disable()  # torch is a hundred thousand objects that stay, and no code of a job's runs in this process
    from torch.distributed.run import parse_args

    gc.freeze()
    gc.enable()
    args: Any = parse_args(list(sys.argv[1:] if arguments is None else arguments))
    args.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"
    restarts, args.max_restarts = args.max_restarts, 0
    for attempt in range(restarts):
        nodes = _Nodes(args, attempt)
        with nodes.watched():
            code = _run(args)
        code, restarts_again = nodes.agree(code)
        if not restarts_again:
            return code
        line = f"torchrun: all ranks start again from their last checkpoint (restart {attempt + 1} of {restarts})."
        print(line, file=sys.stderr, flush=True)  # noqa: T201
        os.environ[RESTART] = str(attempt + 1)
        nodes.note_restarts(attempt + 1)
    return _run(args)


def _run(args: Any) -> int:
    """One attempt; the exit code."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import run

    try:
        run(args)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        code = int(first.exitcode)
        how = f"exit code {code}" if code >= 0 else f"killed by {signal_name(-code)}"
        print(f"torchrun: rank {rank}: {how}", file=sys.stderr, flush=True)  # noqa: T201
        return code if code > 0 else 128 - code
    return 0


class _Nodes:
    """The nodes of a job, at one attempt. Each writes how its ranks ended into a file of a folder that all of
    them share, so that all decide alike whether there is another attempt. `stopped_by_node`: this node's ranks were
    killed because those of another node had failed."""

    def __init__(self, args: Any, attempt: int) -> None:
        self.count, self.rank = int(str(args.nnodes).partition(":")[2] or args.nnodes), int(args.node_rank)
        self.stopped_by_node = False
        if self.count > 1:
            folder = Path(os.environ[NODES_FOLDER])
            start = f"{args.rdzv_id}-{os.environ.get('SLURM_RESTART_COUNT', '0')}.{attempt}"
            self.paths = {rank: folder / f"{start}-{rank}.json" for rank in range(self.count)}

    def watched(self) -> contextlib.AbstractContextManager[None]:
        """Within the block this node's ranks are killed when those of another node have failed: they may wait for them
        in vain for ten minutes."""
        if self.count == 1:
            return contextlib.nullcontext()

        def watch(ended: threading.Event) -> None:
            while not ended.wait(_POLL_SECONDS):
                ends = [read_object_if_any(path) for rank, path in self.paths.items() if rank != self.rank]
                if any(end and end["code"] for end in ends):
                    self.stopped_by_node = True
                    send_signal(descendants(os.getpid()), signal.SIGKILL)
                    return

        return beside(watch)

    def note_restarts(self, count: int) -> None:
        """Record that the ranks start again for the `count`-th time in this allocation."""
        if self.rank == 0 and NODES_FOLDER in os.environ:
            folder = Path(os.environ[NODES_FOLDER])
            folder.mkdir(mode=0o700, exist_ok=True)
            files.write_json(folder / _restarts_file(), {"restarts": count})

    def agree(self, code: int) -> tuple[int, bool]:
        """(the exit code of the attempt: that of the node where a rank failed first; whether there is another one)."""
        end = {"code": code, "stopped_by_node": self.stopped_by_node, "signals": bool(_signals)}
        if self.count == 1:
            return code, _may_start_again([end])
        self.paths[self.rank].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_json(self.paths[self.rank], end)
        if code == 0:
            return 0, False
        if not until(lambda: all(path.exists() for path in self.paths.values()), 0.2, within=TOGETHER_SECONDS):
            return code, False
        ends = [found for found in map(read_object_if_any, self.paths.values()) if found]
        first = next((found["code"] for found in ends if not found["stopped_by_node"] and found["code"]), code)
        return first, _may_start_again(ends)


def _restarts_file() -> str:
    """The file of this allocation, in the folder of a job's nodes."""
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return f"{_RESTARTS}{os.environ.get('SLURM_JOB_ID', 'here')}-{restart}.json"


def restarts_in(folder: Path, *, earlier: bool = False) -> int:
    """How often the ranks of a job have started again, by the records in the folder of its nodes; `earlier`: before
    this allocation."""
    own = folder / _restarts_file()
    found = [read_object_if_any(path) for path in folder.glob(f"{_RESTARTS}*.json") if not (earlier and path == own)]
    return sum(int(each["restarts"]) for each in found if each)


def _may_start_again(ends: Sequence[dict[str, Any]]) -> bool:
    return all(end["code"] not in (0, PREEMPTED, _MISTAKE) and not end["signals"] for end in ends)


def _stay(number: int, _: FrameType | None) -> None:
    """Ignore further signals: Slurm sends its signals to the ranks too, and a second one would kill a rank that has
    saved and is exiting, when Python has already removed its handlers."""
    _signals.add(number)


def _pass_on(number: int, _: FrameType | None) -> None:
    _signals.add(number)
    ranks = descendants(os.getpid())
    if not ranks and number == signal.SIGTERM:
        sys.exit(128 + number)  # no rank has started yet
    send_signal(ranks, number)


if __name__ == "__main__":
    from nemotron_kit.worker.process import recording_end

    sys.exit(recording_end(main))
