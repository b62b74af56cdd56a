"""A plan's shards made by datatrove's executors (local, Slurm, Ray); imported only where datatrove is installed.

freeze_plan(config)
LocalPipelineExecutor(pipeline=[MegatronShards(config.output_dir)], tasks=8).run()
run_data_prep(config)  # finds every shard complete, and writes blend.json and the artifact
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from nemotron_kit.data_prep.pool import ensure_shard
from nemotron_kit.data_prep.shard_plan import PLAN_FILE, PlanIndex
from nemotron_kit.data_prep.stored import working_folder
from nemotron_kit.errors import UserError


class MegatronShards(PipelineStep):  # type: ignore[misc]
    """Makes the shards of the frozen plan in `output_dir`; task r of n makes shards r, r+n, r+2n, …

    The bytes are those of `run_data_prep`, for any number of tasks. The folder must be one that every task sees.
    """

    name = "Megatron shards"
    type = "Data prep"

    def __init__(self, output_dir: str | Path) -> None:
        super().__init__()
        self.output_dir = str(working_folder(output_dir))

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Make this task's shards; documents of an earlier step pass through untouched."""
        folder = Path(self.output_dir)
        index = PlanIndex.load(folder)
        if index is None:
            raise UserError(f"{folder} holds no {PLAN_FILE}.", hint="Call freeze_plan(config) before the executor.")
        for number in range(rank, len(index.head.shards), world_size):
            with self.track_time():
                record, how = ensure_shard(index.part([number]), number, folder)
            self.stat_update(f"shards_{how.partition(':')[0]}")
            self.stat_update("tokens", value=record.tokens)
        yield from data or ()
