"""A laptop and a cluster that share nothing: file system, Python, home and registry are another's."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ...project import NEMOTRON, Project
from ..backends import Sshd

REPOSITORY = Path(__file__).parents[3]
FILES = {
    "far/__init__.py": "",
    "far/train.py": """\
import os, socket
from dataclasses import dataclass
from pathlib import Path

from far.word import WORD


@dataclass
class TrainConfig:
    data_path: Path
    output_dir: Path
    launch_folder: str = ""
    code: int = 0


def main(cfg: TrainConfig) -> int:
    print("word:", WORD)
    print("host:", socket.gethostname())
    print("data:", (cfg.data_path / "x.txt").read_text())
    print("launch folder there:", Path(cfg.launch_folder.removeprefix("at ")).exists())
    cfg.output_dir.mkdir(parents=True)
    (cfg.output_dir / "done").write_text(os.environ["NEMOTRON_RUN_ID"])
    return cfg.code
""",
    "far/app.py": """\
from nemotron.kit import App
from nemotron.kit.cli.recipe import ArtifactInput

app = App("far", description="a recipe")
app.command(
    "train", "far.train:TrainConfig", "far.train:main",
    artifacts={"data": ArtifactInput(default_name="Data:latest", mappings={"path": "data_path"})},
)
""",
    "far/config/default.yaml": "output_dir: ${oc.env:PWD}/output\n",
}
SEED = """\
import sys
from pathlib import Path
from nemotron_kit.artifacts.registry import LocalRegistry
from nemotron_kit.artifacts.store import Draft
word, base, root = sys.argv[1:]
for n in range(4):
    folder = Path(base) / f"d{n}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.txt").write_text(f"{word} {n}")
    document = {"path": str(folder), "metadata": {}}
    LocalRegistry(root).commit(Draft("Data", "artifact", folder, folder, {}, document, "2026-11-24T00:00:00Z"))
