from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.training.config_blocks import LoggerConfig
from nemotron_kit.training.reporter import Reporter, describe, metrics_path


def rows(path: Path) -> list[dict]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "_timestamp"} for row in found]


def test_rows_are_appended_and_told(tmp_path: Path, capsys) -> None:
    path = tmp_path / "deep/metrics.jsonl"
    reporter = Reporter(path, 0, 30)
    reporter.row({"step": 10, "loss": 2.5, "lr": 0.001, "tokens_per_second": 34100.4})
    reporter.row({"step": 10, "valid_loss": 2.25})
    reporter.close()
    assert [row["step"] for row in rows(path)] == [10, 10]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "step 10/30: loss 2.5000, lr 1.00e-03, 34,100 tokens/s",
        "step 10/30: held-out loss 2.2500",
    ]


def test_a_resumed_run_replaces_what_it_makes_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 3.0}\n{"step": 20, "loss": 2.0}\n{"step": 3')
    Reporter(path, 10, 30).row({"step": 20, "loss": 2.5})
    assert rows(path) == [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.5}]
    path.write_bytes(b'{"step": 10, "loss": 3.0}\n\xff\xfe\n{"step": 20, "loss": 2.0}\n')
    Reporter(path, 10, 30)
    assert rows(path) == [{"step": 10, "loss": 3.0}]
    path.write_text('{"step": 0, "val_reward": 0.5}\n{"note": 1}\n')  # measured before the first step, not saved
    Reporter(path, 0, 30)
    assert rows(path) == [{"note": 1}]


def test_only_one_process_talks(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    reporter = Reporter(tmp_path / "metrics.jsonl", 0, 30)
    reporter.print("hello")
    reporter.row({"step": 10, "loss": 2.5})
    assert capsys.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", [None, object()])
def test_a_wandb_run_gets_the_rows_if_there_is_one(tmp_path: Path, monkeypatch, run: object) -> None:
    sent: list[tuple[dict, int]] = []
    wandb = SimpleNamespace(run=run, log=lambda row, step: sent.append((row, step)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    Reporter(tmp_path / "metrics.jsonl", 0, 30).row({"step": 10, "loss": 2.5})
    assert sent == ([({"loss": 2.5}, 10)] if run else [])


def test_a_file_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NemotronError, match=r"file/m\.jsonl: metrics can't be written: (File exists|Not a directory)"):
        Reporter(tmp_path / "file/m.jsonl", 0, 30)


def test_where_the_rows_go(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("NEMO_RUN_DIR", raising=False)
    assert metrics_path(LoggerConfig(), tmp_path) == tmp_path / "metrics.jsonl"
    monkeypatch.setenv("NEMO_RUN_DIR", "/job")
    assert metrics_path(LoggerConfig(), tmp_path) == Path("/job/metrics.jsonl")
    assert metrics_path(LoggerConfig(metrics_file="/m.jsonl"), tmp_path) == Path("/m.jsonl")


def test_a_row_says_what_it_has() -> None:
    assert describe({"step": 3, "loss": 1.0}, 5) == "step 3/5: loss 1.0000"


def test_a_wrong_value_is_named() -> None:
    with pytest.raises(UserError, match=r"logger\.log_interval is 0"):
        LoggerConfig(log_interval=0).check()
