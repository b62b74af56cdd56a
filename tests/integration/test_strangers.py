"""Whose code runs, and what is on record: no module of the working folder's, no secret."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ..project import Project

RECIPE = """
from dataclasses import dataclass

import beside
from demo.inside import doubled
from nemotron.kit import App


@dataclass
class Config:
    n: int = 1


def score(config: Config) -> int | float:
    import calendar, json, random, types
    assert calendar.isleap(2000) and json.dumps([random.random(), types.__name__]) and beside.HERE
    print(f"doubled {doubled(config.n)}")
    return 0.5


app = App("demo")
app.command("score", Config, score)
"""
PROGRAM = """
import hydra, parts


@hydra.main(version_base="1.3", config_path=None)
def main(config):
    import json
    assert json.dumps([]) == "[]"
    print("parts", parts.HERE, config.n)
    return 0.5


main()
"""
HOSTILE = "import os\nopen(os.environ['MARK'], 'a').write(__name__ + ' ')\nraise SystemExit('hostile ' + __name__)\n"
NAMES = ("json", "random", "types", "calendar", "queue", "logging", "shlex", "socket")


class Folder(Project):
    """A project whose folder holds hostile modules beside a recipe."""

    def said(self, *line: str, code: int | None = 0) -> str:
        done = self(*line, code=None, stderr=subprocess.STDOUT)
        logs = "".join(file.read_text() for file in self.folder.glob("home/runs/*/jobs/*/logs/*.log"))
        marked = (self.folder / "mark").read_text() if (self.folder / "mark").exists() else ""
        assert done.returncode == code or code is None, f"exit {done.returncode}\n{done.stdout}\n{logs}"
        assert not marked, f"ran: {marked}\n{done.stdout}\n{logs}"
        return done.stdout + logs


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    files = {
        "demo/__init__.py": RECIPE,
        "demo/inside.py": "def doubled(n):\n    return 2 * n\n",
        "beside.py": "HERE = True\n",
        "program/app.py": PROGRAM,
        "program/parts.py": "HERE = True\n",
        "env.toml": '[cli]\nrecipes = ["demo"]\n[two]\nnproc_per_node = 2\n',
    }
    made = Folder(tmp_path, {**files, **{f"{name}.py": HOSTILE for name in NAMES}}, MARK=str(tmp_path / "mark"))
    made.env.pop("PYTHONPATH", None)
    return made


@pytest.mark.parametrize(
    "line",
    [
        ["nemotron", "demo", "score"],
        ["nemotron", "demo", "score", "--run", "two"],
        ["nemotron", "demo", "score", "-m", "n=1,2", "hydra/launcher=nemo_run"],
    ],
    ids=["in-process", "torchrun", "sweep"],
)
def test_a_module_in_the_working_folder_is_not_the_standard_librarys(folder: Folder, line: list[str]) -> None:
    assert "doubled 2" in folder.said(*line)


def test_the_same_of_a_job_of_its_own(folder: Folder) -> None:
    folder.said("nemotron", "demo", "score", "--batch", "local")
    run = folder.newest.name
    assert "doubled 2" in folder.said("nemotron", "runs", "logs", run, "-f")


def test_a_program_still_imports_what_lies_beside_it(folder: Folder) -> None:
    assert "parts True 1" in folder.said("python", "program/app.py", "-m", "+n=1", "hydra/launcher=nemo_run")


SECRETIVE = """
import logging, os, subprocess, sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from nemotron.kit import App, Artifact

log = logging.getLogger(__name__)


@dataclass
class Config:
    end: str = "return"
    key: str = ""
    free: dict[str, Any] = field(default_factory=dict)


class Leaky(Artifact):
    note: str = ""
    parts: list[str] = []


def leak(config: Config) -> str:
    from omegaconf import OmegaConf
    late = OmegaConf.create({"late": "${secret:LATE_WORD}"}).late  # of a YAML that the job itself reads
    os.write(1, f"late {late}\\n".encode())
    subprocess.run(["sh", "-c", 'echo "child $LATE_WORD"; echo "error $LATE_WORD" >&2'], check=True)
    folder = Path(os.environ["NEMO_RUN_DIR"], "made"); folder.mkdir(exist_ok=True); (folder / "w").write_text("1")
    about = {"key": config.key, "deep": [{"x": f"a {late}"}], os.environ["HF_TOKEN"]: 1}
    Leaky(path=folder, note=f"by {late}", parts=[os.environ["HF_TOKEN"]], metadata=about).save(name="Made")
    for value in (config.key, os.environ["HF_TOKEN"]):
        print(f"printed {value!r}", flush=True)
        os.write(1, f"written {value}\\n".encode())
        log.warning("logged %s", value)
    if config.end == "raise":
        raise ValueError(f"with {config.key} and {os.environ['HF_TOKEN']}")
    if config.end == "exit":
        sys.exit(f"left with {config.key} and {os.environ['HF_TOKEN']}")
    return config.key


app = App("demo")
app.command("leak", Config, leak)
"""
KEY, TOKEN, LATE = 'canary-7d3e"x\\', "hf_canary0123456789", "canary-late-9f"


def _written(root: Path) -> str:
    return "".join(file.read_text(errors="replace") for file in root.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "words",
    [
        ["end=exit"], ["end=return", "--run", "two"], ["-m", "end=return,raise", "hydra/launcher=nemo_run"],
    ],
    ids=lambda words: " ".join(words),
)  # fmt: skip
def test_no_record_and_no_stream_has_a_secret(folder: Folder, words: list[str]) -> None:
    (folder.folder / "demo/__init__.py").write_text(SECRETIVE)
    folder.env |= {"DEMO_KEY": KEY, "HF_TOKEN": TOKEN, "LATE_WORD": LATE}
    said = folder.said("nemotron", "demo", "leak", "key=${secret:DEMO_KEY}", *words, code=None)
    said += folder.said("nemotron", "runs", "show", "latest", "--json") + folder.said("nemotron", "runs")
    said += folder.said("nemotron", "artifacts", "--json")
    said += _written(folder.folder)
    assert "printed '***'" in said and "written ***" in said and "logged ***" in said
    assert "late ***" in said and "child ***" in said and "error ***" in said
    assert "metadata.deep contains the value of LATE_WORD: it is saved as ***" in said
    assert "canary" not in said
    record = json.loads(next(folder.folder.glob("home/artifacts/Made/v0/version.json")).read_text())
    assert record["fields"] == {"note": "by ***", "parts": ["***"]}
    assert record["document"]["metadata"] | {"deep": 0} == {
        "key": "***", "deep": 0, "***": 1, "note": "by ***", "parts": ["***"],
    }  # fmt: skip


def test_a_literal_and_a_quoted_name_start_nothing(folder: Folder) -> None:
    folder.env |= {"HF_TOKEN": TOKEN}
    (folder.folder / "demo/__init__.py").write_text(SECRETIVE)
    (folder.folder / "file.yaml").write_text("free:\n  a:\n    - {api_key: canary-in-a-file}\n")
    for words in (
        ["key=${oc.env:'HF_TOKEN'}"], ["+free.x={api_key: canary}"], ["-c", "file.yaml"], [f"end=is-{TOKEN}"],
        ["-m", "end=a,b", "key=${oc.env:HF_TOKEN}"],
    ):  # fmt: skip
        said = folder.said("nemotron", "demo", "leak", *words, code=2)
        assert "secret" in said, said
    assert "canary" not in said.replace(f"end=is-{TOKEN}", "")
    assert "canary" not in _written(folder.folder / "home")
