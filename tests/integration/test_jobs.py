"""Whole commands in processes of their own: what they print, what they leave, and the exit code that a script sees."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ..project import Project, files_with

RECIPE = """
import json, os, sys, time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron.kit import App, Artifact, ArtifactInput, print_step_complete


@dataclass
class Config:
    n: int = 1
    text: str = ""
    out: Path = Path("out.json")
    secret: str | None = None
    force: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class ReadConfig:
    data_path: Path
    size: int = 0


def write(config: Config) -> Artifact | int:
    print(f"n is {config.n}")
    config.out.write_text(json.dumps({"n": config.n, "text": config.text, "secret": config.secret}))
    if config.n < 0:
        raise ValueError("n is negative")
    if config.n > 100:
        return config.n
    if os.environ.get("RANK", "0") != "0":
        return 0  # one rank writes; two would change a file that the other one is saving
    folder = Path("made"); folder.mkdir(exist_ok=True)
    (folder / "file.txt").write_text(str(config.n))
    artifact = Artifact(path=folder, metadata={"size": config.n})
    artifact.save(name="Made")
    print_step_complete(data=artifact)
    return artifact


def read(config: ReadConfig) -> None:
    print(f"read {(config.data_path / 'file.txt').read_text()} of size {config.size!r}")


def slow(config: Config) -> None:
    print("started", flush=True)
    time.sleep(60)


app = App("demo", description="A recipe for tests")
group = app.group("data")
group.command("write", Config, write, description="Write a file")
app.command("read", ReadConfig, read, artifacts={
    "data": ArtifactInput("Made:latest", {"path": "data_path", "metadata.size": "size"})})
app.command("slow", Config, slow)

if __name__ == "__main__":
    app.run()
