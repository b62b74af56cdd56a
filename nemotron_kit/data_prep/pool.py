"""Makes a plan's shards on this machine: one worker in this process, several as processes with two tokenizer threads
each."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.data_prep.config import NAMED, SKIP, check_bad_rows
from nemotron_kit.data_prep.indexed import holds
from nemotron_kit.data_prep.packed import PackedRecord, make_packed_shard
from nemotron_kit.data_prep.shard import SavedRecord, ShardRecord, Tick, make_shard, record_path
from nemotron_kit.data_prep.shard_plan import TEMPORARY, PlanIndex, ShardPlan
from nemotron_kit.data_prep.stored import store_of
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import write_bytes
from nemotron_kit.polling import polls

THREADS = 2  # a process: measured best; more threads wait for Python, fewer waste memory


@dataclass(frozen=True)
class ShardEvent:
    """A report on a shard in progress: `characters` and `tokens` since the last report, or at the end its `record` and
    `how` it was obtained (made, kept, remade: why)."""

    number: int
    characters: int = 0
    tokens: int = 0
    record: SavedRecord | None = None
    how: str = ""


def run_shards(
    plan: ShardPlan,
    folder: Path,
    *,
    workers: int,
    on_event: Callable[[ShardEvent], None],
    numbers: Sequence[int] | None = None,
    part: Callable[[Sequence[int]], ShardPlan] | None = None,
) -> dict[int, SavedRecord]:
    """Make every shard (of `numbers`) that isn't complete, with `workers` CPUs. `on_event` receives each event, never
    two at once. `part` gives the plan of some shards, where `plan` is only the head of one (see PlanIndex).

    Raises the first error of any shard, after which no other is begun; more bad rows than permitted, in all shards, are
    an error too.
    """
    records: dict[int, SavedRecord] = {}
    numbers = range(len(plan.shards)) if numbers is None else numbers

    def recorded(event: ShardEvent) -> None:
        if event.record is not None:
            records[event.number] = event.record
            if event.record.bad:
                check_all(plan, records)
        on_event(event)

    if workers == 1 or not numbers:
        with _quiet_tokenizer():
            for number in numbers:
                make_numbered_shard(part([number]) if part else plan, number, folder, recorded)
    else:
        _Pool(plan, folder, numbers, workers, recorded).run()
    return records


def check_all(plan: ShardPlan, records: Mapping[int, SavedRecord]) -> None:
    """Raise UserError if more rows of these shards were bad than permitted."""
    named = [row for record in records.values() for row in record.bad_rows]
    check_bad_rows(sum(record.bad for record in records.values()), named[:NAMED], plan.max_bad_rows)


def make_numbered_shard(plan: ShardPlan, number: int, folder: Path, on_event: Callable[[ShardEvent], None]) -> None:
    """Make shard `number` of the plan in this process; `on_event` is called with its progress and its end."""
    record, how = ensure_shard(
        plan, number, folder, tick=lambda chars, tokens: on_event(ShardEvent(number, chars, tokens))
    )
    on_event(ShardEvent(number, record=record, how=how))


_VISIBLE = 120.0  # seconds


def all_records(plan: ShardPlan, output: Path, mine: dict[int, SavedRecord]) -> dict[int, SavedRecord]:
    """Every shard's record: `mine`, and those that other ranks wrote. Raises NemotronError for one that is missing."""
    records = {}
    for number, shard in enumerate(plan.shards):
        path = record_path(output / shard.name)
        record = mine.get(number)
        # A network's file system may show another node's file a moment later.
        for _ in polls(0.2, within=_VISIBLE):
            record = record or record_type(plan).load(path)
            if record is not None:
                break
        if record is None or record.plan != plan.digest:
            raise NemotronError(
                f"{path}: the plan has no complete shard of this name.",
                hint="Did the task or rank that makes it succeed? Do all nodes see the same folder?",
            )
        records[number] = record
    return records


def ensure_shard(plan: ShardPlan, number: int, folder: Path, *, tick: Tick | None = None) -> tuple[SavedRecord, str]:
    """The shard's record, and how it was obtained: "kept" (complete, with matching hashes), "made", or "remade:
    why"."""
    shard = plan.shards[number].name
    store = None if plan.chat else store_of(folder)  # rows are chosen from whole files at the end: those stay here

    def make() -> SavedRecord:
        made = (make_packed_shard if plan.chat else make_shard)(plan, number, folder, tick=tick)
        if store is not None:  # the shard's files are moved there, its record last
            for name in made.files(shard):
                store.put(folder / name, name)
            store.put(path, f"{shard}.json")
            for name in made.files(shard):
                (folder / name).unlink()
        return made

    path = record_path(folder / shard)
    record = record_type(plan).load(path)
    if record is None and store is not None and (there := store.read(f"{shard}.json")) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)  # this folder is a new one
        write_bytes(path, there, mode=0o666)
        record = record_type(plan).load(path)
    if record is None or record.plan != plan.digest:
        return make(), "made"
    if record.bad and plan.on_bad_row != SKIP:  # an earlier run skipped bad rows; this one must stop at them
        return make(), f"remade: {shard} lacked {record.bad} bad rows"
    files = record.files(shard).items()
    wrong = [name for name, expected in files if not store and not holds(folder / name, expected)]
    wrong += [name for name, (size, _) in files if store and store.size(name) != size]
    if not wrong:
        if tick:
            tick(record.characters, record.tokens)
        return record, "kept"
    return make(), f"remade: {' and '.join(wrong)} did not have the recorded content"


