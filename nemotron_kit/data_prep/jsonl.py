"""JSON lines of a blend: each record is passed through a transform and written to shards of one dataset and split each.

One process writes them; files get their names once all are complete, and blend.json is written last. A transform is an
arbitrary callable, so files of an earlier run are never reused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.data_prep import planning, sources
from nemotron_kit.data_prep.config import (
    DEFAULT_SHARDS,
    SPLITS,
    DataBlend,
    Dataset,
    JsonlOutputConfig,
    PipelineConfig,
    check_held_out,
    check_least,
    parse_size,
)
from nemotron_kit.data_prep.indexed import HashedFile, WrittenShard, write_errors
from nemotron_kit.data_prep.placeholders import rows_of_file
from nemotron_kit.data_prep.prepare import BLEND_FILE, check_packages, megatron_blend
from nemotron_kit.data_prep.record_transforms import passthrough
from nemotron_kit.data_prep.rl import as_json
from nemotron_kit.data_prep.shard_plan import ALL, TEMPORARY
from nemotron_kit.errors import NemotronError, UserError, error_text, near
from nemotron_kit.files import fsync_dir, write_json
from nemotron_kit.home import expand_user
from nemotron_kit.objects import object_url

if TYPE_CHECKING:
    from nemotron_kit.data_prep.sources import FoundFile

ENDINGS = {"none": ".jsonl", "zstd": ".jsonl.zst"}
# Shards of a dataset are written side by side.
MOST_SHARDS = 512


@dataclass
class WrittenLines:
    """A shard: its file, and the records in it."""

    dataset: Dataset
    split: str
    file: WrittenShard
    rows: int


def write_jsonl(
    blend: DataBlend, config: PipelineConfig, form: JsonlOutputConfig, held_out: tuple[int, int], shard_size: str | int
) -> list[WrittenLines]:
    """Write the shards and blend.json, and return the shards. `shard_size` is what counts where the form has none.
    Raises UserError for bad input, naming file and row; then nothing has its final name."""
    check_packages()
    _check(config, form, held_out)
    output = expand_user(config.output.dir).absolute()
    inputs = [
        (split, dataset, sources.list_files(dataset, folder=blend.folder, corpora=output / "sources"))
        for split, dataset in blend.used
    ]
    _require_free(output, force=config.force)
    counts: dict[str, int] = {}
    if form.num_shards is not None:
        trained = {d.name: sum(f.size for f in files) for split, d, files in inputs if split in (ALL, "train")}
        counts = dict(zip(trained, planning.apportion(form.num_shards, list(trained.values())), strict=True))
    size = parse_size(shard_size if form.shard_size is None else form.shard_size)
    parts = (form.num_shards or DEFAULT_SHARDS, *held_out)
    made: list[WrittenLines] = []
    with ExitStack() as stack:
        for given, dataset, files in inputs:
            dealt = dict(zip(SPLITS, (counts.get(dataset.name), *(max(1, count) for count in held_out)), strict=True))
            places = {
                split: _Lines(output, split, dataset, form.compression, made, stack, count=count, size=size)
                for split, count in (dealt if counts else dict.fromkeys(SPLITS)).items()
            }
            for record, line in _transformed(files, form, config.sample):
                split = _split(record, parts) if given == ALL else given
                places[split].write(line)
            for place in places.values():
                place.close()
        if not any(lines.split == "train" for lines in made):
            read = ", ".join(dataset.path for _, dataset, _ in inputs)
            raise UserError("No record is left for training: the transform leaves all out.", hint=f"Read were {read}.")
        if config.force:
            planning.clear(output, keep={lines.file.temporary for lines in made})
        for lines in made:
            with write_errors(lines.file.final):
                lines.file.temporary.replace(lines.file.final)
    for folder in {lines.file.final.parent for lines in made}:
        fsync_dir(folder)
    with write_errors(output / BLEND_FILE):
        shards = ((one.split, one.dataset, one.dataset.weight, one.rows, str(one.file.final)) for one in made)
        write_json(output / BLEND_FILE, megatron_blend(shards), mode=0o666)
    return made


def _check(config: PipelineConfig, form: JsonlOutputConfig, held_out: tuple[int, int]) -> None:
    if form.num_shards is not None and form.shard_size is not None:
        raise UserError(
            f"num_shards={form.num_shards} and shard_size={form.shard_size} exclude each other.",
            hint="Set one of them to None.",
        )
    if form.num_shards is not None and not 1 <= form.num_shards <= MOST_SHARDS:
        raise UserError(f"num_shards={form.num_shards}: of JSON lines it is from 1 to {MOST_SHARDS}.")
    check_held_out(held_out)
    check_least(config, sample=1)
    if (url := object_url(config.output.dir)) is not None:
        raise UserError(
            f"OutputConfig.dir: JSON lines are written to a folder of this machine, and {url} is an object store.",
            hint="Write them to a folder, and copy that.",
        )
    if form.compression not in ENDINGS:
        raise UserError(f"compression={form.compression!r}. {near(form.compression, ENDINGS)}")
    for name in ("min_doc_chars", "max_doc_tokens"):
        if getattr(config.output, name) is not None:
            raise UserError(
                f"OutputConfig.{name}: it is for documents; JSON lines hold records.",
                hint="A transform that returns None leaves a record out.",
            )


def _require_free(output: Path, *, force: bool) -> None:
    """Raise UserError if the folder holds data already; partial files of a killed run are removed."""
    for path in output.glob(f"*/.shard_*{TEMPORARY}"):
        path.unlink(missing_ok=True)
    if not force and ((output / BLEND_FILE).exists() or planning.shard_files(output)):
        raise UserError(
            f"output dir: {output} holds data already.",
            hint="force=True replaces it; or give another OutputConfig.dir.",
        )


def _transformed(
    files: list[FoundFile], form: JsonlOutputConfig, sample: int | None
) -> Iterator[tuple[Mapping[str, Any], bytes]]:
    """(record, its line) of what the transform makes of each row; of the first `sample` rows."""
    transform = form.transform or passthrough()
    left = sample
    for file in files:
        for where, _, row in rows_of_file(file.path):
            if left == 0:
                return
            left = None if left is None else left - 1
            at = f"{file.path}, {where}"
            try:
                record = transform(row)
            except NemotronError:
                raise
            except Exception as error:  # anyone's function
                raise UserError(f"{at}: the transform failed: {error_text(error)}") from error
            if record is None:
                continue
            if not isinstance(record, dict):
                raise UserError(
                    f"{at}: the transform gave a {type(record).__name__}, where a record is a dict or None."
                )
            yield record, as_json(record, at)


def _split(record: Mapping[str, Any], parts: tuple[int, ...]) -> str:
    """The split of a record, determined by its content, so that duplicates are in the same split."""
    if not any(parts[1:]):
        return "train"
    digest = hashlib.blake2b(as_json(record, "record"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") % sum(parts)
    return next(split for split, end in zip(SPLITS, accumulate(parts), strict=True) if place < end)


@dataclass
class _Lines:
    """The shards of a dataset's split: `count` of them, filled in turn; else one after another, each begun when the one
    before has `size` bytes of lines."""

    output: Path
    split: str
    dataset: Dataset
    compression: str
    made: list[WrittenLines]
    stack: ExitStack
    count: int | None
    size: int
    _open: list[_Shard] = field(default_factory=list)
    _turn: int = 0

    def write(self, line: bytes) -> None:
        if self.count is None and self._open and self._open[0].content >= self.size:
            self.close()
        side_by_side = self.count or 1
        if len(self._open) < side_by_side:
            before = sum(lines.split == self.split for lines in self.made) + len(self._open)
            path = self.output / self.split / f"shard_{before:06d}{ENDINGS[self.compression]}"
            with write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            self._open.append(self.stack.enter_context(_Shard(path, self.compression)))
        self._open[self._turn % side_by_side].add(line)
        self._turn += 1

    def close(self) -> None:
        """Finish what is open."""
        for shard in self._open:
            self.made.append(WrittenLines(self.dataset, self.split, shard.finish(), shard.rows))
        self._open = []


class _Shard(HashedFile):
    """A file of lines, compressed or not; `content` counts the bytes of its lines."""

    def __init__(self, path: Path, compression: str) -> None:
        super().__init__(path)
        self.content = self.rows = 0
        self._packed: Any = None
        if compression == "zstd":
            import zstandard

            self._packed = zstandard.ZstdCompressor().compressobj()

    def add(self, line: bytes) -> None:
        data = line + b"\n"
        self.write(self._packed.compress(data) if self._packed else data)
        self.content += len(data)
        self.rows += 1

    def finish(self) -> WrittenShard:
        if self._packed:
            self.write(self._packed.flush())
        return super().finish()
