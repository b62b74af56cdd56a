"""The plan of a data preparation: which documents go to which shard. The plan and its digest determine every byte of a
shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron_kit.data_prep.config import DEFAULT_MAX_BAD_ROWS, DEFAULT_MAX_DOC_SIZE, ERROR
from nemotron_kit.errors import UserError
from nemotron_kit.files import open_regular, read_regular, write_bytes, write_text

FORMAT = 1
PLAN_FILE = "plan.json"
# The plan as a worker of single shards reads it: one line for each shard, and the offsets of these lines.
INDEX_FILE, LINES_FILE = "plan-index.json", "plan-shards.jsonl"
# How documents are assigned to shards: plans of earlier versions have none on record, and are the first.
FIRST_DEAL, LINEAR_DEAL = 1, 2
TEMPORARY = ".tmp"  # the end of the name of a file that is being written
# A shard of all splits, and the folder of such shards: its records go to a split one by one.
ALL, MIXED = "all", "shards"
PLAN_LIMIT = 1 << 30  # bytes: a source may have millions of files
# Up to this size a file's rows are dealt one by one: exact for small data, and reading all of it costs nothing.
SMALL = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One input file. `identity` identifies its content; `rows` is the number of rows to read under `sample`, else
    None."""

    path: str
    size: int
    identity: str
    rows: int | None = None

    @property
    def is_dealt(self) -> bool:
        """Whether its rows are dealt to shards one by one, and not in ranges."""
        return self.rows is not None or self.size <= SMALL


@dataclass(frozen=True)
class Omission:
    """Files of a source that are not read, and why; `names` are the first of them."""

    why: str
    count: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class PlannedSource:
    """One dataset of the blend. `split` is the blend's: "all" when train, valid and test are cut from it. `totals` are
    the number of files and their bytes, where `files` are not all of them (see PlanIndex)."""

    name: str
    uri: str
    split: str
    weight: float
    text_field: str
    files: tuple[SourceFile, ...]
    subset: str | None = None
    from_split: str | None = None
    left_out: tuple[Omission, ...] = ()
    totals: tuple[int, int] | None = None

    @property
    def file_count(self) -> int:
        """The number of its files."""
        return self.totals[0] if self.totals else len(self.files)

    @property
    def size(self) -> int:
        """Of all of its files, in bytes."""
        return self.totals[1] if self.totals else sum(file.size for file in self.files)


@dataclass(frozen=True)
class FilePart:
    """Of a source's file number `file`, cut into `of` equal parts: the parts with the numbers `parts`."""

    file: int
    parts: tuple[int, ...]
    of: int


