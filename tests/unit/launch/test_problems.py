"""What a plan lists as problems before anything is started."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.app import App, ArtifactInput
from nemotron_kit.artifacts import Artifact
from nemotron_kit.config.compose import compose
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import Note, Problem, UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.dependencies import After
from nemotron_kit.launch.plan import build_plan
from nemotron_kit.remote.ssh import LocalTransport
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.progress import steps_per_second_of_last
from nemotron_kit.spec.plan import Plan

PROFILES = """
[here]
executor = "local"
env_vars = ["FROM_PROFILE=1"]
[C]
executor = "slurm"
account = "a"
partition = "p"
[document]
extends = "C"
nodes = 2
gpus_per_node = 8
[several]
executor = "local"
nproc_per_node = 4
nodes = 2
[named]
extends = "C"
secrets = ["HUB_KEY"]
[far]
extends = "C"
tunnel = "ssh"
host = "h"
user = "u"
remote_job_dir = "/lustre/me"
"""


@dataclass
class Config:
    key: str = ""
    size: int = 0


def check(config: Config, *, connect: bool, here: bool = True) -> list[str]:
    return [f"{type(config.size).__name__} {config.size} {config.key} here={here}", Note("not judged")]


def check_here(config: Config, *, connect: bool) -> list[str]:
    return [f"only {config.key}"]


def problems(folder: Path, value: str, profile: str) -> tuple[str, ...]:
    app = App("demo")
    app.command("go", Config, print)
    return planned(folder, app, profile, f"key='{value}'").problems


@pytest.mark.parametrize(
    ("value", "profile", "exported", "said"),
    [
        ("${secret:HUB_KEY}", "here", False, "key: ${secret:HUB_KEY} is not set in this environment. export HUB_KEY=…"),
        ("${secret:HUB_KEY}", "here", True, None),
        ("${secret:FROM_PROFILE}", "here", False, None),
        ("\\${secret:HUB_KEY}", "here", False, None),
        ("${secret:HUB_KEY}", "C", True, 'Name it in the profile: secrets = ["HUB_KEY"].'),
        ("${secret:HUB_KEY}", "named", True, None),
        ("${secret:HUB_KEY}", "named", False, "secrets: HUB_KEY is not set in this environment. export HUB_KEY=…"),
        ("${secret:HUB_KEY}", "far", False, None),
    ],
)
def test_a_secret_that_the_job_would_look_for_in_vain(
    value: str, profile: str, exported: bool, said: str | None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HUB_KEY", raising=False)
    if exported:
        monkeypatch.setenv("HUB_KEY", "x")
    found = problems(project, value, profile)
    assert any(said in problem for problem in found) if said else not any("HUB_KEY" in problem for problem in found)


@pytest.mark.parametrize(
    ("setting", "refused"),
    [
        ("startup_commands = ['hf login --token s3cr3t-value']", "startup_commands[0]: holds the value of HUB_TOKEN"),
        ("comment = 's3cr3t-value'", "comment: holds the value of HUB_TOKEN"),
        ("setup = 'set -e; export HF_TOKEN=abcdefg; ls'", "setup: gives HF_TOKEN, a secret by its name, a value"),
        ("setup = 'export HF_TOKEN=$(cat ~/.hf) OTHER_TOKEN=\"$HUB_TOKEN\" A_TOKEN='", None),
        ("setup = 'export GOOGLE_APPLICATION_CREDENTIALS=/k.json HF_HUB_DISABLE_IMPLICIT_TOKEN=1'", None),
        ("env_vars = ['GOOGLE_APPLICATION_CREDENTIALS=/k.json', 'HF_HUB_DISABLE_IMPLICIT_TOKEN=1']", None),
        ("setup = 'hf login --token ${secret:HUB_TOKEN}'", "setup: ${secret:HUB_TOKEN} is resolved in a job's config"),
        ("env_vars = ['A=${secret:HUB_TOKEN}']", "env_vars[0]: ${secret:HUB_TOKEN} is resolved in a job's config only"),
        ("extra = {srun_args = ['--export=X=s3cr3t-value']}", "extra.srun_args[0]: holds the value of HUB_TOKEN"),
    ],
)
def test_a_secret_in_any_field_of_a_profile_is_refused(
    setting: str, refused: str | None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "s3cr3t-value")
    app = App("demo")
    app.command("go", Config, print)
    monkeypatch.setitem(globals(), "PROFILES", f"{PROFILES}[secret]\nextends = 'C'\n{setting}\n")
    if refused is None:
        planned(project, app, "secret")
        return
    with pytest.raises(UserError) as error:
        planned(project, app, "secret")
    assert error.value.message.startswith(refused) and "s3cr3t" not in str(error.value)


@pytest.fixture
def data(project: Path) -> Path:
    """A registered artifact, `D:v0`, in whose registry a job of this file system looks."""
    (project / "env.toml").write_text(PROFILES)
    folder = project / "d"
    folder.mkdir()
    Artifact(path=folder, metadata={"rows": 7}).save(name="D")
    return folder


@pytest.mark.parametrize("profile", ["here", "C"])
def test_a_field_that_an_artifact_lacks_is_found_for_every_executor(data: Path, profile: str) -> None:
    app = App("demo")
    app.command("go", Config, print, artifacts={"data": ArtifactInput("D:latest")}, preflight=check)
    plan = planned(data.parent, app, profile, "key='${art:data,rowz}'")
    (problem,) = [problem for problem in plan.problems if "D:v0" in problem]
    assert problem.startswith("key: ${art:data,rowz}: D:v0 (Artifact) has no field 'rowz'. Did you mean rows?")
    plan = planned(data.parent, app, profile, "key='${art:data}/x'", "size='${art:data,rows}'")
    assert f"int 7 {data}/x here={profile == 'here'}" in plan.problems
    assert "not judged" in plan.notes and "not judged" not in plan.problems


def test_a_check_gets_the_jobs_time_and_the_speed_of_a_run_like_it(project: Path) -> None:
    (project / "env.toml").write_text(PROFILES)
    got: list[Any] = []

    def look(config: Config, *, connect: bool, job: Any, here: bool = True) -> list[str]:
        got.append((job.seconds, job.segments, job.earlier_rate(("size", "run.absent"))))
        return []

    app = App("demo")
    app.command("go", Config, print, preflight=look)
    plan = planned(project, app, "C", "size=3", "run.env.chain=2")
    assert got.pop() == (4 * 3600.0, 2, None)
    base: dict[str, Any] = {"recipe": "demo", "stage": "go", "profile": "C", "resources": {"nodes": 1, "processes": 1}}
    alike: list[str] = []
    for changes, rates in (
        ({}, [1.0, 500.0, 700.0]),
        ({"config": {"size": 4}}, [9.0]),
        ({"profile": "far"}, [9.0]),
        ({"resources": {"nodes": 2, "processes": 1}}, [9.0]),
        ({}, []),
    ):
        rows = "".join(json.dumps({"step": step, "tokens_per_second": rate}) + "\n" for step, rate in enumerate(rates))
        made = create_run(
            new_run_id("demo", "go"), {**base, "config": dict(plan.config), **changes}, [{"config.yaml": ""}]
        )
        (made.job().path / "metrics.jsonl").write_text(rows)
        alike.extend([made.id] if len(rates) == 3 else [])
    shutil.rmtree(made.path / "jobs" / "0")  # the newest one is damaged
    planned(project, app, "C", "size=3")
    assert got == [(4 * 3600.0, None, (500.0, alike[0]))]
    planned(project, app, "here", "size=3")
    assert got[-1] == (None, 1, None)


@pytest.mark.parametrize(
    ("rows", "rate"),
    [
        ([{"step": 10, "elapsed": 30.0}, {"step": 10, "val": 1}, {"step": 12, "elapsed": 40.0}], 0.2),
        ([{"step": 4, "elapsed": 8.0}, {"step": 4, "val": 1}], 0.5),
        ([{"step": 9, "elapsed": 90.0}, {"step": 6, "elapsed": 1.0}, {"step": 8, "elapsed": 2.0}], 2.0),
        ([{"step": 0, "elapsed": 3.0}, {"step": 0, "elapsed": 5.0}], None),
        ([{"step": "x", "elapsed": math.nan}], None),
        ([], None),
    ],
)
def test_the_steps_a_second_of_a_run_count_what_is_between_steps(rows: list[Any], rate: float | None) -> None:
    assert steps_per_second_of_last(rows) == rate


def test_an_optional_input_is_read_only_where_it_is_given(data: Path) -> None:
    app = App("demo")
    app.command("go", Config, print, artifacts={"data": ArtifactInput("D:latest", optional=True)})
    without = planned(data.parent, app, "here")
    assert (without.inputs, without.references, without.problems) == ({}, {}, ())
    given = planned(data.parent, app, "here", "run.data=v0")
    assert {slot: pin.label for slot, pin in given.inputs.items() if pin} == {"data": "D:v0"}
    (problem,) = planned(data.parent, app, "here", "run.data=E").problems
    assert problem.startswith("data: ") and "'E'" in problem
    with pytest.raises(TypeError, match="'data' is optional, and a mapped field would have no value without it"):
        app.command("no", Config, print, artifacts={"data": ArtifactInput("D", {"path": "key"}, optional=True)})


def test_what_lies_elsewhere_is_left_to_the_job(data: Path) -> None:
    app = App("demo")
    app.command("go", Config, print, artifacts={"data": ArtifactInput("D:latest")}, preflight=check)
    assert "int 0 ${art:data,rowz} here=False" in planned(data.parent, app, "far", "key='${art:data,rowz}'").problems
    own = App("demo")
    own.command("go", Config, print, preflight=check_here)
    assert [planned(data.parent, own, name, "key=x").problems for name in ("here", "C")] == [("only x",), ()]


def test_a_field_is_judged_by_what_a_registry_elsewhere_has_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch, unlike a dry-run, asks the target: here the target is this machine, asked as another one is."""
    app = App("demo")
    app.command("go", Config, print, artifacts={"data": ArtifactInput("D:latest")})
    (data.parent / "env.toml").write_text(PROFILES.replace('"/lustre/me"', f'"{data.parent}/home"'))
    line = ["recipe=demo", "stage=go", "run.profile=far", "run.mode=run", "key='${art:data,rowz}'"]
    composed = compose(Tree(apps={"demo": app}), line, read_env_file(data.parent / "env.toml"))
    transport = LocalTransport(str(data.parent / "home"))
    plan = build_plan(
        composed, app, run_id="20261124-171205-r-s-1f03a7", argv=["x"], connect=True, transports=lambda _: transport
    )
    (problem,) = [problem for problem in plan.problems if "D:v0" in problem]
    assert "has no field 'rowz'. Did you mean rows?" in problem


