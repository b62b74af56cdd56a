"""Hydra's own suites for launcher plugins, with every job run by a real Slurm from a script of NeMo-Run's.

Of their tests one never has a job, `test_not_sweeping_hydra_overrides`; it runs all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

from .slurm_world import ENV

pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")


@pytest.fixture
def cluster(slurm: Any, cluster_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, an env.toml with profile C, and the cluster's environment; the home."""
    (tmp_path / "env.toml").write_text(ENV)
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    for name, text in slurm.env.items():
        monkeypatch.setenv(name, text)
    return cluster_home


@pytest.fixture
def ran(cluster: Path) -> Iterator[None]:
    """After the test: each of its jobs ran in Slurm, in one array a batch, and says so itself."""
    yield
    for run in (cluster / "runs").glob("2*"):
        exits = [json.loads(path.read_text()) for path in run.glob("jobs/*/exit.json")]
        assert exits
        assert all("answer" in record for record in exits)
        assert all("scheduler" in _started(path.parent) for path in run.glob("jobs/*/exit.json"))
        assert len(list((run / "slurm").glob("*.sh"))) in (1, 3)


def _started(job: Path) -> dict[str, Any]:
    states = [json.loads(path.read_text()) for path in (job / "state").iterdir()]
    found: dict[str, Any] = next(state for state in states if state["state"] == "running" and "scheduler" in state)
    return found


OVERRIDES = ["hydra.launcher.profile=C", "+hydra.launcher.env.packager=none"]
CONFIG = {"defaults": [{"override hydra/launcher": "nemo_run"}], "hydra": {"launcher": {"profile": "C"}}}


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("nemo_run", OVERRIDES)])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("nemo_run", [*OVERRIDES, "hydra.sweeper.max_batch_size=2"])])
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [(CONFIG, ["-m"])])
class TestPrograms(IntegrationTestSuite):
    pass