"""


PROFILES = """
[cli]
recipes = ["./demo"]
[two]
executor = "local"
nproc_per_node = 2
[far]
executor = "skypilot"
"""


@pytest.fixture
def shell(tmp_path: Path) -> Project:
    return Project(tmp_path, {"demo/__init__.py": "", "demo/__main__.py": RECIPE, "env.toml": PROFILES})


def test_a_run_leaves_a_record(shell: Project) -> None:
    done = shell("nemotron", "demo", "data", "write", "n=3", "--text", 'a\'b $(touch PWN) "c"')
    assert "n is 3" in done.stdout
    (run,) = shell.runs()
    job = run / "jobs" / "0"
    assert json.loads((job / "exit.json").read_text())["state"] == "succeeded"
    assert json.loads((run / "plan.json").read_text())["recipe"] == "demo"
    assert json.loads((job / "artifacts.json").read_text())["outputs"][0]["name"] == "Made"
    assert "n is 3" in (job / "logs" / "job.log").read_text()
    assert "n: 3" in (job / ".hydra" / "config.yaml").read_text().replace("'n'", "n")
    assert json.loads((shell.folder / "out.json").read_text())["text"] == 'a\'b $(touch PWN) "c"'
    assert not (shell.folder / "PWN").exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in run.rglob("*") if path.name != "nemotron.log")


def test_both_spellings_and_the_module_run_the_same_job(shell: Project) -> None:
    for line in (
        ["nemotron", "demo", "data", "write", "n=5"],
        ["python", "-m", "nemotron_kit", "recipe=demo", "stage=data/write", "n=5"],
        ["python", "-m", "demo", "data", "write", "--n", "5"],
    ):
        shell(*line)
    configs = {(run / "jobs" / "0" / "config.yaml").read_text() for run in shell.runs()}
    assert len(shell.runs()) == 3
    assert len(configs) == 1


def test_an_artifact_is_pinned_and_resolved(shell: Project) -> None:
    shell("nemotron", "demo", "data", "write", "n=7")
    shell("nemotron", "demo", "data", "write", "n=8")
    assert "read 8" in shell("nemotron", "demo", "read").stdout
    changed = shell("nemotron", "demo", "read", "--art.data", "v0", code=2)
    assert "overwritten" in changed.stderr
    assert "Made has no v9. It has v0, v1" in shell("nemotron", "demo", "read", "--art.data=v9", code=2).stderr


def test_steps_are_piped(shell: Project) -> None:
    line = "nemotron demo data write n=4 | nemotron demo read"
    done = shell("bash", "-c", line)
    assert "read 4 of size 4" in done.stdout


def test_standard_input_is_the_callers(shell: Project) -> None:
    """Nothing waits for an open pipe that a Python program holds, and a loop's list is the loop's."""
    shell("nemotron", "demo", "data", "write", "n=5")
    line = "(seq 2; sleep 30) | while read x && [ $x -lt 3 ]; do nemotron demo read; echo $x; [ $x = 2 ] && break; done"
    silent = "import subprocess as s; print(s.Popen(['nemotron', 'demo', 'read'], stdin=s.PIPE).wait(30))"
    looped = shell.start("bash", "-c", line, stderr=subprocess.DEVNULL)  # `sleep` would hold it open
    held = shell("python", "-c", silent)
    assert looped.stdout is not None
    lines = [looped.stdout.readline().strip() for _ in range(4)]
    looped.kill()
    looped.communicate()
    assert lines == ["read 5 of size 5", "1", "read 5 of size 5", "2"]
    assert "read 5 of size 5" in held.stdout and held.stdout.endswith("0\n")


def test_a_sweep_is_one_record_with_many_jobs(shell: Project) -> None:
    shell("python", "-m", "nemotron_kit", "-m", "recipe=demo", "stage=data/write", "n=1,2,3")
    (run,) = shell.runs()
    states = [json.loads((run / "jobs" / str(i) / "exit.json").read_text())["state"] for i in range(3)]
    assert states == ["succeeded"] * 3
    assert (run / "jobs" / "2" / "config.yaml").read_text().startswith("'n': 3")


def test_a_sweep_over_commands_in_hydras_words(shell: Project) -> None:
    done = shell("python", "-m", "nemotron_kit", "-m", "recipe=demo", "stage=data/write,read")
    (run,) = shell.runs()
    specs = [json.loads((run / "jobs" / str(number) / "job.json").read_text()) for number in range(2)]
    assert [spec["command"] for spec in specs] == ["demo data write", "demo read"], done.stderr
    assert "read 1 of size 1" in done.stdout


def test_a_sweep_through_the_launcher_plugin(shell: Project) -> None:
    done = shell("nemotron", "demo", "data", "write", "-m", "n=1,-2", "hydra/launcher=nemo_run", code=1)
    assert "1 of 2 jobs did not succeed (job 1)" in done.stderr
    (run,) = shell.runs()
    assert "ValueError: n is negative" in json.loads((run / "jobs" / "1" / "exit.json").read_text())["error"]


def test_two_processes_under_torchrun(shell: Project) -> None:
    pytest.importorskip("torch")
    done = shell("nemotron", "demo", "data", "write", "n=2", "--run", "two")
    assert done.stdout.count("n is 2") == 2


def test_a_detached_run(shell: Project) -> None:
    done = shell("nemotron", "demo", "data", "write", "n=6", "--batch", "local")
    assert "is running detached" in done.stderr
    shell("nemotron", "runs", "wait", "latest")
    assert "n is 6" in shell("nemotron", "runs", "logs", "latest").stdout


@pytest.mark.parametrize("sweep", [False, True])
def test_what_a_killed_launch_never_started_has_failed(shell: Project, sweep: bool) -> None:
    where = ("sweep.local_scheduler", "start_detached") if sweep else ("worker.process", "start_worker")
    code = (
        "import os, signal, sys; from nemotron_kit.cli.main import nemotron\n"
        f"from nemotron_kit.{where[0]} import {where[1]}\n"
        f"sys.modules['nemotron_kit.{where[0]}'].{where[1]} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(nemotron())"
    )
    more = ["-m", "n=1,2"] if sweep else []
    shell("python", "-c", code, "demo", "data", "write", "--batch", "local", *more, code=-signal.SIGKILL)
    assert (
        "its launch ended before its worker had started" in shell("nemotron", "runs", "wait", "latest", code=1).stdout
    )
    if sweep:
        return
    never = shell("nemotron", "demo", "data", "write", "--batch", "local", "--after", "latest", code=2)
    assert "a job after it would never start" in never.stderr
    shell("nemotron", "runs", "resume", "latest")
    assert "n is 1" in shell("nemotron", "runs", "attach", "latest").stdout


def test_interrupted(shell: Project) -> None:
    process = shell.start("nemotron", "demo", "slow")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert process.wait(20) == 130
    assert time.monotonic() - started < 10
    (run,) = shell.runs()
    assert json.loads((run / "jobs" / "0" / "exit.json").read_text())["state"] == "cancelled"


def test_exit_codes(shell: Project) -> None:
    failed = shell("nemotron", "demo", "data", "write", "n=-1", code=1)
    assert "ValueError: n is negative" in failed.stderr
    assert "nemotron_kit" not in failed.stderr.split("Traceback")[1]
    shell("nemotron", "demo", "data", "write", "n=117", code=117)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (["demo", "dat", "write"], "Did you mean data?"),
        (["dmeo", "data", "write"], "Did you mean demo?"),
        (["demo", "data", "write", "--nn", "3"], "has no option --nn"),
        (["demo", "data", "write", "nn=3"], "nn: `demo data write` has no such field"),
        (["demo", "data", "write", "n=x"], "n: expected int, got 'x'"),
        (["demo", "data", "write", "-c", "tiny"], "no config called 'tiny'"),
        (["demo", "data", "write", "--run", "nowhere"], "nowhere"),
        (["demo", "data", "write", "--run"], "--run"),
        (["demo", "data", "write", "--run", "two", "--batch", "two"], "--batch"),
        (["demo", "data", "write", "--run", "far"], "skypilot"),
        (["demo", "data", "write", "n=1,2"], "Ambiguous value"),
        (["demo", "data", "write", "hf_token=abc"], "a secret must not be given on a command line"),
        (["demo", "read"], "No artifact is called 'Made'"),
        (["demo", "read", "--art.data", "Ma de:v3"], "Ma de"),
        (["demo", "read", "--art.dta", "Made"], "data"),
        (["demo", "data"], "usage:"),
    ],
)
def test_a_wrong_command_is_one_error_and_leaves_nothing(shell: Project, line: list[str], text: str) -> None:
    done = shell.forked("nemotron", *line, code=2)
    assert text in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not shell.runs()


def test_a_dry_run_leaves_no_file(shell: Project) -> None:
    before = sorted(shell.folder.rglob("*"))
    done = shell("nemotron", "demo", "read", "--dry-run")
    assert "Problems" in done.stdout
    assert "No artifact is called 'Made'" in done.stdout
    plan = json.loads(shell("nemotron", "demo", "data", "write", "n=3", "--dry-run", "--json").stdout)
    assert plan["config"]["n"] == 3
    assert plan["problems"] == []
    assert sorted(path for path in shell.folder.rglob("*") if "__pycache__" not in path.parts) == before


def test_a_traceback_only_when_asked_for(shell: Project) -> None:
    assert "Traceback" in shell("nemotron", "demo", "data", "write", "n=x", code=2, HYDRA_FULL_ERROR="1").stderr


def test_a_broken_recipe_hides_no_other(shell: Project) -> None:
    bad = shell.folder / "bad"
    bad.mkdir()
    (bad / "__init__.py").write_text("import no_such_module\n")
    (shell.folder / "env.toml").write_text('[cli]\nrecipes = ["./demo", "./bad"]\n')
    page = shell("nemotron", "--help").stdout
    assert "demo" in page
    assert "No module named 'no_such_module'" in page
    assert "No module named 'no_such_module'" in shell("nemotron", "bad", "x", code=2).stderr
    shell("nemotron", "demo", "data", "write")


def test_a_secret_is_read_by_the_job_alone(shell: Project) -> None:
    shell("nemotron", "demo", "data", "write", "secret=${secret:DEMO_KEY}", DEMO_KEY="canary-5f31")
    assert json.loads((shell.folder / "out.json").read_text())["secret"] == "canary-5f31"  # noqa: S105
    assert files_with("canary-5f31", shell.home) == []


def test_a_plan_runs_as_it_was_printed(shell: Project) -> None:
    printed = json.loads(shell("nemotron", "demo", "data", "write", "n=3", "--dry-run", "--json").stdout)
    shell("nemotron", "demo", "data", "write", "n=3")
    (run,) = shell.runs()
    for name, text in printed["files"].items():
        if name == "artifacts.json":
            continue  # the job has added what it saved
        now = (run / "jobs" / "0" / name).read_text()
        assert now == text.replace(printed["run_id"], run.name), name


def test_hydras_own_flags(shell: Project) -> None:
    assert shell("nemotron", "demo", "data", "write", "n=3", "--cfg", "job").stdout.startswith("'n': 3")
    resolved = shell("nemotron", "demo", "data", "write", "text=${oc.env:HOME}", "--cfg", "job", "--resolve").stdout
    assert os.environ["HOME"] in resolved
    assert (
        shell("nemotron", "demo", "data", "write", "--cfg", "job", "--package", "run.recipe").stdout.count("name:") == 1
    )
    assert "hydra:" in shell("python", "-m", "nemotron_kit", "recipe=demo", "stage=read", "--cfg", "all").stdout
    assert "Defaults List" in shell("nemotron", "demo", "read", "--info", "defaults").stdout
    conf = shell.folder / "more"
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment" / "big.yaml").write_text("# @package _global_\nn: 77\n")
    text = shell(
        "nemotron", "demo", "data", "write", f"hydra.searchpath=[{conf}]", "+experiment=big", "--cfg", "job"
    ).stdout
    assert "'n': 77" in text
    text = shell(
        "nemotron", "demo", "data", "write", f"hydra.searchpath=[{conf}]", "+experiment=big", "--dry-run"
    ).stdout
    assert "'n': 77" in text