@dataclass(frozen=True)
class PlannedShard:
    """The content of `<split>/shard_<index>` (`shards/…` for all splits): pieces of one source, in this order."""

    split: str
    index: int
    source: int
    pieces: tuple[FilePart, ...]

    @property
    def name(self) -> str:
        """The path of its files in the output folder, without their endings."""
        folder = MIXED if self.split == ALL else self.split
        return f"{folder}/shard_{self.index:06d}"


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer: the tokenizer.json `file` with its `sha256`, and the ids `bos`, `eos` to add (None: none).
    `number_type` is the requested dtype of the .bin."""

    model: str
    file: str
    sha256: str
    vocab_size: int
    bos: int | None
    eos: int | None
    number_type: str | None = None

    @property
    def dtype(self) -> str:
        """The .bin's integer type: the requested one, else by Megatron's rule (uint16 for vocabularies that fit, else
        int32)."""
        return self.number_type or ("uint16" if self.vocab_size < 65500 else "int32")


@dataclass(frozen=True)
class ChatSettings:
    """How records become packed rows. `template` is a template's text; None: the records are documents. `ratios` are
    those of train, valid and test."""

    template: str | None
    pack_size: int
    algorithm: str
    seed: int
    ratios: tuple[float, float, float]
    tools_field: str
    used_in_filter: tuple[str, ...]
    used_in_field: str
    row_group_size: int
    compression: str


@dataclass(frozen=True)
class ShardPlan:
    """A whole data preparation; `shards` are numbered by position. With `chat`, sources hold conversations (or
    documents, without a template in it), and shards packed rows.

    `on_bad_row` and `max_bad_rows` are not in the digest: a shard in which a row was skipped has that in its record.
    `deal` says by which rule documents were assigned to shards; what came of it is in `shards`.
    """

    sources: tuple[PlannedSource, ...]
    tokens: TokenizerRecord
    shards: tuple[PlannedShard, ...]
    min_doc_chars: int | None = None
    max_doc_tokens: int | None = None
    max_doc_size: int = DEFAULT_MAX_DOC_SIZE
    on_bad_row: str = ERROR
    max_bad_rows: int | None = DEFAULT_MAX_BAD_ROWS
    chat: ChatSettings | None = None
    deal: int = FIRST_DEAL

    @property
    def packing(self) -> ChatSettings:
        """`chat` of a plan of packed rows. Raises ValueError for another one."""
        if self.chat is None:
            raise ValueError("a plan without chat settings")
        return self.chat

    @cached_property
    def digest(self) -> str:
        """sha256 over everything that determines the shards' bytes. Paths of files and weights of sources do not."""
        return hashlib.sha256(json.dumps(self._matter(), sort_keys=True).encode("utf-8")).hexdigest()

    def differences(self, other: ShardPlan) -> list[str]:
        """The differences from `other` that give other shards, as sentences; empty if the digests are equal."""
        mine, theirs = self._matter(), other._matter()
        changed = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        return [_WORDS[key] for key in changed]

    def to_dict(self) -> dict[str, Any]:
        """The plan as it is stored in plan.json."""
        stored = {"format": FORMAT, "digest": self.digest, **asdict(replace(self, sources=(), shards=()))}
        # asdict copies every value of a million files.
        for source in self.sources:
            facts = {**asdict(replace(source, files=())), "files": [vars(file) for file in source.files]}
            del facts["totals"]
            stored["sources"] = [*stored["sources"], facts]
        stored["shards"] = [{**vars(shard), "pieces": list(map(vars, shard.pieces))} for shard in self.shards]
        if self.deal == FIRST_DEAL:  # as earlier versions wrote it
            del stored["deal"]
        return stored

    def save(self, folder: Path) -> None:
        """Write `plan.json` to the output folder, in ASCII (a file's name need not be text), and before it the index
        and a line for each shard."""
        lines, shards, at = [], [], 0
        for shard in self.shards:
            files = self.sources[shard.source].files
            content = {
                "pieces": [[piece.file, piece.of, *piece.parts] for piece in shard.pieces],
                "files": {piece.file: list(vars(files[piece.file]).values()) for piece in shard.pieces},
            }
            line = json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n"
            lines.append(line)
            shards.append([shard.split, shard.index, shard.source, at, len(line), hashlib.sha256(line).hexdigest()])
            at += len(line)
        write_bytes(folder / LINES_FILE, b"".join(lines), mode=0o666)
        sources = tuple(replace(each, files=(), totals=(each.file_count, each.size)) for each in self.sources)
        head = {"format": FORMAT, "digest": self.digest, **asdict(replace(self, sources=sources, shards=()))}
        head["shards"] = shards
        write_text(folder / INDEX_FILE, json.dumps(head, separators=(",", ":")) + "\n", mode=0o666)
        write_text(folder / PLAN_FILE, json.dumps(self.to_dict(), separators=(",", ":")) + "\n", mode=0o666)

    @classmethod
    def load(cls, folder: Path) -> ShardPlan | None:
        """The plan of an output folder, None if there is none. Raises UserError for one that was modified."""
        path = folder / PLAN_FILE
        try:
            raw = json.loads(read_regular(path, limit=PLAN_LIMIT))
            plan = _whole(raw, [[e["split"], e["index"], e["source"], e["pieces"]] for e in raw["shards"]])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged: {type(error).__name__}: {error}.", hint=_FORCE) from error
        if raw.get("digest") != plan.digest or raw.get("format") != FORMAT:
            raise UserError(f"{path}: its content does not match its digest.", hint=_FORCE)
        return plan

    def with_digest(self, digest: str) -> ShardPlan:
        """The plan with a digest that is known: of one that is not whole it can't be computed."""
        vars(self)["digest"] = digest
        return self

    def _matter(self) -> dict[str, Any]:
        sources = [
            [s.name, s.split, s.text_field, [[f.path.rsplit("/", 1)[-1], f.size, f.identity, f.rows] for f in s.files]]
            for s in self.sources
        ]
        tokens = [self.tokens.sha256, self.tokens.dtype, self.tokens.bos, self.tokens.eos]
        # The default is left out, so that plans from before it was a setting keep their digest.
        size = [] if self.max_doc_size == DEFAULT_MAX_DOC_SIZE else [self.max_doc_size]
        return {
            "format": FORMAT,
            "sources": sources,
            "tokens": tokens,
            "limits": [self.min_doc_chars, self.max_doc_tokens, *size],
            "shards": [[s.split, s.index, s.source, [[p.file, *p.parts, p.of] for p in s.pieces]] for s in self.shards],
            **({"chat": asdict(self.chat)} if self.chat else {}),
        }


# The name that nemotron.data_prep has always exported.
Plan = ShardPlan

_FORCE = "Use --force to start afresh, or another output_dir."
_WORDS = {
    "format": "the plan's format",
    "sources": "the sources (their names, files, content or sample)",
    "tokens": "the tokenizer, BOS or EOS",
    "limits": "min_doc_chars, max_doc_tokens or max_doc_size",
    "chat": "how rows are made (template, packing, ratios, fields)",
    "shards": "the number of shards, or how documents are assigned to them",
}


