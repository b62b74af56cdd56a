"""Runs that follow on runs, on this machine: rerun, diff, --after, attach, shell, wait; each command a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.artifacts.store import Draft
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder

from ..project import run, start

APP = """
import os, sys, time
from dataclasses import dataclass, field
from pathlib import Path

from nemotron.kit import App
from nemotron.kit.cli.recipe import ArtifactInput


@dataclass
class Config:
    lines: int = 2
    sleep: float = 0.0
    code: int = 0
    text: str = "from the class"
    data_path: Path | None = None
    gate: str = ""
    waits_at: int = 0
    out: str = "${oc.env:NEMO_RUN_DIR}/out"
    model: dict = field(default_factory=lambda: {"layers": 4})


def speak(cfg: Config) -> int:
    for n in range(cfg.lines):
        while n == cfg.waits_at and cfg.gate and not Path(cfg.gate).exists():
            time.sleep(0.05)
        print(f"line {n}", flush=True)
        time.sleep(cfg.sleep)
    if cfg.data_path:
        print("data:", (cfg.data_path / "x.txt").read_text())
    print(cfg.text, cfg.model, cfg.out)
    return cfg.code


app = App("again")
app.command("speak", Config, speak)
app.command("read", Config, speak, artifacts={"data": ArtifactInput("Data:latest", mappings={"path": "data_path"})})
if __name__ == "__main__":
    app.run()
"""


@pytest.fixture(autouse=True)
def app(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "app"
    (folder / "config").mkdir(parents=True)
    (folder / "again.py").write_text(APP)
    (folder / "config" / "default.yaml").write_text("text: from the file\n")
    (folder / "env.toml").write_text('[L]\nexecutor = "local"\n')
    (folder / "pyproject.toml").touch()
    monkeypatch.setenv("SHELL", "/bin/sh")
    for name in ("NEMO_RUN_DIR", "NEMOTRON_RUN_ID", "NEMOTRON_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    return folder


def process(*line: str, cwd: Path, code: int = 0, stdin: str = "") -> tuple[str, str]:
    done = run(*line, cwd=cwd, code=code, stdin=stdin, forked=True)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def launch(home: Path, *words: str, code: int = 0) -> tuple[str, str]:
    """`python again.py WORDS` in the app's folder: (standard output, standard error)."""
    return process("python", "again.py", *words, cwd=home.parent / "app", code=code)


def runs(home: Path, *words: str, code: int = 0, stdin: str = "") -> tuple[str, str]:
    """`nemotron runs WORDS` from somewhere else."""
    return process("nemotron", "runs", *words, cwd=home.parent, code=code, stdin=stdin)


def newest(home: Path) -> JobFolder:
    return RunFolder(max((home / "runs").glob("2*"), key=lambda path: (path / "plan.json").stat().st_mtime_ns)).job()


def plan_of(job: JobFolder) -> dict[str, Any]:
    return RunFolder(job.path.parent.parent).plan()


