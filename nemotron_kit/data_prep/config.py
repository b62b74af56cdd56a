"""The settings of a data preparation, and the blend of weighted sources."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from nemotron_kit.data_prep.record_transforms import Transform
from nemotron_kit.errors import UserError, near
from nemotron_kit.files import read_regular, unique_keys
from nemotron_kit.home import expand_user
from nemotron_kit.masking import MASK, without_passwords

_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMGTP]?)I?B?\s*\Z", re.IGNORECASE)
_FACTORS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T", "P"))}


def parse_size(size: str | int, *, field: str = "shard_size") -> int:
    """ "256MB", "1G", "500MiB" or a number of bytes, in powers of 1024. Raises UserError naming `field`."""
    match = _SIZE.match(str(size))
    count = int(float(match[1]) * _FACTORS[match[2].upper()]) if match else 0
    if count < 1:
        raise UserError(f"{field}={size!r} is not a size.", hint='Write it like "256MB", "1G" or "500MiB".')
    return count


def show_size(count: float) -> str:
    """A number of bytes for people: 37.2 TB, 512 B (decimal units, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


# One document, and one line of a file, in bytes; a larger one is a bad row. Nothing more of a source is held in memory.
DEFAULT_MAX_DOC_SIZE = 64 << 20
DEFAULT_MAX_BAD_ROWS = 1000
NAMED = 5
ERROR, SKIP = "error", "skip"
TEXT_FIELD = "Set text_field to the one with text."
LARGER = "Set max_doc_size higher if this is meant, or on_bad_row=skip to leave it out."


@dataclass
class RowCounts:
    """Counts the rows of one shard (read, empty, shorter than min_doc_chars, bad, cut to max_doc_tokens), and applies
    `on_bad_row` to each bad row.

    `refuse` raises the error for a bad row, or with `skip` counts it; `bad_rows` holds the first messages.
    """

    max_size: int = DEFAULT_MAX_DOC_SIZE
    skip: bool = False
    limit: int | None = DEFAULT_MAX_BAD_ROWS
    rows: int = 0
    empty: int = 0
    short: int = 0
    bad: int = 0
    cut: int = 0
    bad_rows: list[str] = field(default_factory=list)

    def refuse(self, make: Callable[..., UserError], *words: Any) -> None:
        """Raise the error `make(*arguments)`, or count it. The error is made only if it is raised or listed, since
        finding a line's number reads the file."""
        if not self.skip:
            raise make(*words)
        self.bad += 1
        if len(self.bad_rows) < NAMED:
            self.bad_rows.append(make(*words).message)
        check_bad_rows(self.bad, self.bad_rows, self.limit)

    def too_large(self, what: str) -> UserError:
        """The error for a row of more than `max_size` bytes."""
        return UserError(f"{what} of more than {show_size(self.max_size)} (max_doc_size).", hint=LARGER)


def check_bad_rows(count: int, named: list[str], limit: int | None) -> None:
    """Raise UserError if more rows were bad than max_bad_rows."""
    if limit is not None and count > limit:
        raise UserError(
            f"More than {limit} bad rows (max_bad_rows). The first: " + "; ".join(named),
            hint="Is text_field right? Set max_bad_rows higher, or to null for no limit, if the source is like that.",
        )


SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Dataset:
    """One source: a file, folder, glob or URL (hf://, s3://, gs://, any of fsspec's; cpython:// for text that Python
    ships, exercises:// for generated conversations; a password or token in a URL stands as `${secret:NAME}`).

    Of a folder, files with rows (JSON lines, parquet) are read; if there are none, .json files; if there are none,
    plain text. `split` selects files by the split's name in theirs, or as a Hugging Face repository's card says
    (a single file that the path names is read whatever its name says);
    `subset` a folder below the path, or a subset of the card. `text_field` None is the config's default.
    """

    name: str
    path: str
    weight: float = 1.0
    split: str | None = None
    subset: str | None = None
    text_field: str | None = None


@dataclass(frozen=True)
class DataBlend:
    """Sources by split: {"all": …} from `datasets`, to be split into train, valid and test; or those three by name.

    `folder` is that of the blend file (relative paths are looked up there too); `tokens` is the published size, for
    estimates only. `placeholders` are the sources, by name, from which parts of an RL blend's rows are filled in.
    """

    splits: dict[str, tuple[Dataset, ...]]
    folder: Path = field(default_factory=Path.cwd)
    tokens: int | None = None
    placeholders: dict[str, Dataset] = field(default_factory=dict)

    @property
    def datasets(self) -> list[Dataset]:
        """The datasets of all splits."""
        return [dataset for datasets in self.splits.values() for dataset in datasets]

    @property
    def used(self) -> list[tuple[str, Dataset]]:
        """(split, dataset) of those that have a weight; the others are left out."""
        return [(split, dataset) for split, datasets in self.splits.items() for dataset in datasets if dataset.weight]

    @classmethod
    def load(cls, path: str | Path, *, placeholders: bool = False) -> DataBlend:
        """Read a blend file; `placeholders` are permitted only on request. Raises UserError with file, key and (for
        invalid JSON) line."""
        path = expand_user(path)
        try:
            content = json.loads(read_regular(path).decode("utf-8"), object_pairs_hook=unique_keys)
        except FileNotFoundError:
            raise UserError(f"blend_path: there is no file {path}.", hint=_EXAMPLE) from None
        except IsADirectoryError:
            raise UserError(f"blend_path: {path} is a folder, not a blend file.", hint=_EXAMPLE) from None
        except OSError as error:  # a FIFO, which would be waited for; a file that can't be read
            raise UserError(f"blend_path: {path}: {error.strerror}.", hint=_EXAMPLE) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text (byte {error.start}).") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from error
        except (ValueError, RecursionError) as error:  # a key that is given twice: no source may be lost that way
            raise UserError(f"{path}: {error}.") from error
        return _blend(content, path, ("datasets", "tokens", *SPLITS, *(["placeholders"] if placeholders else [])))


_COMMENT = "_"  # JSON has no comments: a key that begins so is one, as in the reference's blends
_EXAMPLE = 'A blend file is JSON: {"datasets": [{"name": "docs", "path": "docs/*.jsonl", "weight": 1.0}]}'


def _blend(content: Any, path: Path, known: tuple[str, ...]) -> DataBlend:
    if not isinstance(content, dict):
        raise UserError(f"{path}: a blend file holds one JSON object.", hint=_EXAMPLE)
    for key in content:
        if key not in known and not key.startswith(_COMMENT):
            raise UserError(f"{path}: unknown key {key!r}. {near(key, known)}")
    named = [split for split in SPLITS if content.get(split)]
    whole = content.get("datasets") is not None
    if whole and named:
        raise UserError(f"{path}: 'datasets' and {named[0]!r} exclude each other.", hint="Keep one of the two forms.")
    if not whole and "train" not in named:
        raise UserError(f"{path}: neither 'datasets' nor 'train' is there.", hint=_EXAMPLE)
    tokens = content.get("tokens")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool)):
        raise UserError(f"{path}, tokens: expected a whole number, got {tokens!r}.")
    keys = {"all": "datasets"} if whole else {split: split for split in named}
    splits = {split: _datasets(content[key], f"{path}, {key}") for split, key in keys.items()}
    entries = content.get("placeholders")
    if not isinstance(entries, dict | None):
        raise UserError(f"{path}, placeholders: expected an object, a source by each name, got {entries!r}.")
    placeholders = {
        name: _dataset({"name": name, **entry} if isinstance(entry, dict) else entry, f"{path}, placeholders.{name}")
        for name, entry in (entries or {}).items()
    }
    return DataBlend(splits, path.absolute().parent, tokens, placeholders)


