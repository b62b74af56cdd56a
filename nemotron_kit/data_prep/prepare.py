"""Runs a data preparation: plan, shards, blend.json, artifact. Shows progress and writes report.json.

blend.json: per split (train, valid, test) Megatron's blend, a list of weight, prefix, weight, prefix, … with a prefix
for each shard, or null if the split has no documents. A source's weight is divided among its shards by their tokens.

report.json: `plan` (the digest of plan.json), `total` and, for each source, `datasets`: files, bytes, rows, documents,
characters, tokens, `skipped` (why → how many), `cut` (documents cut to max_doc_tokens), `bad_rows` (the first ones,
with file and line) and `left_out` (files that are not read, and why).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit import artifacts
from nemotron_kit.artifacts.datasets import InputDatasetInfo, tokenizer_to_uri
from nemotron_kit.data_prep.config import NAMED, PLAN, SHARDS, SPLITS, DataBlend, DataPrepConfig, show_size
from nemotron_kit.data_prep.planning import freeze_plan
from nemotron_kit.data_prep.prep_progress import PrepProgress, note_rate, print_line, shown_steps
from nemotron_kit.data_prep.ranks import FOLDER, RankSync, ranks_here
from nemotron_kit.data_prep.shard_plan import ALL, PLAN_FILE, TEMPORARY, PlanIndex, ShardPlan
from nemotron_kit.data_prep.stored import place, publish, store_of, working_folder
from nemotron_kit.data_prep.tokenizer import HUB
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import write_json, write_text
from nemotron_kit.home import expand_user
from nemotron_kit.installed import require_packages

if TYPE_CHECKING:
    from nemotron_kit.data_prep.pool import ShardEvent
    from nemotron_kit.data_prep.ranks import RankLayout, RankSync
    from nemotron_kit.data_prep.shard import SavedRecord, ShardRecord


REPORT_FILE = "report.json"
PrintLine = Callable[[str], None]
_WHY = {
    "empty": "without text",
    "short": "shorter than min_doc_chars",
    "bad": "bad",
}


def report(plan: ShardPlan, records: Mapping[int, ShardRecord]) -> dict[str, Any]:
    """Per dataset and in all: files and their bytes, rows, documents, characters, tokens, rows skipped by reason, the
    first bad ones, and the files left out. It depends on plan and sources only, so that equal data gives equal reports.
    """
    datasets = []
    for number, source in enumerate(plan.sources):
        mine = [record for n, record in records.items() if plan.shards[n].source == number]
        named = [row for record in mine for row in record.bad_rows]
        datasets.append(
            {
                "name": source.name,
                "uri": source.uri,
                "files": source.file_count,
                "bytes": source.size,
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


def print_summary(plan: ShardPlan, records: Mapping[int, ShardRecord], print_line: PrintLine) -> None:
    """Print what was read and what was skipped, in a few lines."""
    found = report(plan, records)
    total = found["total"]
    rows = "" if total["rows"] is None else f"{total['rows']:,} rows, "
    parts = [f"{count:,} {_WHY[why]}" for why, count in total["skipped"].items() if count]
    skipped = f"skipped {', '.join(parts)}" if parts else "no row skipped"
    if total["rows"] is None:
        skipped = "some shards are an earlier version's, which did not count what it skipped"
    print_line(
        f"data prep: read {total['files']:,} files ({show_size(total['bytes'])}): {rows}"
        f"{total['documents']:,} documents; {skipped}"
        + (f"; {total['cut']:,} documents cut to max_doc_tokens" if total["cut"] else "")
    )
    for dataset, source in zip(found["datasets"], plan.sources, strict=True):
        if not dataset["documents"]:
            print_line(f"data prep: dataset {source.name!r} gave no document; it is left out of blend.json.")
        print_bad_rows(dataset, dataset["skipped"]["bad"], print_line)
    for split in dict.fromkeys(shard.split for shard in plan.shards):
        if not any(records[number].documents for number, shard in enumerate(plan.shards) if shard.split == split):
            print_line(f"data prep: nothing fell to {split}: there is too little text for so many shards.")


def print_bad_rows(dataset: Mapping[str, Any], count: int, print_line: PrintLine) -> None:
    """Print how many rows of a report's dataset were bad, with the first of them."""
    if count:
        first = "; ".join(dataset["bad_rows"])
        print_line(f"data prep: dataset {dataset['name']!r}: {count:,} bad rows, the first: {first}")


BLEND_FILE = "blend.json"


