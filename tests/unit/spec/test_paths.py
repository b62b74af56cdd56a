"""What a launch's paths mean on the machine where the job runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import nemotron_kit
from nemotron_kit.app import App
from nemotron_kit.config.compose import compose
from nemotron_kit.config.freeze import freeze
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.launch.placing import ResolvedJob, check_paths, unshipped_problems
from nemotron_kit.launch.plan import build_plan
from nemotron_kit.spec.paths import RemotePaths, moved, with_folder
from nemotron_kit.spec.plan import Plan
from nemotron_kit.spec.runconfig import RunConfig

RUN = "20261124-171204-r-s-1f03a7"
ROOT = "/lustre/me/nk"
JOB = f"{ROOT}/runs/{RUN}/jobs/0"
SSH = {"executor": "slurm", "tunnel": "ssh", "host": "far", "user": "me", "remote_job_dir": ROOT}


@pytest.fixture
def launch(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A launch from the folder `sub` of a repository."""
    folder = tmp_path / "project" / "sub"
    folder.mkdir(parents=True)
    (tmp_path / "project" / ".git").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", str(folder))
    return folder


def place(**settings: object) -> RemotePaths:
    return executor_for(RunConfig(**settings)).paths(RUN, 0)  # type: ignore[arg-type]


def frozen(where: RemotePaths, **values: object) -> dict[str, object]:
    config = OmegaConf.create({"run": {}, **values})
    return moved(freeze(config, where.job, pwd=where.environment["PWD"]), where)


def test_paths_of_the_target_are_moved_back(launch: Path) -> None:
    there = place(**SSH)
    for text in (str(launch / "a.py"), str(launch.parent), "/data/x"):
        assert there.move_back(there.move(text)) == text
    assert there.move_back(f"{JOB}/out") == f"{JOB}/out", "no path of this machine"


def test_in_a_cloud_all_lies_where_nemo_run_puts_it(launch: Path) -> None:
    there = place(executor="kubeflow", container_image="nemo:1")
    assert (there.job, there.code, there.cwd) == ("/nemo_run/job", "/nemo_run/code", "/nemo_run/code/sub")
    assert (there.python, there.package) == ("python3", None)
    assert there.move(str(launch.parent / "data.yaml")) == "/nemo_run/code/data.yaml"


def test_on_another_machine_all_lies_below_its_root(launch: Path) -> None:
    there = place(**SSH)
    assert there.job == JOB
    assert there.code == f"{JOB}/code"
    assert there.cwd == f"{JOB}/code/sub"
    assert there.artifacts == f"{ROOT}/artifacts"
    assert str(there.package).startswith(f"{ROOT}/kit/")
    assert (there.python, there.is_remote) == ("python3", True)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("${oc.env:PWD}/out", f"{JOB}/code/sub/out"),
        ("file://${oc.env:PWD}/out", f"file://{JOB}/code/sub/out"),
        ("${oc.env:NEMO_RUN_DIR,.}/out", f"{JOB}/out"),
        ("{launch}/data.json", f"{JOB}/code/sub/data.json"),
        ("{launch}", f"{JOB}/code/sub"),
        ("{project}/other/data.json", f"{JOB}/code/other/data.json"),
        ("{project}-not/data.json", "{project}-not/data.json"),
        ("/lustre/shared/data", "/lustre/shared/data"),
        ("relative/data.json", "relative/data.json"),
        (f"{ROOT}/artifacts/x", f"{ROOT}/artifacts/x"),
        ("${art:data,path}/blend.json", "${art:data,path}/blend.json"),
        ("org/model-name", "org/model-name"),
        ("", ""),
    ],
)
def test_paths_mean_this(launch: Path, written: str, there: str) -> None:
    names = {"{launch}": str(launch), "{project}": str(launch.parent)}
    for name, path in names.items():
        written, there = written.replace(name, path), there.replace(name, path)
    values = frozen(place(**SSH), path=written, deep={"list": [{"path": written}]})
    assert values["path"] == there
    assert values["deep"] == {"list": [{"path": there}]}