def commit(folder: Path, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.txt").write_text(text)
    document = {"path": str(folder), "metadata": {}}
    return open_registry().commit(Draft("Data", "T", folder, folder, {}, document, "2026-11-24T00:00:00Z")).label


def test_a_rerun_starts_from_the_record(home: Path) -> None:
    launch(home, "speak", "lines=1", "++model.heads=2", "+model.names=[a,'b c']", "+model.none=null")
    first = newest(home)
    app = home.parent / "app"
    (app / "config" / "default.yaml").write_text("text: changed\nlines: 50\nsleep: 9\n")
    (app / "again.py").write_text(APP.replace('{"layers": 4}', '{"layers": 5}').replace("from the class", "changed"))
    out, err = runs(home, "rerun", first.run_id, "code=0", "--model.heads", "3")
    again = newest(home)
    model = "{'layers': 4, 'heads': 3, 'names': ['a', 'b c'], 'none': None}"
    assert out == f"line 0\nfrom the file {model} {again.path}/out\n", err
    assert plan_of(again)["rerun_of"] == first.run_id and again.run_id != first.run_id
    assert f"rerun of   {first.run_id}" in runs(home, "show", again.run_id)[0]
    found = json.loads(runs(home, "diff", first.run_id, again.run_id, "--json", code=1)[0])["differences"]
    assert found.pop("environment")["NEMOTRON_ADDED_KEYS"]["b"] == "model.names,model.none"
    assert found == {"config": {"model.heads": {"a": 2, "b": 3}}}
    runs(home, "rerun", again.run_id)
    assert runs(home, "diff", again.run_id, newest(home).run_id)[0] == "no difference\n"


def test_a_rerun_of_a_rerun_has_a_block_that_was_added_and_no_file_that_is_gone(home: Path) -> None:
    launch(home, "speak", "lines=0", "+mine.own={a:1}", "~model.layers")
    first = newest(home)
    runs(home, "rerun", first.run_id, "lines=1")
    runs(home, "rerun", newest(home).run_id, "text=b")
    again = newest(home)
    config = yaml.safe_load(again.config_path.read_text())
    assert (config["mine"], config["model"], config["lines"]) == ({"own": {"a": 1}}, {}, 1)
    words = json.loads((again.path / ".hydra" / "overrides.yaml").read_text())
    assert not any(word.startswith("config=/") for word in words) and words[-2:] == ["lines=1", "text=b"]
    assert plan_of(again)["hydra"].endswith("text=b") and "nemotron-rerun" not in plan_of(again)["hydra"]


def test_a_rerun_of_a_recipe_that_is_broken_now(home: Path) -> None:
    app = home.parent / "app"
    (app / "env.toml").write_text('[cli]\nrecipes = ["again"]\n')
    (app / "again").mkdir()
    (app / "again.py").rename(app / "again" / "__init__.py")
    process("nemotron", "again", "speak", "lines=0", cwd=app)
    (app / "again" / "__init__.py").write_text("def (")
    assert "The recipe 'again' is broken: SyntaxError" in runs(home, "rerun", "latest", code=2)[1]


def test_a_rerun_can_be_looked_at_first(home: Path) -> None:
    launch(home, "speak", "lines=1")
    count = len(list((home / "runs").iterdir()))
    found = json.loads(runs(home, "rerun", "latest", "text=other", "--dry-run", "--json")[0])
    assert found["config"]["text"] == "other" and found["config"]["lines"] == 1
    assert found["hydra"].endswith("lines=1 text=other") and found["rerun_of"] == newest(home).run_id
    assert len(list((home / "runs").iterdir())) == count


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["latest", "-c", "tiny"], "A rerun has the command and the config of its run"),
        (["latest", "-m", "lines=1,2"], "--multirun has no effect on a rerun"),
        (["latest", "hydra.run.dir=x"], "hydra.run.dir=x has no effect on a rerun"),
        (["latest", "hydra/launcher=nemo_run"], "hydra/launcher=nemo_run has no effect on a rerun"),
        (["latest", "linse=3"], "linse"),
        (["latest", "lines=many"], "lines"),
        (["--dry-run", "latest"], "the first argument must be a run"),
        (["latest/3"], "has no job 3"),
        (["20201124-171204-x-y-1f03a7"], "No run"),
    ],
)
def test_a_wrong_rerun(home: Path, words: list[str], message: str) -> None:
    launch(home, "speak")
    assert message in runs(home, "rerun", *words, code=2)[1]
    assert len(list((home / "runs").glob("2*"))) == 1


def test_a_rerun_reads_the_very_version_or_nothing(home: Path, tmp_path: Path) -> None:
    assert commit(tmp_path / "one", "one") == "Data:v0"
    launch(home, "read", "lines=0")
    first = newest(home)
    assert commit(tmp_path / "two", "two") == "Data:v1"  # latest is another now
    assert "data: one" in runs(home, "rerun", first.run_id)[0]
    assert "data: two" in runs(home, "rerun", first.run_id, "--art.data", "v1")[0]
    found = json.loads(runs(home, "diff", first.run_id, "latest", "--json", code=1)[0])["differences"]
    assert list(found) == ["artifacts"], found
    record = first.path / "artifacts.json"
    for field, message in (("registry", "another registry"), ("digest", "is not what")):
        good = record.read_text()
        record.write_text(good.replace(f'"{field}": "', f'"{field}": "0'))
        assert message in runs(home, "rerun", first.run_id, code=2)[1]
        record.write_text(good)
    (tmp_path / "one" / "x.txt").write_text("overwritten")
    count = len(list((home / "runs").glob("2*")))
    assert "Data:v0" in runs(home, "rerun", first.run_id, code=2)[1]
    (tmp_path / "one" / "x.txt").unlink()
    assert "Data:v0" in runs(home, "rerun", first.run_id, code=2)[1]
    assert len(list((home / "runs").glob("2*"))) == count


