"""`last_mile_process`: a blend in hand and a form of output, where `run_data_prep` takes a file and one flat config."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from nemotron_kit.data_prep.blend import SPLITS, DataBlend
from nemotron_kit.data_prep.config import (
    BinIdxOutputConfig,
    ChatSftOutputConfig,
    DataPrepConfig,
    JsonlOutputConfig,
    OutputFormat,
    PackedOutputConfig,
    PipelineConfig,
)
from nemotron_kit.data_prep.outputs import BLEND_FILE, blend_lists
from nemotron_kit.data_prep.run import Prepared, prepare
from nemotron_kit.errors import UserError

SHARD_SIZE = "256MB"
_NOT_YET = {
    JsonlOutputConfig: "JSON lines (JsonlOutputConfig)",
    PackedOutputConfig: "packed sequences (PackedOutputConfig)",
    ChatSftOutputConfig: "chat SFT (ChatSftOutputConfig)",
}


@dataclass(frozen=True)
class SplitResult:
    """One split of a result; `data_paths` alternate weights and shard prefixes, `run_hash` is the plan's digest."""

    name: str
    run_hash: str
    output_dir: Path
    data_paths: list[str]
    num_shards: int
    total_tokens: int
    total_sequences: int


@dataclass(frozen=True)
class PipelineResult:
    """What `last_mile_process` made. `from_cache`: every shard was there already."""

    output_dir: Path
    blend_path: Path
    splits: dict[str, SplitResult]
    is_per_split: bool
    elapsed_sec: float
    from_cache: bool = False

    @property
    def total_tokens(self) -> int:
        return sum(split.total_tokens for split in self.splits.values())

    @property
    def total_sequences(self) -> int:
        return sum(split.total_sequences for split in self.splits.values())


def last_mile_process(blend: DataBlend, config: PipelineConfig) -> PipelineResult:
    """Turn a blend into what a trainer reads, in the form that `config.output.format` says.

    Today that is Megatron's .bin/.idx, with all that `run_data_prep` promises. Raises UserError for bad input, and for
    a form that is not built yet.
    """
    form = config.output.format
    if not isinstance(form, BinIdxOutputConfig):
        raise _not_yet(form)
    if config.tokenizer is None or not config.tokenizer.model:
        raise UserError(
            "PipelineConfig.tokenizer: binidx output needs a tokenizer.",
            hint='Give tokenizer=TokenizerConfig(model="owner/name").',
        )
    if form.dtype not in (None, "int32", "int64", "uint16"):
        raise UserError(f"BinIdxOutputConfig.dtype={form.dtype!r}: it is int32, int64 or uint16.")
    tokenizer = config.tokenizer
    sized = form.shard_size is not None or form.num_shards is not None
    flat = DataPrepConfig(
        output_dir=Path(config.output.dir),
        num_shards=form.num_shards,
        shard_size=form.shard_size if sized else SHARD_SIZE,
        per_split=config.per_split,
        tokenizer_model=config.tokenizer.model,
        add_bos=bool(tokenizer.add_bos),
        add_eos=True if tokenizer.add_eos is None else tokenizer.add_eos,
        min_doc_chars=config.output.min_doc_chars,
        max_doc_tokens=config.output.max_doc_tokens,
        sample=config.sample,
        num_workers=config.num_workers,
        force=config.force,
    )
    made = prepare(flat, blend, number_type=form.dtype)
    return PipelineResult(
        output_dir=made.artifact.path,
        blend_path=made.artifact.path / BLEND_FILE,
        splits=_splits(made),
        is_per_split="all" not in blend.splits or flat.held_out != (0, 0),
        elapsed_sec=made.elapsed,
        from_cache=made.kept == made.mine,
    )


def tokenize(blend: DataBlend, config: PipelineConfig) -> PipelineResult:
    """The older name of `last_mile_process`."""
    warnings.warn("tokenize() is the older name of last_mile_process().", DeprecationWarning, stacklevel=2)
    return last_mile_process(blend, config)


def _not_yet(form: OutputFormat) -> UserError:
    what = next((words for kind, words in _NOT_YET.items() if isinstance(form, kind)), None)
    if what is None:
        return UserError(
            f"OutputConfig.format: {form!r} is none of the output configs.", hint="Use BinIdxOutputConfig."
        )
    return UserError(
        f"OutputConfig.format: {what} is not built yet; it comes with the recipes' SFT and RL stages.",
        hint="BinIdxOutputConfig writes Megatron's .bin/.idx. The transforms work by themselves, on any record.",
    )


def _splits(made: Prepared) -> dict[str, SplitResult]:
    output = made.artifact.path
    lists = blend_lists(made.plan, made.records, output)
    found = {}
    for split in SPLITS:
        records = [made.records[n] for n, shard in enumerate(made.plan.shards) if shard.split == split]
        if records:
            found[split] = SplitResult(
                name=split,
                run_hash=made.plan.digest,
                output_dir=output / split,
                data_paths=lists[split] or [],
                num_shards=len(records),
                total_tokens=sum(record.tokens for record in records),
                total_sequences=sum(record.documents for record in records),
            )
    return found
