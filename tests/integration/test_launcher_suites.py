"""Hydra's own suites for launcher plugins, with every job really run in a process of its own on this machine.

Each runs twice: jobs as tasks of NeMo-Run's Experiment, and as plain processes of the kit. All of their tests apply.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

VIA = [
    pytest.param("nemo_run", marks=pytest.mark.skipif(not find_spec("nemo_run"), reason="NeMo-Run is not installed")),
    "kit",
]
needs_cloudpickle = pytest.mark.skipif(not find_spec("cloudpickle"), reason="cloudpickle is not installed")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("home")  # not in tmp_path: Hydra's own tests work there
    monkeypatch.setenv("NEMOTRON_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    before = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = before


@pytest.fixture(params=VIA)
def via(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def ran(home: Path, via: str) -> Iterator[None]:
    """After the test: its jobs have records of their own, and NeMo-Run's where it was asked for."""
    yield
    for run in (home / "runs").glob("*"):
        jobs = list((run / "jobs").glob("*/exit.json"))
        tasks = list(run.glob("nemo_run/experiments/sweep/*/job-*"))
        assert jobs
        assert len(tasks) == (len(jobs) if via == "nemo_run" else 0)


def test_hydra_finds_the_plugin() -> None:
    assert "NemoRunLauncher" in [plugin.__name__ for plugin in Plugins.instance().discover(Launcher)]


@pytest.fixture
def launcher_name() -> str:
    return "nemo_run"


@pytest.fixture
def overrides(via: str) -> list[str]:
    return [f"hydra.launcher.via={via}"]


@pytest.mark.usefixtures("ran")
@needs_cloudpickle
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.usefixtures("ran")
@needs_cloudpickle
class TestBatches(BatchedSweeperTestSuite):
    @pytest.fixture
    def overrides(self, overrides: list[str]) -> list[str]:
        return [*overrides, "hydra.sweeper.max_batch_size=2"]


@pytest.mark.usefixtures("ran")
class TestPrograms(IntegrationTestSuite):
    @pytest.fixture
    def task_launcher_cfg(self, via: str) -> dict[str, Any]:
        return {"defaults": [{"override hydra/launcher": "nemo_run"}], "hydra": {"launcher": {"via": via}}}

    @pytest.fixture
    def extra_flags(self) -> list[str]:
        return ["-m"]
