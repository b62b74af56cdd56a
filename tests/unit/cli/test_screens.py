"""What commands print on terminals of 60, 80 and 200 columns: nothing is wider, or cut without a mark.

NEMOTRON_SCREENS=write writes the expected texts anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import struct
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_kit.artifacts import PretrainBlendsArtifact
from nemotron_kit.cli import doctor
from nemotron_kit.cli.main import nemotron
from nemotron_kit.home import runs_root
from nemotron_kit.runs.folder import RunFolder, create_run

SCREENS = Path(__file__).parent / "screens"
WRITE = os.environ.get("NEMOTRON_SCREENS") == "write"
APP = """
import enum
from dataclasses import dataclass, field
from pathlib import Path
from nemotron.kit import App, ArtifactInput

class Precision(enum.Enum):
    HALF = 1

@dataclass
class Optimizer:
    lr: float = field(default=1e-3, metadata={"help": "Peak learning rate, reached after the warm-up and left again"})
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])

@dataclass
class Config:
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: int = 10
    precision: Precision = Precision.HALF
    folder: Path = Path("output")
    paths: list[Path] = field(default_factory=lambda: [Path("c/d")])
    note: str = "The quick brown fox jumps over the lazy dog, again and again, until it is too late for either of them."

def work(cfg: Config) -> None:
    \"\"\"Works on what it is given.\"\"\"

app = App("screens", description="For a test")
data = ArtifactInput("Blend:v0", mappings={"path": "folder"})
app.command("work", Config, work, description="Works", artifacts={"data": data})
"""
NOTE = "a long text " * 5
ENV = """\
[cli]
recipes = ["screens"]
[cluster]
executor = "slurm"
host = "login.example.org"
account = "a-project-with-a-long-name"
partition = "batch"
remote_job_dir = "/scratch/a-project-with-a-long-name/users/somebody/nemotron/jobs"
nodes = 4
gpus_per_node = 8
[cluster-debug]
extends = "cluster"
partition = "interactive"
"""
# Name → the command line. RUN, OTHER and SWEEP stand for runs' ids.
COMMANDS = {
    "runs": "runs",
    "runs show": "runs show RUN",
    "runs show sweep": "runs show SWEEP",
    "runs diff": "runs diff RUN OTHER",
    "artifacts": "artifacts",
    "artifacts version": "artifacts Blend:v0",
    "profiles": "profiles",
    "profiles show": "profiles show cluster-debug",
    "dry-run": "screens work --dry-run",
    "help": "screens work --help",
    "tool help": "runs --help",
    "option help": "runs show --help",
    "explain": "explain optimizer.lr note precision screens work optimizer.lr=2e-4",
    "doctor": "doctor",
}
# Lines that are meant to be copied, which the terminal itself breaks.
COPIED = re.compile(r"  (in Hydra's syntax|environment|in-process on|.*→ )|  /.*/jobs/|  python ")
STYLE = re.compile(r"\x1b\[([0-9;]*)m")
# SGR codes that can't be read on a light ground: yellow, white, and their bright forms, as are 256-colour's first ones.
PALE = re.compile(r"(^|;)(33|37|93|97|38;5;(3|7|11|15|22[0-9]|23[01]))(;|$)")


def launch(stage: str, codes: list[int | None], error: str | None = None, **plan: Any) -> RunFolder:
    number = len(list(runs_root().iterdir())) if runs_root().exists() else 0
    run_id = f"20260105-12000{number}-screens-{stage.replace('/', '-')}-abcde{number}"
    config = f"steps: {plan.pop('steps', 10)}\nnote: {NOTE}{plan.get('kind', '')}{codes[0]}\noptimizer: {{lr: 0.001}}\n"
    rows = "".join(json.dumps({"step": n, "loss": 9 / n, "grad_norm": n / 3, "lr": 1e-3}) + "\n" for n in range(1, 6))
    values = {"recipe": "screens", "stage": stage, "executor": "local", "kind": "job", "mode": "run", **plan}
    values |= {"command_line": f"nemotron screens {stage.replace('/', ' ')} --optimizer.lr 0.0002 note='{NOTE}'"}
    values |= {"place": {"run": str(Path("/home/me/.nemotron/runs") / run_id)}}
    run = create_run(run_id, values, [{"config.yaml": config, "metrics.jsonl": rows}] * len(codes))
    for job, code in zip(run.jobs(), codes, strict=True):
        if code is not None:
            job.transition("running")
            job.finish(code, error=error if code else None)
    return run


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a home, of a path that is equally long on every machine: lines break by it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="s-"))
    monkeypatch.setenv("NEMOTRON_HOME", str(folder / "home"))
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(folder / "env.toml"))
    monkeypatch.setenv("PWD", str(folder))
    monkeypatch.setattr(socket, "gethostname", lambda: "node1")
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def lines(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name → command line, in a home with runs, artifacts and profiles."""
    monkeypatch.delitem(sys.modules, "screens", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path, str(project)])
    (project / "screens").mkdir()
    (project / "screens/__init__.py").write_text(APP)
    (project / "env.toml").write_text(ENV)
    shards = project / "shards"
    shards.mkdir()
    (shards / "blend.json").write_text("{}")
    PretrainBlendsArtifact(path=shards, total_tokens=123_456, num_shards=4).save(name="Blend")
    done = launch("pretrain", [0])
    failed = launch("data/prep/pretrain", [1], "RuntimeError: CUDA out of memory: tried to allocate 20.00 GiB on GPU 3")
    sweep = launch("pretrain", [0, 0, 1], "ValueError: optimizer.lr must be positive", kind="sweep")
    found = [
        doctor.Diagnosis("python", doctor.OK, "3.11.2 (/home/somebody/a-project/.venv/bin/python)"),
        doctor.Diagnosis("nemotron", doctor.WARN, "not on the PATH", "Put /home/somebody/a-project/.venv/bin on PATH."),
        doctor.Diagnosis("disk", doctor.FAIL, "0.5 GB are free in /home/somebody/.nemotron: a job needs 1 GB"),
    ]
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter(found),))
    ids = {"RUN": done.id, "OTHER": failed.id, "SWEEP": sweep.id}
    return {name: re.sub("RUN|OTHER|SWEEP", lambda match: ids[match[0]], line) for name, line in COMMANDS.items()}


