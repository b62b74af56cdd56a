"""A NEMOTRON_HOME that was moved: every command reads it where it is now, and what lies in it is found there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nemotron_kit.artifacts import Artifact
from nemotron_kit.artifacts.manifest import relative_to
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.home import home_names, moved, new_run_id
from nemotron_kit.launch.queue import load_plan
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.training.data import read_blend

from ...old_home import move_home
from .conftest import MakeRun


def test_a_registry_elsewhere_stays_what_it_is(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what lies in the home moves with it."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    Artifact(path=folder).save(name="Data")
    move_home(tmp_path, monkeypatch)
    assert open_registry().resolve("Data:v0").path == str(folder)
    assert open_registry().verify(open_registry().resolve("Data:v0"), deep=True)


def test_texts_of_jobs_that_were_not_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler's script is made anew from the record: with the paths of now."""
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "home"))
    run_id = new_run_id("r", "go")
    folder = f"{tmp_path}/home/runs/{run_id}"
    texts = {"config.yaml": "a: 1\n", "sbatch.sh": f"#SBATCH --output={folder}/log\npython -m worker {folder}/jobs/0\n"}
    place = {"root": f"{tmp_path}/home", "run": folder, "job": f"{folder}/jobs/0", "apart": False}
    create_run(run_id, {"recipe": "r", "stage": "go", "executor": "slurm", "place": place, "files": texts}, [texts])
    home = move_home(tmp_path, monkeypatch)
    plan = load_plan(run := open_run(run_id), run.job())
    assert plan.files["sbatch.sh"] == texts["sbatch.sh"].replace(f"{tmp_path}/home", str(home))
    assert plan.paths.run == str(run.path) and not plan.has_separate_folder
    # Of a job elsewhere, the record holds the other machine's paths.
    place = {**place, "root": f"{tmp_path}/home", "run": f"/lustre/me/runs/{run_id}", "cwd": f"{tmp_path}/home/x"}
    away = create_run(
        new_run_id("r", "go"), {"recipe": "r", "stage": "go", "executor": "slurm", "place": place}, [texts]
    )
    again = move_home(tmp_path / "elsewhere", monkeypatch, "again")
    assert RunFolder(again / "runs" / away.id).plan()["place"] == place


def test_shards_of_a_blend_lie_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "blend.json").write_text(json.dumps({"train": ["1", f"{folder}/train/shard", "2", "/other/shard"]}))
    Artifact(path=folder).save()
    new = folder.rename(tmp_path / "moved")
    prefixes = [source.prefix for source in read_blend(new / "blend.json")["train"]]
    assert prefixes == [f"{new}/train/shard", "/other/shard"]


@pytest.mark.parametrize(
    ("text", "now"),
    [
        ("/a/lab", "/b"),
        ("/a/lab/runs/x", "/b/runs/x"),
        ("--volume=/a/lab/x:/a/lab", "--volume=/b/x:/b"),
        ("/a/lab2/x", "/a/lab2/x"),
        ("/mnt/a/lab/x", "/mnt/a/lab/x"),
        ("lab/x", "lab/x"),
        ("file:///a/lab/x", "file:///b/x"),
    ],
)
def test_paths_in_texts(text: str, now: str) -> None:
    assert moved({text: [text, 1]}, ["/a/lab"], Path("/b")) == {now: [now, 1]}


def test_a_home_inside_its_old_place(tmp_path: Path) -> None:
    assert moved(["/lab/runs/x", "/lab/home/runs/x"], ["/lab"], Path("/lab/home")) == ["/lab/home/runs/x"] * 2
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert home_names(link) == [str(link), os.path.realpath(tmp_path)]
    # A link that leads elsewhere now; while the real path is there, it is left as it is.
    assert moved("/gone/real/x", [str(link), "/gone/real"], link) == f"{link}/x"
    assert moved(f"{tmp_path}/x", [str(link), str(tmp_path)], link) == f"{tmp_path}/x"
    assert relative_to(["/a/b", "/ab"], {"/a": "."}) == ["./b", "/ab"]
