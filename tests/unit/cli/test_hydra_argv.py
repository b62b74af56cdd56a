"""`python -m nemotron_kit`: Hydra's overrides and flags, and a few options of ours."""

from __future__ import annotations

import shlex

import pytest

from nemotron_kit.cli.parse import parse, parse_hydra
from nemotron_kit.cli.request import Help, Job, Version, hydra_spelling
from nemotron_kit.cli.tree import Index
from nemotron_kit.errors import UserError

TRAIN = "recipe=nano3 stage=pretrain"


@pytest.mark.parametrize(
    ("line", "spelled"),
    [
        (f"{TRAIN} config=tiny train.lr=1", f"{TRAIN} config=tiny train.lr=1"),
        (f"train.lr=1 {TRAIN}", f"{TRAIN} train.lr=1"),
        (f"{TRAIN} -c job -p train", f"{TRAIN} --cfg=job --package=train"),
        (f"{TRAIN} --run C --art.data v2", f"{TRAIN} run.profile=C run.mode=run run.data=v2"),
        (f"{TRAIN} --batch=C --run.nodes 2", f"{TRAIN} run.profile=C run.mode=batch run.env.nodes=2"),
        (f"{TRAIN} -r -cd /x", f"{TRAIN} --config-dir=/x"),
        ("recipe=nano3 stage=train", "recipe=nano3 stage=train"),
        ("recipe=nano3 stage=pretrain,rl -m", "recipe=nano3 stage=pretrain,rl --multirun"),
        (f"{TRAIN} --art.data A:v0,B:v0 -m", f"{TRAIN} run.data=A:v0,B:v0 --multirun"),
        (f"{TRAIN} hydra.mode=MULTIRUN --art.data v0,v1", f"{TRAIN} hydra.mode=MULTIRUN run.data=v0,v1"),
        (f"{TRAIN} config='my config'", f"{TRAIN} config=my config"),
        (f"{TRAIN} --multirun --run C", f"{TRAIN} run.profile=C run.mode=run hydra/launcher=nemo_run "
         "hydra.launcher.profile=C --multirun"),
        ("--info plugins", "--info=plugins"),
        ("--hydra-help", "--hydra-help"),
    ],
)  # fmt: skip
def test_hydras_words(line: str, spelled: str, index: Index) -> None:
    job = parse_hydra(shlex.split(line), index)
    assert isinstance(job, Job)
    assert " ".join(hydra_spelling(job)).replace("'", "") == spelled


def test_a_version_is_a_version(index: Index) -> None:
    assert isinstance(parse_hydra(["--version"], index), Version)
    assert isinstance(parse_hydra([*TRAIN.split(), "--version"], index), Version)


def test_the_references_of_a_sweep_are_texts_of_their_own(index: Index) -> None:
    job = parse(["nano3", "pretrain", "-m", "--art.data", "1,10"], index)
    assert isinstance(job, Job) and job.overrides == ("run.data='1','10'",)


def test_both_spellings_are_one_request(index: Index) -> None:
    words = "nano3 data prep pretrain -c tiny --run C train.lr=1e-3 --dry-run"
    hydras = "recipe=nano3 stage=data/prep/pretrain config=tiny --run C train.lr=1e-3 --dry-run"
    assert parse(words.split(), index) == parse_hydra(hydras.split(), index)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("", "No recipe was given.", "There is: nano3."),
        ("recipe=nano3", "No stage of nano3 was given.", "data/prep/pretrain"),
        ("recipe=nani3 stage=x", "There is no recipe 'nani3'.", "Did you mean nano3?"),
        ("recipe=lost stage=x", "The recipe 'lost' is broken", ""),
        ("recipe=nano3 stage=pretrian", "nano3 has no stage 'pretrian'.", "pretrain"),
        ("recipe=nano3 stage=data", "nano3 has no stage 'data'.", ""),
        (f"--run. {TRAIN}", "--run. names no key.", "Write --run.KEY VALUE."),
        (f"{TRAIN} --run.a..b x", "--run.a..b names no key.", "Write --run.KEY VALUE."),
        (f"{TRAIN} --art.=x", "--art. names no artifact input.", "Write --art.SLOT REF."),
        (f"--art.data {TRAIN}", "recipe= was taken for the value of the option before it.", ""),
        ("recipe=nano3 --run.nodes stage=pretrain", "stage= was taken for the value", ""),
        ("--config-name x", "Hydra's --config-name is not supported.", "config=NAME"),
        (f"{TRAIN} -cn=x", "Hydra's -cn is not supported.", "config=NAME"),
        (f"{TRAIN} --config-path=x", "Hydra's --config-path is not supported.", "--config-dir DIR"),
        ("-sc install=bash", "Hydra's -sc is not supported.", "nemotron completion bash"),
        ("--experimental-rerun x", "Hydra's --experimental-rerun is not supported.", "nemotron runs rerun ID"),
        (
            f"{TRAIN} --art.data A:v0,B:v0",
            "--art.data: 'A:v0,B:v0' names several artifacts.",
            "Add -m to sweep over them.",
        ),
        (f"{TRAIN} --run x=5", "--run takes a profile, not 'x=5'.", "run.mode=local"),
        (f"{TRAIN} --run", "--run needs a PROFILE.", ""),
        (f"{TRAIN} --num-shards 4", "--num-shards is no option of Hydra's.", "num_shards=VALUE"),
        (f"{TRAIN} -c tiny", "-c has no choice 'tiny'.", "job"),
        (f"{TRAIN} --run C run.profile=D", "run.profile is D, and --run is C.", ""),
        (f"{TRAIN} word", "takes no further argument", ""),
        (f"{TRAIN} recipe=other", "There is no recipe 'other'.", ""),
    ],
)
def test_errors(line: str, message: str, hint: str, index: Index) -> None:
    with pytest.raises(UserError) as caught:
        parse_hydra(line.split(), index)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("flag", ["-cn tiny", "-cn=tiny", "-cp conf", "-cd conf"])
def test_hydras_short_flags_are_refused_by_name_in_nemotrons_spelling(flag: str, index: Index) -> None:
    with pytest.raises(UserError, match=flag[:3]):
        parse(f"nano3 pretrain {flag}".split(), index)


def test_help(index: Index) -> None:
    assert parse_hydra(["--help"], index) == Help(())
    assert parse_hydra([*TRAIN.split(), "-h"], index) == Help(("nano3", "pretrain"))
