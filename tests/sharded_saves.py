"""Saves of a sharded checkpoint by two ranks, threads of this process that take turns, killed at each call that changes
files: the checkpoint before is whole, and the ranks that start again save theirs. tests and scripts/faults use it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch

from nemotron_kit import files
from nemotron_kit.training import checkpoint, processes, sharded

try:
    from .file_calls import Died, Perform, Step, stepping_in
except ImportError:  # scripts/faults imports it as a module by itself
    from file_calls import Died, Perform, Step, stepping_in  # type: ignore[import-not-found, no-redef]

RANKS = 2
_ROWS, _COLUMNS = 6, 4
_IDENTITY = {"run": "swept"}


class _Config:
    """As much of a model's config as a checkpoint writes."""

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "config.json", "{}")


class _Model:
    config, generation_config = _Config(), None


class _Ranks:
    """Threads that are ranks: one at a time runs, until it waits for the others."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._turn = threading.Condition()
        self._running, self._waiting, self._gone = 0, 0, False
        self._values: list[Any] = [None] * RANKS
        self._round = 0

    def be(self, number: int) -> None:
        """This thread is of rank `number` from now on."""
        self._local.rank = number

    def rank(self) -> int:
        return int(getattr(self._local, "rank", 0))

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, on every rank; Died where another one is gone: torchrun kills this one, too."""
        with self._turn:
            own, began = self.rank(), self._round
            self._values[own] = value
            if own == RANKS - 1:
                self._every, self._round, self._running = list(self._values), began + 1, 0
            else:
                self._running = own + 1
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._gone or (self._round > began and self._running == own), timeout=60)
            if self._round == began:
                raise Died
            return list(self._every)

    def run(self, work: Callable[[], object]) -> None:
        """`work` on every rank; raises what the lowest one raised, Died before all else."""
        raised: list[BaseException] = []

        def one(number: int) -> None:
            self.be(number)
            with self._turn:
                self._turn.wait_for(lambda: self._gone or self._running == number, timeout=60)
            try:
                work()
            except BaseException as error:
                raised.append(error)
            with self._turn:
                self._gone = self._gone or isinstance(raised[-1] if raised else None, Died)
                self._running = number + 1
                self._turn.notify_all()

        threads = [threading.Thread(target=one, args=(number,)) for number in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._running = 0
        for error in sorted(raised, key=lambda error: not isinstance(error, Died)):
            raise error


def _save_file(values: dict[str, torch.Tensor], path: Path) -> None:
    """safetensors' own, whose writes are not calls of this process's `os`: a file can be torn."""
    content = safetensors.torch.save(values)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, content[: len(content) // 2])
        os.write(descriptor, content[len(content) // 2 :])
    finally:
        os.close(descriptor)


# When a checkpoint's own thread does its work, for `later`: while training goes on, before the rank next waits for the
# others, or when the rank waits for it to end.
EARLY, LATE = "in its thread at once", "in its thread at last"


class _Writer:
    """The thread that writes a rank's file, as far as sharded.Save uses one. It has the number of its rank, and where
    it dies its process does."""

    def __init__(self, ranks: _Ranks, late: bool, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._ranks, self._late, self._rank, self._raised = ranks, late, ranks.rank(), list[BaseException]()
        self._thread = threading.Thread(target=self._run, args=(target, args))

    def _run(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._ranks.be(self._rank)
        try:
            target(*args)
        except Died as death:
            self._raised.append(death)

    def start(self) -> None:
        if not self._late:
            self._work()

    def is_alive(self) -> bool:
        return self._late

    def join(self) -> None:
        if self._late:
            self._late = False
            self._work()

    def _work(self) -> None:
        self._thread.start()
        self._thread.join()
        for death in self._raised:
            raise death


@contextmanager
def _as_ranks(when: str | None) -> Iterator[_Ranks]:
    ranks = _Ranks()

    def thread(*, target: Callable[..., None], args: tuple[Any, ...], **_: object) -> _Writer:
        return _Writer(ranks, when == LATE, target, args)

    with (
        patch.object(sharded, "threading", SimpleNamespace(Thread=thread)),
        patch.object(processes, "rank", ranks.rank),
        patch.object(processes, "world_size", lambda: RANKS),
        patch.object(processes, "_all_gather_json", ranks.gather),
        patch.object(safetensors.torch, "save_file", _save_file),
    ):
        yield ranks


def values_at(step: int) -> torch.Tensor:
    return torch.arange(_ROWS * _COLUMNS, dtype=torch.float32).reshape(_ROWS, _COLUMNS) + 1000 * step


def save(folder: Path, step: int, faulty: Callable[[int], Step] | None = None, when: str | None = None) -> list[int]:
    """Write the checkpoint of `step` by two ranks, and remove all but the newest one; `faulty`: what steps in, by rank.
    `when` (EARLY, LATE): by a thread of each, while training goes on. Returns how many calls each rank has made."""
    made = [0] * RANKS
    with _as_ranks(when) as ranks:
        steps = [faulty(number) for number in range(RANKS)] if faulty else []

        def stepped(_: int, paths: list[object], perform: Perform) -> object:
            own = ranks.rank()
            made[own] += 1
            return steps[own](made[own], paths, perform) if steps else perform()

        def work() -> None:
            first, end = (0, 4) if ranks.rank() == 0 else (4, _ROWS)
            rows = [values_at(step)[first:end] + n for n in range(2)]
            local = {f"weights.w{n}": (["float32", [_ROWS, _COLUMNS], first, end], rows[n]) for n in range(2)}
            begun = sharded.Save(folder, step, {"identity": _IDENTITY}, _Model())
            begun.begin(local, later=when is not None)
            for one in rows:
                one.zero_()  # training goes on: what is written is a copy
            begun.commit()
            if ranks.rank() == 0:
                checkpoint.prune(folder, 1)

        # What is killed is a process, not the machine: nothing is lost without syncing, which takes most of the time.
        with patch.object(os, "fsync", lambda _: None), stepping_in(stepped):
            ranks.run(work)
    return made


def check(folder: Path, *steps: int) -> None:
    """The newest checkpoint in `folder` is that of one of `steps`, and whole."""
    found = checkpoint.latest(folder)
    assert found is not None, sorted(path.name for path in folder.iterdir())
    step = checkpoint.read(found, verify=True)["step"]
    assert step in steps, (step, steps)
    shards = sharded.Shards(found)
    for number in range(2):
        value = torch.zeros(_ROWS, _COLUMNS)
        shards.read_into(value, f"weights.w{number}")
        assert torch.equal(value, values_at(step) + number), (step, value)
