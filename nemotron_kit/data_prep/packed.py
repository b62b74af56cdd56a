"""Makes one shard of packed rows: records → conversations → sequences → rows, or documents → rows; one file for each
split."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_kit.data_prep import readers
from nemotron_kit.data_prep.chat import ChatFormat, Chunk, encoded_sequences, from_json, special_tokens, texts_of
from nemotron_kit.data_prep.config import SKIP, SPLITS, RowCounts
from nemotron_kit.data_prep.indexed import write_errors
from nemotron_kit.data_prep.packing import Ids, Mask, PackedWriter
from nemotron_kit.data_prep.parquet import without_nulls
from nemotron_kit.data_prep.shard import (
    BATCH,
    SavedRecord,
    Tick,
    document_tokens,
    encoded,
    load_tokenizer,
    record_path,
    size_and_hash,
)
from nemotron_kit.data_prep.shard_plan import ChatSettings, ShardPlan, part_name
from nemotron_kit.errors import UserError

# Why a record gives no sequence, in the order of the checks; also the texts of the report.
NOT_USED = "used_in"
NO_MESSAGES = "no_messages"
NO_TOOLS = "tool_call_without_tools"
NO_ANSWER = "no_answer"
CUT_OFF = "answer_cut_off"
FILTERS = (NOT_USED, NO_MESSAGES, NO_TOOLS, NO_ANSWER, CUT_OFF)
# The same of documents: without text; shorter than min_doc_chars, or of one token, after which nothing is predicted.
EMPTY = "empty"
TOO_SHORT = "too_short"
DOCUMENT_FILTERS = (EMPTY, TOO_SHORT)


@dataclass(frozen=True)
class SplitPart:
    """A shard's rows of one split; `file` is (size in bytes, sha256), None where there are no rows."""

    rows: int
    sequences: int
    tokens: int
    loss_tokens: int
    file: tuple[int, str] | None


@dataclass(frozen=True)
class PackedRecord(SavedRecord):
    """The record of a shard: `plan` is its plan's digest. Of the `rows` read, `documents` were used, `filtered` left
    out by reason, and `bad` invalid (`bad_rows` lists the first); `cut` sequences were longer than a row, or documents
    longer than max_doc_tokens."""

    plan: str
    documents: int
    sequences: int
    tokens: int
    characters: int
    rows: int | None
    bad: int
    cut: int
    filtered: dict[str, int]
    splits: dict[str, SplitPart]
    bad_rows: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> PackedRecord:
        splits = {}
        for split, part in raw["splits"].items():
            size_and_sha = part["file"]
            file = (int(size_and_sha[0]), str(size_and_sha[1])) if size_and_sha else None
            splits[split] = SplitPart(**{**part, "file": file})
        return cls(**{**raw, "splits": splits, "bad_rows": tuple(map(str, raw["bad_rows"]))})

    def files(self, shard: str) -> dict[str, tuple[int, str]]:
        return {part_name(shard, split): part.file for split, part in self.splits.items() if part.file}


@dataclass
class _Counts(RowCounts):
    """And the documents or conversations that were used, and those left out, by reason."""

    documents: int = 0
    filtered: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Conversation:
    """A conversation, or a document as its only sequence."""

    split: str
    sequences: list[list[Chunk]]


