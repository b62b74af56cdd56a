"""The lines of the user's document that need a cluster, typed as they stand there, on the real Slurm.

Completed is what a reader would have to complete: in the document's MY-CLUSTER this cluster's account, and no GPUs, of
which it has none; data, and a model that fits.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.remote.agent import slurm as slurm_agent

from ..integration.document.extract import Snippet, find_document, snippets
from ..integration.document.on_cluster import ON_CLUSTER
from ..integration.document.world import ENV_TOML, World, my_recipe
from .slurm_world import until

PROFILE = "NeMo-Run Integration/2"
RUN, BATCH = ("Examples/1:2", "NeMo-Run Integration/1:1"), ("Examples/1:3", "NeMo-Run Integration/1:2")
TINY = " -c tiny train.train_iters=4 train.eval_iters=1 checkpoint.save_interval=2"
# The data that the document's lines ask for by default takes a cluster's storage; its name is all that matters here.
AS_DEFAULT = """\
from nemotron.kit import PretrainBlendsArtifact

data = PretrainBlendsArtifact.from_uri("art://PretrainBlendsArtifact-tiny")
data.save(name="PretrainBlendsArtifact-default")
"""


@pytest.fixture(scope="module")
def document() -> dict[str, Snippet]:
    path = find_document()
    if path is None:
        pytest.skip("the user's document is not beside the checkout; $NEMOTRON_DOCUMENT can name it")
    return snippets(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose registry has nano3's tiny data, under the default's name too."""
    folder = tmp_path_factory.mktemp("data")
    world = World({}, folder, folder / "home")
    world.run("nemotron nano3 data prep pretrain -c tiny")
    world.python(AS_DEFAULT)
    return world.home


@pytest.fixture
def world(document: dict[str, Snippet], slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CONF", os.environ["SLURM_CONF"])
    (tmp_path / "user").mkdir()
    made = World(document, tmp_path / "user", tmp_path / "home")
    profile = made.text(PROFILE)
    assert 'account = "my-account"\n' in profile and "gpus_per_node = 8\n" in profile
    made.write("env.toml", profile.replace('"my-account"', f'"{slurm.account}"').replace("gpus_per_node = 8\n", ""))
    yield made
    for run in (made.home / "runs").glob("2*"):
        made.run(f"nemotron runs cancel {run.name}", code=None)


def test_no_line_is_left_out(document: dict[str, Snippet]) -> None:
    """The document has two of them twice."""
    assert sorted([*RUN, *BATCH, "Step 6: Run/1:2"]) == sorted(ON_CLUSTER)
    assert [len({document[key].text for key in keys}) for keys in (RUN, BATCH)] == [1, 1]


@pytest.mark.parametrize("key", [RUN[0], BATCH[0]])
def test_without_data_it_is_refused_at_once(key: str, world: World) -> None:
    """Nothing was made yet: said in seconds, with the command that makes it, and nothing is submitted."""
    began = time.monotonic()
    refused = world.run(world.text(key), code=2, forked=False)
    assert time.monotonic() - began < 15
    assert "No artifact is called 'PretrainBlendsArtifact-default'" in refused.err
    assert "nemotron nano3 data prep pretrain" in refused.err
    assert not (world.home / "runs").exists()


def test_the_default_model_is_refused_where_it_runs(world: World, tiny_data: Path) -> None:
    """How much memory the launching machine has is no matter; the node says in seconds that it has too little."""
    world.borrow(tiny_data)
    failed = world.run_line(RUN[0], code=1)
    assert "31.6 B parameters" in failed.out and "try -c tiny" in failed.out
    assert "failed: " in failed.err and "nemotron runs show" in failed.err


def test_attached_to_its_last_step(world: World, tiny_data: Path) -> None:
    world.borrow(tiny_data)
    done = world.run_line(RUN[0], TINY)
    assert "step 4/4" in done.out and "succeeded in" in done.err
    _trained(world)


def test_detached_to_its_last_step(world: World, tiny_data: Path) -> None:
    world.borrow(tiny_data)
    began = time.monotonic()
    said = world.run_line(BATCH[0], TINY)
    assert said.out == "" and "is submitted to MY-CLUSTER" in said.err and time.monotonic() - began < 20
    assert "succeeded" in world.run("nemotron runs wait latest").out
    assert "step 4/4" in world.run("nemotron runs attach --all latest").out
    _trained(world)


def test_stopped_near_a_time_limit_it_goes_on_to_its_last_step(world: World, slurm: Any, tiny_data: Path) -> None:
    """USR1 is what Slurm sends before a limit: it saves, is queued again and goes on, all by itself."""
    world.borrow(tiny_data)
    world.run_line(BATCH[0], " -c tiny --run.nodes 1 train.train_iters=80")
    job = world.runs()[0]
    until(lambda: (job / "metrics.jsonl").exists(), 90)
    (record,) = slurm_agent.read_all(job.parents[1])
    slurm.run("scancel", "--signal=USR1", str(record.job))
    assert "succeeded" in world.run("nemotron runs wait latest").out
    (shown,) = json.loads(world.run("nemotron runs show latest --json").out)["job_records"]
    states = [entry["state"] for entry in shown["history"]]
    assert states == ["pending", "running", "preempted", "running"] and shown["exit_code"] == 0
    log = (job / "logs" / "job.log").read_text()
    assert "step 80/80" in log and log.count("step 20/80") == 1, "no step was done twice"
    assert world.registry.versions("ModelArtifact-pretrain") == [0]


def _trained(world: World) -> None:
    """Two nodes have trained one model, and the registry has it once."""
    (job,) = world.runs()
    scheduler = json.loads(world.run("nemotron runs show latest --json").out)["job_records"][0]["scheduler"]
    assert scheduler["nodes"] == 2 and {path.name for path in job.glob("logs/rank-*.log")} == {
        "rank-0.log",
        "rank-1.log",
    }
    assert world.registry.versions("ModelArtifact-pretrain") == [0]
    assert world.registry.find("ModelArtifact-pretrain:v0").document["step"] == 4
    assert world.parents("ModelArtifact-pretrain:v0") == ["PretrainBlendsArtifact-tiny:v0"]


def test_a_recipe_of_ones_own(world: World) -> None:
    profile = (world.folder / "env.toml").read_text()
    my_recipe(world)
    world.write("env.toml", ENV_TOML + "\n" + profile)
    world.run("nemotron myrecipe data prep run -c tiny")
    done = world.run_line("Step 6: Run/1:2")
    assert "succeeded in" in done.err
    model = world.registry.find("MyRecipe-model:v0")
    assert (model.type, model.document["step"]) == ("ModelArtifact", 3)
    assert world.registry.versions("MyRecipe-model") == [0]
    assert world.parents("MyRecipe-model:v0") == ["MyRecipe-data:v0"]