def megatron_blend(shards: Iterable[tuple[str, Hashable, float, int, str]]) -> dict[str, list[str] | None]:
    """blend.json for (split, a key of the dataset, the dataset's weight, tokens or records, path) of each shard: per
    split weight, path, weight, path, …; null for none.

    A dataset's weight is divided among its shards of a split by what they hold, so that it does not depend on their
    number. Empty shards are left out: Megatron's reader fails on them.
    """
    held = [shard for shard in shards if shard[3]]
    per_dataset: Counter[tuple[str, Hashable]] = Counter()
    for split, dataset, _, size, _ in held:
        per_dataset[split, dataset] += size
    blend: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, dataset, weight, size, path in held:
        blend[split] += [f"{weight * size / per_dataset[split, dataset]:.12g}", path]
    return {split: pairs or None for split, pairs in blend.items()}


def make_artifact(
    plan: ShardPlan, records: dict[int, ShardRecord], output: Path, elapsed: float
) -> artifacts.PretrainBlendsArtifact:
    """The output folder as an unsaved artifact. `metadata` holds what a trainer needs to know about the tokens."""
    tokens = {split: total(plan, records, "tokens", split=split) for split in SPLITS}
    paths = {split: place(output, split) for split, count in tokens.items() if count}
    return artifacts.PretrainBlendsArtifact(
        path=output,
        total_tokens=sum(tokens.values()),
        total_sequences=total(plan, records, "documents"),
        source_datasets=[source_info(plan, records, number) for number in range(len(plan.sources))],
        tokenizer_uri=tokenizer_address(plan, output),
        elapsed_sec=elapsed,
        train_tokens=tokens["train"],
        valid_tokens=tokens["valid"],
        test_tokens=tokens["test"],
        num_shards=sum(shard.split == "train" for shard in plan.shards),
        metadata={
            "vocab_size": plan.tokens.vocab_size,
            "dtype": plan.tokens.dtype,
            "eos_id": plan.tokens.eos,
            "bos_id": plan.tokens.bos,
            "tokenizer": plan.tokens.model,
            "tokenizer_path": "tokenizer",
            "plan": plan.digest,
        },
        blend_path=str(output / BLEND_FILE),
        train_path=paths.get("train"),
        valid_path=paths.get("valid"),
        test_path=paths.get("test"),
    )


def total(
    plan: ShardPlan,
    records: Mapping[int, SavedRecord],
    what: str,
    *,
    split: str | None = None,
    source: int | None = None,
) -> int:
    """The sum of one of the records' fields, over all shards or those of a split or source."""
    chosen = (
        number
        for number, shard in enumerate(plan.shards)
        if split in (None, shard.split) and source in (None, shard.source)
    )
    return sum(getattr(records[number], what) for number in chosen)


def source_info(plan: ShardPlan, records: Mapping[int, SavedRecord], number: int) -> Any:
    """Source `number` of the plan as an artifact's InputDatasetInfo."""
    source = plan.sources[number]
    return InputDatasetInfo(
        uri=source.uri,
        name=source.name,
        weight=source.weight,
        split=source.from_split,
        subset=source.subset,
        text_field=source.text_field,
        num_rows=total(plan, records, "documents", source=number),
        size_bytes=source.size,
    )


def tokenizer_address(plan: ShardPlan, output: Path) -> str:
    """The address of the tokenizer: its page for a hub name, else the copy beside the shards."""
    name, _, revision = plan.tokens.model.removeprefix(HUB).partition("@")
    if expand_user(plan.tokens.model).exists():
        return tokenizer_to_uri(str(output / "tokenizer"))
    return tokenizer_to_uri(name, revision or None)


NEEDED = ("fsspec", "numpy", "orjson", "pyarrow", "tokenizers", "zstandard")


def run_data_prep(config: DataPrepConfig) -> artifacts.PretrainBlendsArtifact:
    """Tokenize a blend to Megatron shards in `config.output_dir` and return them as an artifact (None of a step that is
    not the last).

    Complete shards of the same plan are kept. The artifact's metadata.json is in the folder; with
    `config.artifact_name` it is also registered. Called by each process that torchrun or srun started, it divides the
    shards among them: rank 0 makes the plan, writes blend.json and saves the artifact; the others' is not saved. Raises
    UserError for bad input, naming file, key and line.
    """
    artifact: artifacts.PretrainBlendsArtifact = prepare(config).artifact
    return artifact


@dataclass(frozen=True)
class Outputs:
    """What is made from a plan's complete shards: `summary` prints what was read, `write` writes files, `artifact`
    describes the folder. They take the plan, its records and (a print function; the output folder; the folder and the
    elapsed seconds)."""

    summary: Callable[[ShardPlan, dict[int, Any], PrintLine], None]
    write: Callable[[ShardPlan, dict[int, Any], Path], None]
    artifact: Callable[[ShardPlan, dict[int, Any], Path, float], Any]