def test_a_rerun_keeps_its_profile_and_takes_another(home: Path) -> None:
    launch(home, "speak", "lines=1", "--batch", "L")
    first = newest(home)
    runs(home, "wait", first.run_id)
    (home.parent / "app" / "env.toml").write_text('[M]\nexecutor = "local"\nenv_vars = {A = "1"}\n')
    _, err = runs(home, "rerun", first.run_id)
    assert "running detached" in err and plan_of(newest(home))["profile"] == "L"
    runs(home, "rerun", first.run_id, "--run", "M")
    plan = plan_of(newest(home))
    assert (plan["profile"], plan["mode"], plan["settings"]["env_vars"]) == ("M", "run", ["A=1"])
    assert "no profile" in runs(home, "rerun", first.run_id, "--run", "N", code=2)[1].lower()


def test_one_job_of_a_sweep_again(home: Path) -> None:
    launch(home, "speak", "-m", "text=a,b", "lines=0")
    (run,) = (path for path in (home / "runs").glob("2*"))
    assert runs(home, "rerun", f"{run.name}/1")[0].startswith("b ")
    assert plan_of(newest(home))["rerun_of"] == f"{run.name}/1"
    plans = runs(home, "rerun", f"{run.name}/0-1", "--dry-run", "--json")[0]
    assert f'"command_line": "nemotron runs rerun {run.name}/0-1 ' in plans  # that it was not of all jobs is on record


@pytest.mark.parametrize("launcher", ["basic", "nemo_run"])
def test_a_whole_sweep_again(home: Path, launcher: str) -> None:
    launch(home, "speak", "-m", "text=a,b", "lines=0", f"hydra/launcher={launcher}")
    first = newest(home)
    (home.parent / "app" / "config" / "default.yaml").write_text("lines: 9\n")
    said = runs(home, "rerun", first.run_id, "sleep=0.01")[1]
    again = newest(home)
    assert f"2 jobs of {first.run_id}, launched again" in said and f"{again.run_id}: of 2 jobs 2 succeeded" in said
    jobs = [again.path.parent / str(number) for number in range(2)]
    configs = [yaml.safe_load((job / "config.yaml").read_text()) for job in jobs]
    assert [(c["text"], c["lines"], c["sleep"]) for c in configs] == [("a", 0, 0.01), ("b", 0, 0.01)]
    assert [c["out"] for c in configs] == [f"{job}/out" for job in jobs]
    plan = plan_of(again)
    assert (plan["kind"], plan["rerun_of"], plan["hydra"][-1]) == ("sweep", first.run_id, "sleep=0.01")
    assert plan["command_line"] == f"nemotron runs rerun {first.run_id} sleep=0.01"
    assert "sleep" in runs(home, "diff", f"{first.run_id}/1", f"{again.run_id}/1", code=1)[0]
    runs(home, "rerun", again.run_id)
    assert plan_of(newest(home))["rerun_of"] == again.run_id


def test_a_whole_sweep_again_detached_failing_or_not_at_all(home: Path) -> None:
    launch(home, "speak", "-m", "text=a,b", "lines=0")
    first = newest(home)
    assert re.findall("text=(.)", runs(home, "rerun", first.run_id, "--dry-run")[0]) == ["a", "b"]
    out, err = runs(home, "rerun", first.run_id, "code=3", "--json", code=1)
    assert "2 of 2 jobs did not succeed (job 0, 1)" in err
    assert json.loads(out.splitlines()[-1])["jobs"] == {"failed": 2}
    runs(home, "rerun", first.run_id, "--batch", "L")
    again = newest(home)
    runs(home, "wait", again.run_id)
    assert [job.state().state for job in RunFolder(again.path.parent.parent).jobs()] == ["succeeded"] * 2
    count = len(list((home / "runs").iterdir()))
    assert "lin" in runs(home, "rerun", first.run_id, "lin=3", code=2)[1]
    assert len(list((home / "runs").iterdir())) == count, "what could not be planned leaves no record"


