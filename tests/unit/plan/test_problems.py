"""What a plan lists as problems before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from nemotron_kit.app import App
from nemotron_kit.config.compose import compose
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import read_env_file
from nemotron_kit.plan.build import build_plan

PROFILES = """
[here]
executor = "local"
env_vars = ["FROM_PROFILE=1"]
[C]
executor = "slurm"
account = "a"
partition = "p"
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


def problems(folder: Path, value: str, profile: str) -> tuple[str, ...]:
    (folder / "env.toml").write_text(PROFILES)
    app = App("demo")
    app.command("go", Config, print)
    words = ["recipe=demo", "stage=go", f"run.profile={profile}", "run.mode=run", f"key='{value}'"]
    composed = compose(Tree(apps={"demo": app}), words, read_env_file(folder / "env.toml"))
    return build_plan(composed, app, run_id="20261124-171204-r-s-1f03a7", argv=["x"], connect=False).problems


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
    value: str, profile: str, exported: bool, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HUB_KEY", raising=False)
    if exported:
        monkeypatch.setenv("HUB_KEY", "x")
    found = problems(tmp_path, value, profile)
    assert any(said in problem for problem in found) if said else not any("HUB_KEY" in problem for problem in found)
