"""Data preparation by several ranks, started by torchrun or srun: each rank makes its share of the plan's shards.

The ranks coordinate by files in the output folder, which all of them see. Each rank keeps rewriting one file,
`rank-<n>.json`, with its identity, its state and a heartbeat counter. Rank 0 makes the plan; the others start when rank
0's file names them, which shows that it belongs to this launch and not to an earlier one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError, error_text
from nemotron_kit.runs.process_facts import is_gone, process_facts

FOLDER = ".ranks-"
BEAT = 1.0  # seconds between two writes of a rank's file, and between two looks at the others'
PATIENCE = 600.0  # seconds that the ranks of a launch may begin apart
DEAD_AFTER = 180.0  # seconds without a beat; on the same machine a process that is gone is seen at once
_EAGER = 30  # the first beats come ten times as fast: that is when everyone waits
# Seconds in which the others see how rank 0 ended: by an error, or well. A network's file system may show a file's new
# content a minute late, and a rank that misses the final state would consider rank 0 dead.
_FAREWELL, _WELL = 20.0, 150.0
PLANNING, WORKING, DONE, FINISHED, FAILED, LEFT = "planning", "working", "done", "finished", "failed", "left"


@dataclass(frozen=True)
class RankLayout:
    """This process among the ranks of a launch: `rank` of `count`; `local` ranks run on this machine; `launch` is an id
    shared by all."""

    rank: int
    count: int
    local: int
    launch: str

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which makes the plan and writes the results."""
        return self.rank == 0


def ranks_here(environment: Mapping[str, str] | None = None) -> RankLayout | None:
    """The ranks that torchrun (or another launcher that sets RANK and WORLD_SIZE) or srun started; None for a single
    process."""
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        same: tuple[str, ...] = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "SLURM_JOB_ID", "NEMOTRON_RUN_ID")
        rank, count, local = env["RANK"], env["WORLD_SIZE"], env.get("LOCAL_WORLD_SIZE", "1")
    elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        rank, count = env["SLURM_PROCID"], env.get("SLURM_STEP_NUM_TASKS", "1")
        local = re.split(r"[(,]", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0]  # as in 4(x2),3
        same = ("SLURM_JOB_ID", "SLURM_STEP_ID")
    else:
        return None
    launch = hashlib.sha256("\n".join([count, *(env.get(name, "") for name in same)]).encode()).hexdigest()[:12]
    ranks = RankLayout(int(rank), int(count), max(1, int(local)), launch)
    return ranks if ranks.count > 1 else None


