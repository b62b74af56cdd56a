"""A ledger of its own for every test."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import RunFolder, create_run

MakeRun = Callable[..., RunFolder]


@pytest.fixture(autouse=True)
def ledger(home: Path) -> Path:
    return home / "runs"


@pytest.fixture
def make_run() -> MakeRun:
    """Make a run of `stage`, `age` ago, whose jobs ended with `codes` (None: still pending)."""

    def make(
        stage: str = "pretrain",
        *,
        recipe: str = "nano3",
        age: timedelta = timedelta(0),
        codes: tuple[int | None, ...] = (None,),
        **plan: Any,
    ) -> RunFolder:
        now = datetime.now(UTC) - age
        run_id = new_run_id(recipe, stage, now=now)
        plan = {"recipe": recipe, "stage": stage, "created_at": now.isoformat(), **plan}
        run = create_run(run_id, plan, [{"config.yaml": "a: 1\n"}] * len(codes))
        for job, code in zip(run.jobs(), codes, strict=True):
            if code is not None:
                job.transition("running")
                job.finish(code)
        return run

    return make
