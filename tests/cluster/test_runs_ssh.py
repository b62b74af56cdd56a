"""`nemotron runs …` about jobs on a cluster that shares nothing with this machine and is reached by ssh."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import TERMINAL, JobFolder

from ..project import NEMOTRON, Project
from .slurm_world import until

FILES = {
    "far/__init__.py": "",
    "far/work.py": """\
import json, os, time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class WorkConfig:
    lines: int = 3
    sleep: float = 0.0
    code: int = 0
    saves: str = ""
    where: str = ""
    data_path: Path | None = None


def main(cfg: WorkConfig) -> int:
    for n in range(cfg.lines):
        print(f"line {n}", flush=True)
        time.sleep(cfg.sleep)
    if cfg.data_path:
        print("data:", (Path(cfg.data_path) / "x.txt").read_text(), flush=True)
    if cfg.saves:
        save(Path(cfg.where or "output").absolute(), cfg.saves)
    Path(os.environ["NEMO_RUN_DIR"], "metrics.jsonl").write_text(json.dumps({"step": 5, "loss": 1.25}) + "\\n")
    return cfg.code


def save(folder, text):
    from nemotron_kit.artifacts.lineage import record_output
    from nemotron_kit.artifacts.store import Draft
    from nemotron_kit.artifacts.registry import open_registry

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.txt").write_text(text)
    document, when = {"path": str(folder), "metadata": {}}, "2026-11-24T00:00:00Z"
    made = Draft("Data", "artifact", folder, folder, {}, document, when, os.environ["NEMOTRON_RUN_ID"])
    record_output(open_registry().commit(made))
""",
    "far/app.py": """\
from nemotron.kit import App
from nemotron.kit.cli.recipe import ArtifactInput

app = App("far", description="a recipe")
app.command("work", "far.work:WorkConfig", "far.work:main")
app.command(
    "read", "far.work:WorkConfig", "far.work:main",
    artifacts={"data": ArtifactInput(default_name="Data:latest", mappings={"path": "data_path"})},
)
""",
}


class Laptop(Project):
    """A project, and the cluster's folder for its jobs."""

    def __init__(self, place: Path, sshd: Any) -> None:
        self.root, self.sshd = f"/home/lab/{place.name}-{os.getpid()}", sshd
        lines = ["[cli]", 'recipes = ["far"]', "[here]", 'executor = "local"', "[far]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in sshd.profile(self.root).items()]
        files = {**FILES, "env.toml": "\n".join(lines) + "\n"}
        super().__init__(place / "project", files, place / "home", NEMOTRON_SSH_CONFIG=str(sshd.config))

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return self.start("nemotron", *words)

    def run(self, *words: str, code: int = 0, **env: str) -> tuple[str, str]:
        """(standard output, standard error) of a command that exits with `code`."""
        done = self.forked("nemotron", *words, code=code, **env)
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def batch(self, *words: str) -> JobFolder:
        _, err = self.run("far", *words, "--batch", "far")
        found = re.findall(r"(\d{8}-\d{6}-[\w.-]+-[0-9a-f]{6}) is submitted", err)
        return RunFolder(self.home / "runs" / found[0]).job()

    def shown(self, job: JobFolder, code: int = 0, **env: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("runs", "show", job.run_id, "--json", code=code, **env)[0])
        return {**found, **found["job_records"][0], "state": found["state"]}

    def wait(self, job: JobFolder) -> str:
        self.begin("runs", "wait", job.run_id).wait(120)
        assert job.state().state in TERMINAL
        return job.state().state

    def until_running(self, job: JobFolder) -> None:
        until(lambda: self.shown(job)["state"] == "running", every=1)

    def over_there(self, command: str) -> str:
        return str(self.sshd.ssh("nk-cluster", command))


@pytest.fixture
def laptop(sshd: Any, slurm: Any, tmp_path: Path) -> Iterator[Laptop]:
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    made = Laptop(tmp_path, sshd)
    yield made
    for job in (path for path in (made.home / "runs").glob("2*") if RunFolder(path).state() not in TERMINAL):
        made.begin("runs", "cancel", job.name).wait(60)
    made.over_there(f"rm -rf {made.root}")
    for socket in (made.home / "ssh").glob("*"):
        if socket.is_socket():
            subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "x"], capture_output=True, check=False)


