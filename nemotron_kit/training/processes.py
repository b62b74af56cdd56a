"""The processes of one training run: ranks as torchrun numbers them, collective operations, and the stop signal."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import NemotronError

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """This process's rank, 0 … world_size() - 1; only rank 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """The device of this process: its GPU, by its local rank, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(own)
    return own


def seconds_left(now: float, environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds until the job's time limit, which Slurm knows best: a partition may have a shorter one than the profile.
    None without a limit. `now` is in seconds since the epoch."""
    if (end := environ.get("SLURM_JOB_END_TIME", "")).isdecimal():
        return float(end) - now
    limit = environ.get("NEMOTRON_TIME_LIMIT")
    return float(limit) if limit else None


def signal_lead(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds before the limit at which the job gets a signal; 5 minutes, where that is not known."""
    return float(environ.get("NEMOTRON_SIGNAL_LEAD") or 300)


def gpus_not_seen() -> list[str]:
    """A line for the log of a job to which Slurm gave GPUs that torch does not see: it would be slow, and say nothing.
    Neither Slurm nor Apptainer (`--nv`) ends a job for that."""
    import torch

    given = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    if torch.cuda.is_available() or not given.isdecimal() or int(given) == 0:
        return []
    why = "" if torch.version.cuda else " (built without CUDA)"
    return [
        f"Slurm gave {given} GPUs on this node, and torch {torch.__version__}{why} sees none: this runs on the CPU."
    ]


def join(hang_minutes: float | None = None) -> None:
    """Open the process group, if torchrun started more than one process. One process may let the others wait for
    torch's own limit, 10 minutes with NCCL and 30 with Gloo, or for `hang_minutes` (train.hang_minutes) if that is
    longer.

    torchrun keeps one store for all its restarts, in which a process that starts early can still find its peers'
    addresses from before the restart, and wait for processes that have ended. So a restart uses a key prefix of its own
    in the store; with more than one node, whose launchers count restarts separately, torch's own keys are used.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if world_size() == 1 or _joined():
        return
    store, number, size = next(rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        store = dist.PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # Longer than HangWatch's, which prints where each process is before it ends it; and no shorter than torch's: before
    # the first step, while the model is loaded, only this limit counts.
    own = 10 if backend == "nccl" else 30
    limit = timedelta(minutes=max(own, (hang_minutes or 0) + 1))
    dist.init_process_group(backend, timeout=limit, store=store, rank=number, world_size=size)


def _joined() -> bool:
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all ranks, on every rank (in place)."""
    if _joined():
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def max_over_ranks(number: int) -> int:
    """The largest of the ranks' numbers, on every rank."""
    if not _joined():
        return number
    import torch
    import torch.distributed as dist

    found = torch.tensor([number], device=device())
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found.item())


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on any rank: all ranks agree on the answer."""
    return bool(max_over_ranks(int(flag)))


def on_all_ranks(work: Callable[[], Any]) -> list[Any]:
    """Call `work` on every rank and return what it returned (a JSON value) on each, in the order of ranks.

    All ranks must call it. If it raises OSError or NemotronError on one rank, every rank raises such an error, with the
    number of that rank: none waits in a collective operation for a rank that has failed.
    """
    failed: Exception | None = None
    try:
        outcome: dict[str, Any] = {"value": work()}
    except OSError as error:
        failed = error
        outcome = {"os": [error.errno, error.strerror or str(error), error.filename and str(error.filename)]}
    except NemotronError as error:
        failed = error
        outcome = {"error": error.message, "hint": error.hint}
    every = _all_gather_json(outcome)
    if failed is not None:
        raise failed
    for number, other in enumerate(every):
        where = f"(process {number} of {world_size()})"
        if "os" in other:
            code, reason, file = other["os"]
            raise OSError(code, f"{reason} {where}", file)
        if "error" in other:
            raise NemotronError(f"{other['error']} {where}", hint=other["hint"])
    return [other["value"] for other in every]


def _all_gather_json(value: Any) -> list[Any]:
    """The JSON value of each rank, in the order of ranks, on every rank."""
    if not _joined():
        return [value]
    import torch
    import torch.distributed as dist

    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device())
    sizes = [torch.zeros(1, dtype=torch.int64, device=text.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(text)], device=text.device))
    longest = max(int(size) for size in sizes)
    texts = [torch.zeros(longest, dtype=torch.uint8, device=text.device) for _ in sizes]
    dist.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))))
    return [json.loads(bytes(each[: int(size)].tolist())) for each, size in zip(texts, sizes, strict=True)]


def leave() -> None:
    """Close the process group, if there is one."""
    if _joined():
        import torch.distributed as dist

        dist.destroy_process_group()


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(NemotronError):
    """A signal stopped the run; it has saved a checkpoint, if it saves any.

    Exit code 75 (EX_TEMPFAIL of sysexits.h): not a failure, start it again.
    """

    exit_code = 75


class StopRequest:
    """`with StopRequest() as stop:` catches TERM (a scheduler's preemption) and USR1 (its time limit).

    `stop.signal` is the signal's name once one has arrived, else None. The earlier handlers are restored at the end.
    Outside of the main thread, where Python permits no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():

            def note(number: int, _frame: FrameType | None) -> None:
                self.signal = signal.Signals(number).name

            self._before = {number: signal.signal(number, note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# EX_SOFTWARE of sysexits.h: the run made no step for train.hang_minutes.
HUNG = 70
# A rank that finds the run hung leaves the others so long to find it too, and to print where they are.
_OTHERS_SECONDS = 10.0
# A node's ranks print one after the other, so far apart: they may have one log.
_APART_SECONDS = 0.5
_STDERR = 2


class HangWatch:
    """`with HangWatch(minutes) as watch:` ends this process with exit code 70 when `watch.beat()` is not called for so
    long. Before that the stacks of all its threads are on standard error, a rank's log, below a line that names the
    rank: printed by faulthandler's own thread, as what hangs may hold Python's lock. With None it does nothing.
    """

    def __init__(self, minutes: float | None) -> None:
        self._seconds = None if minutes is None else minutes * 60
        self._last = time.monotonic()
        self._done = threading.Event()
        self._turn = _APART_SECONDS * min(int(os.environ.get("LOCAL_RANK", "0")), 16)

    def __enter__(self) -> HangWatch:
        if self._seconds is not None:
            self.beat()
            threading.Thread(target=self._watch, args=(self._seconds,), name="hang watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """A step, or what follows on one, is done."""
        if self._seconds is not None:
            self._last = time.monotonic()
            faulthandler.dump_traceback_later(self._seconds + self._turn + _APART_SECONDS / 4, file=_STDERR)

    def _watch(self, seconds: float) -> None:
        said = f"rank {rank()}: no step for {seconds / 60:g} minutes (train.hang_minutes)"
        named = 0.0  # the beat after which the rank was named
        while True:
            last = self._last
            due = last + seconds + (_OTHERS_SECONDS if named == last else self._turn)
            if (left := due - time.monotonic()) > 0:
                if self._done.wait(left):
                    return
            elif named != last:
                print(f"{said}; its stacks:", file=sys.stderr, flush=True)  # noqa: T201
                named = last
            else:
                break
        print(f"error: {said}; its stacks are above.", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(HUNG)
