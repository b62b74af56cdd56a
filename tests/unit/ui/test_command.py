"""`nemotron ui`: its arguments, its export, what it says; the thinning of curves."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import socket
from pathlib import Path

import pytest

pytest.importorskip("starlette")
from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import PIPELINE, create_run
from nemotron_kit.runs.metrics import series
from nemotron_kit.ui import command
from nemotron_kit.ui.comparing import ComparingPages
from nemotron_kit.ui.export import export
from nemotron_kit.ui.figures import thinned
from nemotron_kit.ui.page import Links
from nemotron_kit.ui.reading import RecordReader

from ...dashboard import fill


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["latest"], "runs are named for --export only"),
        (["--export", "x.html"], "--export: which runs"),
        (["--export", "latest", "1a2b3c"], "--export latest: the file to write ends in .html"),
        (["--port", "70000"], "ports end at 65535"),
        (["--port", "0"], "expected a whole number from 1"),
        (["--prot", "1"], "unknown argument '--prot'"),
    ],
)
def test_arguments(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        run_tool("ui", words)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("uvicorn", "plotly") else object())
    with pytest.raises(UserError, match="needs uvicorn, plotly, which are not installed") as raised:
        run_tool("ui", [])
    assert raised.value.hint == "pip install 'nemotron-kit[ui]'"


def test_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NemotronError, match=f"--port {port}: Address already in use"):
            command._listen(port)
    found = command._listen(None)
    assert found.getsockname()[0] == "127.0.0.1"
    found.close()


def test_over_ssh_the_tunnels_line_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 50000 10.0.0.2 2222")
    monkeypatch.setenv("USER", "me")
    monkeypatch.setattr(socket, "gethostname", lambda: "login1")
    command._print_address("http://127.0.0.1:8321/?token=t", 8321, as_json=False)
    assert "ssh -N -L 8321:127.0.0.1:8321 -p 2222 me@login1" in capsys.readouterr().out
    monkeypatch.delenv("SSH_CONNECTION")
    command._print_address("http://127.0.0.1:8321/?token=t", 8321, as_json=True)
    assert json.loads(capsys.readouterr().out)["tunnel"] is None


def test_an_export_is_whole_and_without_secrets(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    (tmp_path / "env.toml").write_text("")
    runs = fill()
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    for file in ("logs/job.log", "config.yaml"):
        (runs["pretrain"].job().path / file).write_text("key: hf_abcdefghijkl\n")
    runs["pretrain"].label(note="with hf_abcdefghijkl")
    target = tmp_path / "out.html"
    assert run_tool("ui", ["--export", str(target), *(runs[n].id for n in ("pretrain", "sweep", "hostile"))]) == 0
    assert "pages" in capsys.readouterr().out
    page = target.read_text()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "hf_abc" not in page and own.count("***") >= 3
    assert not re.search(r'(?:src|href|action)="(?!#|data:,)[^"]*"', own)
    anchors = set(re.findall(r'<section class="page" id="([^"]+)"', page))
    assert {"compare", "diff", "lineage", f"run-{runs['sweep'].id}-8", "artifact-Model-v0"} <= anchors
    assert set(re.findall(r'href="#([^"]+)"', own)) <= anchors
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"sha256-{digest}" in policy[1]
    assert "unsafe-inline" not in policy[1] and "http" not in policy[1]
    assert "<script>window" not in own and "<img" not in own
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        run_tool("ui", ["--export", str(tmp_path / "folder.html"), "latest"])


def test_an_export_of_a_pipeline_whose_stages_runs_were_removed(home: Path, tmp_path: Path) -> None:
    run = create_run(new_run_id("demo", "all"), {"kind": PIPELINE, "recipe": "demo", "stages": ["prep", "train"]}, [])
    run.add_stage(0, {"stage": "prep", "skipped": True, "producer": new_run_id("demo", "prep"), "why": "unchanged"})
    run.add_stage(1, {"stage": "train", "run": new_run_id("demo", "train"), "state": "succeeded", "why": "new"})
    pages = export(tmp_path / "out.html", [run.id])
    assert pages == [run.id] and "removed" in (tmp_path / "out.html").read_text()


def test_an_export_of_some_jobs_has_all_of_them(home: Path, tmp_path: Path) -> None:
    run = create_run(new_run_id("demo", "train"), {"kind": "sweep"}, [{"config.yaml": f"a: {at}\n"} for at in range(4)])
    pages = export(tmp_path / "out.html", [f"{run.id}/1-3"])
    assert pages == ["Curves", "Difference", *(f"{run.id}/{number}" for number in (1, 2, 3))]


def test_curves_of_one_sweep_and_of_runs_with_one_name_are_told_apart(home: Path) -> None:
    metrics = {"config.yaml": "a: 1\n", "metrics.jsonl": '{"step": 1, "loss": 2.0}\n'}
    names = {"name": "base", "tags": [], "note": None}
    swept, one, other = (
        create_run(new_run_id("demo", "train"), {"recipe": "demo"}, [metrics] * count, labels={**names, "name": name})
        for count, name in ((2, "base"), (1, "same"), (1, "same"))
    )
    pages = ComparingPages(RecordReader(), Links())
    (figure,) = pages.compare([f"{swept.id}/0-1", one.id, other.id]).figures
    assert [line["name"] for line in figure.data] == ["base/0", "base/1", one.id, other.id]


def test_a_curve_is_the_lowest_ranks_and_a_repeated_step_counts_once(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 3.0, "free": 1},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": "NaN"},
        {"step": 2, "loss": 2.5},  # another attempt, from its checkpoint
        {"step": 1, "own": 5.0, "loss": 9.0, "rank": 1},
        {"free": 7},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "metrics-rank-2.jsonl").write_text('{"step": 1, "own": 8.0, "rank": 2}\n')
    assert series(tmp_path) == {"loss": ([1, 2], [3.0, 2.5]), "free": ([1, 5], [1, 7]), "own": ([1], [5.0])}


def test_a_thinned_curve_keeps_its_spikes_and_its_ends() -> None:
    values = [math.sin(at / 5000) for at in range(100_000)]
    values[77_777], values[12_345], values[50_000] = 40.0, -40.0, math.nan
    steps, kept = thinned(range(100_000), values, 500)
    assert len(steps) <= 510 and (steps[0], steps[-1]) == (0, 99_999)
    assert kept[steps.index(77_777)] == 40.0 and kept[steps.index(12_345)] == -40.0
    assert thinned([1, 2, 3], [1.0, math.inf, 2.0], 500) == ([1, 2, 3], [1.0, None, 2.0])