@pytest.fixture
def cut(laptop: Laptop, tmp_path: Path) -> dict[str, str]:
    """An environment in which the cluster can't be reached."""
    config = tmp_path / "cut"
    config.write_text("Host *\n  HostName 127.0.0.1\n  Port 1\n")
    return {"NEMOTRON_SSH_CONFIG": str(config), "NEMOTRON_HOME": str(laptop.home)}


def test_a_run_is_followed_from_another_process(laptop: Laptop) -> None:
    job = laptop.batch("work", "lines=10", "sleep=0.8", "saves=first", "where=/home/lab/x-${oc.env:NEMO_RUN_DIR}")
    laptop.until_running(job)
    attached = laptop.begin("runs", "attach", job.run_id)
    assert attached.stdout is not None
    seen = [attached.stdout.readline() for _ in range(3)]
    time.sleep(0.4)  # between two lines
    attached.kill()
    # Not communicate(): it passes over what readline() has already taken into its buffer.
    seen += attached.stdout.read().splitlines(keepends=True)
    attached.wait(30)
    follower = laptop.begin("runs", "logs", "-f", "-n", "1", job.run_id)
    seen += laptop.run("runs", "attach", job.run_id)[0].splitlines(keepends=True)
    assert "".join(seen) == "".join(f"line {n}\n" for n in range(10))
    out = follower.communicate(timeout=60)[0]
    assert out.endswith("line 9\n") and not out.startswith("line 0")
    found = laptop.shown(job)
    assert found["state"] == "succeeded" and found["exit_code"] == 0
    (saved,) = found["artifacts"]["outputs"]
    assert (saved["name"], saved["version"]) == ("Data", 0)
    assert found["metrics"] == [{"step": 5, "loss": 1.25}]
    # The target's own: nobody else knows them.
    assert ["python" in each["versions"] for each in found["history"] if "versions" in each] == [True]
    record = job.exit_record()
    assert record is not None and record["host"] in laptop.sshd.facts["nodes"]
    there = json.loads(laptop.over_there(f"cat {laptop.root}/runs/{job.run_id}/jobs/0/exit.json"))
    assert record["finished_at"] == there["finished_at"]
    assert laptop.run("runs", "logs", "-n", "2", job.run_id)[0] == "line 8\nline 9\n"
    assert "has no log of rank 3" in laptop.run("runs", "logs", job.run_id, "--rank", "3", code=2)[1]


