"""log_metrics: what is written, by whom, and what a job's rows say."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_kit import log_metrics
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import finite
from nemotron_kit.runs import metrics
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.metrics import Measured, condensed, flush_metrics, less_is_better, measured, summarized, summary


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path))
    return tmp_path


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows, whose times are of the last minute."""
    flush_metrics()
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    assert all(-1 < time.time() - row.pop("_timestamp") < 60 for row in found)
    return found


def test_numbers_of_every_kind_are_rows(job: Path) -> None:
    torch = pytest.importorskip("torch")
    log_metrics({"loss": 1.2, "n": 3}, step=7)
    log_metrics({"a": np.float32(0.5), "b": np.float64(0.25), "c": np.int64(2), "d": np.array(1.5)}, step=np.int64(8))
    log_metrics({"t": torch.tensor(2.5, requires_grad=True), "h": torch.tensor(1.5, dtype=torch.bfloat16)}, step=9)
    log_metrics({"loss": math.nan, "up": math.inf, "down": -math.inf})
    assert rows(job) == [
        {"step": 7, "loss": 1.2, "n": 3},
        {"step": 8, "a": 0.5, "b": 0.25, "c": 2, "d": 1.5},
        {"step": 9, "t": 2.5, "h": 1.5},
        {"loss": "NaN", "up": "Infinity", "down": "-Infinity"},
    ]