def planned(folder: Path, app: App, profile: str, *words: str) -> Plan:
    (folder / "env.toml").write_text(PROFILES)
    line = ["recipe=demo", "stage=go", f"run.profile={profile}", "run.mode=run", *words]
    composed = compose(Tree(apps={"demo": app}), line, read_env_file(folder / "env.toml"))
    return build_plan(composed, app, run_id="20261124-171204-r-s-1f03a7", argv=["x"], connect=False)


@pytest.mark.parametrize(
    ("profile", "mode", "nodes", "note"),
    [
        ("several", "in-process", None, "nodes=2, nproc_per_node=4: this command is one process on one node."),
        ("document", "detached", "--nodes=1", "nodes=2, gpus_per_node=8: this command is one process on one node."),
        ("here", "in-process", None, None),
    ],
)
def test_a_command_that_is_not_distributed_is_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, mode: str, nodes: str | None, note: str | None
) -> None:
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    app = App("demo")
    app.command("go", Config, print, distributed=False)
    plan = planned(tmp_path, app, profile, "size=1")
    spec = json.loads(plan.files["job.json"])
    assert (plan.launch, spec["nproc_per_node"], spec["torchrun"], plan.problems) == (mode, 1, False, ())
    assert [text for text in plan.notes if "one process" in text] == ([note] if note else [])
    if nodes:
        assert any(f"#SBATCH {nodes}\n" in text for text in plan.files.values())


