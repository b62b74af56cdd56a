"""What a job prints and logs is in its log, in order and once, wherever it runs; Hydra's settings take effect there."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..conftest import until
from ..log_lines import SAYS, TOKEN, WORDS, check

RECIPE = """
from dataclasses import dataclass
from pathlib import Path
from nemotron.kit import App
from says import say


@dataclass
class Config:
    n: int = 1


def run(config: Config) -> None:
    say()


app = App("demo")
app.command("handler", Config, run)
app.command("script", Config, run, script_path=Path(__file__).with_name("script.py"))
"""
APP = """
import hydra, says


@hydra.main(version_base="1.3", config_path=None, config_name=None)
def main(config):
    says.say()


if __name__ == "__main__":
    main()
"""
PROFILES = """
[cli]
recipes = ["./demo"]
[here]
executor = "local"
[two]
executor = "local"
nproc_per_node = 2
"""


class Place:
    """A folder with a recipe and an app, and the commands that run there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        (folder / "demo").mkdir()
        (folder / "demo" / "__init__.py").write_text("")
        (folder / "demo" / "__main__.py").write_text(RECIPE)
        (folder / "demo" / "script.py").write_text("import says\nsays.say()\n")
        (folder / "says.py").write_text(SAYS)
        (folder / "app.py").write_text(APP)
        (folder / "env.toml").write_text(PROFILES)
        self.env = {
            **os.environ, **TOKEN, "NEMOTRON_HOME": str(self.home), "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"
        }  # fmt: skip

    def __call__(self, *line: str) -> subprocess.CompletedProcess[str]:
        nemotron = str(Path(sys.executable).with_name("nemotron"))
        words = [nemotron, *line[1:]] if line[0] == "nemotron" else [sys.executable, *line]
        done = subprocess.run(
            words, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    def ended(self) -> Path:
        """The newest run's job 0, once it has ended."""
        job = max((self.home / "runs").iterdir()) / "jobs" / "0"
        until((job / "exit.json").exists)
        assert '"succeeded"' in (job / "exit.json").read_text(), (job / "logs" / "job.log").read_text()
        return job


def needs(name: str, *values: object, name_of: str) -> object:
    return pytest.param(*values, marks=pytest.mark.skipif(not find_spec(name), reason=f"no {name}"), id=name_of)


RUN, SWEEP, APPS = ("nemotron", "demo"), ("-m", "nemotron_kit", "-m", "recipe=demo"), ("app.py", "-m")
HANDLER = "stage=handler"
KIT = ("hydra/launcher=nemo_run", "hydra.launcher.via=kit")


@pytest.mark.parametrize(
    ("line", "mode", "ranks"),
    [
        pytest.param((*RUN, "handler"), "RUN", 1, id="in this process"),
        pytest.param((*RUN, "handler", "--batch", "here"), "RUN", 1, id="batch"),
        pytest.param((*RUN, "script", "--batch", "here"), "RUN", 1, id="script"),
        needs("torch", (*RUN, "handler", "--run", "two"), "RUN", 2, name_of="torchrun"),
        needs("torch", (*RUN, "script", "--batch", "two"), "RUN", 2, name_of="torchrun script, batch"),
        pytest.param((*SWEEP, HANDLER), "MULTIRUN", 1, id="basic sweep"),
        pytest.param((*SWEEP, HANDLER, *KIT), "MULTIRUN", 1, id="launcher"),
        needs("nemo_run", (*SWEEP, HANDLER, KIT[0], "hydra.launcher.via=nemo_run"), "MULTIRUN", 1, name_of="NeMo-Run"),
        needs("submitit", (*SWEEP, HANDLER, "hydra/launcher=submitit_local"), "MULTIRUN", 1, name_of="submitit"),
        pytest.param((*APPS, *KIT), "MULTIRUN", 1, id="app"),
        needs("torch", (*APPS, *KIT, "hydra.launcher.profile=two"),
              "MULTIRUN", 2, name_of="app, torchrun"),
    ],
)  # fmt: skip
def test_what_a_job_says_is_in_its_log(tmp_path: Path, line: tuple[str, ...], mode: str, ranks: int) -> None:
    place = Place(tmp_path)
    done = place(*line, *WORDS)
    job = place.ended()
    known = f"{mode} {'app' if line[0] == 'app.py' else 'nemotron'}"
    check(place("nemotron", "runs", "logs", job.parents[1].name).stdout, known=known, ranks=ranks)
    if line[0] == "nemotron" and "--batch" not in line:
        out = [line for line in done.stdout.splitlines() if "print to stderr" not in line]
        assert [line for line in out if line.startswith("<0>")][:1] == [f"<0> 1 print {known}"]
    for path in (path for path in place.home.rglob("*") if path.is_file()):
        assert TOKEN["SAID_TOKEN"].encode() not in path.read_bytes(), path
