"""The whole of a data preparation: plan, shards, blend.json, artifact."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_kit.data_prep.config import DataPrepConfig
from nemotron_kit.data_prep.outputs import BLEND_FILE, blend_lists, make_artifact, total
from nemotron_kit.data_prep.plan import Plan
from nemotron_kit.errors import UserError
from nemotron_kit.files import write_json

if TYPE_CHECKING:
    from nemotron_kit.artifacts import PretrainBlendsArtifact
    from nemotron_kit.data_prep.progress import Progress
    from nemotron_kit.data_prep.shard import ShardRecord

NEEDED = ("fsspec", "numpy", "orjson", "pyarrow", "tokenizers", "zstandard")


def run_data_prep(config: DataPrepConfig) -> PretrainBlendsArtifact:
    """Tokenize a blend to Megatron shards in `config.output_dir` and return them as an artifact.

    What is there already, whole, of the same plan is kept. The artifact's metadata.json lies in the folder; with
    `config.artifact_name` it is also in the registry. Raises UserError for bad input, naming file, key and line.
    """
    check_packages()
    from nemotron_kit.data_prep.planning import freeze_plan
    from nemotron_kit.data_prep.pool import run_shards
    from nemotron_kit.data_prep.progress import Progress

    began = time.monotonic()
    try:
        plan = freeze_plan(config)
    except OSError as error:  # a source that can't be opened, an output folder that can't be written
        raise UserError(f"{error.filename or config.output_dir}: {error.strerror or error}.") from error
    output = Path(config.output_dir).expanduser().absolute()
    with Progress(plan) as progress:
        _tell_counts(plan, config, progress)
        records = run_shards(plan, output, workers=config.num_workers or cpus(), tell=progress.hear)
        _tell_empty(plan, records, progress)
    _sweep(output)
    write_json(output / BLEND_FILE, blend_lists(plan, records, output), mode=0o666)
    artifact = make_artifact(plan, records, output, time.monotonic() - began)
    artifact.save(name=config.artifact_name)
    return artifact


def check_packages() -> None:
    """Raise UserError if a package that data prep needs is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        hint = 'Run: pip install "nemotron-kit[data]"'
        raise UserError(f"Data prep needs {', '.join(missing)}, which is not installed.", hint=hint)


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell_counts(plan: Plan, config: DataPrepConfig, progress: Progress) -> None:
    asked = config.num_shards
    made = sum(shard.split == "train" for shard in plan.shards)
    if asked is not None and made > asked:
        progress.say(f"data prep: {made} train shards, not {asked}: a shard holds one source, and there are {made}.")


def _tell_empty(plan: Plan, records: dict[int, ShardRecord], progress: Progress) -> None:
    for number, source in enumerate(plan.sources):
        if not total(plan, records, "documents", source=number):
            progress.say(f"data prep: dataset {source.name!r} gave no document; it is left out of blend.json.")
    for split in _splits(plan):
        if not total(plan, records, "documents", split=split):
            progress.say(f"data prep: nothing fell to {split}: there is too little text for so many shards.")


def _splits(plan: Plan) -> Iterable[str]:
    return dict.fromkeys(shard.split for shard in plan.shards)


def _sweep(output: Path) -> None:
    """Remove what killed runs left: now that every shard is there, no one needs it."""
    from nemotron_kit.data_prep.indexed import TEMPORARY

    for path in output.glob(f"*/.shard_*{TEMPORARY}"):
        path.unlink(missing_ok=True)