def test_a_problem_is_its_text_and_says_what_it_is_about() -> None:
    problem = Problem("it is not there.", slot="data", hint="Make it.")
    assert problem == "data: it is not there. Make it." and json.dumps([problem]) == f'["{problem}"]'
    assert (problem.slot, problem.message, problem.hint) == ("data", "it is not there.", "Make it.")
    assert Problem("x", field="a.b") == "a.b: x" and Problem("x") == "x" and Problem("x").slot == ""


def test_a_problem_of_a_field_is_not_taken_for_that_of_the_input_of_its_name(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is waited for saves the input; the path in the field `data` is missing whatever it saves."""
    wrong = Problem("/nowhere is not on this machine.", field="data")
    plan = Plan.from_dict({"references": {"data": "X@run:20261124-171204-work-read-1f03a7"}}, data)
    plan = replace(plan, problems=(Problem("No artifact is called 'X'.", slot="data"), wrong), files={"job.json": "{}"})
    earlier = create_run("20261124-171204-work-read-1f03a7", {}, [], root=data)
    after = After([earlier], {earlier.id: "pending"}, {}, connect=False)
    found = after.apply(plan, App("work").command("read", Config, "json:dumps", artifacts={"data": ArtifactInput("X")}))
    assert found.problems == (wrong,)


@pytest.mark.parametrize("text", ["D:v0", "D:latest", "art://D:v0"])
def test_a_reference_in_a_field_that_an_artifact_fills(data: Path, text: str) -> None:
    """The field takes the artifact's path: a reference would be read as the name of a file."""
    app = App("demo")
    app.command("go", Config, print, artifacts={"data": ArtifactInput("D:latest", {"path": "key"})})
    (problem,) = planned(data.parent, app, "here", f"key='{text}'").problems
    assert problem == f"key: {text} is no path that exists. To read that version of an artifact: --art.data {text}"
    (data.parent / "D:v1").mkdir()
    for path in ("D:v1", "/data/x", str(data)):
        assert planned(data.parent, app, "here", f"key='{path}'").problems == ()


@pytest.mark.parametrize(
    "line",
    [
        'startup_commands = ["export HTTPS_PROXY=http://me:hunter2@p:1"]',
        'env_vars = ["HTTPS_PROXY=http://me:hunter2@p:1"]',
        'container_image = "docker://me:hunter2@r/i"',
    ],
)
def test_a_password_in_a_profiles_address_is_refused(project: Path, line: str) -> None:
    app = App("demo")
    app.command("go", Config, print)
    (project / "env.toml").write_text(f'{PROFILES}\n[P]\nextends = "C"\n{line}\n')
    words = ["recipe=demo", "stage=go", "run.profile=P", "run.mode=run", "size=3"]
    composed = compose(Tree(apps={"demo": app}), words, read_env_file(project / "env.toml"))
    with pytest.raises(UserError, match=r"this address holds a password.*me:\*\*\*@") as caught:
        build_plan(composed, app, run_id="20261124-171204-r-s-1f03a7", argv=["x"], connect=False)
    assert "hunter2" not in str(caught.value)