def printed(line: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints on a terminal of so many columns, with its colours."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    found: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                found.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w", encoding="utf-8") as stream:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", str(columns))  # pytest's own streams are no terminals
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        nemotron(shlex.split(line))
    reader.join()
    os.close(ours)
    return b"".join(found).decode().replace("\r\n", "\n")


def normal(text: str, project: Path) -> str:
    """The text without what differs from run to run, and as long as before."""
    text = re.sub(r"(?!20260105)\d{8}-\d{6}-([a-z-]+)-[0-9a-f]{6}\b", r"YYYYMMDD-HHMMSS-\1-abcdef", text)
    text = re.sub(r"\d{4}-\d\d-\d\d([T ])\d\d:\d\d", r"YYYY-MM-DD\1HH:MM", text)
    text = re.sub(r"(DD[T ]HH:MM):\d\d(\.\d{6})?", lambda m: m[1] + ":SS" + (".ffffff" if m[2] else ""), text)
    text = re.sub(r"(elapsed_sec +)\d\.\d+", r"\g<1>0.0", text)
    text = re.sub(r"\bpid \d+", "pid N", text)
    text = text.replace(project.name, "s-" + "x" * 8)
    text = re.sub(r"\b[0-9a-f]{12,64}\b", lambda match: "d" * len(match[0]), text)
    text = re.sub(r"\b\d(s|ms)\b", r"0\1", text)
    return "\n".join(line.rstrip() for line in text.split("\n"))


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_nothing_is_wider_than_the_screen_or_pale(
    columns: int, lines: dict[str, str], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, wide, pale = [], {}, {}
    for name, line in lines.items():
        text = printed(line, columns, monkeypatch)
        pale[name] = [code for code in STYLE.findall(text) if PALE.search(code)]
        text = STYLE.sub("", text)
        wide[name] = [row for row in text.split("\n") if len(row) > columns and not COPIED.match(row)]
        shown.append(f"=== {name}\n{normal(text, project)}")
    text, file = "\n".join(shown), SCREENS / f"{columns}.txt"
    if WRITE:
        file.write_text(text)
    assert not any(wide.values()), wide
    assert not any(pale.values()), pale
    assert text == file.read_text()


@pytest.mark.parametrize("more", [[], ["--resolve"]])
def test_cfg_prints_plain_yaml(lines: dict[str, str], more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As config.yaml has it: a path or an enum as a Python object would be refused by every safe loader."""
    assert nemotron(["screens", "work", "folder=a/b", "--cfg", "job", *more]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["folder"], values["precision"], values["paths"]) == ("a/b", "HALF", ["c/d"])
    assert nemotron(["screens", "work", "--cfg", "job", "--package", "precision"]) == 0
    assert capsys.readouterr().out == "HALF\n"