def _datasets(entries: Any, where: str) -> tuple[Dataset, ...]:
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where}: expected a list with at least one dataset.", hint=_EXAMPLE)
    datasets = tuple(_dataset(entry, f"{where}[{number}]") for number, entry in enumerate(entries))
    names = [dataset.name for dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: two datasets are called {name!r}.", hint="Give each a name of its own.")
    if not any(dataset.weight for dataset in datasets):
        raise UserError(f"{where}: every weight is 0.")
    return datasets


def _dataset(entry: Any, where: str) -> Dataset:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object, got {entry!r}.", hint=_EXAMPLE)
    known = [f.name for f in fields(Dataset)]
    for key in entry:
        if key not in known and not key.startswith(_COMMENT):
            raise UserError(f"{where}: unknown key {key!r}. {near(key, known)}")
    for key in ("name", "path"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise UserError(f"{where}.{key}: expected text, got {entry.get(key)!r}.")
    shown = without_passwords(entry["path"])
    if shown != entry["path"]:
        raise UserError(
            f"{where}.path: this address holds a password, which every record of the data would hold: {shown}",
            hint="Put the password in the environment and refer to it: "
            f"{shown.replace(MASK, '${secret:SOURCE_PASSWORD}')}",
        )
    for key in ("split", "subset", "text_field"):
        if not isinstance(entry.get(key), str | None):
            raise UserError(f"{where}.{key}: expected text, got {entry[key]!r}.")
    weight = entry.get("weight", 1.0)
    numeric = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not numeric or not 0 <= weight <= 1e300:
        raise UserError(f"{where}.weight: expected a number of 0 or more, got {weight!r}.")
    return Dataset(**{**{key: entry[key] for key in entry if key in known}, "weight": float(weight)})


DEFAULT_TOKENIZER = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
DEFAULT_SHARDS = 128
DEFAULT_SHARD_SIZE = 4 << 30  # of text, where that makes more shards


@dataclass
class TokenizerConfig:
    """A tokenizer: `model` is a folder, a tokenizer.json or a Hugging Face name. For None the caller chooses."""

    model: str | None = field(default=None, metadata={"help": "Folder, tokenizer.json or Hugging Face name"})
    add_bos: bool | None = field(default=None, metadata={"help": "Put a BOS token before each document"})
    add_eos: bool | None = field(default=None, metadata={"help": "Put an EOS token after each document"})


@dataclass(frozen=True)
class PerSplitConfig:
    """How much of the blend is held out: `valid_shards` and `test_shards` beside the train shards, of equal size."""

    enabled: bool = True
    valid_shards: int = 1
    test_shards: int = 1


PLAN, SHARDS, FINISH = "plan", "shards", "finish"
STEPS = (PLAN, SHARDS, FINISH)


def check_least(config: Any, **least: int) -> None:
    """Raise UserError for the first of a config's fields that is below its least value; None is none."""
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise UserError(f"{name}={value}: must be at least {bound}.")


def check_held_out(held_out: tuple[int, int]) -> None:
    """Raise UserError if the number of valid or test shards is negative."""
    if min(held_out) < 0:
        raise UserError(f"valid_shards and test_shards can't be negative, got {held_out}.")


@dataclass(kw_only=True)
class StepConfig:
    """Which part of the work is done: all of it (`step` None), the plan, the shards of one `task` (from 0) of `tasks`,
    or what is made of all shards. `sample`: only the first rows of each dataset. `force`: replace what is there."""

    sample: int | None = None
    force: bool = False
    artifact_name: str | None = None
    step: str | None = None
    task: int | None = None
    tasks: int | None = None

    def check_step(self) -> None:
        """Raise UserError, naming the field, for a step that can't be done, or a sample of no rows."""
        step, task, tasks = self.step, self.task, self.tasks
        check_least(self, tasks=1, sample=1)
        if step is None:
            if task is not None:
                raise UserError(
                    f"task={task} belongs to step={SHARDS}.", hint="Leave it out: a launch gives each its own."
                )
            return
        if step not in STEPS:
            raise UserError(f"step={step!r}. {near(step, STEPS)}")
        if step == SHARDS and (task is None or tasks is None or not 0 <= task < tasks):
            raise UserError(f"step={SHARDS} needs task=N of tasks=M, N from 0 to M-1; there is {task} of {tasks}.")


@dataclass
class DataPrepConfig(StepConfig):
    """Input of `run_data_prep`.

    `num_shards` (train shards in all) and `shard_size` ("256MB" of text a shard) exclude each other; where neither is
    given, there are 128, or so many that each holds 4 GiB of text. A shard holds one source, so that its weight can be
    honoured: each gets at least one in each split. `sample` takes the first rows of each dataset. `max_doc_tokens`
    counts a document's BOS and EOS too. `num_workers` is in CPUs, all of this process's by default; it never changes a
    byte of the output. `step` does a part of the work: freezes the plan, makes the shards of one `task` of `tasks`, or
    finishes what all tasks have made.
    """

    blend_path: Path = Path("data_blend.json")
    output_dir: Path = Path("output")
    num_shards: int | None = None
    shard_size: str | int | None = None
    per_split: PerSplitConfig | None = field(default_factory=PerSplitConfig)
    tokenizer_model: str = DEFAULT_TOKENIZER
    add_bos: bool = False
    add_eos: bool = True
    text_field: str = "text"
    min_doc_chars: int | None = None
    max_doc_tokens: int | None = None
    max_doc_size: str | int = DEFAULT_MAX_DOC_SIZE
    on_bad_row: str = ERROR
    max_bad_rows: int | None = DEFAULT_MAX_BAD_ROWS
    num_workers: int | None = None

    @property
    def held_out(self) -> tuple[int, int]:
        """(valid shards, test shards); (0, 0) without per-split output."""
        split = self.per_split
        return (split.valid_shards, split.test_shards) if split and split.enabled else (0, 0)

    def check(self) -> None:
        """Raise UserError, naming the field, for invalid values."""
        self.check_step()
        if self.num_shards is not None and self.shard_size is not None:
            raise UserError(
                f"num_shards={self.num_shards} and shard_size={self.shard_size} exclude each other.",
                hint="Set one of them to null.",
            )
        parse_size(self.max_doc_size, field="max_doc_size")
        if self.on_bad_row not in (ERROR, SKIP):
            hint = f"{ERROR} stops at the first one, {SKIP} leaves them out and counts them."
            raise UserError(f"on_bad_row={self.on_bad_row!r}. {near(self.on_bad_row, (ERROR, SKIP))}", hint=hint)
        check_least(self, num_shards=1, min_doc_chars=0, max_doc_tokens=1, num_workers=1, max_bad_rows=0)
        check_held_out(self.held_out)


FIRST_FIT_SHUFFLE, FIRST_FIT_DECREASING, CONCATENATIVE = "first_fit_shuffle", "first_fit_decreasing", "concatenative"
PACKING = (FIRST_FIT_SHUFFLE, FIRST_FIT_DECREASING, CONCATENATIVE)
COMPRESSIONS = ("zstd", "snappy", "gzip", "none")


@dataclass
class SftPrepConfig(DataPrepConfig):
    """Input of `run_sft_data_prep`: `text_field` is the one with the messages, and the ratios are parts of the records.

    `chat_template` is a name, a path of a .jinja file or a template's text. `used_in_filter` takes the records whose
    `used_in_field` (words with commas, or a list) has one of these words. With `sample`, the output goes to
    `output_dir/sample-N`. `seed` decides the splits and the packing.
    """

    output_dir: Path = Path("output")
    per_split: PerSplitConfig | None = None
    add_eos: bool = False
    text_field: str = "messages"
    tools_field: str = "tools"
    chat_template: str = "nano3"
    pack_size: int = 4096
    algorithm: str = FIRST_FIT_SHUFFLE
    seed: int = 42
    train_ratio: float = 0.98
    valid_ratio: float = 0.01
    test_ratio: float = 0.01
    used_in_filter: str | None = None
    used_in_field: str = "used_in"
    parquet_row_group_size: int = 1000
    parquet_compression: str = "zstd"

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Of train, valid and test."""
        return self.train_ratio, self.valid_ratio, self.test_ratio

    def check(self) -> None:
        """Raise UserError, naming the field, for invalid values, also of the fields that packing has."""
        super().check()
        check_least(self, pack_size=2, parquet_row_group_size=1, seed=0)
        if self.seed >= 1 << 64:
            raise UserError(f"seed={self.seed}: must be below 2^64.")
        named = {f"{split}_ratio": ratio for split, ratio in zip(SPLITS, self.ratios, strict=True)}
        for name, ratio in named.items():
            if not 0 <= ratio <= 1:
                raise UserError(f"{name}={ratio}: must be from 0 to 1.")
        if abs(sum(self.ratios) - 1) > 1e-6:
            parts = " + ".join(named)
            raise UserError(f"{parts} is {sum(self.ratios):.6g}, not 1.", hint="They are the parts of the records.")
        for name, known in (("algorithm", PACKING), ("parquet_compression", COMPRESSIONS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"{name}={value!r}. {near(value, known)}")


@dataclass
class PackedTextConfig(SftPrepConfig):
    """Input of packing documents: `text_field` is a document's text, and every token of it counts."""

    text_field: str = "text"
    add_eos: bool = True


@dataclass
class RLPrepConfig(StepConfig):
    """Input of `prepare_rl`. The ratios are for a source that comes without splits; `sample` takes the first rows of
    each dataset (of each of its splits)."""

    blend_path: Path = Path("data_blend.json")
    output_dir: Path = Path("output")
    train_ratio: float = 0.98
    valid_ratio: float = 0.01
    test_ratio: float = 0.01
    seed: int = 42

    @property
    def ratios(self) -> dict[str, float]:
        """Of train, val and test, by the names of the files."""
        return {"train": self.train_ratio, "val": self.valid_ratio, "test": self.test_ratio}

    def check(self) -> None:
        """Raise UserError, naming the field, for invalid values."""
        self.check_step()
        if min(self.ratios.values()) < 0 or self.train_ratio == 0 or abs(sum(self.ratios.values()) - 1) > 1e-6:
            raise UserError(
                f"train_ratio {self.train_ratio}, valid_ratio {self.valid_ratio}, test_ratio {self.test_ratio}: they "
                "must be 0 or more, train_ratio above 0, and their sum 1."
            )


def load_rl_blend(path: Path) -> DataBlend:
    """The blend of an RL preparation. Raises UserError for settings that a blend of rows can't have."""
    blend = DataBlend.load(path, placeholders=True)
    for dataset in blend.datasets:
        if dataset.weight not in (0.0, 1.0):
            raise UserError(
                f"{path}: dataset {dataset.name!r} has the weight {dataset.weight:g}; each row is written once.",
                hint="Leave it out here; in training env.weights says how often each environment comes up.",
            )
    return blend


@dataclass(frozen=True)
class BinIdxOutputConfig:
    """Megatron's .bin/.idx shards: `num_shards` in all, or as many as give each `shard_size` of text (256MB if neither
    is given). `dtype` is the token ids' integer type; None is Megatron's choice for the vocabulary."""

    shard_size: str | int | None = None
    num_shards: int | None = None
    dtype: Literal["int32", "int64", "uint16"] | None = None


@dataclass(frozen=True)
class JsonlOutputConfig:
    """JSON lines, each record through `transform` (None leaves it out); compression "none" or "zstd"."""

    transform: Transform | None = None
    compression: Literal["none", "zstd"] = "none"
    shard_size: str | int | None = None
    num_shards: int | None = None


@dataclass(frozen=True)
class PackedOutputConfig:
    """Documents packed into rows of at most `pack_size` tokens, with a loss mask of 1 for all but the last token of
    each; a longer document goes on in another row. `dtype` is the token ids' integer type: int32."""

    pack_size: int = 2048
    algorithm: str = FIRST_FIT_SHUFFLE
    dtype: Literal["int32"] = "int32"
    shard_size: str | int | None = None
    num_shards: int | None = None


@dataclass(frozen=True)
class ChatSftOutputConfig:
    """Conversations under a chat template (a name, a path to a .jinja file, or its text; None is nano3), packed, with
    a loss mask that is 1 for the assistant's tokens."""

    chat_template: str | None = None
    messages_field: str = "messages"
    tools_field: str = "tools"
    used_in_filter: str | None = None
    used_in_field: str = "used_in"
    pack_size: int = 4096
    algorithm: str = FIRST_FIT_SHUFFLE
    shard_size: str | int | None = None
    num_shards: int | None = None


OutputFormat = BinIdxOutputConfig | JsonlOutputConfig | PackedOutputConfig | ChatSftOutputConfig


@dataclass(frozen=True)
class OutputConfig:
    """Where `last_mile_process` writes, and in what form."""

    dir: Path
    format: OutputFormat = field(default_factory=BinIdxOutputConfig)
    min_doc_chars: int | None = None
    max_doc_tokens: int | None = None


@dataclass(frozen=True)
class PipelineConfig:
    """Input of `last_mile_process` besides the blend. `per_split` None holds nothing out; the rest is as in
    `DataPrepConfig`."""

    output: OutputConfig
    tokenizer: TokenizerConfig | None = None
    per_split: PerSplitConfig | None = None
    sample: int | None = None
    num_workers: int | None = None
    force: bool = False