@dataclass(frozen=True)
class PreparedData:
    """A finished data preparation. `from_cache`: every shard that this process was to make existed already."""

    plan: ShardPlan
    records: dict[int, Any]
    artifact: Any
    elapsed: float
    from_cache: bool = False


def prepare(
    config: DataPrepConfig,
    blend: DataBlend | None = None,
    *,
    number_type: str | None = None,
    outputs: Outputs | None = None,
) -> PreparedData:
    """`run_data_prep` for a blend and a .bin integer type that may differ from the config's. Of a step before the last
    one the artifact is None."""
    check_packages()
    config.check()

    outputs = outputs or Outputs(print_summary, _write_outputs, make_artifact)
    began = time.monotonic()
    output = working_folder(config.output_dir)
    config = replace(config, output_dir=output)

    def plan_here() -> ShardPlan:
        try:
            with shown_steps() as on_step:
                return freeze_plan(config, blend, number_type=number_type, on_step=on_step)
        except OSError as error:  # a source that can't be opened, an output folder that can't be written
            raise UserError(f"{error.filename or config.output_dir}: {error.strerror or error}.") from error

    if config.step is not None:
        return _one_step(config, output, outputs, plan_here, began)
    ranks = ranks_here()
    leads = ranks is None or ranks.leads
    with RankSync(output, ranks) if ranks else nullcontext() as sync:
        plan = _shared_plan(sync, plan_here) if sync else plan_here()
        records, from_cache = _make(plan, config, output, outputs, sync)
        if leads:
            outputs.write(plan, records, output)
        if sync and leads:
            sync.finish()
    artifact = outputs.artifact(plan, records, output, time.monotonic() - began)
    if leads:
        _saved(artifact, config, plan, records, output)
    return PreparedData(plan, records, artifact, time.monotonic() - began, from_cache)


def _one_step(
    config: DataPrepConfig, output: Path, outputs: Outputs, plan_here: Callable[[], ShardPlan], began: float
) -> PreparedData:
    """The plan, the shards of one task, or what is made of all shards."""
    from nemotron_kit.data_prep.pool import all_records, check_all

    if config.step == PLAN:
        plan = plan_here()
        _print_plan_notes(plan, config, print_line)
        size = show_size(sum(source.size for source in plan.sources))
        count = sum(source.file_count for source in plan.sources)
        print_line(f"data prep: {len(plan.shards)} shards of {count:,} files ({size}) are planned")
        return PreparedData(plan, {}, None, time.monotonic() - began)
    index = PlanIndex.load(output)
    if index is None:
        raise UserError(f"{output} holds no {PLAN_FILE}.", hint=f"step={PLAN} makes it, before the other steps.")
    plan = index.head
    changed = [name for name in ("on_bad_row", "max_bad_rows") if getattr(config, name) != getattr(plan, name)]
    if changed:
        have = ", ".join(f"{name}={getattr(plan, name)}" for name in changed)
        print_line(f"data prep: {have}, as the plan has it: step={PLAN} with another value changes that")
    if config.step == SHARDS:
        records, from_cache = _make(plan, config, output, outputs, part=index.part)
        return PreparedData(plan, records, None, time.monotonic() - began, from_cache)
    known = all_records(plan, output, {})
    check_all(plan, known)
    _require_files(plan, known, output)
    outputs.summary(plan, known, print_line)
    outputs.write(plan, known, output)
    # From when the plan was frozen: that is what all of the steps took.
    elapsed = max(0.0, time.time() - (output / PLAN_FILE).stat().st_mtime)
    artifact = outputs.artifact(plan, known, output, elapsed)
    _saved(artifact, config, plan, known, output)
    return PreparedData(plan, known, artifact, elapsed)


def _require_files(plan: ShardPlan, records: Mapping[int, SavedRecord], output: Path) -> None:
    """Raise NemotronError if a shard's file is not there, or is cut off. Its content is what its maker has hashed."""
    store = None if plan.chat else store_of(output)
    for number, record in records.items():
        for name, (size, _) in record.files(plan.shards[number].name).items():
            path = output / name
            found = store.size(name) if store else path.stat().st_size if path.is_file() else None
            if found != size:
                raise NemotronError(
                    f"{place(output, name)}: not there whole, though its record is.",
                    hint="Run the task that makes it again.",
                )


def _saved(
    artifact: Any, config: DataPrepConfig, plan: ShardPlan, records: Mapping[int, SavedRecord], output: Path
) -> None:
    # What killed runs have left: none of it is needed once every shard is complete.
    for path in output.glob(f"*/.shard_*{TEMPORARY}"):
        with suppress(OSError):  # best effort: the next run tries again
            path.unlink(missing_ok=True)
    for folder in output.glob(f"{FOLDER}*"):
        shutil.rmtree(folder, ignore_errors=True)
    if plan.chat is None and store_of(output) is None:
        for number, record in records.items():
            artifact._sums.update(record.files(plan.shards[number].name))
    publish(output, artifact)
    artifact.save(name=config.artifact_name)


