"""`last_mile_process`: prepares a blend object in a chosen output format, where `run_data_prep` takes a file and one
flat config."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.data_prep import jsonl, sft_prep
from nemotron_kit.data_prep.config import (
    DEFAULT_SHARDS,
    SPLITS,
    BinIdxOutputConfig,
    ChatSftOutputConfig,
    DataBlend,
    DataPrepConfig,
    JsonlOutputConfig,
    PackedOutputConfig,
    PackedTextConfig,
    PipelineConfig,
    SftPrepConfig,
    check_held_out,
)
from nemotron_kit.data_prep.prepare import BLEND_FILE, REPORT_FILE, prepare
from nemotron_kit.data_prep.shard_plan import ALL
from nemotron_kit.data_prep.stored import working_folder
from nemotron_kit.errors import UserError
from nemotron_kit.files import sha256_of
from nemotron_kit.home import expand_user

SHARD_SIZE = "256MB"


@dataclass(frozen=True)
class SplitResult:
    """One split of a result. `data_paths` alternates weights and shard prefixes (for JSON lines, file paths).
    `run_hash` is the plan's digest (for JSON lines, a digest of the content, without token counts)."""

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
        """Of all splits; 0 for JSON lines."""
        return sum(split.total_tokens for split in self.splits.values())

    @property
    def total_sequences(self) -> int:
        """Documents, sequences of packed rows, or records of all splits."""
        return sum(split.total_sequences for split in self.splits.values())


def last_mile_process(blend: DataBlend, config: PipelineConfig) -> PipelineResult:
    """Turn a blend into training data in the format that `config.output.format` names.

    That is Megatron's .bin/.idx, as by `run_data_prep`; packed conversations, as by `run_sft_data_prep`, or packed
    documents in the same files; or JSON lines, which one process writes, anew each time. For all but .bin/.idx
    `per_split` holds out a part of the records: V valid_shards beside N num_shards and T test_shards are
    V / (N + V + T) of them. Raises UserError for bad input.
    """
    form = config.output.format
    held_out = DataPrepConfig(per_split=config.per_split).held_out
    is_per_split = ALL not in blend.splits or held_out != (0, 0)
    if isinstance(form, JsonlOutputConfig):
        began = time.monotonic()
        written = jsonl.write_jsonl(blend, config, form, held_out, SHARD_SIZE)
        output = expand_user(config.output.dir).absolute()
        run_hash = sha256_of([lines.file.sha256 for lines in written])
        splits = _splits(output, output, run_hash, [(lines.split, 0, lines.rows) for lines in written])
        return PipelineResult(output, output / BLEND_FILE, splits, is_per_split, time.monotonic() - began)
    if isinstance(form, BinIdxOutputConfig):
        if form.dtype not in (None, "int32", "int64", "uint16"):
            raise UserError(f"BinIdxOutputConfig.dtype={form.dtype!r}: it is int32, int64 or uint16.")
        settings = _settings(form, config, "binidx")
        flat = DataPrepConfig(**{**settings, "add_eos": settings["add_eos"] is not False})
        made = prepare(flat, blend, number_type=form.dtype)
        folder = output = flat.output_dir
        records = made.records
        shards = [(s.split, records[n].tokens, records[n].documents) for n, s in enumerate(made.plan.shards)]
    elif isinstance(form, ChatSftOutputConfig | PackedOutputConfig):
        flat = _packed_settings(form, config)
        made = prepare(flat, blend, outputs=sft_prep.OUTPUTS)
        output, folder = flat.output_dir, flat.output_dir / "splits"
        files = json.loads((output / REPORT_FILE).read_text(encoding="utf-8"))["files"]
        shards = [(file["split"], file["tokens"], file["sequences"]) for file in files]
    else:
        raise UserError(
            f"OutputConfig.format: {form!r} is none of the output configs.",
            hint="Use BinIdxOutputConfig, JsonlOutputConfig, PackedOutputConfig or ChatSftOutputConfig.",
        )
    return PipelineResult(
        output_dir=output,
        blend_path=output / BLEND_FILE,
        splits=_splits(output, folder, made.plan.digest, shards),
        is_per_split=is_per_split,
        elapsed_sec=made.elapsed,
        from_cache=made.from_cache,
    )


