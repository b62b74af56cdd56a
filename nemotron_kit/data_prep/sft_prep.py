"""Chat data for supervised fine-tuning: from a blend of conversations to packed rows by split, as an
SFTDataArtifact."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit import artifacts
from nemotron_kit.data_prep.config import NAMED, SPLITS, SftPrepConfig, show_size
from nemotron_kit.data_prep.prepare import (
    BLEND_FILE,
    REPORT_FILE,
    Outputs,
    PrintLine,
    megatron_blend,
    prepare,
    print_bad_rows,
    source_info,
    tokenizer_address,
)
from nemotron_kit.data_prep.shard_plan import ShardPlan, part_name
from nemotron_kit.errors import UserError
from nemotron_kit.files import aside, write_json, write_text

if TYPE_CHECKING:
    from nemotron_kit.data_prep.packed import PackedRecord

Records = Mapping[int, "PackedRecord"]
FORMAT = "packed_sft_parquet"
_WHY = {
    "used_in": "not for used_in_filter",
    "no_messages": "without messages",
    "tool_call_without_tools": "with tool calls and no tools",
    "no_answer": "without an answer",
    "answer_cut_off": "with the answer cut off",
    "empty": "without text",
    "too_short": "too short",
    "bad": "bad",
}


def run_sft_data_prep(config: SftPrepConfig) -> artifacts.SFTDataArtifact:
    """Make packed rows of a blend of conversations in `config.output_dir` and return them as an artifact, whose path is
    the folder `splits` in it.

    Complete shards of the same plan are kept; ranks, steps and `artifact_name` are as in `run_data_prep`. Raises
    UserError for bad input, naming file, key and line.
    """
    if config.sample is not None:
        config = replace(config, output_dir=Path(config.output_dir) / f"sample-{config.sample}")
    artifact: artifacts.SFTDataArtifact = prepare(config, outputs=OUTPUTS).artifact
    return artifact


@dataclass(frozen=True)
class ChosenRows:
    """Of a shard's file of one split, the first `rows`; `name` is that of the file in splits/<split>/."""

    shard: int
    split: str
    name: str
    rows: int
    of: int


def choose_rows(plan: ShardPlan, records: Records) -> list[ChosenRows]:
    """The rows of the splits: all, if weights are equal; else as many of each dataset as make their tokens proportional
    to the weights without repeating a row."""
    chosen = []
    for split in SPLITS:
        parts = {n: records[n].splits[split] for n in range(len(plan.shards)) if records[n].splits[split].rows}
        tokens: Counter[int] = Counter()
        for number, part in parts.items():
            tokens[plan.shards[number].source] += part.tokens
        weights = {source: plan.sources[source].weight for source in tokens}
        scale = min((tokens[s] / weights[s] for s in tokens), default=0.0)
        even = len(set(weights.values())) < 2
        left = {s: tokens[s] if even else weights[s] * scale for s in tokens}
        for number, part in parts.items():
            source = plan.shards[number].source
            share = min(1.0, left[source] / part.tokens)
            left[source] -= share * part.tokens
            rows = part.rows if share == 1.0 else round(share * part.rows)
            if rows:
                name = re.sub(r"[^\w.-]", "_", plan.sources[source].name)
                file = f"{number:06d}__{name}__shard_{plan.shards[number].index:06d}.parquet"
                chosen.append(ChosenRows(number, split, file, rows, part.rows))
    return chosen