def test_the_code_is_on_record(home: Path) -> None:
    app = home.parent / "app"
    launch(home, "speak")
    assert plan_of(newest(home))["code"]["commit"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=app, check=True, capture_output=True)
    launch(home, "speak")
    clean = plan_of(newest(home))["code"]
    assert len(clean["commit"]) == 40 and clean["folder"] == str(app)
    (app / "new.py").touch()
    launch(home, "speak")
    assert plan_of(newest(home))["code"] == {**clean, "dirty": True} or clean["dirty"]
    assert "and what was not committed" in runs(home, "show", "latest")[0]
    shown = process("python", "again.py", "speak", "--dry-run", "--json", cwd=app)[0]
    assert "code" not in json.loads(shown)


def behind_a_gate(home: Path, *words: str) -> tuple[JobFolder, Callable[[], None]]:
    """A detached job that goes on once the second one is called: whatever is launched between waits for it."""
    gate = home.parent / "gate"
    launch(home, "speak", f"gate='{gate}'", *words, "--batch", "L")
    return newest(home), gate.touch


def launch_that_waits(home: Path, job: JobFolder, open_gate: Callable[[], None], *words: str) -> tuple[str, str]:
    """A launch in the foreground after `job`, for which the gate opens when it says that it waits."""
    waits = start("python", "again.py", *words, "--after", job.run_id, cwd=home.parent / "app")
    said: list[str] = []
    assert waits.stderr is not None
    for line in waits.stderr:
        said.append(line)
        if f"waits for {job.run_id}" in line:
            break
    open_gate()
    out, err = waits.communicate(timeout=90)
    assert waits.returncode == 0 and f"waits for {job.run_id}" in "".join(said), (out, *said, err)
    return out, "".join(said) + err


def test_after_a_run_that_succeeds(home: Path) -> None:
    first, open_gate = behind_a_gate(home)
    _, err = launch(home, "speak", "--batch", "L", "--after", first.run_id)
    second = newest(home)
    assert "is waiting, detached" in err and f"it starts when {first.run_id} has succeeded" in err
    assert first.run_id in json.loads(runs(home, "--json", "--state", "pending")[0])[0]["reason"]
    assert "waits for" in runs(home)[0] and f"waits for  {first.run_id}" in runs(home, "show", second.run_id)[0]
    out, err = launch_that_waits(home, second, open_gate, "speak", "lines=1")
    assert out.startswith("line 0"), err
    assert first.state().finished <= second.state().started  # type: ignore[operator]
    assert second.state().finished <= newest(home).state().started  # type: ignore[operator]
    assert launch(home, "speak", "lines=1", "--after", first.run_id)[0].startswith("line 0")  # over long since


def test_a_sweep_after_a_run(home: Path) -> None:
    first, open_gate = behind_a_gate(home)
    launch_that_waits(home, first, open_gate, "speak", "-m", "text=a,b", "lines=0")
    assert first.state().finished <= newest(home).state().started  # type: ignore[operator]
    launch(home, "speak", "lines=0", "code=1", code=1)
    count = len(list((home / "runs").glob("2*")))
    assert "it did not start" in launch(home, "speak", "-m", "text=a,b", "--after", newest(home).run_id, code=1)[1]
    assert len(list((home / "runs").glob("2*"))) == count


def test_a_detached_sweep_after_a_run(home: Path) -> None:
    first, open_gate = behind_a_gate(home)
    words = ("speak", "-m", "lines=1,2", "--batch", "L", "--after", first.run_id)
    launch(home, *words, "hydra/launcher=nemo_run")
    sweep = newest(home)
    assert first.state().state == "running", "the launch does not stay"
    open_gate()
    runs(home, "wait", sweep.run_id)
    jobs = RunFolder(sweep.path.parent.parent).jobs()
    assert [job.state().state for job in jobs] == ["succeeded"] * 2
    assert all(first.state().finished <= job.state().started for job in jobs)  # type: ignore[operator]


def test_after_a_run_that_fails(home: Path) -> None:
    first, open_gate = behind_a_gate(home, "code=3")
    launch(home, "speak", "--batch", "L", "--after", first.run_id)
    second = newest(home)
    open_gate()
    out, _ = runs(home, "wait", first.run_id, second.run_id, code=1)
    assert f"it did not start: {first.run_id}, which it was to start after, failed." in out
    assert [entry["state"] for entry in second.history()] == ["pending", "pending"]
    count = len(list((home / "runs").glob("2*")))
    assert "would never start" in launch(home, "speak", "--after", first.run_id, code=2)[1]
    assert "No run" in launch(home, "speak", "--after", "20201124-171204-x-y-1f03a7", code=2)[1]
    assert len(list((home / "runs").glob("2*"))) == count
    problems = json.loads(launch(home, "speak", "--after", first.run_id, "--dry-run", "--json")[0])["problems"]
    assert len(problems) == 1 and "would never start" in problems[0]


