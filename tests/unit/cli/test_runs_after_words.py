"""`--after ID` on a job's command line, in both spellings."""

from __future__ import annotations

import shlex

import pytest

from nemotron_kit.cli.index import Index
from nemotron_kit.cli.parse import parse, parse_hydra
from nemotron_kit.cli.request import Job, hydra_spelling, shell_line
from nemotron_kit.errors import UserError

RUN = "20261124-171204-nano3-pretrain-1f03a7"


def job(line: str, index: Index) -> Job:
    found = parse(shlex.split(line), index)
    assert isinstance(found, Job)
    return found


@pytest.mark.parametrize(
    ("line", "after"),
    [
        (f"nano3 pretrain --after {RUN}", (RUN,)),
        (f"nano3 pretrain --after={RUN} -c tiny", (RUN,)),
        (f"--after {RUN} nano3 pretrain --run C", (RUN,)),
        ("nano3 --after latest pretrain --after 1f03a7 --after latest", ("latest", "1f03a7")),
        ("nano3 pretrain", ()),
    ],
)
def test_the_runs_that_come_first(line: str, after: tuple[str, ...], index: Index) -> None:
    assert job(line, index).after == after


def test_the_other_spelling_says_the_same(index: Index) -> None:
    ours = job(f"nano3 pretrain --after {RUN} --after latest --force", index)
    assert hydra_spelling(ours)[-2:] == [f"--after={RUN}", "--after=latest"]
    theirs = parse_hydra(shlex.split(shell_line(ours))[3:], index)
    assert isinstance(theirs, Job) and theirs.after == ours.after


@pytest.mark.parametrize(
    "line", ["nano3 pretrain --after", "nano3 pretrain --after --force", "nano3 pretrain --after="]
)
def test_no_run(line: str, index: Index) -> None:
    with pytest.raises(UserError, match="--after needs a RUN"):
        job(line, index)