def test_a_step_over_there_is_the_left_side_of_a_pipe_here(laptop: Laptop) -> None:
    made = laptop.folder / "made"
    made.mkdir()
    (made / "x.txt").write_text("from there")
    step = json.dumps({"data": {"path": str(made), "type": "artifact"}})
    ssh = ["ssh", "-F", laptop.sshd.facts["config"], laptop.sshd.facts["hosts"]["plain"]["host"]]
    for words, command in (([], "nemotron far work"), (["--art.data", "-"], "sh recipe.sh")):
        # Where the step is called nemotron, it need not be said that it is one.
        there = subprocess.Popen([*ssh, f": {command}; sleep 1; echo '{step}'"], stdout=subprocess.PIPE)
        assert there.stdout is not None
        line = [NEMOTRON, "far", "read", "lines=0", *words]
        pipes: Any = {"stdin": there.stdout, "capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(line, cwd=laptop.folder, env=laptop.env, check=False, **pipes)
        assert (done.stdout, done.returncode) == ("data: from there\n", 0), done.stderr
        there.wait(30)


def test_a_cluster_that_can_not_be_reached(laptop: Laptop, cut: dict[str, str]) -> None:
    job = laptop.batch("work", "lines=30", "sleep=1")
    laptop.until_running(job)
    for socket in (laptop.home / "ssh").glob("*"):
        if socket.is_socket():
            subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "x"], capture_output=True, check=False)
    began = time.monotonic()
    found = laptop.shown(job, code=3, **cut)
    assert time.monotonic() - began < 8
    assert (found["state"], found["last_known"]) == ("unreachable", "running")
    assert "unreachable" in laptop.run("runs", **cut)[0]
    assert "unreachable" in laptop.run("runs", "wait", "--patience", "0", job.run_id, code=3, **cut)[0]
    laptop.run("runs", "logs", job.run_id, code=3, **cut)
    laptop.run("runs", "cancel", job.run_id, code=3, **cut)
    assert job.state().state == "running"
    out, _ = laptop.run("runs", "cancel", job.run_id)
    assert "cancelled" in out and job.state().state == "cancelled"
    # Over there it is another attempt, too: the folder has nothing that says how the first one ended.
    laptop.run("runs", "resume", job.run_id)
    until(lambda: laptop.run("runs", "logs", job.run_id)[0].count("line 0\n") == 2, every=1)
    assert laptop.shown(job)["state"] == "running"
    laptop.run("runs", "cancel", job.run_id)
    assert job.state().state == "cancelled"
    assert laptop.begin("runs", "attach", job.run_id).wait(60) == 4


def test_what_another_run_will_save_is_read_when_it_has(laptop: Laptop) -> None:
    first = laptop.batch("work", "lines=8", "sleep=1", "saves=made late", f"where={laptop.root}/data")
    second = laptop.batch("read", "--after", first.run_id, "--art.data", f"Data@run:{first.run_id}", "lines=0")
    assert laptop.wait(second) == "succeeded" and laptop.wait(first) == "succeeded"
    assert laptop.run("runs", "logs", second.run_id)[0] == "data: made late\n"
    assert laptop.shown(second)["artifacts"]["inputs"]["data"]["version"] == 0
    third, err = laptop.run("far", "work", "--after", second.run_id, "lines=1")
    assert third == "line 0\n", err
    refused = laptop.run("far", "read", "--batch", "far", "--after", first.run_id, "--art.data", "Nothing", code=2)
    assert "Nothing" in refused[1]


def test_rerun_reads_the_same_bytes_or_nothing(laptop: Laptop) -> None:
    made = laptop.batch("work", "saves=one", f"where={laptop.root}/data")
    assert laptop.wait(made) == "succeeded"
    read = laptop.batch("read", "lines=1")
    assert laptop.wait(read) == "succeeded"
    newer = laptop.batch("work", "saves=two", f"where={laptop.root}/data2")  # Data:latest is another now
    assert laptop.wait(newer) == "succeeded"
    laptop.run("runs", "rerun", read.run_id, "lines=2")
    again = newest(laptop).job()
    assert laptop.wait(again) == "succeeded"
    assert laptop.run("runs", "logs", again.run_id)[0] == "line 0\nline 1\ndata: one\n"
    found = json.loads(laptop.run("runs", "diff", read.run_id, again.run_id, "--json", code=1)[0])["differences"]
    assert found == {"config": {"lines": {"a": 1, "b": 2}}}
    laptop.over_there(f"echo changed > {laptop.root}/data/x.txt")
    _, err = laptop.run("runs", "rerun", read.run_id, code=2)
    assert "Data:v0" in err, err
    laptop.over_there(f"rm -r {laptop.root}/data")
    _, err = laptop.run("runs", "rerun", read.run_id, code=2)
    assert "Data" in err
    count = len(list((laptop.home / "runs").glob("2*")))
    laptop.run("runs", "rerun", read.run_id, "--art.data", "Data:v1")
    assert len(list((laptop.home / "runs").glob("2*"))) == count + 1