def _shared_plan(sync: RankSync, plan_here: Callable[[], ShardPlan]) -> ShardPlan:
    """The plan that rank 0 makes and the others load."""
    if sync.ranks.leads:
        plan = plan_here()
        sync.begin(plan.digest)
        return plan
    digest = sync.wait_for_plan()
    found = PlanIndex.load(sync.output)
    if found is None or found.head.digest != digest:
        hint = "Do all nodes see one and the same folder?"
        raise NemotronError(f"{sync.output}: not the plan that rank 0 has written.", hint=hint)
    numbers = _numbers_here(found.head, sync.ranks)
    return found.part(numbers)


def _make(
    plan: ShardPlan,
    config: DataPrepConfig,
    output: Path,
    outputs: Outputs,
    sync: RankSync | None = None,
    part: Callable[[Sequence[int]], ShardPlan] | None = None,
) -> tuple[dict[int, SavedRecord], bool]:
    """Every shard's record, of those made here and by the other ranks, and whether all of those to be made here existed
    already. With `part` (see `run_shards`) only those of the config's task."""
    from nemotron_kit.data_prep.pool import all_records, check_all, run_shards

    ranks = sync.ranks if sync else None
    workers = config.num_workers or max(1, cpus() // (ranks.local if ranks else 1))
    mine = _numbers_here(plan, ranks)
    if config.step == SHARDS:
        mine = range(len(plan.shards))[config.task :: config.tasks]
    with PrepProgress(plan, total=len(mine), ranks=ranks, counted=part is not None) as progress:
        if part is None:
            _print_plan_notes(plan, config, progress.print)

        def on_event(event: ShardEvent) -> None:
            progress.update(event)
            if sync is not None:
                sync.check()

        records = run_shards(plan, output, workers=workers, on_event=on_event, numbers=mine, part=part)
    note_rate(plan.tokens.model, progress.made, workers, progress.elapsed)
    if sync is not None:
        sync.wait_for_all()
        records = all_records(plan, output, records)
        check_all(plan, records)
    if part is None and (ranks is None or ranks.leads):
        outputs.summary(plan, records, progress.print)
    return records, progress.kept == len(mine)


def _numbers_here(plan: ShardPlan, ranks: RankLayout | None) -> range:
    """The numbers of the shards that this process makes."""
    return range(len(plan.shards))[ranks.rank :: ranks.count] if ranks else range(len(plan.shards))


def _write_outputs(plan: ShardPlan, records: dict[int, ShardRecord], output: Path) -> None:
    from nemotron_kit.data_prep.indexed import write_errors  # numpy

    sources = [plan.sources[shard.source] for shard in plan.shards]
    blend = megatron_blend(
        (shard.split, shard.source, source.weight, records[number].tokens, place(output, shard.name))
        for number, (shard, source) in enumerate(zip(plan.shards, sources, strict=True))
    )
    if not blend["train"]:
        raise UserError(
            "No document is left for training: every row is empty, bad or shorter than min_doc_chars.",
            hint=f"Read were {', '.join(source.uri for source in plan.sources)}.",
        )
    with write_errors(output / BLEND_FILE):
        write_text(output / REPORT_FILE, json.dumps(report(plan, records), indent=2) + "\n", mode=0o666)
        write_json(output / BLEND_FILE, blend, mode=0o666)


def check_packages() -> None:
    """Raise UserError if a package that data prep needs is not installed."""
    require_packages(NEEDED, "Data prep needs", hint='Run: pip install "nemotron-kit[data]"')


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print_plan_notes(plan: ShardPlan, config: DataPrepConfig, print_line: PrintLine) -> None:
    """Print where the plan differs from what was asked, and for each dataset the files that are not read."""
    asked = config.num_shards
    made = sum(shard.split in ("train", ALL) for shard in plan.shards)
    if asked is not None and made > asked:
        print_line(f"data prep: {made} train shards, not {asked}: a shard holds one source, and there are {made}.")
    if asked is not None and made < asked:
        print_line(f"data prep: {made} train shards, not {asked}: no compressed file is read more than twice.")
    for source in plan.sources:
        parts = []
        for omission in source.left_out:
            more = f" and {omission.count - 3} more" if omission.count > 3 else ""
            parts.append(f"{', '.join(omission.names[:3])}{more} ({omission.why})")
        if parts:
            count = sum(omission.count for omission in source.left_out)
            print_line(f"data prep: dataset {source.name!r}: {count} left out: {'; '.join(parts)}")