class RankSync:
    """Context manager that coordinates this rank with the others. An exception that leaves the block is reported to the
    other ranks, whose `check` raises it."""

    def __init__(self, output: Path, ranks: RankLayout) -> None:
        self.ranks, self.output = ranks, output
        self.folder = output / f"{FOLDER}{ranks.launch}"
        self._nonce = secrets.token_hex(8)
        self._mine: dict[str, Any] = {"nonce": self._nonce, "process": process_facts(), "state": PLANNING, "beat": 0}
        self._mine["launch"] = self._nonce if ranks.leads else None
        self._accepted: dict[str, str] = {}
        self._peers = {n: _Peer(n) for n in (range(1, ranks.count) if ranks.leads else (0,))}
        self._trouble: NemotronError | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat, daemon=True)

    def __enter__(self) -> RankSync:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise NemotronError(f"{error.filename or self.folder}: can't be written: {error.strerror}.") from error
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            message = error.message if isinstance(error, NemotronError) else error_text(error)
            with contextlib.suppress(OSError):  # a full disk: the error itself is what counts
                self._announce(FAILED, error=message)
        with contextlib.suppress(OSError):  # rank 0 has gone, and taken the folder away
            self._part()
        self._stop.set()
        self._thread.join()
        if self.ranks.leads:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # a plan that is refused leaves nothing; a folder with anything stays
                self.output.rmdir()

    def begin(self, digest: str) -> None:
        """Rank 0: announce that the plan with this digest is written and can be loaded."""
        self._announce(WORKING, digest=digest)

    def wait_for_plan(self) -> str:
        """Wait until rank 0 has written the plan; its digest."""
        lead = self._peers[0]
        self._wait(lambda: self._is_accepted() and lead.state in (WORKING, FINISHED), PATIENCE)
        return str(lead.content["digest"])

    def wait_for_all(self) -> None:
        """Rank 0: wait until every other rank has made its shards. Other ranks: announce that, and wait for rank 0."""
        if self.ranks.leads:
            self._wait(
                lambda: all(p.state in (DONE, LEFT) and self._is_ours(p) for p in self._peers.values()), PATIENCE
            )
        else:
            self._announce(DONE)
            self._wait(lambda: self._peers[0].state == FINISHED, PATIENCE)

    def finish(self) -> None:
        """Rank 0: announce that all outputs are written."""
        self._announce(FINISHED)

    def check(self) -> None:
        """Raise the error of another rank that failed or died."""
        if self._trouble is not None:
            raise self._trouble

    def _wait(self, until: Callable[[], bool], patience: float) -> None:
        """Wait for a condition on the other ranks while they live; up to `patience` seconds for them to appear."""
        began = time.monotonic()
        while not until():
            self.check()
            missing = [peer.number for peer in self._peers.values() if not self._is_ours(peer)]
            if missing and time.monotonic() - began > patience:
                raise NemotronError(
                    f"Rank {missing[0]} of {self.ranks.count} did not appear within {patience:.0f} s.",
                    hint=f"Do all nodes see one and the same {self.output}? Did the rank start?",
                )
            self._stop.wait(BEAT / 4)

    def _part(self) -> None:
        """Rank 0 waits until the others have read its final state; another rank announces that it ends."""
        if not self.ranks.leads:
            if self._mine["state"] != FAILED:
                self._announce(LEFT)
            return
        until = time.monotonic() + (_FAREWELL if self._mine["state"] == FAILED else _WELL)
        while time.monotonic() < until:
            if all(self._is_ours(p) and (p.state in (LEFT, FAILED) or p.dead) for p in self._peers.values()):
                return
            self._stop.wait(BEAT / 4)

    def _heartbeat(self) -> None:
        while not self._stop.wait(BEAT if self._mine["beat"] > _EAGER else BEAT / 10):
            try:
                self._read_peers()
                self._announce()
            except OSError as error:
                self._trouble = NemotronError(f"{error.filename or self.folder}: {error.strerror}.")

    def _read_peers(self) -> None:
        for peer in self._peers.values():
            peer.read(self.folder)
            if self.ranks.leads:
                if peer.content.get("launch") == self._nonce:
                    self._accepted[str(peer.number)] = str(peer.content.get("nonce"))
            elif peer.content.get("launch") not in (None, self._mine["launch"]):
                self._mine["launch"] = peer.content["launch"]
            if self._trouble is not None or not self._is_ours(peer):
                continue
            if peer.state == FAILED:
                self._trouble = NemotronError(f"Rank {peer.number} failed: {peer.content.get('error')}")
            elif peer.state not in (DONE, LEFT, FINISHED) and peer.dead:
                process = peer.content.get("process") or {}
                at = f"process {process.get('pid')} on {process.get('host')}"
                self._trouble = NemotronError(
                    f"Rank {peer.number} ({at}) died with shards to make.",
                    hint="Run it again: finished shards are kept.",
                )

    def _is_accepted(self) -> bool:
        return bool((self._peers[0].content.get("accepted") or {}).get(str(self.ranks.rank)) == self._nonce)

    def _is_ours(self, peer: _Peer) -> bool:
        """Whether a peer's file belongs to this launch: it contains a value that only this launch's rank knows."""
        return peer.content.get("launch") == self._nonce if self.ranks.leads else self._is_accepted()

    def _announce(self, state: str | None = None, **more: Any) -> None:
        with self._lock:
            if state is not None:
                self._mine["state"] = state
            self._mine.update(more)
            self._mine["beat"] += 1
            if self.ranks.leads:
                self._mine["accepted"] = dict(self._accepted)
            self._write()

    def _write(self) -> None:
        with files.synced_later():  # not needed after a crash
            files.write_json(self.folder / f"rank-{self.ranks.rank}.json", self._mine, mode=0o666)


class _Peer:
    """Another rank, as known from its file."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.content: dict[str, Any] = {}
        self._changed = time.monotonic()

    @property
    def state(self) -> str | None:
        return self.content.get("state")

    @property
    def dead(self) -> bool:
        """Whether it is known to have ended, or has not written for a long time."""
        return is_gone(self.content.get("process") or {}) or time.monotonic() - self._changed > DEAD_AFTER

    def read(self, folder: Path) -> None:
        try:
            content = json.loads(files.read_regular(folder / f"rank-{self.number}.json"))
        except (OSError, ValueError):  # not there yet; a network's file system between two versions
            return
        if isinstance(content, dict) and content != self.content:
            self.content, self._changed = content, time.monotonic()
