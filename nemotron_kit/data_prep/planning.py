"""Freezes a plan: lists the sources, assigns their documents to shards, writes the plan to the output folder."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from nemotron_kit.data_prep import readers, tokenizer
from nemotron_kit.data_prep.chat import load_template
from nemotron_kit.data_prep.config import (
    DEFAULT_SHARD_SIZE,
    DEFAULT_SHARDS,
    SPLITS,
    DataBlend,
    DataPrepConfig,
    PackedTextConfig,
    SftPrepConfig,
    parse_size,
    show_size,
)
from nemotron_kit.data_prep.local_files import Omissions
from nemotron_kit.data_prep.shard_plan import (
    ALL,
    FIRST_DEAL,
    INDEX_FILE,
    LINEAR_DEAL,
    LINES_FILE,
    MIXED,
    PLAN_FILE,
    ChatSettings,
    FilePart,
    Omission,
    PlannedShard,
    PlannedSource,
    ShardPlan,
    SourceFile,
)
from nemotron_kit.data_prep.sources import (
    FoundFile,
    compression_of,
    content_identity,
    is_remote,
    kind_of,
    list_files,
    uri_of,
)
from nemotron_kit.data_prep.stored import store_of, working_folder
from nemotron_kit.errors import UserError
from nemotron_kit.objects import ObjectFolder

# Cells in the smallest shard. Ranges cost nothing to cut; a compressed stream, and CSV, is read from its start by every
# shard that has a part of it, so those are cut as little as evenness allows.
_RANGES, _STREAMS = 16, 4
_MOST = 1 << 14
_MOST_FINE = 1 << 20  # of a file of a large source
# A source is large if it would have more cells than this, or a file of more bytes would be read more than twice.
_LARGE_CELLS, _LARGE_FILE = 1 << 15, 64 << 20
# Bytes of text in a byte of file, about: shards are to be even in text.
_TEXT_PER_BYTE = {"gz": 3.0, "zst": 3.5, "bz2": 4.0, "xz": 4.0, "parquet": 2.0}


@dataclass(frozen=True, slots=True)
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
    # A source's place changes only when it gets a shard, so the furthest below is the first of a heap.
    behind = [(-(size / total * count - 1), place) for place, size in enumerate(sizes)]
    heapq.heapify(behind)
    for _ in range(count - len(sizes)):
        place = behind[0][1]
        shares[place] += 1
        heapq.heapreplace(behind, (-(sizes[place] / total * count - shares[place]), place))
    return shares


def assign_shards(
    files: Sequence[SourceFile], shares: Sequence[float], *, held_out: int = 0, deal: int = LINEAR_DEAL
) -> list[tuple[FilePart, ...]]:
    """For each shard the parts of files that it consists of; `shares` are the shards' parts of the source, summing to
    1. The last `held_out` of them are not for training.

    Files are cut into cells, and each cell goes to the shard that is least filled relative to its share (greedy list
    scheduling, Graham 1969), in an order determined by hashes: the same on every machine. A large source is dealt out
    in the order of its files instead, so that few shards read the same file (see `assign_large`).
    """
    sizes = [text_size(file) for file in files]
    finest = [sum(sizes) * min(shares) / cells for cells in (_RANGES, _STREAMS)]
    streams = [is_stream(file.path) for file in files]
    counts = [_cells(size, finest[stream]) for size, stream in zip(sizes, streams, strict=True)]
    if deal != FIRST_DEAL and _is_large(files, counts):
        return assign_large(sizes, streams, shares, held_out)
    cells = [
        _Cell(number, part, count, sizes[number] / count)
        for number, count in enumerate(counts)
        for part in range(count)
    ]
    dealt: list[list[_Cell]] = [[] for _ in shares]
    # (how full for its share, tie-break, shard): the first is the one that is behind most
    behind = [(0.0, _shuffled(shard, 0), shard) for shard in range(len(shares))]
    heapq.heapify(behind)
    for turn, cell in enumerate(sorted(cells, key=lambda cell: (cell.part, _shuffled(cell.file, cell.part)))):
        filled, _, shard = behind[0]
        dealt[shard].append(cell)
        heapq.heapreplace(behind, (filled + cell.size / shares[shard], _shuffled(shard, turn), shard))
    return [_pieces(cells) for cells in dealt]


def is_stream(path: str) -> bool:
    """Whether a part of the file is only found by reading it from its start."""
    kind = kind_of(path) or ""
    return bool(compression_of(kind)) or kind == "csv"


def _cells(size: float, cell_size: float, most: int = _MOST) -> int:
    return min(most, max(1, math.ceil(size / cell_size))) if size else 0


def _is_large(files: Sequence[SourceFile], counts: Sequence[int]) -> bool:
    """Whether cells all over the source would be too many, or reading them would be reading large files again and
    again: streams from their start, and the row groups of a parquet file that a cell is a part of."""
    if sum(counts) > _LARGE_CELLS:
        return True
    again = (f for f, count in zip(files, counts, strict=True) if count > 2 and f.size > _LARGE_FILE and f.rows is None)
    return any(is_stream(file.path) or kind_of(file.path) == "parquet" for file in again)


def most_shards(files: Sequence[SourceFile], held_out: int) -> int | None:
    """How many train shards a source can fill beside those held out with no stream read more than twice; None where
    there is no limit."""
    limited = [is_stream(file.path) and file.size > _LARGE_FILE for file in files]
    return 2 * len(files) - min(len(files), _STREAMS * held_out) if files and all(limited) else None


def assign_large(
    sizes: Sequence[float], streams: Sequence[bool], shares: Sequence[float], held_out: int
) -> list[tuple[FilePart, ...]]:
    """The parts of a large source for each shard, in time and pieces linear in files and shards.

    Held-out shards get theirs first, each slices of files all over the source. What is left goes to the train shards in
    the order of the files' hashes: ranges of bytes or rows, cut where a shard is full, and whole streams, each to the
    shard that is least full. Where there are more shards than streams, each of these is cut in two.
    """
    total, train = sum(sizes), len(shares) - held_out
    dealt: list[list[_Cell]] = [[] for _ in shares]
    if not total:
        return [()] * len(shares)
    cut = _Cut(sizes, streams, cell_size=total * min(shares[:train], default=1.0) / _RANGES)
    for shard in range(train, len(shares)):
        dealt[shard] = cut.held_out(shares[shard] * total)
    if train:
        left = cut.left()
        _fill_by_ranges([cells for cells in left if not streams[cells[0].file]], shares[:train], dealt)
        _fill_by_streams([cells for cells in left if streams[cells[0].file]], shares[:train], dealt)
    return [_pieces(cells) for cells in dealt]


class _Cut:
    """The files of a large source, cut into cells of about `cell_size` where they are no streams."""

    def __init__(self, sizes: Sequence[float], streams: Sequence[bool], cell_size: float) -> None:
        self._sizes, self._streams = sizes, streams
        self._order = [n for n in sorted(range(len(sizes)), key=lambda n: _shuffled(n)) if sizes[n]]
        self._cells = [
            1 if stream else _cells(size, cell_size, _MOST_FINE) for size, stream in zip(sizes, streams, strict=True)
        ]
        self._taken: dict[int, set[int]] = {}  # file → the parts of it that are held out
        self._turn = 0

    def held_out(self, wanted: float) -> list[_Cell]:
        """Cells of about `wanted` bytes in all: slices of files that no other held-out shard reads, as long as there
        are such."""
        slices = _STREAMS if self._streams[self._order[0]] else _RANGES
        each, goal = -(-slices // len(self._order)), wanted / slices  # slices of a file, bytes of a slice
        found: list[_Cell] = []
        for _ in self._order:
            if wanted < goal / 2 and found:
                break
            file = self._order[self._turn % len(self._order)]
            self._turn += 1
            size, taken = self._sizes[file], self._taken.setdefault(file, set())
            if not taken:
                most = _MOST_FINE if len(self._order) < slices else _MOST // 4
                self._cells[file] = max(self._cells[file], min(most, round(size / goal)))
            of = self._cells[file]
            count = max(1, round(min(wanted, each * goal) * of / size))
            parts = [part for part in sorted(range(of), key=lambda n: _shuffled(file, n)) if part not in taken][:count]
            taken.update(parts)
            found += [_Cell(file, part, of, size / of) for part in parts]
            wanted -= len(parts) * size / of
        return found

    def left(self) -> list[list[_Cell]]:
        """Of each file, in the order of hashes, the cells that are not held out."""
        found = []
        for file in self._order:
            of, taken = self._cells[file], self._taken.get(file, ())
            found.append([_Cell(file, part, of, self._sizes[file] / of) for part in range(of) if part not in taken])
        return [cells for cells in found if cells]


def _fill_by_ranges(files: Sequence[Sequence[_Cell]], shares: Sequence[float], dealt: list[list[_Cell]]) -> None:
    """One cell after the other: the next shard begins where the sum of the shares before it is reached."""
    total, filled, shard, end = sum(cell.size for cells in files for cell in cells), 0.0, 0, shares[0]
    unit = total / (sum(shares) or 1.0)
    least = min(shares) * unit
    for cells in files:
        # What a held-out shard has left of a file that is smaller than a shard is not cut once more.
        rest = len(cells) < cells[0].of and sum(cell.size for cell in cells) <= least
        for part in [cells] if rest else [[cell] for cell in cells]:
            size = sum(cell.size for cell in part)
            while shard < len(shares) - 1 and filled + size / 2 > end * unit:
                shard += 1
                end += shares[shard]
            dealt[shard] += part
            filled += size


def _fill_by_streams(files: Sequence[Sequence[_Cell]], shares: Sequence[float], dealt: list[list[_Cell]]) -> None:
    """Each file to the shard that is least full; where there are fewer files than shards, each in two halves."""
    if not files:
        return
    halves = len(files) < len(shares)
    groups: list[list[_Cell]] = []
    for cells in files:
        whole = cells[0].of == 1
        if halves and whole:
            groups += [[_Cell(cells[0].file, part, 2, cells[0].size / 2)] for part in range(2)]
        else:  # the rest of one that a held-out shard reads has one more reader
            groups.append(list(cells))
    size_of = [sum(cell.size for cell in group) for group in groups]
    filled = [(sum(cell.size for cell in dealt[shard]) / shares[shard], shard) for shard in range(len(shares))]
    heapq.heapify(filled)
    for number in sorted(range(len(groups)), key=lambda number: -size_of[number]):
        full, shard = filled[0]
        dealt[shard] += groups[number]
        heapq.heapreplace(filled, (full + size_of[number] / shares[shard], shard))


def _pieces(cells: Sequence[_Cell]) -> tuple[FilePart, ...]:
    parts: dict[tuple[int, int], list[int]] = {}
    for cell in cells:
        parts.setdefault((cell.file, cell.of), []).append(cell.part)
    return tuple(FilePart(file, tuple(sorted(parts[file, of])), of) for file, of in sorted(parts))


def _shuffled(*key: object) -> bytes:
    return hashlib.blake2b(repr(key).encode("utf-8"), digest_size=8).digest()


# Up to this many bytes are identified by sha256; more by size, time and samples, of which many files have fewer.
READ_WHOLE = 1 << 30
# So many sources are named where work on them begins.
_NAMED = 3
_MANY = 1000
_THREADS, _AT_ONCE = 16, 64
_MOST_SHARDS = 1_000_000


def freeze_plan(
    config: DataPrepConfig,
    blend: DataBlend | None = None,
    *,
    number_type: str | None = None,
    on_step: Callable[[str], object] | None = None,
) -> ShardPlan:
    """Make the plan and write it, with the tokenizer, to the output folder, unless the folder has this very plan.

    `blend` replaces `config.blend_path`'s, `number_type` the .bin's default dtype; `on_step` is
    called with what is begun: listing, and looking into files. Raises UserError for bad input, and
    for a folder with another plan's shards unless `config.force`, which clears it.
    """
    config.check()
    output = working_folder(config.output_dir)
    blend = DataBlend.load(config.blend_path) if blend is None else blend
    chat = _chat_settings(config) if isinstance(config, SftPrepConfig) else None
    if chat and ALL not in blend.splits:
        raise UserError(
            f"{config.blend_path}: splits by name are not for packed rows: each dataset is split by the ratios.",
            hint="Name the sources under 'datasets'.",
        )
    found = tokenizer.find_tokenizer(config.tokenizer_model)
    tokens = tokenizer.describe(
        found, config.tokenizer_model, add_bos=config.add_bos, add_eos=config.add_eos, number_type=number_type
    )
    # A folder that was begun by an earlier version goes on by that version's rule.
    there = None if config.force else ShardPlan.load(output)
    deal = there.deal if there else LINEAR_DEAL
    sources = _sources(blend, config, output / "sources", deal, on_step or (lambda step: None))
    plan = ShardPlan(
        sources,
        tokens,
        cut_shards(sources, config, deal),
        config.min_doc_chars,
        config.max_doc_tokens,
        max_doc_size=parse_size(config.max_doc_size, field="max_doc_size"),
        on_bad_row=config.on_bad_row,
        max_bad_rows=config.max_bad_rows,
        chat=chat,
        deal=deal,
    )
    if config.force:
        clear(output)
    else:
        _check_folder(output, plan, there)
    for folder in (output, output / "splits") if chat else (output,):  # splits/ is the folder of packed rows' artifact
        tokenizer.copy_tokenizer(found, folder, chat.template if chat else None)
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
    """Remove the files that a data preparation wrote to a folder, except those of `keep`, and its objects in the store
    that the folder is for."""
    if store := store_of(output):
        store.remove([*_PLAN_FILES, *_shard_objects(store)])
    named = [output / name for name in _PLAN_FILES]
    for path in [*named, *shard_files(output), *output.glob("splits/*/*__shard_*.parquet")]:
        if path not in keep:
            path.unlink(missing_ok=True)


_PLAN_FILES = (
    *(INDEX_FILE, LINES_FILE, PLAN_FILE),
    *("blend.json", "report.json", "metadata.json", "splits/metadata.json"),
)


def _shard_objects(store: ObjectFolder) -> list[str]:
    """The names of a store's objects that are shards' files or records, or rows made of them."""
    names = [name for folder in (*SPLITS, "splits") for name in store.names(folder)]
    return [name for name in names if "shard_" in name.rpartition("/")[2]]


def shard_files(output: Path) -> list[Path]:
    """The files of shards in a folder, their records and partial files."""
    endings = (".bin", ".idx", ".json", ".parquet", ".jsonl", ".jsonl.zst", ".tmp")
    folders = (*SPLITS, MIXED)
    return [p for s in folders for p in (output / s).glob("*shard_*") if p.is_file() and p.name.endswith(endings)]


def _check_folder(output: Path, plan: ShardPlan, there: ShardPlan | None) -> None:
    hint = "Use --force to replace them, or another output_dir."
    if there is None:
        shards = [path for path in shard_files(output) if path.suffix in (".bin", ".parquet", ".jsonl", ".zst")]
        if shards:
            raise UserError(f"output_dir: {output} holds shards without a plan ({shards[0].name}, …).", hint=hint)
    elif there.digest != plan.digest:
        changed = "; ".join(there.differences(plan))
        raise UserError(f"output_dir: {output} holds another plan's shards. What differs: {changed}.", hint=hint)
    if (store := store_of(output)) is None:
        return
    # A run on another cluster, or with another NEMOTRON_HOME, has its plan in another folder: the store tells of it.
    record, key = store.read(INDEX_FILE), "digest"
    if record is None and (names := [name for name in _shard_objects(store) if name.endswith(".json")]):
        record, key = store.read(names[0]), "plan"
    try:
        same = record is None or json.loads(record)[key] == plan.digest
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UserError(f"output_dir: {store.url} holds another plan's shards.", hint=hint)


def _sources(
    blend: DataBlend, config: DataPrepConfig, corpora: Path, deal: int, on_step: Callable[[str], object]
) -> tuple[PlannedSource, ...]:
    """The blend's datasets with their files; one of weight 0 is left out. Listing and looking into files wait for disks
    and networks, so many threads do it."""
    chosen = blend.used
    omitted = [Omissions() for _ in chosen]
    names = ", ".join(dict.fromkeys(dataset.name for _, dataset in chosen[:_NAMED]))
    on_step(f"listing the files of {len(chosen)} sources ({names}{', …' if len(chosen) > _NAMED else ''})")
    with ThreadPoolExecutor(_THREADS) as pool:
        listed = list(
            pool.map(
                lambda each: list_files(each[0][1], folder=blend.folder, corpora=corpora, left=each[1]),
                zip(chosen, omitted, strict=True),
            )
        )
        local = [file for files in listed for file in files if not is_remote(file.path)]
        whole = sum(file.size for file in local) <= READ_WHOLE
        size = show_size(sum(file.size for files in listed for file in files))
        on_step(f"looking into {sum(map(len, listed)):,} files ({size})")
        many = deal != FIRST_DEAL and len(local) > _MANY
        # How many places of a local file are read, and how many bytes there; None reads it whole.
        samples = None if whole else (2, 1 << 12) if many else (16, 1 << 16)

        def identified(file: FoundFile) -> SourceFile:
            identity = file.identity or (
                "unknown" if is_remote(file.path) else content_identity(file.path, file.size, samples=samples)
            )
            return SourceFile(file.path, file.size, identity)

        several = pool.map(
            lambda files: list(map(identified, files)),
            [files[at : at + _AT_ONCE] for files in listed for at in range(0, len(files), _AT_ONCE)],
        )
        every = itertools.chain.from_iterable(several)
        known = [list(itertools.islice(every, len(files))) for files in listed]
    return tuple(
        PlannedSource(
            name=dataset.name,
            uri=uri_of(dataset, blend.folder),
            split=split,
            weight=dataset.weight,
            text_field=dataset.text_field or config.text_field,
            files=_sampled(files, config),
            subset=dataset.subset,
            from_split=dataset.split,
            left_out=tuple(Omission(why, count, tuple(left.names[why])) for why, count in left.counts.items()),
        )
        for (split, dataset), files, left in zip(chosen, known, omitted, strict=True)
    )


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


def cut_shards(sources: Sequence[PlannedSource], config: DataPrepConfig, deal: int) -> tuple[PlannedShard, ...]:
    """The shards of all splits; `deal` says by which rule."""
    held_out = config.held_out
    wholes = [(number, s) for number, s in enumerate(sources) if s.split == "all"]
    if wholes:
        train = _train_shards([s for _, s in wholes], config, deal, held_out=sum(held_out))
        if isinstance(config, SftPrepConfig):
            return _cut_shards(wholes, {ALL: train}, deal)
        return _cut_shards(wholes, {"train": train, "valid": held_out[0], "test": held_out[1]}, deal)
    counts = {"train": 0, "valid": max(1, held_out[0]), "test": max(1, held_out[1])}
    shards: list[PlannedShard] = []
    for split in SPLITS:
        named = [(number, s) for number, s in enumerate(sources) if s.split == split]
        if named:
            count = counts[split] or _train_shards([s for _, s in named], config, deal)
            shards += _cut_shards(named, {split: count}, deal)
    return tuple(shards)


def _train_shards(sources: Sequence[PlannedSource], config: DataPrepConfig, deal: int, *, held_out: int = 0) -> int:
    """Under `shard_size`, as many shards as make each about that large, less those held out. By default so many that
    none is larger than DEFAULT_SHARD_SIZE."""
    if config.num_shards is not None:
        return _checked_count(config.num_shards, f"num_shards={config.num_shards}")
    if config.shard_size is None and (deal == FIRST_DEAL or config.sample is not None):
        return DEFAULT_SHARDS
    files = (file if file.rows is None else replace(file, rows=None) for source in sources for file in source.files)
    total = sum(map(text_size, files))
    if config.shard_size is None:
        return max(DEFAULT_SHARDS, math.ceil(total / DEFAULT_SHARD_SIZE) - held_out)
    count = max(1, math.ceil(total / parse_size(config.shard_size)) - held_out)
    return _checked_count(count, f"shard_size={config.shard_size}, of about {show_size(total)} of text")


def _checked_count(count: int, setting: str) -> int:
    if count > _MOST_SHARDS:
        raise UserError(f"{setting}: {count:,} shards are too many.", hint=f"{_MOST_SHARDS:,} are the most.")
    return count


def _cut_shards(
    sources: Sequence[tuple[int, PlannedSource]], counts: dict[str, int], deal: int
) -> tuple[PlannedShard, ...]:
    """Each split gets the same part of every source: `counts[split]` shards out of the sum."""
    splits = [split for split in (*SPLITS, ALL) if counts.get(split)]
    total = sum(counts.values())
    sizes = [sum(map(text_size, source.files)) for _, source in sources]
    per_source = {split: apportion(counts[split], sizes) for split in splits}
    main = next(split for split in splits if split not in ("valid", "test") or len(splits) == 1)
    shards: dict[str, list[PlannedShard]] = {split: [] for split in splits}
    for place, (number, source) in enumerate(sources):
        others = sum(per_source[split][place] for split in splits if split != main)
        limit = None if deal == FIRST_DEAL else most_shards(source.files, others)
        if limit is not None:
            per_source[main][place] = min(per_source[main][place], limit)
        owners = [split for split in splits for _ in range(per_source[split][place])]
        shares = [counts[split] / total / per_source[split][place] for split in owners]
        dealt = assign_shards(source.files, shares, held_out=others, deal=deal)
        for split, pieces in zip(owners, dealt, strict=True):
            shards[split].append(PlannedShard(split, len(shards[split]), number, pieces))
    return tuple(shard for split in splits for shard in shards[split])