def record_type(plan: ShardPlan) -> type[SavedRecord]:
    """The class of the records of this plan's shards."""
    return ShardRecord if plan.chat is None else PackedRecord


class _Pool:
    """Worker processes that receive shard numbers one by one; a thread for each reads its events."""

    def __init__(
        self,
        plan: ShardPlan,
        folder: Path,
        numbers: Sequence[int],
        workers: int,
        on_event: Callable[[ShardEvent], None],
    ) -> None:
        self.plan, self.folder, self.on_event = plan, folder, on_event
        self.count = max(1, min(-(-workers // THREADS), len(numbers)))
        self.threads = -(-workers // self.count)
        self.todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in numbers:
            self.todo.put(number)
        self.events: queue.SimpleQueue[ShardEvent | BaseException | None] = queue.SimpleQueue()
        self.processes: list[subprocess.Popen[str]] = []

    def run(self) -> None:
        package_root = str(Path(__file__).parents[2])
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in (package_root, os.environ.get("PYTHONPATH")) if p),
            "TOKENIZERS_PARALLELISM": "true" if self.threads > 1 else "false",
            "RAYON_NUM_THREADS": str(self.threads),
            "ARROW_DEFAULT_MEMORY_POOL": "system",  # gives memory back sooner: a quarter less where parquet is read
        }
        # -P: a file called json.py in the user's working folder is not what we mean by json.
        command = [sys.executable, "-P", "-m", "nemotron_kit.data_prep.pool", str(self.folder)]
        pipe = subprocess.PIPE
        try:
            for _ in range(self.count):
                process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True, bufsize=1)
                self.processes.append(process)
                threading.Thread(target=self._feed, args=(process,), daemon=True).start()
            running = self.count
            while running:
                event = self.events.get()
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    running -= 1
                else:
                    self.on_event(event)
        finally:
            self._stop()

    def _feed(self, process: subprocess.Popen[str]) -> None:
        try:
            with suppress(queue.Empty):
                while True:
                    self._make(process, self.todo.get_nowait())
            self.events.put(None)
        # Whatever it is, the main thread must hear of it, or it would wait for ever.
        except BaseException as error:  # noqa: BLE001
            self.events.put(error)

    def _make(self, process: subprocess.Popen[str], number: int) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101  (they are pipes)
        with suppress(BrokenPipeError):  # its end is reported below, with its exit code
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        for line in process.stdout:
            message = json.loads(line)
            if "error" in message:
                kind = UserError if message["user"] else NemotronError
                raise kind(message["error"], hint=message["hint"])
            made = message.pop("record", None)
            record = None if made is None else record_type(self.plan).from_dict(made)
            self.events.put(ShardEvent(**message, record=record))
            if record is not None:
                return
        code = process.wait()
        raise NemotronError(
            f"A worker process ended with exit code {code} while making shard {number}"
            + (" (killed: out of memory?)." if code == -9 else "."),
            hint="Run it again: finished shards are kept.",
        )

    def _stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                # Closing flushes; the process at the other end may be gone already.
                with suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()
            for left in self.folder.glob(f"*/.shard_*.{process.pid}.*{TEMPORARY}"):
                left.unlink(missing_ok=True)


@contextmanager
def _quiet_tokenizer() -> Iterator[None]:
    """Turn the tokenizer's threads off: one worker is one CPU."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def main() -> int:
    """A worker process: shard numbers come in on standard input, events go out on standard output."""
    # Ctrl-C reaches the whole group; the parent decides and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The real standard output is for events only; output of libraries is redirected to standard error.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    folder = Path(sys.argv[1])
    index = None
    for line in sys.stdin:
        try:
            index = index or PlanIndex.load(folder)
            if index is None:
                raise UserError(f"{folder}: the plan is gone.")
            number = int(line)
            make_numbered_shard(index.part([number]), number, folder, lambda event: send(asdict(event)))
        except BrokenPipeError:
            return 1  # the parent process has ended
        except NemotronError as error:
            send({"error": error.message, "hint": error.hint, "user": isinstance(error, UserError)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
