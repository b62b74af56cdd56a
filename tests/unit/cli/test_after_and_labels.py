"""`--after ID`, `--name`, `--tag` and `--note` on a job's command line, in both spellings."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import pytest

from nemotron_kit.app import App
from nemotron_kit.cli.indexing import LiveIndex
from nemotron_kit.cli.parse import parse, parse_hydra
from nemotron_kit.cli.request import Job, hydra_spelling, shell_line
from nemotron_kit.cli.tree import Index
from nemotron_kit.errors import UserError
from nemotron_kit.spec.plan import Labels

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


@dataclass
class Greeting:
    name: str = ""


def test_name_tags_and_note_are_the_runs_and_leave_a_field_of_that_name_alone(index: Index) -> None:
    ours = job("nano3 pretrain --name base --tag a,b --tag=c --note 'as before' -m", index)
    assert ours.labels.to_dict() == {"name": "base", "tags": ["a", "b", "c"], "note": "as before"}
    said = ["--name=base", "--tag=a", "--tag=b", "--tag=c", "--note=as before"]
    assert hydra_spelling(ours)[-5:] == said
    theirs = parse_hydra(hydra_spelling(ours), index)
    assert isinstance(theirs, Job) and theirs.labels == ours.labels
    app = App("hello")
    app.command("greet", Greeting, print)
    own = job("hello greet --name Ada --tag t", LiveIndex({"hello": app}, {}))
    assert (own.overrides, own.name, own.tags) == (("name=Ada",), None, ("t",))
    for line, wrong in (("--tag 'a b'", "'a b' can't be a tag"), ("--name " + "x" * 101, "This name has 101")):
        with pytest.raises(UserError, match=wrong):
            job(f"nano3 pretrain {line}", index).labels  # noqa: B018
    with pytest.raises(UserError, match="--name is given twice"):
        job("nano3 pretrain --name a --name b", index)


def test_labels_hold_no_secret(monkeypatch: pytest.MonkeyPatch, index: Index) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_Ab1Ab1Ab1Ab1")
    for label in ("name", "tag", "note"):
        with pytest.raises(UserError, match=f"This {label} holds the value of HF_TOKEN"):
            job(f"nano3 pretrain --{label} x-hf_Ab1Ab1Ab1Ab1", index).labels  # noqa: B018


def test_wandb_gets_them_beside_what_it_has() -> None:
    labels = Labels("base", ("a", "b"), "why")
    assert labels.for_wandb({"WANDB_TAGS": "b,own"}, None) == {
        "WANDB_NAME": "base",
        "WANDB_NOTES": "why",
        "WANDB_TAGS": "b,own,a",
    }
    assert labels.for_wandb({}, 3)["WANDB_NAME"] == "base/3" and Labels().for_wandb({"WANDB_TAGS": "x"}, 3) == {}
