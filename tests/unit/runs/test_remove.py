"""`nemotron runs rm|du` of many runs, and `nemotron artifacts rm|du`: what is removed, what is kept and why."""

import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nemotron.kit import Artifact

from nemotron_kit.artifacts.lineage import given_inputs
from nemotron_kit.artifacts.reference import ArtifactNotFoundError
from nemotron_kit.artifacts.registry import LocalRegistry, artifact_field, open_registry
from nemotron_kit.cli.cleanup import Garbage
from nemotron_kit.cli.tools import run as tool
from nemotron_kit.errors import UserError
from nemotron_kit.runs.ledger import list_runs, open_run

from ... import removals
from .conftest import MakeRun

DAY = timedelta(days=1)


def saved(folder: Path, name: str, text: str, **inputs: str) -> None:
    """Save `folder` as the next version of `name`, made from `inputs`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.txt").write_text(text)
    with given_inputs({slot: open_registry().resolve(reference) for slot, reference in inputs.items()}):
        Artifact(path=folder).save(name=name)


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], list[str]]:
    """The ids that went, and those that stay."""
    assert tool("runs", ["rm", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    return [row["run"] for row in found["removed"]], [row["run"] for row in found["left"]]


def test_runs_that_match(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old, failed, new = (
        make_run(age=40 * DAY, codes=(0,)),
        make_run(age=35 * DAY, codes=(1,)),
        make_run(age=DAY, codes=(0,)),
    )
    going, holds = make_run(age=50 * DAY), make_run(age=45 * DAY, codes=(0,))
    going.job().transition("running")
    saved(holds.path / "jobs/0/model", "Model", "weights")

    assert report(capsys, "--older-than", "30d", "--state", "failed", "--dry-run") == ([failed.id], [])
    assert report(capsys, "--older-than", "30d", "--keep", "4", "--dry-run") == ([], [going.id])
    assert report(capsys, "--older-than", "30d") == ([old.id, failed.id], [going.id, holds.id])
    assert {each.id for each in list_runs()} == {new.id, going.id, holds.id}
    # What is named is an error instead, and with its version it goes.
    with pytest.raises(UserError, match="holds the files of Model:v0"):
        tool("runs", ["rm", holds.id])
    assert report(capsys, holds.id, "--with-artifacts") == ([holds.id], [])
    with pytest.raises(ArtifactNotFoundError):
        open_registry().resolve("Model:v0")
    with pytest.raises(UserError, match="no ID and no filter"):
        tool("runs", ["rm", "--dry-run"])
    with pytest.raises(UserError, match="either IDs or filters"):
        tool("runs", ["rm", new.id, "--older-than", "1d"])
    for empty in (["--recipe", ""], ["--stage", " "], ["--state", ""], ["--state", ", "], ["--keep", "0", "--tag", ""]):
        with pytest.raises(UserError, match="expected a name"):  # a variable that is not set: not every run
            tool("runs", ["rm", *empty])
    assert {each.id for each in list_runs()} == {new.id, going.id}


def test_a_run_stays_with_a_version_that_others_were_made_from(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = make_run(codes=(0,))
    saved(run.path / "jobs/0/data", "Data", "text")
    saved(tmp_path / "model", "Model", "weights", data="Data:v0")
    with pytest.raises(UserError, match="Model:v0 was made from Data:v0"):
        tool("runs", ["rm", run.id, "--with-artifacts"])
    assert open_registry().resolve("Data:v0") and run.path.exists()


def test_a_run_stays_with_a_version_whose_record_is_damaged(make_run: MakeRun) -> None:
    run = make_run(codes=(0,))
    saved(run.path / "jobs/0/data", "Data", "text")
    (record,) = open_registry().root.glob("Data/v0/*.json")
    record.chmod(0o644)
    record.write_text(record.read_text()[:-20])
    run = open_run(run.id)
    with pytest.raises(UserError, match=r"holds the files of Data:v0 \(its record is damaged\)"):
        tool("runs", ["rm", run.id, "--with-artifacts"])
    assert run.path.exists()


def test_a_version_that_is_removed_leaves_its_number_and_its_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved(tmp_path / "a", "Data", "one")
    saved(tmp_path / "b", "Data", "two")
    open_registry().set_alias("Data", "good", 1)
    saved(tmp_path / "model", "Model", "weights", data="Data:v0")
    for reference, why in (("Data:v0", "Model:v0 was made from Data:v0"), ("Data:v1", "alias good names Data:v1")):
        with pytest.raises(UserError, match=why):
            tool("artifacts", ["rm", reference])
    with pytest.raises(UserError, match="is a name, not one version"):
        tool("artifacts", ["rm", "Data"])
    assert tool("artifacts", ["rm", "Data:v1", "--dry-run", "--force"]) == 0 and open_registry().resolve("Data:v1")
    assert tool("artifacts", ["rm", "Data:v1", "--force"]) == 0
    assert (tmp_path / "b/data.txt").read_text() == "two" and open_registry().aliases("Data") == {}
    saved(tmp_path / "b", "Data", "two")
    assert open_registry().versions("Data") == [0, 2]
    # The model and what it was made from go together; with the files, and what else lies there stays.
    (tmp_path / "a/mine.txt").write_text("not registered")
    assert tool("artifacts", ["rm", "Data:v0", "Model:v0", "--files"]) == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine.txt"] and not (tmp_path / "model").exists()


def test_files_of_another_version_are_not_deleted(tmp_path: Path) -> None:
    saved(tmp_path / "a", "Data", "one")
    saved(tmp_path / "a", "Data", "two")
    with pytest.raises(UserError, match="The files of Data:v1 are those of Data:v0, too"):
        tool("artifacts", ["rm", "Data:v1", "--files"])
    assert (tmp_path / "a/data.txt").read_text() == "two"


def test_files_that_other_versions_reach_by_links(make_run: MakeRun, tmp_path: Path) -> None:
    """A run's folder, a version's files and its metadata.json stay while a kept version is read through them."""
    run = make_run(codes=(1,))
    (run.path / "weights").write_text("weights")
    saved(tmp_path / "data", "Data", "one")
    (tmp_path / "same").symlink_to(tmp_path / "data")
    Artifact(path=tmp_path / "same").save(name="Same")
    for name, target in (("Model", run.path / "weights"), ("Copy", tmp_path / "data/data.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(target)
        Artifact(path=tmp_path / name).save(name=name)
    with pytest.raises(UserError, match="holds the files of Model:v0"):
        tool("runs", ["rm", run.id])
    for label, others in (("Data:v0", "Copy:v0, Same:v0"), ("Same:v0", "Copy:v0, Data:v0")):
        with pytest.raises(UserError, match=f"The files of {label} are those of {others}, too"):
            tool("artifacts", ["rm", label, "--files"])
    # A folder with other files now: what they share is metadata.json.
    (tmp_path / "Copy/link").unlink()
    saved(tmp_path / "Copy", "Copy", "more")
    with pytest.raises(UserError, match="The files of Copy:v0 are those of Copy:v1, too"):
        tool("artifacts", ["rm", "Copy:v0", "--files"])
    for name in ("Data", "Same", "Copy", "Model"):
        assert open_registry().verify(open_registry().resolve(name), deep=True)


def test_what_kept_runs_refer_to_stays(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A checkpoint by its path, a stage of a pipeline that is running, a version that a run read."""
    loaded, stage, whole = make_run(age=40 * DAY, codes=(1,)), make_run(age=39 * DAY, codes=(0,)), None
    reader = make_run(age=DAY, codes=(0,))
    (reader.job().path / "config.yaml").write_text(f"checkpoint: {{load: {loaded.path}/jobs/0/model}}\n")
    whole = make_run("all", codes=(), kind="pipeline", stages=["data", "train"])
    going = make_run()
    going.job().transition("running")
    for number, run in enumerate((stage, going)):
        whole.add_stage(number, {"stage": "data", "run": run.id, "why": "new"})
    again = make_run(codes=(0,), rerun_of=stage.id, config_file=f"{reader.path}/jobs/0/composed.yaml")
    for run, user in ((loaded, reader), (stage, whole)):
        with pytest.raises(UserError, match=f"{user.id} needs files of {run.id}"):
            tool("runs", ["rm", again.id, run.id])
    assert again.path.exists()  # all of what is named, or nothing
    saved(tmp_path / "data", "Data", "one")
    last = make_run(codes=(0,), inputs={"data": open_registry().resolve("Data:v0").to_dict()})
    with pytest.raises(UserError, match=f"Data:v0 was read by {last.id}"):
        tool("artifacts", ["rm", "Data:v0"])
    # Together they go, what refers to others first.
    removed = report(capsys, "--state", "failed,succeeded", "--dry-run")
    assert removed == ([loaded.id, reader.id, again.id, last.id], [stage.id])
    assert report(capsys, "--state", "failed,succeeded") == removed and stage.path.exists()
    assert tool("artifacts", ["rm", "Data:v0"]) == 0 and "removed" in capsys.readouterr().out
    assert report(capsys, stage.id, "--force") == ([stage.id], [])