"""


class Laptop(Project):
    """A project that is launched from, and the second machine, which is Slurm's partition `remote` too."""

    def __init__(self, place: Path, sshd: Sshd) -> None:
        self.root, self.sshd = f"/home/lab/{place.name}-{os.getpid()}", sshd
        profile = sshd.profile(self.root)
        password = {**profile, "host": sshd.facts["hosts"]["password"]["host"]}
        del password["identity"]
        lines = ["[cli]", 'recipes = ["far"]']
        for name, table in (("far", profile), ("second-factor", password)):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        files = {**FILES, "far/word.py": 'WORD = "first"\n', "env.toml": "\n".join(lines) + "\n"}
        super().__init__(place / "project", files, place / "home", NEMOTRON_SSH_CONFIG=str(sshd.config))
        subprocess.run(["git", "init", "-q", self.folder], check=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`nemotron WORDS`, however that ends."""
        return self.forked("nemotron", *words, code=None)

    def over_there(self, command: str, text: str = "") -> str:
        return self.sshd.ssh("nk-cluster", command, stdin=text)

    def seed(self) -> None:
        """Both registries get Data:v0 to v3, with other bytes."""
        self.run("profiles", "check", "far")  # brings the kit there
        kit = self.over_there(f"ls -d {self.root}/kit/*").split()[0]
        self.over_there(f"PYTHONPATH={kit} python3 - cluster {self.root}/data {self.root}/artifacts", SEED)
        words = [sys.executable, "-", "laptop", str(self.folder.parent / "data"), str(self.home / "artifacts")]
        subprocess.run(words, input=SEED, text=True, check=True, capture_output=True)


@pytest.fixture
def laptop(tmp_path: Path, slurm: Any, sshd: Sshd, end_connections: Callable[[Path], None]) -> Iterator[Laptop]:
    made = Laptop(tmp_path, sshd)
    yield made
    made.over_there(f"rm -rf {made.root}")
    end_connections(made.home)


def test_what_was_just_edited_runs_there_on_the_data_that_is_there(laptop: Laptop) -> None:
    laptop.seed()
    (laptop.folder / "far/word.py").write_text('WORD = "edited"\n')
    done = laptop.run("far", "train", "--run", "far", "--art.data", "Data:v3", f"launch_folder=at {laptop.folder}")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["word"] == "edited"
    assert lines["data"] == "cluster 3"
    assert lines["launch folder there"] == "False"
    assert lines["host"] in laptop.sshd.facts["nodes"]
    (run,) = (laptop.home / "runs").iterdir()
    job = f"{laptop.root}/runs/{run.name}/jobs/0"
    assert laptop.over_there(f"cat {job}/code/output/done") == run.name
    assert not (laptop.folder / "output").exists()
    plan = json.loads((run / "plan.json").read_text())
    assert plan["inputs"]["data"]["path"] == f"{laptop.root}/data/d3"
    assert (
        plan["inputs"]["data"]["registry"]
        == json.loads(laptop.over_there(f"cat {laptop.root}/artifacts/.registry/registry.json"))["uuid"]
    )
    assert json.loads(laptop.run("runs", "show", run.name, "--json").stdout)["state"] == "succeeded"


def test_latest_is_pinned_in_the_targets_registry(laptop: Laptop) -> None:
    laptop.seed()
    words = [sys.executable, "-", "newer", str(laptop.folder.parent / "newer"), str(laptop.home / "artifacts")]
    subprocess.run(words, input=SEED, text=True, check=True, capture_output=True)
    done = laptop.run("far", "train", "--run", "far")
    assert "data: cluster 3" in done.stdout, done.stderr


def test_a_job_refuses_a_pin_of_another_registry(laptop: Laptop) -> None:
    laptop.seed()
    assert laptop.run("far", "train", "--run", "far").returncode == 0
    (run,) = (laptop.home / "runs").iterdir()
    plan = json.loads((run / "plan.json").read_text())
    for field, words in (("registry", "was pinned in registry"), ("digest", "was pinned as")):
        forged = f"{laptop.root}/runs/20261124-171204-forged-{field}-1f03a7"
        copied = "rm -rf 0/logs 0/exit.json 0/state"
        laptop.over_there(f"mkdir -p {forged} && cp -r {laptop.root}/runs/{run.name}/. {forged}/")
        laptop.over_there(f"cd {forged}/jobs && {copied}")
        pins = json.loads(laptop.over_there(f"cat {forged}/jobs/0/artifacts.json"))
        pins["inputs"]["data"][field] = "0" * 64
        laptop.over_there(f"cat > {forged}/jobs/0/artifacts.json", json.dumps(pins))
        python, kit, _ = plan["launch_command"]
        environment = f"NEMOTRON_HOME={laptop.root}"
        code = laptop.over_there(f"cd / && {environment} {python} {kit} {forged}/jobs/0 >/dev/null 2>&1; echo $?")
        assert int(code) != 0
        record = json.loads(laptop.over_there(f"cat {forged}/jobs/0/exit.json"))
        assert record["state"] == "failed"
        assert words in record["error"]
        assert "data: " not in laptop.over_there(f"tail -n +1 {forged}/jobs/0/logs/job.log | tail -n 3")


def test_what_is_only_here_is_named_with_its_field(laptop: Laptop, tmp_path: Path) -> None:
    (tmp_path / "only-here.txt").write_text("x")
    (tmp_path / "on-both").mkdir()
    laptop.seed()
    laptop.over_there(f"mkdir -p {tmp_path}/on-both")
    try:
        done = laptop.run("far", "train", "--run", "far", f"launch_folder={tmp_path}/only-here.txt")
        assert done.returncode == 2
        assert f"launch_folder: {tmp_path}/only-here.txt is on this machine and not on nk-cluster" in done.stderr
        assert not (laptop.home / "runs").exists()
        assert laptop.run("far", "train", "--run", "far", f"launch_folder={tmp_path}/on-both").returncode == 0
    finally:
        laptop.over_there(f"rm -rf {tmp_path}")


def test_a_dry_run_connects_to_nothing_and_leaves_nothing(laptop: Laptop) -> None:
    done = laptop.run("far", "train", "--run", "far", "--dry-run", "--json", "--run.host", "no-such-host.invalid")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["problems"] == []
    assert plan["inputs"] == {"data": None}
    assert any("pinned at launch" in note for note in plan["notes"])
    assert plan["config"]["output_dir"] == f"{laptop.root}/runs/{plan['run_id']}/jobs/0/code/output"
    assert not laptop.home.exists()


def test_a_jobs_own_code_comes_back(laptop: Laptop) -> None:
    laptop.seed()
    done = laptop.run("far", "train", "--run", "far", "code=3")
    assert done.returncode == 1, done.stderr
    assert "exit code 3" in done.stderr


# --- profiles check and login


def test_check_reports_a_cluster_that_is_ready(laptop: Laptop) -> None:
    done = laptop.run("profiles", "check", "far", "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert {finding["state"] for finding in findings.values()} == {"ok"}
    assert {"connection", "clock", "slurm", "sacct", "python", "job folder", "free space", "registry"} <= set(findings)
    assert "omegaconf" in findings["python"]["detail"]
    assert laptop.over_there(f"ls {laptop.root}") == "kit\n", "a check leaves nothing but the kit"


@pytest.mark.parametrize(
    ("field", "value", "what", "words"),
    [
        ("account", "nobody", "partition", "account"),
        ("partition", "no-such", "partition", "partition"),
        ("gpus_per_node", 999, "partition", "More processors requested than permitted"),
        ("python", "/bin/false", "connection", "exit code 1"),
        ("remote_job_dir", "/proc/nk", "connection", "No such file"),
        ("container_image", "/no/such.sqsh", "image", "no such file there"),
        ("secrets", ["NK_NOT_SET"], "secrets", "not set in this environment"),
    ],
)
def test_check_names_what_is_wrong(laptop: Laptop, field: str, value: object, what: str, words: str) -> None:
    with (laptop.folder / "env.toml").open("a") as file:
        file.write(f'[other]\nextends = "far"\n{field} = {json.dumps(value)}\n')
    done = laptop.run("profiles", "check", "other", "--json")
    wrong = [f for f in json.loads(done.stdout) if f["state"] == "wrong"]
    assert done.returncode == 1, done.stdout
    assert any(f["what"].startswith(what) and words in f["detail"] for f in wrong), wrong


def test_check_of_a_host_that_is_away_is_3(laptop: Laptop) -> None:
    with (laptop.folder / "env.toml").open("a") as file:
        file.write('[away]\nextends = "far"\nhost = "127.0.0.1"\nuser = "nobody-at-all"\n')
    done = laptop.run("profiles", "check", "away")
    assert done.returncode == 3
    assert "unreachable" in done.stdout


def test_a_second_factor_is_asked_for_once_on_the_terminal(laptop: Laptop) -> None:
    began = time.monotonic()
    done = laptop.run("profiles", "check", "second-factor")
    assert done.returncode == 3
    assert "nemotron profiles login second-factor" in done.stdout
    assert time.monotonic() - began < 5
    code, said = on_a_terminal(laptop, ["profiles", "login", "second-factor"], answers(laptop))
    assert code == 0, said
    assert "stays open" in said
    assert laptop.sshd.password not in said
    assert laptop.run("profiles", "check", "second-factor").returncode == 0
    assert "open already" in laptop.run("profiles", "login", "second-factor").stdout
    assert "closed" in laptop.run("profiles", "login", "second-factor", "--close").stdout
    assert laptop.run("profiles", "check", "second-factor").returncode == 3


def test_a_wrong_password_opens_nothing(laptop: Laptop) -> None:
    wrong = [(rb"[Pp]assword", "not it"), (rb"code", "000000")] * 4
    code, said = on_a_terminal(laptop, ["profiles", "login", "second-factor"], wrong)
    assert code == 3, said
    assert laptop.run("profiles", "check", "second-factor").returncode == 3


def test_nothing_is_logged_in_to_on_this_machine(laptop: Laptop) -> None:
    with (laptop.folder / "env.toml").open("a") as file:
        file.write('[here]\nexecutor = "local"\n')
    done = laptop.run("profiles", "login", "here")
    assert done.returncode == 2
    assert "runs on this machine" in done.stderr
    assert laptop.run("profiles", "check", "here").returncode == 0


def answers(laptop: Laptop) -> list[tuple[bytes, str]]:
    """(what is asked, what to say)."""
    return [(rb"[Pp]assword", laptop.sshd.password), (rb"code", laptop.sshd.one_time_code())]


def on_a_terminal(laptop: Laptop, words: list[str], said: list[tuple[bytes, str]]) -> tuple[int, str]:
    """Run a command on a terminal of its own, answering what is asked; (exit code, all that was shown)."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(laptop.folder)
        command = [NEMOTRON, *words]
        os.execvpe(command[0], command, laptop.env)  # noqa: S606
    shown, seen, waiting = b"", 0, list(said)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:
                break
        if waiting and (asked := re.search(waiting[0][0] + rb"[^\n]*: ?\Z", shown[seen:])):
            seen += asked.end()
            os.write(terminal, waiting.pop(0)[1].encode() + b"\n")
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode(errors="replace")
