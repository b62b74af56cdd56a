"""Completion in the real shells, those that are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ASK_BASH = """
eval "$(nemotron completion bash)"
COMP_LINE=$1 COMP_POINT=${#1}
_nemotron_complete
printf '%s\\n' "${COMPREPLY[@]}"
"""
ASK_FISH = "nemotron completion fish | source; complete -C $argv[1]"
LINES = [
    ("nemotron nano3 pretr", "pretrain"),
    ("nemotron nano3 pretrain -c ti", "tiny"),
    ("nemotron nano3 pretrain --dry", "--dry-run"),
    ("nemotron nano3 pretrain train.train_it", "train.train_iters="),
    ("nemotron nano3 pretrain --run CLU", "CLUSTER"),
]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A PATH on which `nemotron` is this checkout's."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nemotron"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom nemotron_kit.cli.main import nemotron\nsys.exit(nemotron())\n"
    )
    program.chmod(0o755)
    (tmp_path / "env.toml").write_text("[CLUSTER]\nexecutor = 'local'\n")
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "NEMOTRON_HOME": str(tmp_path / "home"),
        "NEMOTRON_ENV_FILE": str(tmp_path / "env.toml"),
    }


def _shell(env: dict[str, str], *command: str) -> list[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(("line", "offered"), [*LINES, ("nemotron nano3 pretrain --config=ti", "tiny")])
def test_bash(line: str, offered: str, env: dict[str, str]) -> None:
    assert _shell(env, "bash", "-c", ASK_BASH, "-", line) == [offered]


def test_bash_falls_back_to_files(env: dict[str, str]) -> None:
    assert _shell(env, "bash", "-c", ASK_BASH, "-", "nemotron nano3 pretrain -c ./x") == [""]


@pytest.mark.parametrize(("line", "offered"), [*LINES, ("nemotron nano3 pretrain --config=ti", "--config=tiny")])
def test_fish(line: str, offered: str, env: dict[str, str]) -> None:
    assert [answer.partition("\t")[0] for answer in _shell(env, "fish", "-c", ASK_FISH, line)] == [offered]


def test_zsh_takes_the_script(env: dict[str, str]) -> None:
    script = 'autoload -U compinit; compinit -u -D; eval "$(nemotron completion zsh)"; print ${_comps[nemotron]}'
    assert _shell(env, "zsh", "-f", "-c", script) == ["_nemotron"]
