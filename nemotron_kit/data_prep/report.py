"""What a data preparation read and what it left out, and why: for the terminal, and as report.json beside the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nemotron_kit.data_prep.plan import Omission, Plan
from nemotron_kit.data_prep.rows import NAMED
from nemotron_kit.data_prep.sizes import show_size

if TYPE_CHECKING:
    from nemotron_kit.data_prep.shard import ShardRecord

REPORT_FILE = "report.json"
Say = Callable[[str], None]
_WHY = {
    "empty": "without text",
    "short": "shorter than min_doc_chars",
    "bad": "bad",
}


def report(plan: Plan, records: Mapping[int, ShardRecord]) -> dict[str, Any]:
    """Per dataset and in all: files and their bytes, rows, documents, characters, tokens, rows skipped by reason, the
    first bad ones, and the files left out. It depends on plan and sources alone, so that equal data is equal."""
    datasets = []
    for number, source in enumerate(plan.sources):
        mine = [record for n, record in records.items() if plan.shards[n].source == number]
        named = [row for record in mine for row in record.bad_rows]
        datasets.append(
            {
                "name": source.name,
                "uri": source.uri,
                "files": len(source.files),
                "bytes": sum(file.size for file in source.files),
                **_sums(mine),
                "bad_rows": named[:NAMED],
                "left_out": [asdict(omission) for omission in source.left_out],
            }
        )
    files = {"files": sum(d["files"] for d in datasets), "bytes": sum(d["bytes"] for d in datasets)}
    return {"plan": plan.digest, "total": {**files, **_sums(records.values())}, "datasets": datasets}


def _sums(records: Iterable[ShardRecord]) -> dict[str, Any]:
    records = list(records)
    counted = all(record.rows is not None for record in records)
    return {
        "rows": sum(record.rows or 0 for record in records) if counted else None,
        "documents": sum(record.documents for record in records),
        "characters": sum(record.characters for record in records),
        "tokens": sum(record.tokens for record in records),
        "skipped": {why: sum(getattr(record, why) for record in records) for why in _WHY},
        "cut": sum(record.cut for record in records),
    }


def tell_left_out(plan: Plan, say: Say) -> None:
    """A line for each dataset of which some files are not read."""
    for source in plan.sources:
        if source.left_out:
            count = sum(omission.count for omission in source.left_out)
            parts = "; ".join(_omission(omission) for omission in source.left_out)
            say(f"data prep: dataset {source.name!r}: {count} left out: {parts}")


def tell_read(plan: Plan, records: Mapping[int, ShardRecord], say: Say) -> None:
    """What was read and what was skipped, in a few lines."""
    found = report(plan, records)
    total = found["total"]
    rows = "" if total["rows"] is None else f"{total['rows']:,} rows, "
    say(
        f"data prep: read {total['files']:,} files ({show_size(total['bytes'])}): {rows}"
        f"{total['documents']:,} documents{_skipped(total)}"
    )
    for dataset, source in zip(found["datasets"], plan.sources, strict=True):
        if not dataset["documents"]:
            say(f"data prep: dataset {source.name!r} gave no document; it is left out of blend.json.")
        if dataset["skipped"]["bad"]:
            first = "; ".join(dataset["bad_rows"])
            say(f"data prep: dataset {source.name!r}: {dataset['skipped']['bad']:,} bad rows, the first: {first}")
    for split in dict.fromkeys(shard.split for shard in plan.shards):
        if not any(records[number].documents for number, shard in enumerate(plan.shards) if shard.split == split):
            say(f"data prep: nothing fell to {split}: there is too little text for so many shards.")


def _skipped(total: Mapping[str, Any]) -> str:
    parts = [f"{count:,} {_WHY[why]}" for why, count in total["skipped"].items() if count]
    text = f"; skipped {', '.join(parts)}" if parts else "; no row skipped"
    if total["rows"] is None:
        text = "; some shards are an earlier version's, which did not count what it skipped"
    return text + (f"; {total['cut']:,} documents cut to max_doc_tokens" if total["cut"] else "")


def _omission(omission: Omission) -> str:
    more = f" and {omission.count - 3} more" if omission.count > 3 else ""
    return f"{', '.join(omission.names[:3])}{more} ({omission.why})"
