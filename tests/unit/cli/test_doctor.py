"""`nemotron doctor`: each kind of finding, with what to do about it; what fails decides the exit code."""

import json
import sys
from pathlib import Path

import pytest

from nemotron_kit.cli import doctor as module
from nemotron_kit.cli.tools import run


def report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, dict[str, tuple[str, str, str]]]:
    """The exit code, and (state, seen, fix) by what was looked at. torch is not imported: that takes seconds."""
    monkeypatch.setattr(module, "CHECKS", tuple(check for check in module.CHECKS if check is not module.gpus))
    code = run("doctor", ["--json"])
    return code, {row["what"]: (row["state"], row["seen"], row["fix"]) for row in json.loads(capsys.readouterr().out)}


def test_a_healthy_machine(project, capsys, monkeypatch):
    code, found = report(capsys, monkeypatch)
    assert code == 0 and not [what for what, (state, *_) in found.items() if state == "fail"]
    assert found["hydra-core"][0] == "ok" and "nano3" in found["recipes"][1] and found["clock"][0] == "ok"
    assert found["registry"][1].endswith(": 0 artifacts")
    assert not (project / "home").exists() or not list((project / "home").rglob("*.json"))  # it leaves nothing


@pytest.mark.parametrize(
    ("table", "what", "seen", "fix"),
    [
        ('[b]\nexecuter = "x"\n', "profile b", "no such field", "executor"),
        ('[cli]\nrecipes = ["nowhere"]\n', "recipe nowhere", "no folder", "[cli] recipes"),
        ('[c]\nexecutor = "slurm"\n', "profile c", "sbatch is not on this machine", "tunnel"),
        ("[c\n", "recipes", "not valid TOML", "Correct it"),
    ],
)
def test_what_env_toml_gets_wrong(project, capsys, monkeypatch, table, what, seen, fix):
    (project / "env.toml").write_text(table)
    monkeypatch.setenv("PATH", str(project))
    code, found = report(capsys, monkeypatch)
    assert code == 1
    state, text, advice = found[what]
    assert state == "fail" and seen in text and fix in advice
    assert sum(text == each[1] for each in found.values()) == 1  # said once, though several checks read the file


def test_a_home_that_only_seems_writable(project, capsys, monkeypatch):
    monkeypatch.setenv("NEMOTRON_HOME", "/proc/nemotron")  # root may write there by its mode
    code, found = report(capsys, monkeypatch)
    assert code == 1 and found["home"] == ("fail", "/proc can't be written", "export NEMOTRON_HOME=/a/folder/of/yours")
    assert found["clock"][0] == "warn"


def test_a_profile_needs_nemo_run(project, capsys, monkeypatch):
    (project / "env.toml").write_text('[c]\nexecutor = "slurm"\n')
    (project / "sbatch").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(project))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    state, seen, fix = report(capsys, monkeypatch)[1]["profile c"]
    assert state == "fail" and "NeMo-Run" in seen and "nemotron-kit[nemo-run]" in fix


@pytest.mark.parametrize(
    ("versions", "what", "fix"),
    [
        ({"leptonai": "0.47.1"}, "nemo-run", "leptonai<0.47"),
        ({"nemotron": "0.0.2"}, "nemotron", "pip uninstall nemotron"),
        ({"hydra-core": "1.4.0"}, "hydra-core", "pip install"),
    ],
)
def test_packages_that_do_not_work_together(project, capsys, monkeypatch, versions, what, fix):
    real = module._version
    monkeypatch.setattr(module, "_version", lambda name: versions.get(name, real(name)))
    code, found = report(capsys, monkeypatch)
    assert code == 1 and found[what][0] == "fail" and fix in found[what][2]


def test_an_optuna_that_stores_no_studies_is_a_warning(project, capsys, monkeypatch):
    real, versions = module._version, {"optuna": "2.10.1", "SQLAlchemy": "2.0.1"}
    monkeypatch.setattr(module, "_version", lambda name: versions.get(name, real(name)))
    _, found = report(capsys, monkeypatch)
    assert found["optuna"][0] == "warn" and "SQLAlchemy<2" in found["optuna"][2]


def test_a_damaged_record_and_a_home_that_can_not_be_written(project, capsys, monkeypatch):
    from nemotron.kit import Artifact

    (project / "data").mkdir()
    (project / "data/a").write_text("a")
    Artifact(path=project / "data").save(name="Data")
    from nemotron_kit.artifacts.registry import open_registry

    (record,) = open_registry().root.glob("Data/v0/*.json")
    record.chmod(0o644)
    record.write_text(record.read_text()[:-20])
    _, found = report(capsys, monkeypatch)
    assert found["registry"][0] == "warn" and "artifacts gc" in found["registry"][2]


def test_what_can_not_be_read_is_a_finding_or_none(project, capsys, monkeypatch):
    (project / "netrc").write_bytes(b"\xff\xfe machine x")
    monkeypatch.setenv("NETRC", str(project / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (project / "gone").mkdir()
    monkeypatch.chdir(project / "gone")
    (project / "gone").rmdir()
    code, found = report(capsys, monkeypatch)
    assert code == 1 and found["disk"][1:] == ("the working folder does not exist", "cd to another one.")
    monkeypatch.chdir(project)
    assert report(capsys, monkeypatch)[1]["W&B"][0] == "ok"


@pytest.mark.parametrize(("line", "state"), [("#!{prefix}/bin/python", None), ("#!{prefix}2/bin/python", "warn")])
def test_the_script_of_another_environment(project, capsys, monkeypatch, line, state):
    """Also beside the Python from which this environment was made, and in one whose name begins with this one's."""
    (project / "bin").mkdir()
    (project / "venv/bin").mkdir(parents=True)
    for name in ("python", "nemotron"):
        (project / "bin" / name).write_text(line.format(prefix=project / "venv"))
        (project / "bin" / name).chmod(0o755)
    (project / "venv/bin/python").symlink_to(project / "bin/python")
    monkeypatch.setattr(sys, "executable", str(project / "venv/bin/python"))
    monkeypatch.setattr(sys, "prefix", str(project / "venv"))
    monkeypatch.setenv("PATH", str(project / "bin"))
    assert Path(sys.executable).resolve().parent == project / "bin"
    assert report(capsys, monkeypatch)[1].get("nemotron", (None,))[0] == state