def test_a_link_to_the_launch_folder_is_the_launch_folder(
    launch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alias").symlink_to(launch.parent)
    monkeypatch.setenv("PWD", str(tmp_path / "alias" / "sub"))
    values = frozen(place(**SSH), path=f"{tmp_path}/alias/other/x")
    assert values["path"] == f"{JOB}/code/other/x"


def test_on_this_machine_slurm_has_its_copy_and_all_else_stays(launch: Path, tmp_path: Path) -> None:
    here = place(executor="slurm", account="a", partition="p")
    job = f"{tmp_path}/home/runs/{RUN}/jobs/0"
    assert (here.job, here.code, here.package, here.python) == (job, f"{job}/code", None, sys.executable)
    values = frozen(
        here, out="${oc.env:PWD}/out", data=f"{launch}/x", far=f"{tmp_path}/far", home=f"{tmp_path}/home/artifacts/X"
    )
    assert values["out"] == f"{job}/code/sub/out"
    assert values["data"] == f"{job}/code/sub/x"
    assert values["far"] == f"{tmp_path}/far"
    assert values["home"] == f"{tmp_path}/home/artifacts/X"


def test_a_job_in_this_folder_moves_nothing(launch: Path) -> None:
    here = place(executor="local")
    assert (here.code, here.cwd, here.package) == (None, str(launch), None)
    assert frozen(here, path=f"{launch}/x")["path"] == f"{launch}/x"


def test_a_profile_names_its_places(launch: Path) -> None:
    there = place(
        **SSH, artifacts_root="/data/registry", workdir="/scratch", python="/opt/py/bin/python", packager="none"
    )
    assert (there.artifacts, there.cwd, there.python) == ("/data/registry", "/scratch", "/opt/py/bin/python")
    assert (there.code, there.environment["PWD"]) == (None, "/scratch")


@pytest.mark.parametrize("executor", ["local", "slurm", "docker"])
def test_a_profiles_folders_of_this_machine_are_absolute(
    launch: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    """The launch and its job, in another folder, must mean the same registry."""
    monkeypatch.setenv("HOME", "/home/me")
    image = {"container_image": "i"} if executor == "docker" else {}
    assert place(executor=executor, artifacts_root="registry", **image).artifacts == f"{launch}/registry"
    assert place(executor=executor, artifacts_root="~/registry", **image).artifacts == "/home/me/registry"
    if executor == "slurm":
        assert place(executor=executor, workdir="~/x").cwd == "/home/me/x"


def test_the_kits_own_files_are_found_in_the_kit(launch: Path) -> None:
    there = place(**SSH)
    package = Path(str(nemotron_kit.__file__)).parent
    assert there.move(f"{package}/errors.py") == f"{there.package}/nemotron_kit/errors.py"
    assert there.move_name(f"{launch}/recipe.py:main") == f"{JOB}/code/sub/recipe.py:main"
    assert there.move_name("recipe.app:main") == "recipe.app:main"


def test_an_environment_inside_the_project_does_not_move(launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(launch / ".venv"))
    packages = f"{launch}/.venv/lib/python3.11/site-packages"
    assert place(**SSH).move(packages) == packages


@pytest.mark.parametrize(
    ("missing", "words"),
    [("host", "needs host"), ("user", "needs user"), ("remote_job_dir", "remote_job_dir is not set")],
)
def test_what_only_the_user_knows_must_be_said(launch: Path, missing: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        place(**{key: value for key, value in SSH.items() if key != missing})


@pytest.mark.parametrize(("named", "there"), [(None, ".nemotron"), ("~/jobs", "jobs")])
def test_a_folder_in_the_home_over_there(launch: Path, named: str | None, there: str) -> None:
    """The profile as the linked page prints it names none. A dry-run connects to nothing."""
    settings = RunConfig(**{**SSH, "remote_job_dir": named})
    shown, (note,) = with_folder(settings, None)
    assert shown.remote_job_dir == f"/home/{settings.user}/{there}"
    assert shown.remote_job_dir in note and "queried at launch" in note
    asked, notes = with_folder(settings, lambda: "/lustre/me")
    assert (asked.remote_job_dir, notes) == ("/lustre/me", ())
    for other in (RunConfig(**SSH), RunConfig(executor="slurm"), RunConfig(tunnel="ssh")):
        assert with_folder(other, None) == (other, ())


@pytest.mark.parametrize(
    ("setting", "value"), [("remote_job_dir", "~/jobs"), ("artifacts_root", "registry"), ("workdir", "./x")]
)
def test_places_over_there_are_whole_paths(launch: Path, setting: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{setting}.*absolute path"):
        place(**{**SSH, setting: value})


def test_only_a_cluster_is_reached_over_ssh(launch: Path) -> None:
    with pytest.raises(UserError, match="executor 'docker'"):
        place(**{**SSH, "executor": "docker"})


# --- paths that nothing takes along


def behind(settings: dict[str, object], **values: object) -> dict[str, str]:
    config = RunConfig(**settings)  # type: ignore[arg-type]
    return check_paths({"run": {}, **values}, executor_for(config).paths(RUN, 0), config)


def test_a_path_that_only_this_machine_has_is_named_with_its_field(launch: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text("{}")
    elsewhere = str(tmp_path / "elsewhere.json")
    assert behind(SSH, train={"data": [elsewhere]}) == {"train.data[0]": elsewhere}
    assert behind({**SSH, "mounts": [f"{tmp_path}:/data"]}, data=elsewhere) == {}
    assert behind(SSH, data="/lustre/not/here", tool="/usr/bin", scratch="/tmp", text="/a\nb") == {}
    assert behind({"executor": "slurm"}, data=elsewhere) == {}, "the same files are there"


def test_a_container_sees_what_is_mounted(launch: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    inside = {"executor": "docker", "container_image": "image"}
    assert behind(inside, data=f"{tmp_path}/data") == {"data": f"{tmp_path}/data"}
    assert behind({**inside, "mounts": [f"{tmp_path}:{tmp_path}"]}, data=f"{tmp_path}/data") == {}
    assert behind({**inside, "mounts": [f"{tmp_path}:/elsewhere"]}, data=f"{tmp_path}/data") != {}
    assert behind({**inside, "mounts": [f"{tmp_path}:/mnt:ro"]}, data="/mnt/data") == {}


def test_the_python_of_a_login_node_is_not_an_images(launch: Path) -> None:
    assert place(**{**SSH, "python": "/venv/bin/python"}).python == "/venv/bin/python"
    assert place(**{**SSH, "python": "/venv/bin/python", "container_image": "image"}).python == "python3"
    here = {"executor": "slurm", "container_image": "image"}
    assert place(**here, python="/opt/venv/bin/python").python == "/opt/venv/bin/python"
    assert place(**here).python == "python3"


def test_a_relative_path_that_leads_out_is_refused_with_its_field(launch: Path) -> None:
    assert behind(SSH, data="../other/x") == {}, "that is still in the repository"
    with pytest.raises(UserError, match=r"train\.data: \.\./\.\./x leads out of the code"):
        behind(SSH, train={"data": "../../x"})
    with pytest.raises(UserError, match="leads out of the job's folder"):
        behind({**SSH, "packager": "none"}, data="../x")


def test_a_file_that_git_ignores_is_named_before_the_job_misses_it(launch: Path) -> None:
    subprocess.run(["git", "init", "-q", launch.parent], check=True)
    (launch.parent / ".gitignore").write_text("*.json\n")
    for name in ("ignored.json", "tracked.json", "sent.txt"):
        (launch / name).write_text("x")
    subprocess.run(["git", "-C", launch.parent, "add", "-f", "sub/tracked.json"], check=True)
    there = place(**SSH)
    values = {name: f"{there.code}/sub/{name}" for name in ("ignored.json", "tracked.json", "sent.txt", "new.json")}
    problems = unshipped_problems(ResolvedJob({"run": {}, "data": values}, RunConfig(**SSH), there), None)  # type: ignore[arg-type]
    assert len(problems) == 1
    assert problems[0].startswith("data.ignored.json: sub/ignored.json is ignored by git")


@dataclass
class Inner:
    file: Path | None = None
    name: str = ""


@dataclass
class Typed:
    data: Path
    out: Path = Path("out")
    name: str = "data.json"
    inner: Inner = field(default_factory=Inner)
    more: list[Path] = field(default_factory=list)
    by_name: dict[str, Path] = field(default_factory=dict)


def planned(launch: Path, settings: str, *words: str) -> Plan:
    """The plan of a command with typed fields, for a profile with these settings."""
    (launch / "env.toml").write_text(f"[C]\n{settings}\n")
    app = App("demo")
    app.command("go", Typed, print)
    tree = Tree(apps={"demo": app})
    words = ("recipe=demo", "stage=go", "run.profile=C", "run.mode=run", *words)
    composed = compose(tree, list(words), read_env_file(launch / "env.toml"))
    return build_plan(composed, app, run_id=RUN, argv=["x"], connect=False)


def test_a_relative_path_means_the_file_that_it_names_at_launch(launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (launch / "data.json").write_text("{}")
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(launch / "env.toml"))
    settings = f'executor = "slurm"\naccount = "a"\npartition = "p"\nworkdir = "{launch.parent}"'
    inputs = ["data=data.json", "inner.file=./data.json", "more=[data.json,gone]", "by_name={a: data.json}"]
    plan = planned(launch, settings, *inputs)
    there = f"{plan.paths.code}/sub/data.json"
    assert plan.paths.cwd == str(launch.parent), "the job starts somewhere else"
    assert plan.config["data"] == plan.config["inner"]["file"] == plan.config["by_name"]["a"] == there
    assert plan.config["more"] == [there, "gone"]
    assert (plan.config["out"], plan.config["name"]) == ("out", "data.json"), "a result, and what is no path"


def test_a_relative_path_that_git_ignores_is_a_problem(launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q"], cwd=launch.parent, check=True)
    (launch / "data.json").write_text("{}")
    (launch.parent / ".gitignore").write_text("*.json\n")
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(launch / "env.toml"))
    plan = planned(launch, 'executor = "slurm"\naccount = "a"\npartition = "p"', "data=data.json")
    assert any("data: sub/data.json is ignored by git" in problem for problem in plan.problems)
