"""Properties of every command line, tested with generated ones."""

from __future__ import annotations

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_kit.cli.parse import parse, parse_hydra
from nemotron_kit.cli.request import Job, hydra_spelling
from nemotron_kit.cli.tree import Index
from nemotron_kit.errors import UserError

from ...conftest import examples

WORDS = [
    "nano3",
    "data",
    "prep",
    "pretrain",
    "train",
    "model",
    "import",
    "rl",
    "runs",
    "help",
    "lost",
    "x",
    "",
    "-",
    "--",
]
OPTIONS = ["-c", "-ctiny", "-r", "-b", "-d", "-h", "-m", "-s", "-p", "-pv", "-cd", "-5", "--help", "--config", "--run",
           "--batch=C", "--json", "--cfg", "--info", "--force", "--no-force", "--num-shards", "--train.lr=1", "--tags",
           "--model.a", "--art.data", "--art.", "--run.", "--run.nodes", "--wandb.tags", "--wandb.x", "--=",
           "--art.data="]  # fmt: skip
OVERRIDES = ["a=b", "+a=b", "~a", "~", "=", "recipe=nano3", "recipe=", "stage=pretrain", "stage=data/prep/pretrain",
             "stage=a,b", "config=tiny", "config='a b'", "config=a,b", "run.profile=C", "run.mode=run",
             "hydra.launcher.profile=D"]  # fmt: skip
LINES = st.lists(st.sampled_from(WORDS) | st.sampled_from(OPTIONS) | st.sampled_from(OVERRIDES) | st.text(), max_size=9)
FIELDS = [["--num-shards", "4"], ["--force"], ["--train.lr=2"], ["train.lr=1"], ["--tags", "a b"], ["--art.data", "v2"],
          ["--run.nodes=2"], ["+new=1"], ["--wandb.tags=t"]]  # fmt: skip
GLOBALS = [["-c", "tiny"], ["--run", "C"], ["--dry-run"], ["--json"], ["-m"], ["--cfg=job"]]


@settings(max_examples=examples(120), deadline=None)
@given(LINES)
def test_a_line_is_a_request_or_a_users_error(index: Index, line: list[str]) -> None:
    for read in (parse, parse_hydra):
        try:
            read(line, index)
        except UserError as error:
            assert error.message


@settings(max_examples=examples(120), deadline=None)
@given(LINES)
def test_hydras_spelling_of_a_job_is_that_job(index: Index, line: list[str]) -> None:
    try:
        job = parse(["nano3", "pretrain", *line], index)
    except UserError:
        return
    if not isinstance(job, Job):
        return
    words = hydra_spelling(job)
    again = parse_hydra(words, index)
    assert isinstance(again, Job)
    assert hydra_spelling(again) == words


@settings(max_examples=examples(120), deadline=None)
@given(
    st.lists(st.sampled_from(GLOBALS), unique_by=tuple),
    st.lists(st.sampled_from(FIELDS), unique_by=tuple),
    st.data(),
)
def test_options_stand_anywhere(
    index: Index, switches: list[list[str]], fields: list[list[str]], data: st.DataObject
) -> None:
    words = ["nano3", "data", "prep", "pretrain"] if ["--art.data", "v2"] not in fields else ["nano3", "pretrain"]
    expected = parse([*words, *chain(*switches, *fields)], index)
    pieces = [[word] for word in words]
    for piece in fields:  # their order among each other is kept: the last one counts
        pieces.insert(data.draw(st.integers(_after_fields(pieces, fields), len(pieces))), piece)
    for piece in switches:
        pieces.insert(data.draw(st.integers(_after_fields(pieces, switches), len(pieces))), piece)
    assert parse(list(chain(*pieces)), index) == expected


def _after_fields(pieces: list[list[str]], inserted: list[list[str]]) -> int:
    return max((at + 1 for at, piece in enumerate(pieces) if piece in inserted), default=0)