def write_outputs(plan: ShardPlan, records: Records, output: Path) -> None:
    """Write splits/, report.json and blend.json."""
    chosen = choose_rows(plan, records)
    if not any(rows.split == "train" for rows in chosen):
        filtered = _sums(records.values())["filtered"]
        reasons = ", ".join(f"{count:,} {_WHY[why]}" for why, count in filtered.items() if count) or "no row was read"
        of_documents = plan.packing.template is None
        what, key = ("document", "text_field") if of_documents else ("conversation", "messages_field")
        raise UserError(
            f"No {what} is left for training: {reasons}.",
            hint=f"Read were {', '.join(source.uri for source in plan.sources)}. Is {key} right?",
        )
    known = {(rows.split, rows.name) for rows in chosen}
    for path in output.glob("splits/*/*__shard_*.parquet"):
        if (path.parent.name, path.name) not in known:
            path.unlink()
    found: list[dict[str, Any]] = []
    for rows in chosen:
        part = records[rows.shard].splits[rows.split]
        source = output / part_name(plan.shards[rows.shard].name, rows.split)
        target = output / "splits" / rows.split / rows.name
        target.parent.mkdir(parents=True, exist_ok=True)
        counts = {
            "rows": part.rows,
            "sequences": part.sequences,
            "tokens": part.tokens,
            "loss_tokens": part.loss_tokens,
        }
        if rows.rows < rows.of:
            counts = _first_rows(plan, source, target, rows.rows)
        else:
            _linked(source, target)
        dataset = plan.sources[plan.shards[rows.shard].source].name
        found.append({"split": rows.split, "file": rows.name, "dataset": dataset, **counts})
    write_text(output / REPORT_FILE, json.dumps(report(plan, records, found), indent=2) + "\n", mode=0o666)
    # A file's weight is its part of the split's tokens, as if all were one dataset's. They are proportional to the
    # datasets' weights already, so reading all files and reading by weight give the same mix.
    shards = []
    for file in found:
        prefix = output / "splits" / file["split"] / file["file"].removesuffix(".parquet")
        shards.append((file["split"], "", 1.0, file["tokens"], str(prefix)))
    write_json(output / BLEND_FILE, megatron_blend(shards), mode=0o666)