def test_a_home_that_was_moved_away_from_its_registry(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The registry's record names the old folder until it is relocated: the run that has the files stays."""
    (tmp_path / "env.toml").write_text(f'[artifacts]\nroot = "{tmp_path}/registry"\n')
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "old"))
    run = make_run(age=40 * DAY, codes=(1,))
    saved(run.path / "jobs/0/data", "Data", "text")
    pin = open_registry().resolve("Data:v0").to_dict()
    (run.job().path / "artifacts.json").write_text(json.dumps({"inputs": {}, "outputs": [pin]}))
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "new"))
    run = open_run(run.id)
    with pytest.raises(UserError, match=r"holds the files of Data:v0 \(its record names a folder that is gone"):
        tool("runs", ["rm", run.id])
    assert tool("artifacts", ["gc", "--yes"]) == 0
    assert tool("artifacts", ["relocate", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert open_registry().verify(open_registry().resolve("Data:v0"), deep=True)
    with pytest.raises(UserError, match=r"holds the files of Data:v0\."):
        tool("runs", ["rm", run.id])
    assert tool("runs", ["rm", run.id, "--with-artifacts"]) == 0


def test_a_lineage_goes_as_a_whole(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """--with-artifacts: what others were made from goes if they go, too, and stays if one of them stays."""
    first, second = make_run(age=40 * DAY, codes=(0,)), make_run(age=39 * DAY, codes=(0,))
    saved(first.path / "jobs/0/data", "Data", "text")
    saved(second.path / "jobs/0/model", "Model", "weights", data="Data:v0")
    open_registry().set_alias("Model", "good", 0)
    line = ("--older-than", "30d", "--with-artifacts")
    assert report(capsys, *line, "--dry-run") == report(capsys, *line) == ([], [first.id, second.id])
    assert (open_registry().folder("Model") / "aliases/good").unlink() is None
    assert report(capsys, *line, "--dry-run") == report(capsys, *line) == ([first.id, second.id], [])
    assert open_registry().names() == []


def test_a_long_lineage_is_looked_at_twice_at_most(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was made from the one before, and the last one stays, so all stay: not a round for each."""
    runs = [make_run(age=(40 - number) * DAY, codes=(0,)) for number in range(6)]
    for number, run in enumerate(runs):
        saved(
            run.path / "jobs/0/data",
            f"Data{number}",
            str(number),
            **({"data": f"Data{number - 1}:v0"} if number else {}),
        )
    open_registry().set_alias("Data5", "good", 0)
    checked: list[str] = []
    check = LocalRegistry.check_removable
    monkeypatch.setattr(
        LocalRegistry, "check_removable", lambda *a, **k: (checked.append(str(a[1])), check(*a, **k))[1]
    )
    line = ("--older-than", "30d", "--with-artifacts", "--dry-run")
    assert report(capsys, *line) == ([], [run.id for run in runs])
    assert len(checked) <= 2 * len(runs)


def test_sizes(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small, large = make_run(codes=(0,)), make_run(codes=(0,))
    (large.path / "jobs/0/weights").write_bytes(bytes(100_000))
    assert tool("runs", ["du", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in rows] == [large.id, small.id] and rows[0]["bytes"] > 100_000
    assert tool("runs", ["du", "--json", "--limit", "1"]) == 0 and len(json.loads(capsys.readouterr().out)) == 1
    saved(tmp_path / "a", "Data", "12345")
    saved(tmp_path / "b", "Data", "123")
    assert tool("artifacts", ["du", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "Data", "versions": 2, "files": 2, "bytes": 8}]


def collected(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `artifacts gc` reports."""
    capsys.readouterr()
    assert tool("artifacts", ["gc", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_gc_removes_what_nothing_refers_to(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("lost", "parent", "read", "named", "partly"):
        saved(tmp_path / name, name, name)
    saved(tmp_path / "unmounted/data", "unmounted", "x")
    (tmp_path / "partly/more.txt").write_text("more")
    saved(tmp_path / "partly", "partly", "more")
    saved(tmp_path / "child", "child", "weights", parent="parent:v0")
    open_registry().set_alias("named", "good", 0)
    lost = open_registry().resolve("lost:v0")
    pin = open_registry().resolve("read:v0").to_dict()
    reader = make_run(codes=(0,), inputs={"data": pin})
    old, recent = make_run(age=40 * DAY, codes=(1,)), make_run(age=DAY, codes=(1,))
    tagged, again = make_run(age=40 * DAY, codes=(1,)), make_run(age=40 * DAY, codes=(1,))
    tagged.label(tags=["keep"])
    make_run(codes=(0,), rerun_of=again.id)
    holds, succeeded = make_run(age=40 * DAY, codes=(1,)), make_run(age=40 * DAY, codes=(0,))
    saved(holds.path / "jobs/0/model", "kept", "weights")
    whole = make_run("all", age=50 * DAY, codes=(), kind="pipeline", stages=["data"])
    stage = make_run("data", age=49 * DAY, codes=(1,), part_of=whole.id)
    whole.add_stage(0, {"stage": "data", "run": stage.id, "why": "new"})
    for name in ("lost", "parent", "read", "named"):
        (tmp_path / name / "data.txt").unlink()
    (tmp_path / "partly/data.txt").unlink()
    shutil.rmtree(tmp_path / "unmounted")

    would = collected(capsys, "--dry-run")
    assert would["versions"] == {"lost:v0": str(tmp_path / "lost"), "partly:v0": str(tmp_path / "partly")}
    assert set(would["runs"]) == {old.id, whole.id, stage.id} and next(iter(would["runs"])) == whole.id
    assert {label: why.split(":")[0] for label, why in would["kept"].items()} == {
        "parent:v0": "child",
        "read:v0": f"{reader.id} read it",
        "named:v0": "the alias good names it",
        "unmounted:v0": f"{tmp_path}/unmounted is missing, too",
    }
    with pytest.raises(UserError, match="need --yes without a terminal"):
        tool("artifacts", ["gc"])
    assert old.path.exists() and open_registry().versions("lost") == [0]
    assert collected(capsys, "--yes") == {**would, "dry_run": False}
    assert {run.id for run in list_runs()} >= {reader.id, recent.id, tagged.id, again.id, holds.id, succeeded.id}
    assert not {run.id for run in list_runs()} & {old.id, whole.id, stage.id}
    assert open_registry().versions("lost") == [] and open_registry().versions("partly") == [1]
    nothing = collected(capsys, "--yes")
    assert not any(nothing[what] for what in ("versions", "runs", "records", "leftovers", "aliases"))
    # A number is not given again, and what may only be out of reach goes when asked for.
    saved(tmp_path / "lost", "lost", "new")
    assert open_registry().resolve("lost").version == (lost.version or 0) + 1
    assert list(collected(capsys, "--yes", "--unmounted")["versions"]) == ["unmounted:v0"]


def test_gc_keeps_what_is_referred_to_by_a_path(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A checkpoint that a run started from, a link in a version's folder, a record that can't be read."""
    loaded, linked, named, loose = (make_run(age=40 * DAY, codes=(1,)) for _ in range(4))
    going_on = make_run(codes=(0,))
    (going_on.job().path / "config.yaml").write_text(f"checkpoint: {{load: {loaded.path}/jobs/0/model}}\n")
    (linked.path / "weights").write_text("weights")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").symlink_to(linked.path / "weights")
    Artifact(path=tmp_path / "model").save(name="Model")
    damaged = make_run(codes=(0,), rerun_of=named.id)
    (damaged.path / "plan.json").write_text((damaged.path / "plan.json").read_text()[:-3])
    saved(loose.path / "jobs/0/out", "Out", "deleted by hand")  # goes with its run: not in two goes
    shutil.rmtree(loose.path / "jobs/0/out")
    found = collected(capsys, "--yes")
    assert found["runs"].keys() == {loose.id} and found["versions"].keys() == {"Out:v0"}
    assert all(run.path.is_dir() for run in (loaded, linked, named, going_on, damaged))


def test_gc_while_others_save_and_remove(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What came into use, or went, between the look and the removal does not stop gc."""
    resumed, gone, old = (make_run(age=40 * DAY, codes=(1,)) for _ in range(3))
    for name in ("Back", "Lost"):
        saved(tmp_path / name, name, name)
        (tmp_path / name / "data.txt").unlink()
    find = Garbage.find

    def found_then(*arguments: Any, **options: Any) -> Garbage:
        garbage = find(*arguments, **options)
        saved(resumed.path / "jobs/0/model", "Model", "weights")
        (tmp_path / "Back/data.txt").write_text("Back")
        open_registry().remove("Lost:v0")
        shutil.rmtree(gone.path)
        return garbage

    monkeypatch.setattr(Garbage, "find", found_then)
    found = collected(capsys, "--yes")
    assert set(found["runs"]) == {gone.id, old.id} and set(found["versions"]) == {"Lost:v0"}
    assert found["kept"].keys() == {resumed.id, "Back:v0"} and not old.path.exists()
    assert all(open_registry().verify(open_registry().resolve(name)) for name in ("Model", "Back"))


def test_gc_asks_on_a_terminal(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(age=40 * DAY, codes=(1,))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(UserError, match="Nothing was removed"):
        tool("artifacts", ["gc"])
    assert run.path.exists() and run.id in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert tool("artifacts", ["gc"]) == 0 and not run.path.exists()


def test_files_that_were_moved(capsys: pytest.CaptureFixture[str], tmp_path: Path, make_run: MakeRun) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    saved(old / "data", "Data", "one")
    saved(old / "other", "Other", "two")
    saved(tmp_path / "oldish", "Oldish", "three")
    saved(tmp_path / "model", "Model", "weights", data="Data:v0")
    Artifact(path=old / "data", metadata={"file": f"{old}/data/data.txt"}).save(name="Named")
    digest = open_registry().resolve("Data:v0").digest
    old.rename(new)
    (new / "other/data.txt").write_text("TWO")
    with pytest.raises(UserError, match="There is no folder"):
        tool("artifacts", ["relocate", str(new), str(tmp_path / "none")])
    line = ["relocate", str(old), str(new)]
    assert tool("artifacts", [*line, "--dry-run"]) == 1 and open_registry().find("Data:v0").root == str(old / "data")
    capsys.readouterr()
    assert tool("artifacts", [*line, "--json"]) == 1
    rows = {row["version"]: row for row in json.loads(capsys.readouterr().out)["versions"]}
    assert "other content" in rows.pop("Other:v0")["left"]
    assert rows.keys() == {"Data:v0", "Model:v0", "Named:v0"}
    pin = open_registry().resolve("Data:v0")
    assert (pin.path, pin.digest) == (str(new / "data"), digest)
    assert open_registry().verify(pin, deep=True) and Artifact.from_uri("art://Data:v0").path == new / "data"
    assert artifact_field(open_registry().resolve("Named:v0"), "metadata.file") == f"{new}/data/data.txt"
    assert open_registry().find("Model:v0").inputs[0].path == str(new / "data")
    assert open_registry().find("Other:v0").root == str(old / "other")
    assert open_registry().find("Oldish:v0").root == str(tmp_path / "oldish")
    (new / "other/data.txt").write_text("two")
    assert tool("artifacts", line) == 0 and open_registry().resolve("Other:v0").path == str(new / "other")
    capsys.readouterr()
    assert tool("artifacts", line) == 0 and "No version" in capsys.readouterr().out


def test_files_that_were_moved_up_or_reached_by_a_link(tmp_path: Path) -> None:
    old = tmp_path / "all/old"
    saved(old / "data", "Data", "one")
    (tmp_path / "link").symlink_to(old)
    saved(tmp_path / "link/more", "More", "two")
    for name in ("data", "more"):
        (old / name).rename(tmp_path / "all" / name)
    for _ in range(2):
        assert tool("artifacts", ["relocate", f"{old}/", str(tmp_path / "all")]) == 0
        assert open_registry().resolve("Data:v0").path == str(tmp_path / "all/data")
        assert open_registry().resolve("More:v0").path == str(tmp_path / "all/more")
    # Down again, into a folder in the old one.
    (tmp_path / "all/old/data").parent.mkdir(exist_ok=True)
    (tmp_path / "all/data").rename(old / "data")
    assert tool("artifacts", ["relocate", str(tmp_path / "all"), str(old)]) == 1  # more was not moved
    assert open_registry().resolve("Data:v0").path == str(old / "data")
    assert open_registry().find("More:v0").root == str(tmp_path / "all/more")


def test_a_reference_that_would_mean_another_version_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "a", "Data", "one")
    saved(tmp_path / "b", "Data", "two")
    with pytest.raises(UserError, match="Data:latest can mean another version later: it is Data:v1 now"):
        tool("artifacts", ["rm", "Data:latest"])
    for _ in range(2):
        assert tool("artifacts", ["rm", "Data:v1"]) == 0
    assert "has been removed already" in capsys.readouterr().out and open_registry().versions("Data") == [0]


@pytest.mark.parametrize("name", removals.COMMANDS)
def test_killed_and_given_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At some of the calls that change files; scripts/faults does it at all."""
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path))
    assert [wrong for wrong in removals.kills(tmp_path, name, first=6, every=25) if wrong[1]] == []
