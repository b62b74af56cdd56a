"""A recipe that is installed as a package on both machines: its script is found by the module's name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.spec.plan import read_spec
from nemotron_kit.spec.runconfig import RunConfig

SSH = RunConfig(executor="slurm", tunnel="ssh", host="far", user="me", remote_job_dir="/lustre/nk")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package `installed_recipe`, in a folder that no launch sends."""
    package = tmp_path / "site-packages" / "installed_recipe"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text("")
    (tmp_path / "launch").mkdir()
    monkeypatch.chdir(tmp_path / "launch")
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    yield package
    sys.modules.pop("installed_recipe", None)  # looking for a module in it imports it


def test_a_package_is_found_by_its_module(installed: Path, tmp_path: Path) -> None:
    place = executor_for(SSH).paths("20261124-171204-r-s-1f03a7", 0)
    script = place.script(installed / "train.py", "installed_recipe.train:main")
    assert script == "@installed_recipe.train"
    spec = {
        "kit": "0", "command": "c", "handler": "h", "config_cls": "c", "script": script,
        "nproc_per_node": 1, "cwd": "/", "sys_path": [], "environment": {},
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(spec))
    assert read_spec(tmp_path).script == str(installed / "train.py")
    (tmp_path / "job.json").write_text(json.dumps({**spec, "script": "@not_installed_here.train"}))
    with pytest.raises(NemotronError, match=r"not_installed_here\.train is not installed"):
        read_spec(tmp_path)


def test_a_script_that_nothing_takes_there_is_refused(installed: Path, tmp_path: Path) -> None:
    place = executor_for(SSH).paths("20261124-171204-r-s-1f03a7", 0)
    (tmp_path / "lonely.py").write_text("")
    with pytest.raises(UserError, match=r"lonely\.py is not part of the code that is sent to far"):
        place.script(tmp_path / "lonely.py", "installed_recipe.train:main")


def test_a_script_in_the_launch_folder_moves_with_the_code(installed: Path, tmp_path: Path) -> None:
    place = executor_for(SSH).paths("20261124-171204-r-s-1f03a7", 0)
    assert place.script(tmp_path / "launch" / "train.py", "train:main") == f"{place.code}/train.py"
    here = executor_for(RunConfig(executor="local")).paths("20261124-171204-r-s-1f03a7", 0)
    assert here.script(installed / "train.py", "x:y") == str(installed / "train.py")
