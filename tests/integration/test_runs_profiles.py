"""`nemotron profiles` as a process of its own, and the names that nemotron.kit lends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..project import run

ENV = """\
[base]
executor = "slurm"
account = "a"
app_secret = "hush"
env_vars = {HF_TOKEN = "hush", N = 1}
[C]
extends = "base"
nodes = 4
[bad]
nods = 3
"""


@pytest.fixture(autouse=True)
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "env.toml").write_text(ENV)
    return tmp_path


def nemotron(*words: str, code: int = 0) -> str:
    done = run("nemotron", *words, code=code)
    assert "hush" not in done.stdout + done.stderr
    return done.stdout or done.stderr


def test_the_list() -> None:
    lines = [line.split() for line in nemotron("profiles").splitlines()]
    assert lines[1] == ["C", "slurm", "4", "base"] and lines[3] == ["base", "slurm"]
    assert "env.toml:10: [bad] nods: no such field. Did you mean nodes, nodelist?" in nemotron("profiles")
    assert [p["name"] for p in json.loads(nemotron("profiles", "--json"))] == ["C", "bad", "base"]


def test_show_says_where_each_value_comes_from(folder: Path) -> None:
    lines = nemotron("profiles", "show", "C").splitlines()
    assert lines[0] == f"C → base  ({folder / 'env.toml'})"
    rows = {line.split()[0]: line for line in lines[2:]}
    assert rows["nodes"].endswith("env.toml:8") and rows["account"].endswith("env.toml:3 [base]")
    assert rows["time"].endswith("default") and "HF_TOKEN=***, N=1" in rows["env_vars"] and "qos" not in rows
    assert "not set" in nemotron("profiles", "show", "C", "--all")
    found = json.loads(nemotron("profiles", "show", "C", "--json"))
    assert found["chain"] == ["C", "base"] and {"field": "nodes", "value": 4, "from": "env.toml:8"} in found["fields"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "CC"], "no profile 'CC'.\nDid you mean C?"),
        (["show", "bad"], "env.toml:10: [bad] nods: no such field.\nDid you mean nodes, nodelist?"),
        (["shwo", "C"], "Did you mean show?"),
        (["show"], "NAME is missing"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    assert message in nemotron("profiles", *words, code=2)


def test_without_an_env_file(folder: Path) -> None:
    (folder / "env.toml").unlink()
    assert "there is no env.toml" in nemotron("profiles")
    assert "There is no env.toml" in nemotron("profiles", "show", "C", code=2)
    (folder / "env.toml").write_text("[wandb]\nprojct = 1\n")
    assert "[wandb] projct: no such key.\nDid you mean project?" in nemotron("profiles", code=2)


def test_the_public_names() -> None:
    from nemotron.kit import run as kit_run

    from nemotron_kit.executors.nemo_run import build_executor
    from nemotron_kit.spec.profiles import load_run_profile, load_wandb_config, resolve_partition
    from nemotron_kit.spec.runconfig import RunConfig

    assert kit_run.RunConfig is RunConfig and kit_run.build_executor is build_executor
    assert kit_run.load_run_profile is load_run_profile and kit_run.load_wandb_config is load_wandb_config
    assert kit_run.resolve_partition is resolve_partition and kit_run.list_run_profiles() == ["C", "bad", "base"]
    assert not hasattr(kit_run, "no_such_name")