def test_a_whole_sweep_again_writes_into_folders_of_its_own(laptop: Laptop) -> None:
    words = ("saves=one,two", "lines=1", "where=${oc.env:NEMO_RUN_DIR}/out")
    laptop.run("far", "work", "-m", "--batch", "far", *words)
    first = newest(laptop)
    laptop.run("runs", "wait", first.id)
    headed = [f"==> job {n}: succeeded, saves={text} <==\nline 0\n" for n, text in enumerate(("one", "two"))]
    assert laptop.run("runs", "logs", first.id)[0] == "\n".join(headed)
    followed = laptop.run("runs", "logs", "-f", "-n", "1", first.id)[0]
    assert sorted(followed.splitlines()) == ["[job 0] line 0", "[job 1] line 0"]
    laptop.run("runs", "rerun", first.id)
    again = newest(laptop)
    laptop.run("runs", "wait", again.id)
    assert again.id != first.id
    wheres = [yaml.safe_load(job.config_path.read_text())["where"] for job in again.jobs()]
    assert wheres == [f"{laptop.root}/runs/{again.id}/jobs/{number}/out" for number in range(2)]
    assert [laptop.over_there(f"cat {where}/x.txt") for where in wheres] == ["one", "two"]
    laptop.run("runs", "rerun", f"{first.id}/1")
    where = yaml.safe_load(newest(laptop).job().config_path.read_text())["where"]
    assert where == f"{laptop.root}/runs/{newest(laptop).id}/jobs/0/out"


def newest(laptop: Laptop) -> RunFolder:
    return RunFolder(max((laptop.home / "runs").glob("2*"), key=lambda p: (p / "plan.json").stat().st_mtime_ns))


def test_rm_removes_it_over_there_unless_an_artifact_lies_in_it(laptop: Laptop) -> None:
    plain, holds = laptop.batch("work"), laptop.batch("work", "saves=inside")
    assert laptop.wait(plain) == laptop.wait(holds) == "succeeded"
    there = f"{laptop.root}/runs"
    laptop.run("runs", "rm", plain.run_id)
    assert laptop.over_there(f"ls {there}").split() == [holds.run_id] and not plain.path.exists()
    assert "holds the files of Data:v0" in laptop.run("runs", "rm", holds.run_id, code=2)[1]
    assert holds.path.exists()
    laptop.run("runs", "rm", "--here", holds.run_id)
    assert not holds.path.exists() and laptop.over_there(f"ls {there}").split() == [holds.run_id]


def test_what_launches_left_over_there_is_removed_once_no_run_needs_it(laptop: Laptop) -> None:
    job = laptop.batch("work", "lines=30", "sleep=0.5")
    laptop.until_running(job)
    clean = ("profiles", "clean", "far", "--unused", "0s", "--json")
    assert json.loads(laptop.run(*clean)[0]) == [], "a run that is not over names its code"
    assert laptop.wait(job) == "succeeded"
    assert [entry["what"] for entry in json.loads(laptop.run(*clean)[0])] == ["the code of a launch"]
    assert laptop.over_there(f"ls {laptop.root}/code; ls {laptop.root}/kit | wc -l").split() == ["1"]
    assert laptop.wait(laptop.batch("work", "lines=1")) == "succeeded"


def test_a_shell_over_there(laptop: Laptop) -> None:
    job = laptop.batch("work", "lines=60", "sleep=1")
    laptop.until_running(job)
    out, _ = laptop.run("runs", "shell", job.run_id, "--", "sh", "-c", 'hostname; pwd; echo "$1"', "sh", "a 'b' $c; d")
    assert out.splitlines()[1:] == [f"{laptop.root}/runs/{job.run_id}/jobs/0", "a 'b' $c; d"]
    assert out.splitlines()[0] in laptop.sshd.facts["nodes"]
