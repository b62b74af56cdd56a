"""Freezes a plan: lists the sources, assigns their documents to shards, writes the plan to the output folder."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemotron_kit.data_prep import readers, tokenizer
from nemotron_kit.data_prep.chat import load_template
from nemotron_kit.data_prep.config import (
    DEFAULT_SHARDS,
    DataBlend,
    DataPrepConfig,
    PackedTextConfig,
    SftPrepConfig,
    parse_size,
)
from nemotron_kit.data_prep.shard_plan import (
    ALL,
    MIXED,
    PLAN_FILE,
    ChatSettings,
    FilePart,
    Omission,
    PlannedShard,
    PlannedSource,
    ShardPlan,
    SourceFile,
    TokenizerRecord,
)
from nemotron_kit.data_prep.sources import (
    FoundFile,
    Omissions,
    compression_of,
    content_identity,
    is_remote,
    kind_of,
    list_files,
)
from nemotron_kit.errors import UserError
from nemotron_kit.files import write_text

# Cells in the smallest shard. Ranges cost nothing to cut; a compressed stream, and CSV, is read from its start by every
# shard that has a part of it, so those are cut as little as evenness allows.
_RANGES, _STREAMS = 16, 4
_MOST = 1 << 14
# Bytes of text in a byte of file, about: shards are to be even in text.
_TEXT_PER_BYTE = {"gz": 3.0, "zst": 3.5, "bz2": 4.0, "xz": 4.0, "parquet": 2.0}


@dataclass(frozen=True)
class _Cell:
    file: int
    part: int
    of: int
    size: float


def text_size(file: SourceFile) -> float:
    """About how many bytes of text a file holds; its rows where they were counted (under `sample`, in all files)."""
    if file.rows is not None:
        return float(file.rows)
    kind = kind_of(file.path) or ""
    return file.size * _TEXT_PER_BYTE.get(compression_of(kind) or kind, 1.0)


def apportion(count: int, sizes: Sequence[float]) -> list[int]:
    """How many of `count` shards each source gets, in proportion to its size, [sources]; at least one each.

    Each next shard goes to the source that is furthest below its quota. The sum exceeds `count` if there are more
    sources than shards.
    """
    total = sum(sizes) or 1.0
    shares = [1] * len(sizes)
    for _ in range(count - len(sizes)):
        behind = max(range(len(sizes)), key=lambda i: (sizes[i] / total * count - shares[i], -i))
        shares[behind] += 1
    return shares


def assign_shards(files: Sequence[SourceFile], shares: Sequence[float]) -> list[tuple[FilePart, ...]]:
    """For each shard the parts of files that it consists of; `shares` are the shards' parts of the source, summing to
    1.

    Files are cut into cells, and each cell goes to the shard that is least filled relative to its share (greedy list
    scheduling, Graham 1969), in an order determined by hashes: the same on every machine.
    """
    cells = [cell for number, file in enumerate(files) for cell in _cut(number, file, _cell_size(files, shares, file))]
    dealt: list[list[_Cell]] = [[] for _ in shares]
    # (how full for its share, tie-break, shard): the first is the one that is behind most
    behind = [(0.0, _shuffled(shard, 0), shard) for shard in range(len(shares))]
    heapq.heapify(behind)
    for turn, cell in enumerate(sorted(cells, key=lambda cell: (cell.part, _shuffled(cell.file, cell.part)))):
        filled, _, shard = behind[0]
        dealt[shard].append(cell)
        heapq.heapreplace(behind, (filled + cell.size / shares[shard], _shuffled(shard, turn), shard))
    return [_pieces(cells) for cells in dealt]


def _cell_size(files: Sequence[SourceFile], shares: Sequence[float], file: SourceFile) -> float:
    kind = kind_of(file.path) or ""
    finest = _STREAMS if compression_of(kind) or kind == "csv" else _RANGES
    return sum(map(text_size, files)) * min(shares) / finest


def _cut(number: int, file: SourceFile, cell_size: float) -> list[_Cell]:
    size = text_size(file)
    count = min(_MOST, max(1, math.ceil(size / cell_size))) if size else 0
    return [_Cell(number, part, count, size / count) for part in range(count)]


def _pieces(cells: Sequence[_Cell]) -> tuple[FilePart, ...]:
    parts: dict[tuple[int, int], list[int]] = {}
    for cell in cells:
        parts.setdefault((cell.file, cell.of), []).append(cell.part)
    return tuple(FilePart(file, tuple(sorted(parts[file, of])), of) for file, of in sorted(parts))


def _shuffled(*key: object) -> bytes:
    return hashlib.blake2b(repr(key).encode("utf-8"), digest_size=8).digest()


# Up to this many bytes are identified by sha256; more by size, time and samples.
READ_WHOLE = 1 << 30
_OURS = ("train", "valid", "test")


def freeze_plan(config: DataPrepConfig, blend: DataBlend | None = None, *, number_type: str | None = None) -> ShardPlan:
    """Make the plan and write it, with the tokenizer, to the output folder, unless the folder has this very plan.

    `blend` replaces `config.blend_path`'s, `number_type` the .bin's default dtype. Raises UserError for bad input, and
    for a folder with another plan's shards unless `config.force`, which clears it.
    """
    config.check()
    output = Path(config.output_dir).expanduser().absolute()
    blend = DataBlend.load(config.blend_path) if blend is None else blend
    chat = _chat_settings(config) if isinstance(config, SftPrepConfig) else None
    if chat and ALL not in blend.splits:
        raise UserError(
            f"{config.blend_path}: splits by name are not for packed rows: each dataset is split by the ratios.",
            hint="Name the sources under 'datasets'.",
        )
    found = tokenizer.find_tokenizer(config.tokenizer_model)
    tokens = tokenizer.describe(found, config.tokenizer_model, add_bos=config.add_bos, add_eos=config.add_eos)
    tokens = _typed(tokens, number_type)
    sources = _sources(blend, config, output / "sources")
    plan = ShardPlan(
        sources,
        tokens,
        _shards(sources, config),
        config.min_doc_chars,
        config.max_doc_tokens,
        max_doc_size=parse_size(config.max_doc_size, field="max_doc_size"),
        on_bad_row=config.on_bad_row,
        max_bad_rows=config.max_bad_rows,
        chat=chat,
    )
    if config.force:
        clear(output)
    else:
        _check_folder(output, plan)
    tokenizer.copy_tokenizer(found, output)
    if chat:  # the copy inside is the artifact's, whose folder is splits/
        tokenizer.copy_tokenizer(found, output / "splits")
        for folder in (output, output / "splits") if chat.template is not None else ():
            write_text(folder / tokenizer.FOLDER / tokenizer.CHAT_TEMPLATE, str(chat.template), mode=0o666)
    plan.save(output)
    return plan


def _chat_settings(config: SftPrepConfig) -> ChatSettings:
    wanted = (word.strip() for word in (config.used_in_filter or "").split(","))
    return ChatSettings(
        template=None if isinstance(config, PackedTextConfig) else load_template(config.chat_template),
        pack_size=config.pack_size,
        algorithm=config.algorithm,
        seed=config.seed,
        ratios=config.ratios,
        tools_field=config.tools_field,
        used_in_filter=tuple(word for word in wanted if word),
        used_in_field=config.used_in_field,
        row_group_size=config.parquet_row_group_size,
        compression=config.parquet_compression,
    )


def clear(output: Path, keep: Collection[Path] = ()) -> None:
    """Remove the files that a data preparation wrote to a folder, except those of `keep`."""
    named = [
        output / name for name in (PLAN_FILE, "blend.json", "report.json", "metadata.json", "splits/metadata.json")
    ]
    for path in [*named, *shard_files(output), *output.glob("splits/*/*__shard_*.parquet")]:
        if path not in keep:
            path.unlink(missing_ok=True)


def shard_files(output: Path) -> list[Path]:
    """The files of shards in a folder, their records and partial files."""
    endings = (".bin", ".idx", ".json", ".parquet", ".jsonl", ".jsonl.zst", ".tmp")
    folders = (*_OURS, MIXED)
    return [p for s in folders for p in (output / s).glob("*shard_*") if p.is_file() and p.name.endswith(endings)]


def _check_folder(output: Path, plan: ShardPlan) -> None:
    hint = "Use --force to replace them, or another output_dir."
    there = ShardPlan.load(output)
    if there is None:
        shards = [path for path in shard_files(output) if path.suffix in (".bin", ".parquet", ".jsonl", ".zst")]
        if shards:
            raise UserError(f"output_dir: {output} holds shards without a plan ({shards[0].name}, …).", hint=hint)
    elif there.digest != plan.digest:
        changed = "; ".join(there.differences(plan))
        raise UserError(f"output_dir: {output} holds another plan's shards. What differs: {changed}.", hint=hint)


def _sources(blend: DataBlend, config: DataPrepConfig, corpora: Path) -> tuple[PlannedSource, ...]:
    """The blend's datasets with their files; one of weight 0 is left out."""
    chosen = [(split, d) for split, datasets in blend.splits.items() for d in datasets if d.weight]
    omitted = [Omissions() for _ in chosen]
    listed = [
        list_files(dataset, folder=blend.folder, corpora=corpora, left=left)
        for (_, dataset), left in zip(chosen, omitted, strict=True)
    ]
    whole = sum(file.size for files in listed for file in files if not is_remote(file.path)) <= READ_WHOLE
    return tuple(
        PlannedSource(
            name=dataset.name,
            uri=dataset.path,
            split=split,
            weight=dataset.weight,
            text_field=dataset.text_field or config.text_field,
            files=_sampled([_identified(file, whole) for file in files], config),
            subset=dataset.subset,
            from_split=dataset.split,
            left_out=tuple(Omission(why, count, tuple(left.names[why])) for why, count in left.counts.items()),
        )
        for (split, dataset), files, left in zip(chosen, listed, omitted, strict=True)
    )


