"""What a job prints and logs is in its log, in order and once, wherever it runs; Hydra's settings take effect there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from ..conftest import until
from ..log_lines import SAYS, TOKEN, WORDS, check
from ..project import Project, files_with

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


FILES = {
    "demo/__init__.py": "",
    "demo/__main__.py": RECIPE,
    "demo/script.py": "import says\nsays.say()\n",
    "says.py": SAYS,
    "app.py": APP,
    "env.toml": PROFILES,
}


class Place(Project):
    def ended(self) -> Path:
        """The newest run's job 0, once it has ended."""
        job = self.newest / "jobs" / "0"
        until((job / "exit.json").exists)
        assert '"succeeded"' in (job / "exit.json").read_text(), (job / "logs" / "job.log").read_text()
        return job


def needs(name: str, *values: object, name_of: str) -> object:
    return pytest.param(*values, marks=pytest.mark.skipif(not find_spec(name), reason=f"no {name}"), id=name_of)


RUN, APPS = ("nemotron", "demo"), ("python", "app.py", "-m")
SWEEP = ("python", "-m", "nemotron_kit", "-m", "recipe=demo")
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
    place = Place(tmp_path, FILES, PYTHONPATH=str(tmp_path), **TOKEN)
    done = place(*line, *WORDS)
    job = place.ended()
    known = f"{mode} {'app' if line[1] == 'app.py' else 'nemotron'}"
    check(place("nemotron", "runs", "logs", job.parents[1].name).stdout, known=known, ranks=ranks)
    if line[0] == "nemotron" and "--batch" not in line:
        out = [line for line in done.stdout.splitlines() if "print to stderr" not in line]
        assert [line for line in out if line.startswith("<0>")][:1] == [f"<0> 1 print {known}"]
    assert files_with(TOKEN["SAID_TOKEN"], place.home) == []