def test_one_that_waits_can_be_cancelled_and_does_not_outlive_its_waiter(home: Path) -> None:
    launch(home, "speak", "lines=60", "sleep=1", "--batch", "L")
    first = newest(home)
    launch(home, "speak", "--batch", "L", "--after", first.run_id)
    cancelled = newest(home)
    assert "cancelled" in runs(home, "cancel", cancelled.run_id)[0]
    launch(home, "speak", "--batch", "L", "--after", first.run_id)
    killed = newest(home)
    os.kill(killed.state().facts["process"]["pid"], signal.SIGKILL)
    runs(home, "wait", killed.run_id, code=1)
    assert killed.state().error == "the process disappeared"
    runs(home, "cancel", first.run_id)
    assert runs(home, "wait", cancelled.run_id, first.run_id, code=4)[0].count(": cancelled (") == 2
    assert (cancelled.state().started, killed.state().started) == (None, None)


def test_what_the_other_run_saves_is_its_input(home: Path, tmp_path: Path) -> None:
    first, open_gate = behind_a_gate(home)
    launch(home, "read", "lines=0", "--batch", "L", "--after", first.run_id, "--art.data", f"@run:{first.run_id}")
    second, folder = newest(home), tmp_path / "late"
    assert plan_of(second)["inputs"] == {"data": None}
    folder.mkdir()
    (folder / "x.txt").write_text("saved late")
    document = {"path": str(folder), "metadata": {}}
    draft = Draft("Data", "T", folder, folder, {}, document, "2026-11-24T00:00:00Z", producer=first.run_id)
    open_registry().commit(draft)
    open_gate()
    runs(home, "wait", second.run_id)
    assert "data: saved late" in runs(home, "logs", second.run_id)[0]
    assert second.artifacts()["inputs"]["data"]["version"] == 0
    problems = launch(home, "read", "--after", second.run_id, "--art.data", "Nothing", code=2)[1]
    assert "No artifact is called 'Nothing'" in problems


def test_attach_shows_the_rest_and_exits_as_the_job(home: Path) -> None:
    job, open_gate = behind_a_gate(home, "lines=8", "waits_at=5", "code=3")
    first = start("nemotron", "runs", "attach", job.run_id)
    assert first.stdout is not None and first.stderr is not None
    seen = [first.stdout.readline() for _ in range(3)]
    first.send_signal(signal.SIGINT)
    # Not communicate(): it passes over what readline() has already taken into its buffer.
    rest, err = first.stdout.read(), first.stderr.read()
    first.wait(30)
    assert first.returncode == 130
    assert f"Detached from {job.run_id}" in err and job.state().state == "running"
    open_gate()
    out, err = runs(home, "attach", job.run_id, code=1)
    assert "".join(seen) + rest + out == job.log_path().read_text()
    assert runs(home, "attach", job.run_id, code=1)[0] == ""
    assert runs(home, "attach", "--all", job.run_id, code=1)[0] == job.log_path().read_text()


def test_a_shell_beside_the_job(home: Path) -> None:
    launch(home, "speak", "lines=1", r"run.env.env_vars=['WHERE=$NEMOTRON_HOME/x','PRICE=\$HOME']")
    job = newest(home)
    out, _ = runs(home, "shell", job.run_id, stdin='pwd; echo "$NEMO_RUN_DIR" "$WHERE" "$PRICE"\n')
    assert out.splitlines() == [str(job.path), f"{job.path} {home}/x $HOME"]
    assert runs(home, "shell", job.run_id, "--", "cat", "logs/job.log")[0].startswith("line 0")
    assert runs(home, "shell", job.run_id, "--", "sh", "-c", "exit 7", code=7)[0] == ""
    assert "can't be started" in runs(home, "shell", job.run_id, "--", "no-such-program", code=2)[1]


def test_rm_of_many(home: Path) -> None:
    for _ in range(3):
        launch(home, "speak", "lines=0")
    names = [path.name for path in (home / "runs").glob("2*")]
    out, _ = runs(home, "rm", names[0], names[1], names[0])
    assert out.count("removed") == 2
    assert [path.name for path in (home / "runs").glob("2*")] == [names[2]]
