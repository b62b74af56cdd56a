"""A plan on record: written and read back, by this version and older ones, whole and damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.errors import NemotronError, Problem
from nemotron_kit.launch.queue import LAUNCH_FILE, load_plan, to_text
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import DamagedRunRecord
from nemotron_kit.spec.paths import CodeTree, RemotePaths
from nemotron_kit.spec.plan import Container, Plan, read_spec, stored_plan
from nemotron_kit.spec.resources import Resources
from nemotron_kit.spec.runconfig import RunConfig

RUN = "20261124-171204-work-read-1f03a7"


@pytest.fixture
def whole(tmp_path: Path) -> Plan:
    folder = tmp_path / "runs" / RUN
    tree = CodeTree("/here", "sub", "worktree", git=True)
    place = RemotePaths("/t", f"/t/runs/{RUN}", f"/t/runs/{RUN}/jobs/0", "/t/c", "/t/c/sub", "py", "/t/kit", "/t/a",
                        tree, (("/here", "/t/c"),), is_remote=True, host="h", separate_registry=True)  # fmt: skip
    return Plan(
        run_id=RUN, recipe="work", stage="read/more", folder=str(folder), argv=("nemotron", "work", "a b=1"),
        hydra=("recipe=work", "x='a b'"), mode="batch", profile="C", executor="slurm", launch="detached",
        settings=RunConfig(executor="slurm", account="a", exclusive=False, env_vars=["A=b"], extra={"x": [1]}),
        config_name="tiny", config_file="/c.yaml", config={"a": {"b": 1}}, references={"data": "D:latest", "w": "W"},
        inputs={"data": Pin("D", 3, "ab", "T", "/d", "reg"), "w": None}, launch_command=("py", "-m", "x"),
        environment={"A": "b"}, secrets=("S",), captured={"PWD": "/x"}, files={"config.yaml": "a: 1\n"}, paths=place,
        problems=(Problem("p"),), notes=("n",), resources=Resources(2, 4, True, 3, None, ("said",)), mounts=("/m",),
        container=Container("n", "i", ("docker", "run")), request={"to": "x", "body": {}},
        repositories=({"folder": "f", "url": "u"},), after=("other",), dependency=("12",), wait_first=(), attempt=2,
        rerun_of="old/3", code={"commit": None, "dirty": True},
    )  # fmt: skip


def stored(plan: Plan, **changed: Any) -> RunFolder:
    root = Path(plan.folder).parent
    return create_run(plan.run_id, {**plan.to_dict(), **changed}, [plan.files], root=root)


def test_a_config_with_bytes_is_recorded_as_its_yaml_has_them(whole: Plan) -> None:
    run = stored(replace(whole, config={"raw": [b"ab"]}))
    assert run.plan()["config"] == {"raw": ["YWI="]}


def test_a_plan_is_read_back_as_it_was(whole: Plan) -> None:
    run = stored(whole, of_a_later_version={"x": 1})
    assert stored_plan(run) == whole
    assert {**run.plan(), **stored_plan(run).to_dict()} == run.plan()
    assert replace(load_plan(run, run.job()), files=whole.files) == whole


def test_what_a_job_of_a_sweep_holds_is_its_own(whole: Plan) -> None:
    run = stored(whole, kind="sweep", hydra=["-m", "x=1,2"])
    second = replace(whole, job=1, mounts=None, dependency=None, paths=replace(whole.paths, job="/t/1"))
    run.add_job(1, {**second.files, LAUNCH_FILE: to_text(second)})
    read = load_plan(run, run.job(1))
    assert (read.job, read.mounts, read.dependency, read.paths) == (1, None, None, second.paths)
    assert (read.settings, read.resources, read.files["config.yaml"]) == (whole.settings, whole.resources, "a: 1\n")
    assert (stored_plan(run).kind, stored_plan(run).hydra) == ("sweep", ("-m", "x=1,2"))


def test_what_an_older_record_lacks_is_as_if_never_asked_for(tmp_path: Path) -> None:
    run = create_run(RUN, {"executor": "slurm", "settings": {"host": "h", "gone_since": 1}, "place": None}, [{}],
                     root=tmp_path)  # fmt: skip
    plan = stored_plan(run)
    assert plan.settings == RunConfig(executor="slurm", host="h") and not plan.has_separate_folder
    assert (plan.paths.run, plan.paths.job) == (str(run.path), str(run.job().path))
    assert (plan.mode, plan.recipe, plan.after, plan.resources, plan.command_line) == ("local", "", (), None, "")
    bare = create_run(RUN, {}, [], root=tmp_path / "bare")
    assert stored_plan(bare).executor == stored_plan(bare).settings.executor == "local"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"executor": "slurm", "settings": {"executor": "year"}}, "executor is 'slurm', and settings.executor 'year'"),
        ({"settings": {"nodes": "two"}}, 'settings.nodes is "two", not a whole number'),
        ({"settings": {"env_vars": [1]}}, r"settings.env_vars\[0\] is 1, not"),
        ({"place": {"run": 7}}, "place.run is 7, not"),
        ({"place": {"tree": {"git": "yes"}}}, 'place.tree.git is "yes", not'),
        ({"resources": {"nodes": "x"}}, 'resources.nodes is "x", not'),
        ({"container": {"words": "docker"}}, 'container.words is "docker", not'),
        ({"environment": {"NEMO_RUN_DIR": "a\0b"}}, "environment.NEMO_RUN_DIR has a NUL character"),
        ({"dependency": 12}, "dependency is 12, not"),
        ({"inputs": {"data": {"version": -1}}}, "inputs: Not a pin"),
    ],
)
def test_a_wrong_type_names_file_and_key(whole: Plan, changed: dict[str, Any], says: str) -> None:
    run = stored(whole, **changed)
    with pytest.raises(DamagedRunRecord, match=f"plan.json: {says}"):
        stored_plan(run)


def test_a_damaged_record_of_a_job_names_its_own_file(whole: Plan) -> None:
    run = stored(whole)
    own = json.loads(to_text(whole))
    for changed in ({"settings": {"nodes": "two"}}, {"extra": {"mounts": "/m"}}, {"files": {}}):
        (run.job().path / LAUNCH_FILE).write_text(json.dumps({**own, **changed}))
        with pytest.raises(DamagedRunRecord, match=rf"jobs/0/{LAUNCH_FILE}: .*{next(iter(changed))}.* is "):
            load_plan(run, run.job())


def test_deferred_inputs_as_an_older_version_wrote_them(tmp_path: Path) -> None:
    spec = {
        **dict.fromkeys(("kit", "command", "handler", "config_cls", "cwd"), "x"),
        "script": None,
        "nproc_per_node": 1,
        "sys_path": [],
        "environment": {},
    }
    for name in ("late", "deferred_inputs"):
        (tmp_path / "job.json").write_text(json.dumps({**spec, name: {"data": "@run:x"}}))
        assert read_spec(tmp_path).deferred_inputs == {"data": "@run:x"}


@pytest.mark.parametrize("count", [0, 10**400, True, "2", None])
def test_a_spec_with_a_senseless_number_of_processes_is_damaged(tmp_path: Path, count: Any) -> None:
    whole = {"command": "x y", "handler": "a:b", "config_cls": "a:C", "script": None, "nproc_per_node": 1}
    whole |= {"cwd": "/", "sys_path": [], "environment": {}}
    (tmp_path / "job.json").write_text(json.dumps(whole))
    assert read_spec(tmp_path).nproc_per_node == 1
    (tmp_path / "job.json").write_text(json.dumps({**whole, "nproc_per_node": count}))
    with pytest.raises(NemotronError, match=r"damaged: nproc_per_node is .* not 1 to 1024"):
        read_spec(tmp_path)