def _whole(raw: dict[str, Any], shards: Sequence[Sequence[Any]]) -> ShardPlan:
    """The plan in a file's data; `shards` are (split, index, source, pieces) of each."""
    sources = []
    for entry in raw["sources"]:
        left_out = tuple(Omission(e["why"], e["count"], tuple(e["names"])) for e in entry.get("left_out", ()))
        totals = (int(entry["totals"][0]), int(entry["totals"][1])) if entry.get("totals") else None
        files = tuple(SourceFile(**file) for file in entry["files"])
        sources.append(PlannedSource(**{**entry, "files": files, "left_out": left_out, "totals": totals}))
    chat = None
    if raw.get("chat"):
        train, valid, test = raw["chat"]["ratios"]
        used_in_filter = tuple(raw["chat"]["used_in_filter"])
        chat = ChatSettings(**{**raw["chat"], "ratios": (train, valid, test), "used_in_filter": used_in_filter})
    return ShardPlan(
        sources=tuple(sources),
        tokens=TokenizerRecord(**raw["tokens"]),
        shards=tuple(
            PlannedShard(split, index, source, tuple(FilePart(p["file"], tuple(p["parts"]), p["of"]) for p in pieces))
            for split, index, source, pieces in shards
        ),
        min_doc_chars=raw["min_doc_chars"],
        max_doc_tokens=raw["max_doc_tokens"],
        chat=chat,
        # What a plan made before these were settings has by default.
        **{key: raw[key] for key in ("max_doc_size", "on_bad_row", "max_bad_rows", "deal") if key in raw},
    )


class PlanIndex:
    """A plan as who makes some of its shards needs it: `head` has no files and no pieces, `part` those of some shards.

    A worker of a plan of millions of files holds in memory what its shard reads of them.
    """

    def __init__(self, folder: Path, head: ShardPlan, places: Sequence[tuple[int, int, str]] | None) -> None:
        """`places` are (first byte, length, sha256) of each shard's line; None: `head` is the whole plan."""
        self.folder, self.head = folder, head
        self._places = places

    @classmethod
    def load(cls, folder: Path) -> PlanIndex | None:
        """The index of an output folder; of one that an earlier version wrote, its whole plan. None if there is
        neither."""
        path = folder / INDEX_FILE
        try:
            raw = json.loads(read_regular(path, limit=PLAN_LIMIT))
            plan = _whole(raw, [[*entry[:3], []] for entry in raw["shards"]])
            places = [(int(at), int(size), str(sha256)) for *_, at, size, sha256 in raw["shards"]]
            return cls(folder, plan.with_digest(str(raw["digest"])), places)
        except FileNotFoundError:
            whole = ShardPlan.load(folder)
            return cls(folder, whole, None) if whole else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged: {type(error).__name__}: {error}.", hint=_FORCE) from error

    def part(self, numbers: Sequence[int]) -> ShardPlan:
        """The plan with the pieces of these shards, and with the files that they are of."""
        if self._places is None:
            return self.head
        shards = list(self.head.shards)
        files: list[dict[int, SourceFile]] = [{} for _ in self.head.sources]
        pieces: dict[int, list[FilePart]] = {}
        for number in numbers:
            line, known = self._line(number), files[shards[number].source]
            known.update((int(file), SourceFile(*facts)) for file, facts in line["files"].items())
            pieces[number] = [FilePart(file, tuple(parts), of) for file, of, *parts in line["pieces"]]
        order = [{file: place for place, file in enumerate(sorted(known))} for known in files]
        for number, found in pieces.items():
            place = order[shards[number].source]
            found = [replace(piece, file=place[piece.file]) for piece in found]
            shards[number] = replace(shards[number], pieces=tuple(found))
        sources = tuple(
            replace(source, files=tuple(known[file] for file in sorted(known)))
            for source, known in zip(self.head.sources, files, strict=True)
        )
        return replace(self.head, sources=sources, shards=tuple(shards)).with_digest(self.head.digest)

    def _line(self, number: int) -> dict[str, Any]:
        assert self._places is not None  # noqa: S101  (the caller has looked)
        at, size, sha256 = self._places[number]
        try:
            with open_regular(self.folder / LINES_FILE) as file:
                file.seek(at)
                line = file.read(size)
        except FileNotFoundError as error:
            raise UserError(f"{self.folder / LINES_FILE}: no such file.", hint="step=plan makes it again.") from error
        if hashlib.sha256(line).hexdigest() != sha256:
            raise UserError(f"{self.folder / LINES_FILE}: its content does not match the index.", hint=_FORCE)
        found: dict[str, Any] = json.loads(line)
        return found


def part_name(shard: str, split: str) -> str:
    """The path of a shard's rows of one split, in the output folder."""
    return f"{shard}.{split}.parquet"