def _splits(
    output: Path, folder: Path, run_hash: str, shards: Sequence[tuple[str, int, int]]
) -> dict[str, SplitResult]:
    """The results of the splits that have shards; `shards` are (split, tokens, sequences) of each."""
    data_paths = json.loads((output / BLEND_FILE).read_text(encoding="utf-8"))
    splits = {}
    for split in SPLITS:
        if mine := [shard for shard in shards if shard[0] == split]:
            _, tokens, sequences = zip(*mine, strict=True)
            splits[split] = SplitResult(
                name=split,
                run_hash=run_hash,
                output_dir=folder / split,
                data_paths=data_paths[split] or [],
                num_shards=len(mine),
                total_tokens=sum(tokens),
                total_sequences=sum(sequences),
            )
    return splits


def tokenize(blend: DataBlend, config: PipelineConfig) -> PipelineResult:
    """The older name of `last_mile_process`."""
    warnings.warn("tokenize() is the older name of last_mile_process().", DeprecationWarning, stacklevel=2)
    return last_mile_process(blend, config)


def _settings(
    form: BinIdxOutputConfig | ChatSftOutputConfig | PackedOutputConfig, config: PipelineConfig, what: str
) -> dict[str, Any]:
    """What these forms take, as fields of their flat configs."""
    tokenizer = config.tokenizer
    if tokenizer is None or not tokenizer.model:
        raise UserError(
            f"PipelineConfig.tokenizer: {what} output needs a tokenizer.",
            hint='Give tokenizer=TokenizerConfig(model="owner/name").',
        )
    sized = form.shard_size is not None or form.num_shards is not None
    return {
        "output_dir": working_folder(config.output.dir),
        "num_shards": form.num_shards,
        "shard_size": form.shard_size if sized else SHARD_SIZE,
        "per_split": config.per_split,
        "tokenizer_model": tokenizer.model,
        "add_bos": bool(tokenizer.add_bos),
        "add_eos": tokenizer.add_eos,
        "min_doc_chars": config.output.min_doc_chars,
        "max_doc_tokens": config.output.max_doc_tokens,
        "sample": config.sample,
        "num_workers": config.num_workers,
        "force": config.force,
    }


def _packed_settings(form: ChatSftOutputConfig | PackedOutputConfig, config: PipelineConfig) -> SftPrepConfig:
    """The flat config of packed rows, of conversations or documents."""
    of_documents = isinstance(form, PackedOutputConfig)
    if isinstance(form, PackedOutputConfig) and form.dtype != "int32":
        raise UserError(
            f"PackedOutputConfig.dtype={form.dtype!r}: packed rows have int32 tokens, as Megatron-Bridge reads them.",
            hint="Leave it out; BinIdxOutputConfig has int32, int64 and uint16.",
        )
    settings = _settings(form, config, "packed" if of_documents else "chat SFT")
    if config.output.min_doc_chars and not of_documents:
        raise UserError(
            f"OutputConfig.min_doc_chars={config.output.min_doc_chars}: it is for documents, not for chat SFT.",
            hint="Leave it out; a filter of conversations is SftPrepConfig.used_in_filter.",
        )
    held_out = DataPrepConfig(per_split=config.per_split).held_out
    check_held_out(held_out)
    parts = (max(1, form.num_shards or DEFAULT_SHARDS), *held_out)
    train, valid, test = (part / sum(parts) for part in parts)
    settings |= {
        "per_split": None,
        "pack_size": form.pack_size,
        "algorithm": form.algorithm,
        "train_ratio": train,
        "valid_ratio": valid,
        "test_ratio": test,
    }
    if isinstance(form, PackedOutputConfig):
        return PackedTextConfig(**{**settings, "add_eos": settings["add_eos"] is not False})
    return SftPrepConfig(
        **{**settings, "add_bos": False, "add_eos": False},  # a conversation has the template's own ends
        text_field=form.messages_field,
        tools_field=form.tools_field,
        chat_template=form.chat_template or SftPrepConfig.chat_template,
        used_in_filter=form.used_in_filter,
        used_in_field=form.used_in_field,
    )