def _linked(source: Path, target: Path) -> None:
    """Make `target` a hard link to the file `source`, or a copy on a file system without hard links."""
    if target.exists() and target.samefile(source):
        return
    temporary = aside(target)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def _first_rows(plan: ShardPlan, source: Path, target: Path, count: int) -> dict[str, int]:
    """Copy the first rows of a file to another one; returns what they hold."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from nemotron_kit.data_prep.packing import write_tables

    counts = {"rows": count, "sequences": 0, "tokens": 0, "loss_tokens": 0}

    def tables() -> Iterator[Any]:
        left = count
        with pq.ParquetFile(source) as file:
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group).slice(0, left)
                left -= table.num_rows
                counts["sequences"] += int(pc.sum(pc.list_value_length(table["seq_start_id"])).as_py())
                counts["tokens"] += int(pc.sum(pc.list_value_length(table["input_ids"])).as_py())
                counts["loss_tokens"] += int(np.sum(pc.list_flatten(table["loss_mask"]).to_numpy(), dtype=np.int64))
                yield table
                if not left:
                    return

    how = plan.packing
    write_tables(target, tables(), row_group_size=how.row_group_size, compression=how.compression)
    return counts


def report(plan: ShardPlan, records: Records, found: list[dict[str, Any]]) -> dict[str, Any]:
    """In all, per dataset, per split and per file: what was read, what was left out and why, and the content of the
    rows."""
    datasets = []
    for number, source in enumerate(plan.sources):
        mine = [record for n, record in records.items() if plan.shards[n].source == number]
        datasets.append(
            {
                "name": source.name,
                "uri": source.uri,
                "weight": source.weight,
                "files": source.file_count,
                "bytes": source.size,
                **_sums(mine),
                "splits": _splits(plan, [file for file in found if file["dataset"] == source.name]),
                "bad_rows": [row for record in mine for row in record.bad_rows][:NAMED],
                "left_out": [asdict(omission) for omission in source.left_out],
            }
        )
    files = {"files": sum(d["files"] for d in datasets), "bytes": sum(d["bytes"] for d in datasets)}
    return {
        "plan": plan.digest,
        "total": {**files, **_sums(records.values())},
        "splits": _splits(plan, found),
        "datasets": datasets,
        "files": found,
    }


def _sums(records: Iterable[PackedRecord]) -> dict[str, Any]:
    records = list(records)
    reasons = [why for why in _WHY if any(why in record.filtered for record in records)]
    filtered = {why: sum(record.filtered.get(why, 0) for record in records) for why in reasons}
    return {
        "records": sum(record.rows or 0 for record in records),
        "used": sum(record.documents for record in records),
        "filtered": {**filtered, "bad": sum(record.bad for record in records)},
        "sequences": sum(record.sequences for record in records),
        "tokens": sum(record.tokens for record in records),
        "cut": sum(record.cut for record in records),
    }


def _splits(plan: ShardPlan, found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    size = plan.packing.pack_size
    splits = {}
    for split in SPLITS:
        mine = [file for file in found if file["split"] == split]
        sums = {what: sum(file[what] for file in mine) for what in ("rows", "sequences", "tokens", "loss_tokens")}
        fill = sums["tokens"] / (sums["rows"] * size) if sums["rows"] else 0.0
        splits[split] = {**sums, "fill": round(fill, 6)}
    return splits


def print_summary(plan: ShardPlan, records: Records, print_line: PrintLine) -> None:
    """Print what was read, what was left out and why, and the resulting rows, in a few lines."""
    found = report(plan, records, [])
    total = found["total"]
    of_documents = plan.packing.template is None
    why = ", ".join(f"{count:,} {_WHY[why]}" for why, count in total["filtered"].items() if count)
    print_line(
        f"data prep: read {total['files']:,} files ({show_size(total['bytes'])}): {total['records']:,} records, "
        f"{total['used']:,} used as {total['sequences']:,} sequences; {f'left out {why}' if why else 'none left out'}"
        + (f"; {total['cut']:,} {'documents' if of_documents else 'sequences'} cut" if total["cut"] else "")
    )
    for dataset in found["datasets"]:
        if not dataset["used"]:
            what = "document" if of_documents else "conversation"
            print_line(f"data prep: dataset {dataset['name']!r} has no usable {what}.")
        print_bad_rows(dataset, dataset["filtered"]["bad"], print_line)
    size = plan.packing.pack_size
    chosen = choose_rows(plan, records)
    for split, ratio in zip(SPLITS, plan.packing.ratios, strict=True):
        parts = [record.splits[split] for record in records.values()]
        rows, tokens = sum(part.rows for part in parts), sum(part.tokens for part in parts)
        if rows:
            sequences = sum(part.sequences for part in parts)
            kept = sum(chosen_rows.rows for chosen_rows in chosen if chosen_rows.split == split)
            weighed = f"; {kept:,} rows kept, by the weights" if kept < rows else ""
            full = f"{100 * tokens / rows / size:.1f} % full"
            print_line(
                f"data prep: {split}: {sequences:,} sequences in {rows:,} rows of {size:,} tokens, {full}{weighed}"
            )
        elif ratio and total["used"]:
            print_line(f"data prep: nothing fell to {split}: {total['used']:,} records at {split}_ratio={ratio:g}.")


def make_artifact(plan: ShardPlan, records: Records, output: Path, elapsed: float) -> artifacts.SFTDataArtifact:
    """The folder splits/ as an unsaved artifact. `metadata` holds what a trainer needs to know about the tokens."""
    splits = json.loads((output / REPORT_FILE).read_text(encoding="utf-8"))["splits"]
    paths = {split: str(output / "splits" / split) for split in SPLITS if splits[split]["rows"]}
    artifact = artifacts.SFTDataArtifact(
        path=output / "splits",
        total_tokens=sum(splits[split]["tokens"] for split in SPLITS),
        total_sequences=sum(splits[split]["sequences"] for split in SPLITS),
        source_datasets=[source_info(plan, records, number) for number in range(len(plan.sources))],
        tokenizer_uri=tokenizer_address(plan, output),
        elapsed_sec=elapsed,
        pack_size=plan.packing.pack_size,
        num_shards=len(plan.shards),
        data_format=FORMAT,
        blend_path=str(output / BLEND_FILE),
        training_path=paths.get("train"),
        validation_path=paths.get("valid"),
        test_path=paths.get("test"),
        metadata={
            "vocab_size": plan.tokens.vocab_size,
            "tokenizer": plan.tokens.model,
            "tokenizer_path": "tokenizer",
            "algorithm": plan.packing.algorithm,
            "rows": {split: splits[split]["rows"] for split in SPLITS},
            "loss_tokens": {split: splits[split]["loss_tokens"] for split in SPLITS},
            "plan": plan.digest,
        },
    )
    for rows in choose_rows(plan, records):  # a link to a shard's file, whose maker has hashed it
        file = records[rows.shard].splits[rows.split].file
        if rows.rows == rows.of and file is not None:
            artifact._sums[f"{rows.split}/{rows.name}"] = file
    return artifact


OUTPUTS = Outputs(print_summary, write_outputs, make_artifact)
