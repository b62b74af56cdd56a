"""The plan of a data preparation: which documents go to which shard. The plan and its digest determine every byte of a
shard."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron_kit.data_prep.config import DEFAULT_MAX_BAD_ROWS, DEFAULT_MAX_DOC_SIZE, ERROR
from nemotron_kit.errors import UserError
from nemotron_kit.files import read_regular, write_text

FORMAT = 1
PLAN_FILE = "plan.json"
TEMPORARY = ".tmp"  # the end of the name of a file that is being written
# A shard of all splits, and the folder of such shards: its records go to a split one by one.
ALL, MIXED = "all", "shards"
PLAN_LIMIT = 1 << 30  # bytes: a source may have millions of files


@dataclass(frozen=True)
class SourceFile:
    """One input file. `identity` identifies its content; `rows` is the number of rows to read under `sample`, else
    None."""

    path: str
    size: int
    identity: str
    rows: int | None = None


@dataclass(frozen=True)
class Omission:
    """Files of a source that are not read, and why; `names` are the first of them."""

    why: str
    count: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class PlannedSource:
    """One dataset of the blend. `split` is the blend's: "all" when train, valid and test are cut from it."""

    name: str
    uri: str
    split: str
    weight: float
    text_field: str
    files: tuple[SourceFile, ...]
    subset: str | None = None
    from_split: str | None = None
    left_out: tuple[Omission, ...] = ()


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
        return {"format": FORMAT, "digest": self.digest, **asdict(self)}

    def save(self, folder: Path) -> None:
        """Write `plan.json` to the output folder, in ASCII: a file's name need not be text."""
        write_text(folder / PLAN_FILE, json.dumps(self.to_dict(), indent=2) + "\n", mode=0o666)

    @classmethod
    def load(cls, folder: Path) -> ShardPlan | None:
        """The plan of an output folder, None if there is none. Raises UserError for one that was modified."""
        path = folder / PLAN_FILE
        try:
            raw = json.loads(read_regular(path, limit=PLAN_LIMIT))
            plan = cls(
                sources=tuple(_source(entry) for entry in raw["sources"]),
                tokens=TokenizerRecord(**raw["tokens"]),
                shards=tuple(_shard(entry) for entry in raw["shards"]),
                min_doc_chars=raw["min_doc_chars"],
                max_doc_tokens=raw["max_doc_tokens"],
                chat=_chat(raw["chat"]) if raw.get("chat") else None,
                # What a plan made before these were settings has by default.
                **{key: raw[key] for key in ("max_doc_size", "on_bad_row", "max_bad_rows") if key in raw},
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged: {type(error).__name__}: {error}.", hint=_FORCE) from error
        if raw.get("digest") != plan.digest or raw.get("format") != FORMAT:
            raise UserError(f"{path}: its content does not match its digest.", hint=_FORCE)
        return plan

    def _matter(self) -> dict[str, Any]:
        sources = [
            [s.name, s.split, s.text_field, [[_name(f.path), f.size, f.identity, f.rows] for f in s.files]]
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


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _source(raw: dict[str, Any]) -> PlannedSource:
    left_out = tuple(Omission(e["why"], e["count"], tuple(e["names"])) for e in raw.get("left_out", ()))
    return PlannedSource(**{**raw, "files": tuple(SourceFile(**entry) for entry in raw["files"]), "left_out": left_out})


def _chat(raw: dict[str, Any]) -> ChatSettings:
    train, valid, test = raw["ratios"]
    return ChatSettings(**{**raw, "ratios": (train, valid, test), "used_in_filter": tuple(raw["used_in_filter"])})


def _shard(raw: dict[str, Any]) -> PlannedShard:
    pieces = tuple(FilePart(p["file"], tuple(p["parts"]), p["of"]) for p in raw["pieces"])
    return PlannedShard(raw["split"], raw["index"], raw["source"], pieces)


def part_name(shard: str, split: str) -> str:
    """The path of a shard's rows of one split, in the output folder."""
    return f"{shard}.{split}.parquet"
