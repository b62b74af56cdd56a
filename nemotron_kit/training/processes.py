"""The processes of one training run: ranks as torchrun numbers them, collective operations, and the stop signal."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import NemotronError

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """This process's rank, 0 … world_size() - 1; only rank 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """The device of this process: its GPU, by its local rank, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(own)
    return own


def join() -> None:
    """Open the process group, if torchrun started more than one process.

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
    dist.init_process_group(backend, store=store, rank=number, world_size=size)


def _joined() -> bool:
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all ranks, on every rank (in place)."""
    if _joined():
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank: all ranks agree on the answer."""
    if not _joined():
        return flag
    import torch

    return bool(sum_over_ranks(torch.tensor([int(flag)], device=device)).item())


def barrier() -> None:
    """Wait until every rank has called this."""
    if _joined():
        import torch.distributed as dist

        dist.barrier()


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
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
