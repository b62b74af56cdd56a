"""A worker whose Python lacks what it needs: an image's, as a rule."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.worker import distributed
from nemotron_kit.worker.distributed import Node


@pytest.mark.parametrize("rank", [0, 1])
def test_a_module_that_is_missing_is_on_record_with_the_python_that_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    def broken(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")

    monkeypatch.chdir(tmp_path)
    for name in ("ignore_usr1", "_print_to", "read_config"):
        monkeypatch.setattr(distributed, name, lambda *_: None)
    monkeypatch.setattr(distributed, "captured", lambda *_, **__: nullcontext())
    monkeypatch.setattr(distributed, "_lead", broken)
    monkeypatch.setattr(distributed, "_join", broken)
    job, spec = JobFolder(tmp_path), SimpleNamespace(code=None, secrets=[], cwd=str(Path.cwd()))
    with pytest.raises(NemotronError, match="has no module 'yaml'"):
        distributed.run_scheduled(job, spec, Node(rank=rank, count=2))  # type: ignore[arg-type]
    record = job.exit_record()
    assert (record is not None) == (rank == 0)
    assert record is None or "has no module 'yaml'" in str(record["error"])
