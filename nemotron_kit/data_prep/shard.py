"""Makes one shard of a plan: the one function that a loop, a worker process or datatrove runs.

Beside shard_000000.bin and .idx stands shard_000000.json, written last: `plan` (the digest of plan.json), `documents`,
`tokens`, `characters`, `bin` and `idx` (each [bytes, sha256]), `rows` that were read, and how many were `empty`,
`short`, `bad` (the first ones in `bad_rows`) or `cut`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Self

from nemotron_kit.data_prep import readers, tokenizer
from nemotron_kit.data_prep.config import SKIP, RowCounts
from nemotron_kit.data_prep.indexed import ShardWriter, WrittenShard, write_errors
from nemotron_kit.data_prep.shard_plan import ShardPlan
from nemotron_kit.errors import UserError
from nemotron_kit.files import read_regular, write_text

Tick = Callable[[int, int], None]
# Characters tokenized at a time: more only takes more memory, less leaves the tokenizer's threads waiting.
BATCH = 160_000


class SavedRecord(ABC):
    """The record that is written when a shard is complete, as JSON beside its files."""

    plan: str
    documents: int
    tokens: int
    characters: int
    rows: int | None
    bad: int
    bad_rows: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write the record as JSON, atomically."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n", mode=0o666)  # type: ignore[call-overload]

    @classmethod
    @abstractmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """The record from `asdict`'s data. Raises KeyError, TypeError or ValueError for any other data."""

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The record in a file; None if there is none that can be read: the shard is then made again."""
        try:
            return cls.from_dict(json.loads(read_regular(path)))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @abstractmethod
    def files(self, shard: str) -> dict[str, tuple[int, str]]:
        """(size in bytes, sha256) of each of the shard's files, by its path in the output folder."""


@dataclass(frozen=True)
class ShardRecord(SavedRecord):
    """What was made: `plan` is its plan's digest, `bin` and `idx` are (size in bytes, sha256) of the two files.

    It lies beside them as `shard_<index>.json`; whoever reads shards can check them by it. Of the rows that were read,
    `empty` had no text, `short` were shorter than min_doc_chars, `bad` could not be used (`bad_rows` names the first);
    `cut` documents were cut to max_doc_tokens. None: an earlier version made it, and did not count.
    """

    plan: str
    documents: int
    tokens: int
    characters: int
    bin: tuple[int, str]
    idx: tuple[int, str]
    rows: int | None = None
    empty: int = 0
    short: int = 0
    bad: int = 0
    cut: int = 0
    bad_rows: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ShardRecord:
        (bin_size, bin_hash), (idx_size, idx_hash) = raw["bin"], raw["idx"]
        bad_rows = tuple(map(str, raw.get("bad_rows", ())))
        return cls(**{**raw, "bin": (bin_size, bin_hash), "idx": (idx_size, idx_hash), "bad_rows": bad_rows})

    def files(self, shard: str) -> dict[str, tuple[int, str]]:
        return {f"{shard}.bin": self.bin, f"{shard}.idx": self.idx}


def make_shard(plan: ShardPlan, number: int, folder: Path, *, tick: Tick | None = None) -> ShardRecord:
    """Make shard `number` of `plan` in the output folder: `.bin`, `.idx`, then the record that marks them as complete.

    The bytes depend on the plan only. `tick(characters, tokens)` is called with the progress. Raises UserError for bad
    input.
    """
    shard = plan.shards[number]
    prefix = folder / shard.name
    source = plan.sources[shard.source]
    rows = RowCounts(plan.max_doc_size, plan.on_bad_row == SKIP, plan.max_bad_rows)
    texts = chain.from_iterable(readers.texts(source, piece, rows) for piece in shard.pieces)
    characters = 0
    with ShardWriter(prefix, plan.tokens.dtype) as writer:
        batches = _batches(texts, plan.min_doc_chars or 0, rows)
        for read, encodings in encoded(batches, load_tokenizer(folder, plan.tokens.sha256).encode_batch_fast):
            documents = [document_tokens(plan, encoding.ids, rows) for encoding in encodings]
            writer.add(list(chain.from_iterable(documents)), [len(ids) for ids in documents])
            characters += read
            if tick:
                tick(read, sum(map(len, documents)))
        bin_file, idx_file = writer.publish()
        record = ShardRecord(
            plan.digest,
            len(writer.lengths),
            writer.tokens,
            characters,
            size_and_hash(bin_file),
            size_and_hash(idx_file),
            rows=rows.rows,
            empty=rows.empty,
            short=rows.short,
            bad=rows.bad,
            cut=rows.cut,
            bad_rows=tuple(rows.bad_rows),
        )
    with write_errors(prefix):
        record.save(record_path(prefix))
    return record


def record_path(prefix: Path) -> Path:
    """The path of the record of the shard with this path prefix."""
    return prefix.with_name(f"{prefix.name}.json")


def _batches(texts: Iterable[str], least: int, rows: RowCounts) -> Iterator[tuple[int, list[str]]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        if len(text) >= least:
            batch.append(text)
            size += len(text)
        else:
            rows.short += 1
        if size >= BATCH:
            yield size, batch
            batch, size = [], 0
    if batch:
        yield size, batch


def encoded(batches: Iterable[tuple[int, list[str]]], encode: Any) -> Iterator[tuple[int, Any]]:
    """(size, encodings) of each batch, encoded one batch ahead in a thread, so that reading and writing overlap with
    the tokenizer."""
    with ThreadPoolExecutor(1) as thread:
        ahead: deque[tuple[int, Future[Any]]] = deque()
        for size, batch in batches:
            ahead.append((size, thread.submit(encode, batch, add_special_tokens=False)))
            if len(ahead) == 2:
                done, future = ahead.popleft()
                yield done, future.result()
                del future
        while ahead:
            done, future = ahead.popleft()
            yield done, future.result()


def document_tokens(plan: ShardPlan, ids: list[int], rows: RowCounts) -> list[int]:
    """A document's tokens with BOS and EOS, cut to max_doc_tokens in all; the EOS is kept."""
    bos, eos = plan.tokens.bos, plan.tokens.eos
    if bos is not None:
        ids.insert(0, bos)
    if plan.max_doc_tokens is not None:
        room = plan.max_doc_tokens - (eos is not None)
        rows.cut += len(ids) > room
        del ids[room:]
    if eos is not None:
        ids.append(eos)
    return ids


@lru_cache(maxsize=1)
def load_tokenizer(folder: Path, sha256: str) -> Any:
    """The plan's tokenizer, from its copy in the output folder."""
    path = folder / tokenizer.FOLDER / tokenizer.MAIN
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise UserError(f"{path}: not this plan's tokenizer.", hint="Use --force to start afresh.")
    return tokenizer.load(path)


def size_and_hash(file: WrittenShard) -> tuple[int, str]:
    """(size in bytes, sha256), as records store them."""
    return file.size, file.sha256