def _typed(tokens: TokenizerRecord, number_type: str | None) -> TokenizerRecord:
    if number_type == "uint16" and tokens.vocab_size > 1 << 16:
        raise UserError(f"dtype=uint16 is too small for a vocabulary of {tokens.vocab_size:,}.", hint="Use int32.")
    return replace(tokens, number_type=number_type)


def _identified(file: FoundFile, whole: bool) -> SourceFile:
    identity = file.identity or (
        "unknown" if is_remote(file.path) else content_identity(file.path, file.size, whole=whole)
    )
    return SourceFile(file.path, file.size, identity)


def _sampled(files: list[SourceFile], config: DataPrepConfig) -> tuple[SourceFile, ...]:
    """Under `sample`, only the files that hold the first rows, each with the number to read of it."""
    if config.sample is None:
        return tuple(files)
    taken: list[SourceFile] = []
    left = config.sample
    max_size = parse_size(config.max_doc_size, field="max_doc_size")
    for file in files:
        if left == 0:
            break
        rows = readers.count_rows(file, left, max_size)
        taken.append(replace(file, rows=rows))
        left -= rows
    return tuple(taken)


def _shards(sources: Sequence[PlannedSource], config: DataPrepConfig) -> tuple[PlannedShard, ...]:
    held_out = config.held_out
    wholes = [(number, s) for number, s in enumerate(sources) if s.split == "all"]
    if wholes:
        train = _train_shards([s for _, s in wholes], config, held_out=sum(held_out))
        if isinstance(config, SftPrepConfig):
            return _cut_shards(wholes, {ALL: train})
        return _cut_shards(wholes, {"train": train, "valid": held_out[0], "test": held_out[1]})
    counts = {"train": 0, "valid": max(1, held_out[0]), "test": max(1, held_out[1])}
    shards: list[PlannedShard] = []
    for split in _OURS:
        named = [(number, s) for number, s in enumerate(sources) if s.split == split]
        if named:
            count = counts[split] or _train_shards([s for _, s in named], config)
            shards += _cut_shards(named, {split: count})
    return tuple(shards)


