"""`nemotron runs diff`: the differences between two runs; and a recorded value as an override."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_kit.cli.output import cells
from nemotron_kit.cli.runs.diff import differences
from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.config.freeze import flat
from nemotron_kit.errors import UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.quoting import hydra_data
from nemotron_kit.runs.folder import RunFolder, create_run

PIN = {"name": "Blend", "version": 1, "digest": "ab" * 32, "path": "/data", "type": "T", "registry": "u"}


def make(config: str, *, jobs: int = 1, pin: dict[str, Any] | None = None, **plan: Any) -> RunFolder:
    """A run whose config names its own folder, as a job's does."""
    run_id = new_run_id("nano3", "pretrain")
    text = config.replace("JOB", f"/root/runs/{run_id}/jobs/0")
    files = {"config.yaml": text, "artifacts.json": json.dumps({"inputs": {"data": pin or PIN}, "outputs": []})}
    place = {"run": f"/root/runs/{run_id}"}
    return create_run(run_id, {"recipe": "nano3", "stage": "pretrain", "place": place, **plan}, [files] * jobs)


pytestmark = pytest.mark.usefixtures("home")


def diff(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = run_tool("runs", ["diff", *words])
    return code, capsys.readouterr().out


def test_two_of_the_same_are_the_same_wherever_they_lie(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (make("train: {lr: 0.1}\nout: JOB/code/output\nrun: {profile: C}\n") for _ in range(2))
    assert diff(capsys, a.id, b.id) == (0, "no difference\n")
    assert json.loads(diff(capsys, a.id, b.id, "--json")[1]) == {
        "a": f"{a.id}/0", "b": f"{b.id}/0", "same": True, "differences": {},
    }  # fmt: skip


def test_other_versions_of_packages_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    a, b, old = (make("train: {lr: 0.1}\n") for _ in range(3))
    for run, torch in ((a, "2.10"), (b, "2.13")):
        run.job().transition("running", versions={"python": "3.11.7", "torch": torch})
        run.job().transition("pending")  # an attempt that has not begun
    old.job().transition("running")
    code, out = diff(capsys, a.id, b.id, "--json")
    assert (code, json.loads(out)["differences"]) == (1, {"environment": {"torch": {"a": "2.10", "b": "2.13"}}})
    assert json.loads(diff(capsys, a.id, old.id, "--json")[1])["differences"]["environment"]["torch"] == {"a": "2.10"}


def test_what_is_not_the_same_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    a = make(
        "train: {lr: 0.1, warm: 5}\nsizes: [1]\n", settings={"nodes": 1}, code={"commit": "a" * 40, "dirty": False}
    )
    b = make(
        "train: {lr: 0.1}\nsizes: [1, 2]\nname: x\n",
        pin={**PIN, "version": 2, "digest": "cd" * 32},
        settings={"nodes": 2},
        code={"commit": "a" * 40, "dirty": True},
        captured_at_launch={"HF_HOME": "/x"},
    )
    code, out = diff(capsys, a.id, b.id, "--json")
    assert code == 1
    assert json.loads(out)["differences"] == {
        "config": {"train.warm": {"a": 5}, "sizes": {"a": [1], "b": [1, 2]}, "name": {"b": "x"}},
        "artifacts": {"data": {"a": "Blend:v1 sha256 abababababab", "b": "Blend:v2 sha256 cdcdcdcdcdcd"}},
        "code": {"dirty": {"a": False, "b": True}},
        "environment": {"HF_HOME": {"b": "/x"}},
        "launch": {"nodes": {"a": 1, "b": 2}},
    }
    lines = diff(capsys, a.id, b.id)[1].splitlines()
    assert lines[0] == "config" and lines[1].split() == ["train.warm", "5", "→", "(not", "there)"]


def test_two_jobs_of_one_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    run = make("lr: 1\n", jobs=2)
    (run.job(1).path / "config.yaml").write_text("lr: 2\n")
    code, out = diff(capsys, f"{run.id}/0", f"{run.id}/1", "--json")
    assert code == 1 and json.loads(out)["differences"] == {"config": {"lr": {"a": 1, "b": 2}}}
    with pytest.raises(UserError, match="is a sweep of 2 jobs"):
        run_tool("runs", ["diff", run.id, f"{run.id}/1"])
    with pytest.raises(UserError, match="after the / comes a job's number"):
        run_tool("runs", ["diff", f"{run.id}/x", f"{run.id}/1"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z_][a-z_0-9]{0,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_a_recorded_value_can_be_said_as_an_override(value: Any) -> None:
    parsed = OverridesParser.create().parse_override(f"++x={hydra_data(value)}")
    assert parsed.value() == value


@given(st.dictionaries(st.text(min_size=1, max_size=3), VALUES, max_size=4))
def test_what_is_equal_does_not_differ(values: dict[str, Any]) -> None:
    facts = {"config": dict(flat(values))}
    assert differences(facts, facts) == {}


@pytest.mark.parametrize("columns", [44, 60, 200])
def test_on_a_narrow_terminal_no_side_is_left_out(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many sides for their columns, or a key too long, stand below each other; a wide character counts twice."""
    monkeypatch.setattr("nemotron_kit.cli.runs.diff.terminal_width", lambda: columns)
    texts = ["日本語の実験" * 8, "x" * 90, "short", "deep/" * 20]
    runs = [make(f"prompt: {text}\n") for text in texts]
    for number, run in enumerate(runs):
        (run.job().path / "metrics.jsonl").write_text(f'{{"{"a_long_name/" * 4}": 7.{number}1}}\n')
    for chosen in (runs, runs[:2]):
        out = diff(capsys, *(run.id for run in chosen))[1]
        assert max(map(cells, out.splitlines())) <= columns
        for number, text in enumerate(texts[: len(chosen)]):
            assert f"7.{number}1" in out
            assert text in "".join(out.split()) or len(chosen) == 2 or columns == 200


def test_any_number_of_runs_with_their_results(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make(f"lr: {lr}\nseed: 1\n") for lr in (1, 1, 3)]
    for run, loss in zip(runs, (0.5, 0.25, 0.75), strict=True):
        (run.job().path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {loss}}}\n')
        run.job().finish(0, value=7)
    code, out = diff(capsys, *(run.id for run in runs))
    assert code == 1 and [line.split() for line in out.splitlines()] == [
        *([side, f"{run.id}/0"] for side, run in zip("abc", runs, strict=True)),
        ["config", "a", "b", "c"],
        ["lr", "1", "1", "3"],
        ["results", "a", "b", "c"],
        ["loss", "0.5", "0.25", "0.75"],
    ]
    # Results are shown, and are no difference between two runs of the same.
    code, out = diff(capsys, runs[0].id, runs[1].id)
    assert code == 0 and out.splitlines() == ["no difference", "results", "  loss  0.5  →  0.25"]
    code, out = diff(capsys, runs[0].id, runs[1].id, "--json")
    found = json.loads(out)
    assert (found["same"], found["results"]) == (True, {"loss": {"a": 0.5, "b": 0.25}})
    for run, loss in zip(runs, (2 / 3, 1 / 3, 1 / 3 + 1e-12), strict=True):
        (run.job().path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {loss}}}\n')
    assert "  loss  0.666667  →  0.333333\n" in diff(capsys, runs[0].id, runs[1].id)[1]
    assert f"{1 / 3}  →  {1 / 3 + 1e-12}\n" in diff(capsys, runs[1].id, runs[2].id)[1]  # they would look the same
    assert json.loads(diff(capsys, runs[0].id, runs[1].id, "--json")[1])["results"]["loss"] == {"a": 2 / 3, "b": 1 / 3}
    with pytest.raises(UserError, match="compares 2 to 26 runs; 1 were given"):
        diff(capsys, runs[0].id)
    sweep = create_run(new_run_id("tiny", "train"), {"kind": "sweep"}, [{"config.yaml": f"lr: {n}\n"} for n in "123"])
    code, out = diff(capsys, f"{sweep.id}/0-1", f"{sweep.id}/2", "--json")
    found = json.loads(out)
    assert code == 1 and [found[side] for side in "abc"] == [f"{sweep.id}/{n}" for n in range(3)]
    assert found["differences"]["config"]["lr"] == {"a": 1, "b": 2, "c": 3}