def make_packed_shard(plan: ShardPlan, number: int, folder: Path, *, tick: Tick | None = None) -> PackedRecord:
    """Make shard `number` of a plan of packed rows in the output folder: a file for each split that has rows, then
    the record that marks them as complete. The bytes depend on the plan only. Raises UserError for bad input."""
    chat = plan.packing
    shard = plan.shards[number].name
    counts = _Counts(plan.max_doc_size, plan.on_bad_row == SKIP, plan.max_bad_rows)
    counts.filtered = dict.fromkeys(DOCUMENT_FILTERS if chat.template is None else FILTERS, 0)
    tokenizer = load_tokenizer(folder, plan.tokens.sha256)
    pending: deque[list[_Conversation]] = deque()
    characters = 0
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                PackedWriter(
                    folder / part_name(shard, split),
                    chat.pack_size,
                    algorithm=chat.algorithm,
                    seed=int.from_bytes(_digest(chat.seed, f"{shard}.{split}".encode()), "big"),
                    row_group_size=chat.row_group_size,
                    compression=chat.compression,
                )
            )
            for split in SPLITS
        }
        if chat.template is None:
            conversations = _documents(plan, number, counts)
        else:
            form = _form(folder, plan.tokens.sha256, chat.template)
            conversations = _conversations(plan, number, form, counts)
        batches = _batches(conversations, pending)
        for read, encodings in encoded(batches, tokenizer.encode_batch_fast):
            ids = [encoding.ids for encoding in encodings]
            before = sum(writer.added for writer in writers.values())
            _write(plan, pending.popleft(), ids, writers, counts)
            characters += read
            if tick:
                tick(read, sum(writer.added for writer in writers.values()) - before)
        parts = {}
        for split, writer in writers.items():
            written = writer.publish()
            file = size_and_hash(written) if written else None
            parts[split] = SplitPart(writer.rows, writer.sequences, writer.tokens, writer.loss_tokens, file)
    record = PackedRecord(
        plan.digest,
        counts.documents,
        sequences=sum(part.sequences for part in parts.values()),
        tokens=sum(part.tokens for part in parts.values()),
        characters=characters,
        rows=counts.rows,
        bad=counts.bad,
        cut=counts.cut,
        filtered=counts.filtered,
        splits=parts,
        bad_rows=tuple(counts.bad_rows),
    )
    with write_errors(folder / shard):
        record.save(record_path(folder / shard))
    return record


def _conversations(plan: ShardPlan, number: int, form: ChatFormat, counts: _Counts) -> Iterator[_Conversation]:
    """The conversations of a shard with at least one trained token, each with its split."""
    chat = plan.packing
    source = plan.sources[plan.shards[number].source]
    others = (chat.tools_field, chat.used_in_field)
    for piece in plan.shards[number].pieces:
        for record, place in readers.records(source, piece, counts, others):
            try:
                messages = from_json(record.get(source.text_field), "messages")
                tools = from_json(record.get(chat.tools_field), "tools")
                why = _filtered(record, messages, tools, chat)
                if why is None:
                    identity = _identity(messages)
                    if len(identity) > counts.max_size:  # a line is bounded as it is read, a Parquet's row is not
                        raise counts.too_large("messages")
                    sequences = form.sequences(messages, tools)
                    why = None if sequences else NO_ANSWER
            except UserError as error:
                counts.refuse(place, error)
                continue
            except RecursionError:
                counts.refuse(place, UserError("its values are nested too deeply."))
                continue
            if why is None:
                yield _Conversation(_split(identity, chat), sequences)
            else:
                counts.filtered[why] += 1


def _documents(plan: ShardPlan, number: int, counts: _Counts) -> Iterator[_Conversation]:
    """The documents of a shard that are long enough, each with its split."""
    source = plan.sources[plan.shards[number].source]
    for piece in plan.shards[number].pieces:
        for text in readers.texts(source, piece, counts):
            if len(text) < (plan.min_doc_chars or 0):
                counts.filtered[TOO_SHORT] += 1
            else:
                yield _Conversation(_split(_identity(text), plan.packing), [[Chunk((text,), counts=True)]])
        counts.filtered[EMPTY] = counts.empty


def _fitted(plan: ShardPlan, tokens: Ids, mask: Mask, counts: _Counts) -> Iterator[tuple[Ids, Mask]]:
    """(tokens, mask) of what is packed of a sequence: of a conversation's as much as fits into a row; a document's with
    BOS and EOS, divided where they are more than a row. A last part of one token is left out later: there is no token
    in it that could be predicted."""
    size = plan.packing.pack_size
    if plan.packing.template is not None:
        limit = min(size, plan.max_doc_tokens or size)
        counts.cut += len(tokens) > limit
        yield tokens[:limit], mask[:limit]
        return
    whole = np.asarray(document_tokens(plan, tokens.tolist(), counts), dtype=np.int32)
    for start in range(0, len(whole), size):
        part = whole[start : start + size]
        yield part, np.ones(len(part), dtype=np.uint8)