def _train_shards(sources: Sequence[PlannedSource], config: DataPrepConfig, *, held_out: int = 0) -> int:
    """Under `shard_size`, as many shards as make each about that large, less those held out."""
    if config.shard_size is None:
        return config.num_shards or DEFAULT_SHARDS
    total = sum(_size(source, rows_count=False) for source in sources)
    return max(1, math.ceil(total / parse_size(config.shard_size)) - held_out)


def _size(source: PlannedSource, *, rows_count: bool = True) -> float:
    return sum(text_size(file if rows_count else replace(file, rows=None)) for file in source.files)


def _cut_shards(sources: Sequence[tuple[int, PlannedSource]], counts: dict[str, int]) -> tuple[PlannedShard, ...]:
    """Each split gets the same part of every source: `counts[split]` shards out of the sum."""
    splits = [split for split in (*_OURS, ALL) if counts.get(split)]
    total = sum(counts.values())
    per_source = {split: apportion(counts[split], [_size(s) for _, s in sources]) for split in splits}
    shards: dict[str, list[PlannedShard]] = {split: [] for split in splits}
    for place, (number, source) in enumerate(sources):
        owners = [split for split in splits for _ in range(per_source[split][place])]
        shares = [counts[split] / total / per_source[split][place] for split in owners]
        for split, pieces in zip(owners, assign_shards(source.files, shares), strict=True):
            shards[split].append(PlannedShard(split, len(shards[split]), number, pieces))
    return tuple(shard for split in splits for shard in shards[split])