@pytest.mark.parametrize(
    ("given", "step", "said"),
    [
        ({"loss": "low"}, 1, r"loss is 'low' \(str\), not a number"),
        ({"loss": None}, 1, r"loss is None \(NoneType\), not a number"),
        ({"loss": np.ones(2)}, 1, r"loss is array\(\[1\., 1\.\]\) \(ndarray\), not a number"),
        ({"step": 1}, 1, "'step' can't be a metric"),
        ({3: 1}, 1, "3 can't be a metric"),
        ({"\x1b[31m": 1}, 1, "can't be a metric's name: .* printable"),
        ({"\ud800": 1}, 1, "can't be a metric's name"),
        ({"x" * 201: 1}, 1, "can't be a metric's name: .* of 1 to 200"),
        ({"loss": 10**400}, 1, "loss is a whole number that no float can hold"),
        ({"loss": 1}, 1 << 70, "step is a whole number of more than 63 bits"),
        ([("loss", 1)], 1, "not a mapping of names to numbers"),
        ({"loss": 1}, 1.5, r"step is 1\.5 \(float\), not a whole number"),
    ],
)
def test_what_is_no_metric_is_one_error_and_no_row(job: Path, given: Any, step: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        log_metrics({"good": 1, **given} if isinstance(given, dict) else given, step=step)
    flush_metrics()
    assert list(job.iterdir()) == []


def test_outside_of_a_job_one_debug_line(monkeypatch, caplog) -> None:
    monkeypatch.delenv("NEMO_RUN_DIR", raising=False)
    monkeypatch.setattr(metrics, "_logged", [])
    caplog.set_level(logging.DEBUG)
    log_metrics({"loss": 1.2}, step=1)
    log_metrics({"loss": 1.1}, step=2)
    assert [record.levelname for record in caplog.records if "not in a job" in record.message] == ["DEBUG"]


def test_an_open_wandb_run_gets_the_same_values(job: Path, monkeypatch) -> None:
    sent: list[tuple[dict[str, Any], int]] = []
    wandb = SimpleNamespace(run=object(), log=lambda row, step: sent.append((row, step)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log_metrics({"loss": np.float32(0.5)}, step=3)
    assert sent == [({"loss": 0.5}, 3)] and rows(job) == [{"step": 3, "loss": 0.5}]


def test_other_ranks_say_which_they_are(job: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    log_metrics({"loss": 3.0}, step=1)
    monkeypatch.setenv("LOCAL_RANK", "1")  # of another node, which may not append to the same file
    log_metrics({"loss": 4.0}, step=1)
    assert rows(job) == [{"step": 1, "loss": 3.0, "rank": 3}]
    assert rows(job, "metrics-rank-3.jsonl") == [{"step": 1, "loss": 4.0, "rank": 3}]


def test_threads_and_forks_lose_and_double_nothing(job: Path) -> None:
    """Forked while rows wait: the child writes its own, the parent its own; each whole."""
    script = """
import multiprocessing, threading
from nemotron_kit import log_metrics
def log(name, count):
    for step in range(count):
        log_metrics({name: step}, step=step)
threads = [threading.Thread(target=log, args=(f"t{n}", 2000)) for n in range(4)]
[t.start() for t in threads]
children = [multiprocessing.get_context("fork").Process(target=log, args=(f"f{n}", 500)) for n in range(2)]
[c.start() for c in children]
[t.join() for t in [*threads, *children]]
log("end", 10)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "NEMO_RUN_DIR": str(job)})
    found = [(name, row["step"]) for row in rows(job) for name in row if name != "step"]
    counts = {"t0": 2000, "t1": 2000, "t2": 2000, "t3": 2000, "f0": 500, "f1": 500, "end": 10}
    assert sorted(found) == sorted((name, step) for name, count in counts.items() for step in range(count))


def test_a_number_that_no_float_holds_is_left_out(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.5}, {"step": 10**400, "loss": 10**400}, {"step": 3, "loss": -(10**400), "lr": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert measured(tmp_path) == {"loss": Measured(2.5, 1, 2.5, 1), "lr": Measured(1, 3, 1, 3)}
    assert metrics.series(tmp_path) == {"loss": ([1], [2.5]), "lr": ([3], [1])}


def test_a_name_with_half_a_character_is_a_text_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "\\ud800": 1.0, "\\ud83d\\ude00": 2.0}\n')
    assert list(measured(tmp_path)) == list(metrics.series(tmp_path)) == ["\\ud800", "\U0001f600"]


def test_a_line_that_a_kill_cut_short_spoils_no_other(job: Path) -> None:
    (job / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    log_metrics({"loss": 1.0}, step=3)
    flush_metrics()
    assert measured(job) == {"loss": Measured(1.0, 3, 1.0, 3)}


def test_rows_that_can_not_be_written_are_said_and_kept(job: Path) -> None:
    (job / "metrics.jsonl").mkdir()
    with pytest.raises(NemotronError, match=r"metrics\.jsonl: metrics can't be written"):
        log_metrics({"loss": 2.0}, step=1)
    (job / "metrics.jsonl").rmdir()
    log_metrics({"loss": 1.0}, step=2)
    assert [row["step"] for row in rows(job)] == [1, 2]


def test_last_and_best(job: Path) -> None:
    lines = [
        {"step": 1, "valid_loss": "NaN", "acc": 0.1, "note": "a text"},
        {"step": 2, "valid_loss": 2.0, "acc": 0.9},
        {"step": 3, "valid_loss": 3.0, "acc": 0.5},
        {"step": 4, "valid_loss": 9.0, "other": 1.0, "rank": 1},
    ]
    (job / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "[1]\nbroken\n")
    assert measured(job) == {
        "valid_loss": Measured(3.0, 3, 2.0, 2),
        "acc": Measured(0.5, 3, 0.9, 2),
        "other": Measured(1.0, 4, 1.0, 4),
    }
    assert measured(job / "nowhere") == {}


def test_the_few_rows_that_come_from_elsewhere_say_the_same(job: Path) -> None:
    lines = [{"step": n, "loss": abs(n - 4) + 1.0, **({"acc": n} if n < 6 else {}), "up": 1e400} for n in range(20)]
    text = "".join(f"{json.dumps(finite(line))}\n" for line in lines)
    (job / "metrics.jsonl").write_text(text)
    whole, rows = measured(job), condensed(JobFolder(job), 5)
    (job / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert measured(job) == whole and list(whole) == ["loss", "acc", "up"] == list(measured(job))
    assert (whole["loss"].best_step, whole["acc"].step, len(rows)) == (4, 5, 11)
    (job / "metrics.jsonl").write_text(text[: text.index("\n") + 1])
    assert condensed(JobFolder(job), 5) == [{"step": 0, "loss": 5.0, "acc": 0, "up": "Infinity"}]


def test_event_files_have_the_same_values(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    log_metrics({"loss": 9.0}, step=1)
    assert not (job / "tensorboard").exists()  # env.toml does not turn it on
    monkeypatch.setenv("NEMOTRON_TENSORBOARD", "1")
    for step in (2, 3):
        log_metrics({"loss": 1.5 / step, "acc": step}, step=step)
    assert len(rows(job)) == 3
    (file,) = (job / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:  # each event: its length, a checksum, itself, a checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert found == [("loss", 2, 0.75), ("acc", 2, 2.0), ("loss", 3, 0.5), ("acc", 3, 3.0)]


NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.5, 1e300, math.inf, math.nan]), st.just("NaN"))
ROWS = st.lists(st.dictionaries(st.sampled_from(["step", "rank", "loss", "acc"]), NUMBERS), max_size=6)


@given(ROWS, st.lists(st.fixed_dictionaries({"step": st.integers(0, 9), "loss": NUMBERS}), max_size=6))
def test_rows_of_one_kind_are_read_at_once_as_one_by_one(tmp_path_factory, some, others) -> None:
    folder = tmp_path_factory.mktemp("job", numbered=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*others, *some, *others]))
    at_once = metrics.measured_by_rank(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_add_columns", lambda *_: False)
        one_by_one = metrics.measured_by_rank(folder)
    assert repr(at_once) == repr(one_by_one)  # NaN is equal to nothing


def test_an_exit_record_has_the_metrics_until_rows_are_added(tmp_path: Path) -> None:
    assert summary(tmp_path) == {}
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 3, "acc": "NaN"}\n')
    record = json.loads(json.dumps(summary(tmp_path)))
    assert repr(summarized(tmp_path, record)) == repr(measured(tmp_path))
    assert measured(tmp_path)["loss"] == Measured(3, 2, 2.5, 1)
    with file.open("a") as more:
        more.write('{"step": 3, "loss": 1}\n')
    assert summarized(tmp_path, record) is None


@pytest.mark.parametrize(
    "values", [None, [], *({"loss": row} for row in ([1, 2, 3], ["x", 1, 1, 1], [1, "a", 1, 1], [1, 1, 10**400, 1]))]
)
def test_a_damaged_summary_is_not_used(tmp_path: Path, values: Any) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    record = summary(tmp_path)
    record["metrics"]["values"] = values
    assert summarized(tmp_path, record) is None


def test_which_metrics_are_best_when_low() -> None:
    low = ("loss", "valid_loss", "lossScale", "val/PPL", "nll", "test_mse", "RMSE/a", "wer_clean")
    high = ("acc", "reward", "answer", "umbrella", "power", "tokens_per_second")
    assert [name for name in (*low, *high) if less_is_better(name)] == list(low)
