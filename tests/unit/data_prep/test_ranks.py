"""Ranks that share a preparation out: who they are, and how each hears of the others' plan, end and death."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.data_prep import ranks
from nemotron_kit.data_prep.ranks import RankLayout, RankSync, ranks_here
from nemotron_kit.errors import NemotronError, UserError

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, (3, 16, 8)),
        ({"RANK": "1", "WORLD_SIZE": "2", **SRUN}, (1, 2, 1)),  # torchrun in a step: its word counts
        (SRUN, (5, 8, 4)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**SRUN, "SLURM_STEP_ID": None}, None),  # a batch script's own process is one, however many tasks it may start
    ],
)
def test_who_is_asked(environment: dict[str, Any], expected: tuple[int, int, int] | None) -> None:
    found = ranks_here({name: value for name, value in environment.items() if value is not None})
    assert (found and (found.rank, found.count, found.local)) == expected


def test_the_same_launch_for_all_and_another_for_the_next() -> None:
    names = {(ranks_here(SRUN | change) or pytest.fail()).launch for change in ({}, {"SLURM_PROCID": "0"})}
    assert len(names) == 1
    assert (ranks_here(SRUN | {"SLURM_STEP_ID": "1"}) or pytest.fail()).launch not in names


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ranks, "BEAT", 0.02)
    monkeypatch.setattr(ranks, "_FAREWELL", 10.0)  # of which the others use as much as they need
    yield


def together(folder: Path, works: list[Callable[[RankSync], Any]]) -> list[Any]:
    """What each rank's work gives, or the error that it ends with."""
    outcomes: list[Any] = [None] * len(works)

    def run(rank: int) -> None:
        try:
            with RankSync(folder, RankLayout(rank, len(works), 1, "launch")) as meeting:
                outcomes[rank] = works[rank](meeting)
        except NemotronError as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return outcomes


def lead(meeting: RankSync) -> str:
    (meeting.output / "plan").write_text("mine")
    meeting.begin("digest")
    meeting.wait_for_all()
    (meeting.output / "blend").write_text("whole")
    meeting.finish()
    return "led"


def follow(meeting: RankSync) -> tuple[str, str, str]:
    digest = meeting.wait_for_plan()
    plan = (meeting.output / "plan").read_text()
    meeting.wait_for_all()
    return digest, plan, (meeting.output / "blend").read_text()


def test_all_work_by_one_plan_and_leave_nothing(tmp_path: Path) -> None:
    # What an earlier launch of the same name left is no word of this one's.
    left = tmp_path / ".ranks-launch"
    left.mkdir()
    for rank, state in ((0, "finished"), (1, "done"), (2, "failed")):
        stale = {"nonce": f"n{rank}", "launch": "n0", "state": state, "digest": "old", "beat": 9, "error": "old"}
        (left / f"rank-{rank}.json").write_text(json.dumps({**stale, "accepted": {"1": "n1", "2": "n2"}}))
    assert together(tmp_path, [lead, follow, follow]) == ["led", *[("digest", "mine", "whole")] * 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blend", "plan"]


def test_one_ranks_error_is_every_ranks(tmp_path: Path) -> None:
    def fail(meeting: RankSync) -> None:
        meeting.wait_for_plan()
        raise UserError("a.jsonl, line 3: malformed JSON.")

    found = together(tmp_path / "out", [lead, follow, fail])
    assert isinstance(found[2], UserError)
    assert [str(error) for error in found[:2]] == [
        "Rank 2 failed: a.jsonl, line 3: malformed JSON.",
        "Rank 0 failed: Rank 2 failed: a.jsonl, line 3: malformed JSON.",
    ]


def test_a_plan_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    def refuse(meeting: RankSync) -> None:
        raise UserError("no such tokenizer")

    found = together(tmp_path / "out", [refuse, follow])
    assert "Rank 0 failed: no such tokenizer" in str(found[1])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("same_machine", [True, False])
def test_a_rank_that_died_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_machine: bool
) -> None:
    monkeypatch.setattr(ranks, "DEAD_AFTER", 60.0 if same_machine else 0.5)
    monkeypatch.setattr(ranks, "_FAREWELL", 0.1)

    def die(meeting: RankSync) -> None:
        meeting.wait_for_plan()
        meeting._stop.set()
        meeting._thread.join()
        if same_machine:
            meeting._mine["process"] = {**meeting._mine["process"], "pid": 2**22 + 1}  # no process has that number
        else:
            meeting._mine["process"] = {"pid": 5, "host": "another"}
        meeting._announce()
        monkeypatch.setattr(RankSync, "_part", lambda self: None)

    began = time.monotonic()
    found = together(tmp_path, [lead, die])
    assert time.monotonic() - began < 10
    assert "Rank 1 (process" in str(found[0])
    assert "died with shards to make" in str(found[0])


def test_a_rank_that_never_comes_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PATIENCE", 0.2)
    monkeypatch.setattr(ranks, "_FAREWELL", 0.1)
    with (
        pytest.raises(NemotronError, match=r"Rank 1 of 2 did not appear within 0 s\.\nDo all nodes see one"),
        RankSync(tmp_path, RankLayout(0, 2, 1, "launch")) as meeting,
    ):
        lead(meeting)
    with (
        pytest.raises(NemotronError, match="Rank 0 of 2 did not appear"),
        RankSync(tmp_path, RankLayout(1, 2, 1, "launch")) as meeting,
    ):
        follow(meeting)
