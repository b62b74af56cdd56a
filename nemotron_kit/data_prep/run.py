"""The whole of a data preparation: plan, shards, blend.json, artifact."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_kit.data_prep.blend import DataBlend
from nemotron_kit.data_prep.config import DataPrepConfig
from nemotron_kit.data_prep.outputs import BLEND_FILE, blend_lists, make_artifact
from nemotron_kit.data_prep.plan import Plan
from nemotron_kit.data_prep.report import REPORT_FILE, report, tell_left_out, tell_read
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import write_json, write_text

if TYPE_CHECKING:
    from nemotron_kit.artifacts import PretrainBlendsArtifact
    from nemotron_kit.data_prep.pool import Event
    from nemotron_kit.data_prep.progress import Progress
    from nemotron_kit.data_prep.ranks import Meeting
    from nemotron_kit.data_prep.shard import ShardRecord

_VISIBLE = 120.0  # seconds
NEEDED = ("fsspec", "numpy", "orjson", "pyarrow", "tokenizers", "zstandard")


def run_data_prep(config: DataPrepConfig) -> PretrainBlendsArtifact:
    """Tokenize a blend to Megatron shards in `config.output_dir` and return them as an artifact.

    What is there already, whole, of the same plan is kept. The artifact's metadata.json lies in the folder; with
    `config.artifact_name` it is also in the registry. Called by each process that torchrun or srun started, it shares
    the shards out over them: rank 0 makes the plan, writes blend.json and saves; the others' artifact is not saved.
    Raises UserError for bad input, naming file, key and line.
    """
    return prepare(config).artifact


@dataclass(frozen=True)
class Prepared:
    """A finished data preparation; `kept` shards were there already."""

    plan: Plan
    records: dict[int, ShardRecord]
    artifact: PretrainBlendsArtifact
    elapsed: float
    kept: int


def prepare(config: DataPrepConfig, blend: DataBlend | None = None, *, number_type: str | None = None) -> Prepared:
    """`run_data_prep`, for a blend and a number type of the .bin that need not be those of the config."""
    check_packages()
    config.check()
    from nemotron_kit.data_prep.planning import freeze_plan
    from nemotron_kit.data_prep.ranks import Meeting, ranks_here

    began = time.monotonic()
    output = Path(config.output_dir).expanduser().absolute()
    ranks = ranks_here()

    def plan_here() -> Plan:
        try:
            return freeze_plan(config, blend, number_type=number_type)
        except OSError as error:  # a source that can't be opened, an output folder that can't be written
            raise UserError(f"{error.filename or config.output_dir}: {error.strerror or error}.") from error

    leads = ranks is None or ranks.leads
    with Meeting(output, ranks) if ranks else nullcontext() as meeting:
        plan = _shared_plan(meeting, plan_here) if meeting else plan_here()
        records, kept = _make(plan, config, output, meeting)
        if leads:
            _write_outputs(plan, records, output)
        if meeting and leads:
            meeting.finish()
    artifact = make_artifact(plan, records, output, time.monotonic() - began)
    if leads:
        _sweep(output)
        artifact.save(name=config.artifact_name)
    return Prepared(plan, records, artifact, time.monotonic() - began, kept)


def _shared_plan(meeting: Meeting, plan_here: Callable[[], Plan]) -> Plan:
    """The plan that rank 0 makes and the others load."""
    if meeting.ranks.leads:
        plan = plan_here()
        meeting.begin(plan.digest)
        return plan
    digest = meeting.wait_for_plan()
    found = Plan.load(meeting.output)
    if found is None or found.digest != digest:
        hint = "Do all nodes see one and the same folder?"
        raise NemotronError(f"{meeting.output}: not the plan that rank 0 has written.", hint=hint)
    return found


def _make(
    plan: Plan, config: DataPrepConfig, output: Path, meeting: Meeting | None = None
) -> tuple[dict[int, ShardRecord], int]:
    """Every shard's record, and how many were there already: made here, and by the other ranks."""
    from nemotron_kit.data_prep.pool import check_all, run_shards
    from nemotron_kit.data_prep.progress import Progress

    ranks = meeting.ranks if meeting else None
    workers = config.num_workers or max(1, cpus() // (ranks.local if ranks else 1))
    mine = range(len(plan.shards))[ranks.rank :: ranks.count] if ranks else range(len(plan.shards))
    with Progress(plan, total=len(mine), ranks=ranks) as progress:
        _tell_plan(plan, config, progress)

        def hear(event: Event) -> None:
            progress.hear(event)
            if meeting is not None:
                meeting.check()

        records = run_shards(plan, output, workers=workers, tell=hear, numbers=mine)
    if meeting is not None:
        meeting.wait_for_all()
        records = _all_records(plan, output, records)
        check_all(plan, records)
    if ranks is None or ranks.leads:
        tell_read(plan, records, progress.say)
    return records, progress.kept


def _all_records(plan: Plan, output: Path, mine: dict[int, ShardRecord]) -> dict[int, ShardRecord]:
    from nemotron_kit.data_prep.shard import ShardRecord, record_path

    records = {}
    for number, shard in enumerate(plan.shards):
        path = record_path(output / shard.name)
        record = mine.get(number)
        until = time.monotonic() + _VISIBLE
        # A network's file system may show another node's file a moment later.
        while record is None and (record := ShardRecord.load(path)) is None and time.monotonic() < until:
            time.sleep(0.2)
        if record is None or record.plan != plan.digest:
            raise NemotronError(f"{path}: not there, though its rank has made it.", hint="Do all nodes see one folder?")
        records[number] = record
    return records


def _write_outputs(plan: Plan, records: dict[int, ShardRecord], output: Path) -> None:
    blend = blend_lists(plan, records, output)
    write_text(output / REPORT_FILE, json.dumps(report(plan, records), indent=2) + "\n", mode=0o666)
    write_json(output / BLEND_FILE, blend, mode=0o666)


def check_packages() -> None:
    """Raise UserError if a package that data prep needs is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        hint = 'Run: pip install "nemotron-kit[data]"'
        raise UserError(f"Data prep needs {', '.join(missing)}, which is not installed.", hint=hint)


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell_plan(plan: Plan, config: DataPrepConfig, progress: Progress) -> None:
    asked = config.num_shards
    made = sum(shard.split == "train" for shard in plan.shards)
    if asked is not None and made > asked:
        progress.say(f"data prep: {made} train shards, not {asked}: a shard holds one source, and there are {made}.")
    tell_left_out(plan, progress.say)


def _sweep(output: Path) -> None:
    """Remove what killed runs left: now that every shard is there, no one needs it."""
    from nemotron_kit.data_prep.indexed import TEMPORARY
    from nemotron_kit.data_prep.ranks import FOLDER

    for path in output.glob(f"*/.shard_*{TEMPORARY}"):
        with suppress(OSError):  # it disturbs nobody, and the next run tries again
            path.unlink(missing_ok=True)
    for folder in output.glob(f"{FOLDER}*"):
        shutil.rmtree(folder, ignore_errors=True)