def _filtered(record: dict[str, Any], messages: Any, tools: Any, chat: ChatSettings) -> str | None:
    """Why a record is left out; None if it is used."""
    if chat.used_in_filter:
        used = record.get(chat.used_in_field)
        words = used.split(",") if isinstance(used, str) else used if isinstance(used, list) else ()
        if not {str(word).strip() for word in words}.intersection(chat.used_in_filter):
            return NOT_USED
    if not messages:
        return NO_MESSAGES
    # Calls in the text need the tools' description in it (or their list): else the model learns to call what it was
    # never told about.
    if not tools and isinstance(messages, list):
        texts = list(texts_of(messages))
        if any("<tool_call>" in text for text in texts) and not any("# Tools" in text for text in texts):
            return NO_TOOLS
    return None


def _identity(messages: Any) -> bytes:
    """A text that is equal for equal conversations; a key that is null is as if it were not there, as it is to the
    template, and in Parquet."""
    import orjson

    try:
        text = orjson.dumps(messages, option=orjson.OPT_SORT_KEYS)
        return orjson.dumps(without_nulls(messages), option=orjson.OPT_SORT_KEYS) if b":null" in text else text
    except TypeError:  # a huge integer, say
        messages = without_nulls(messages)
        return json.dumps(messages, sort_keys=True, default=str).encode("utf-8", "replace")


def _split(identity: bytes, chat: ChatSettings) -> str:
    """The split of a record, determined by its content, so that duplicates are in the same split."""
    place = int.from_bytes(_digest(chat.seed, identity), "big") / 2**64
    if place < chat.ratios[0]:
        return SPLITS[0]
    # The rest of train's rounding goes to a split that has records at all.
    last = max(index for index, ratio in enumerate(chat.ratios) if ratio)
    return SPLITS[1] if place < chat.ratios[0] + chat.ratios[1] else SPLITS[last]


def _digest(seed: int, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8, salt=seed.to_bytes(8, "big")).digest()


def _batches(
    conversations: Iterator[_Conversation], pending: deque[list[_Conversation]]
) -> Iterator[tuple[int, list[str]]]:
    """(characters, texts) to be encoded at a time; the conversations that they are of are added to `pending`."""
    batch: list[_Conversation] = []
    texts: list[str] = []
    size = 0
    for conversation in conversations:
        batch.append(conversation)
        for sequence in conversation.sequences:
            for chunk in sequence:
                texts += chunk.pieces
                size += sum(map(len, chunk.pieces))
        if size >= BATCH:
            pending.append(batch)
            yield size, texts
            batch, texts, size = [], [], 0
    if batch:
        pending.append(batch)
        yield size, texts


def _write(
    plan: ShardPlan,
    batch: list[_Conversation],
    ids: list[list[int]],
    writers: dict[str, PackedWriter],
    counts: _Counts,
) -> None:
    sequences = encoded_sequences([s for conversation in batch for s in conversation.sequences], ids)
    for conversation in batch:
        used = False
        for _ in conversation.sequences:
            for tokens, mask in _fitted(plan, *next(sequences), counts):
                if mask[1:].any():  # the first token is never predicted
                    writers[conversation.split].add(tokens, mask)
                    used = True
        counts.documents += used
        counts.filtered[CUT_OFF if CUT_OFF in counts.filtered else TOO_SHORT] += not used


@lru_cache(maxsize=1)
def _form(folder: Path, sha256: str, template: str) -> ChatFormat:
    return ChatFormat(template, special_tokens(load_tokenizer(folder, sha256)))
