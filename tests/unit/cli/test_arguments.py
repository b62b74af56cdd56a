"""Given this command line, this job (in Hydra's spelling) — or this error."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from nemotron_kit.cli.parse import parse
from nemotron_kit.cli.request import Help, Job, Tool, Version, hydra_spelling, shell_line
from nemotron_kit.cli.tools import run
from nemotron_kit.cli.tree import Index
from nemotron_kit.errors import UserError

PREP = "recipe=nano3 stage=data/prep/pretrain"
TRAIN = "recipe=nano3 stage=pretrain"

JOBS = [
    # the document's lines
    (
        "nano3 data prep pretrain -c tiny --run C --art.data X:v2 train.lr=1e-3",
        f"{PREP} config=tiny run.profile=C run.mode=run run.data=X:v2 train.lr=1e-3",
    ),
    ("nano3 pretrain -c config/tiny.yaml", f"{TRAIN} config=config/tiny.yaml"),
    ("nano3 pretrain --batch MY-CLUSTER", f"{TRAIN} run.profile=MY-CLUSTER run.mode=batch"),
    ("nano3 pretrain -c tiny train.train_iters=5000", f"{TRAIN} config=tiny train.train_iters=5000"),
    ("nano3 train", TRAIN),
    ("nano3 pretrain --size big", f"{TRAIN} size=big"),
    ("nano3 pretrain -m size=big,small", f"{TRAIN} size=big,small --multirun"),
    # every spelling of the global options
    *((f"nano3 pretrain {c}", f"{TRAIN} config=tiny") for c in
      ("-c tiny", "-c=tiny", "-ctiny", "--config tiny", "--config=tiny", "--config-file tiny", "--config_file=tiny",
       "config=tiny", "-c tiny config=tiny")),
    *((f"nano3 pretrain {r}", f"{TRAIN} run.profile=C run.mode=run") for r in
      ("-r C", "-rC", "-r=C", "--run C", "--run=C", "run.profile=C run.mode=run", "-r C run.mode=run")),
    *((f"nano3 pretrain {b}", f"{TRAIN} run.profile=C run.mode=batch") for b in ("-b C", "-bC", "--batch=C")),
    # options before and between the words
    ("--force nano3 data prep pretrain", f"{PREP} force=true"),
    ("--num-shards 4 nano3 data prep pretrain", f"{PREP} num_shards=4"),
    ("nano3 --num_shards=4 data -c tiny prep --no-force pretrain", f"{PREP} config=tiny num_shards=4 force=false"),
    ("-c tiny nano3 --run C pretrain", f"{TRAIN} config=tiny run.profile=C run.mode=run"),
    ("train.lr=1 nano3 data x=2 prep pretrain", f"{PREP} train.lr=1 x=2"),
    ("-s 5 nano3 model import pretrain ./x", "recipe=nano3 stage=model/import/pretrain step=5 path=./x"),
    # fields as flags
    ("nano3 pretrain --force", f"{TRAIN} force=true"),
    ("nano3 pretrain --no-force", f"{TRAIN} force=false"),
    ("nano3 pretrain --force=false", f"{TRAIN} force=false"),
    ("nano3 pretrain --train.train-iters 5 --train.lr=-5 --train.lr -1e-3",
     f"{TRAIN} train.train_iters=5 train.lr=-5 train.lr=-1e-3"),
    ("nano3 pretrain --no-train.fsdp --train.fsdp", f"{TRAIN} train.fsdp=false train.fsdp=true"),
    ("nano3 pretrain --sample 10 --sample null", f"{TRAIN} sample=10 sample=null"),
    ("nano3 pretrain --tokenizer-model ''", f"{TRAIN} tokenizer_model=''"),
    ("nano3 pretrain --tokenizer-model null", f"{TRAIN} tokenizer_model='null'"),
    ("nano3 pretrain --tokenizer-model=--x", f"{TRAIN} tokenizer_model='--x'"),
    ("nano3 pretrain --tokenizer-model a=b", f"{TRAIN} tokenizer_model='a=b'"),
    ("nano3 pretrain --blend-path '${oc.env:PWD}/x'", f"{TRAIN} blend_path='${{oc.env:PWD}}/x'"),
    ("nano3 pretrain --tags a --force --tags 'b c'", f"{TRAIN} tags=[a,'b c'] force=true"),
    ("nano3 pretrain --tags '[a,b]' --sizes 1 --sizes 2", f"{TRAIN} tags=[a,b] sizes=[1,2]"),
    ("nano3 pretrain --tags '${other}'", f"{TRAIN} tags='${{other}}'"),
    ("nano3 pretrain --recipe.x 1 recipe.y=2", f"{TRAIN} recipe.x=1 recipe.y=2"),
    ("nano3 pretrain --speed slow --colour BLUE", f"{TRAIN} speed=slow colour=BLUE"),
    ("nano3 pretrain --model.hidden-size 64 --model '{a: 1}'", f"{TRAIN} model.hidden_size=64 model={{a: 1}}"),
    # positionals and a command's own short options
    ("nano3 model import pretrain /a/b=c -s 5 -pproj -v",
     "recipe=nano3 stage=model/import/pretrain path='/a/b=c' step=5 project=proj verbose=true"),
    ("nano3 model import pretrain step=3 ../x", "recipe=nano3 stage=model/import/pretrain step=3 path=../x"),
    # artifacts, profile fields, W&B
    ("nano3 pretrain --art.data v10 --art.data=10", f"{TRAIN} run.data=v10 run.data='10'"),
    ("nano3 pretrain --art.data art://X:v1", f"{TRAIN} run.data=art://X:v1"),
    ("nano3 pretrain --art.model ~/m", f"{TRAIN} run.model='~/m'"),
    ("nano3 pretrain -r C --run.nodes 8 --batch.gpus-per-node=8 --run.time 04:00:00 --run.mounts '[a,b]'",
     f"{TRAIN} run.profile=C run.mode=run run.env.nodes=8 run.env.gpus_per_node=8 run.env.time='04:00:00' "
     "run.env.mounts=[a,b]"),
    ("nano3 pretrain --run.env.nodes 8 --run.partition a,b", f"{TRAIN} run.env.nodes=8 run.env.partition='a,b'"),
    ("nano3 pretrain --wandb.run-name x --wandb.tags a, --wandb.tags b,c --wandb.project=p",
     f"{TRAIN} run.wandb.run_name=x run.wandb.tags=[a,b,c] run.wandb.project=p"),
    # Hydra's words and flags
    ("nano3 pretrain ++a=b +c=d ~e ~f=g", f"{TRAIN} ++a=b +c=d ~e ~f=g"),
    ("nano3 pretrain --cfg job --resolve --package train --info defaults",
     f"{TRAIN} --cfg=job --resolve --package=train --info=defaults"),
    ("nano3 pretrain --info -c tiny", f"{TRAIN} config=tiny --info"),
    ("nano3 pretrain --config-dir /x -m train.lr=1,2", f"{TRAIN} train.lr=1,2 --config-dir=/x --multirun"),
    ("nano3 pretrain -m -c tiny,default", f"{TRAIN} config=tiny,default --multirun"),
    ("nano3 pretrain -m --run C", f"{TRAIN} run.profile=C run.mode=run hydra/launcher=nemo_run "
     "hydra.launcher.profile=C --multirun"),
    ("nano3 pretrain -m --run C hydra/launcher=basic",
     f"{TRAIN} run.profile=C run.mode=run hydra/launcher=basic --multirun"),
    ("nano3 pretrain -- train.lr=1", f"{TRAIN} train.lr=1"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "spelled"), JOBS)
def test_a_command_line_in_hydras_words(line: str, spelled: str, index: Index) -> None:
    job = parse(shlex.split(line), index)
    assert isinstance(job, Job)
    assert " ".join(hydra_spelling(job)) == spelled


ERRORS = [
    ("nani3 pretrain", "There is no recipe 'nani3'.", "Did you mean nano3? `nemotron --help`"),
    ("logs latest", "There is no recipe 'logs'.", "Did you mean nemotron runs logs?"),
    ("kill latest", "There is no recipe 'kill'.", "Did you mean nemotron runs cancel?"),
    ("check mine", "There is no recipe 'check'.", "Did you mean nemotron profiles check?"),
    ("pretrain", "There is no recipe 'pretrain'.", "Did you mean nemotron nano3 pretrain"),
    ("torchrun train.py", "There is no recipe 'torchrun'.", "Did you mean a recipe, which starts your program"),
    ("nano3.pretrain", "There is no recipe 'nano3.pretrain'.", "Did you mean nemotron nano3 pretrain?"),
    ("NANO3 pretrain", "There is no recipe 'NANO3'.", "Did you mean nano3?"),
    ("create mine", "There is no recipe 'create'.", "Did you mean nemotron init NAME?"),
    ("submit nano3 pretrain", "There is no recipe 'submit'.", "Did you mean nemotron RECIPE COMMAND, with --run"),
    ("x" * 300, "There is no recipe 'xxx", ""),
    ("lost pretrain", "The recipe 'lost' is broken: ImportError", "still work"),
    ("nano3 foo", "nano3 has no command 'foo'.", "`nemotron nano3 --help`"),
    ("nano3 pretain", "nano3 has no command 'pretain'.", "Did you mean pretrain, train?"),
    ("nano3 data pretrain", "nano3 data has no command 'pretrain'.", "There is: prep."),
    ("nano3 rl", "nano3 rl can't be used: ModuleNotFoundError", "can't be imported"),
    ("nano3 pretrain --bogus", "nano3 pretrain has no option --bogus.", "`nemotron nano3 pretrain --help`"),
    ("nano3 pretrain --num-shard 4", "no option --num-shard.", "Did you mean --num-shards?"),
    ("nano3 pretrain --conf tiny", "no option --conf.", "--config"),
    ("nano3 pretrain -config tiny", "no option -config.", "Did you mean --config?"),
    ("nano3 pretrain --train-iters 5", "no option --train-iters.", "Did you mean --train.train-iters?"),
    ("nano3 pretrain --batch-size 32", "no option --batch-size.", ""),
    ("nano3 pretrain --no-num-shards", "no option --no-num-shards.", ""),
    ("nano3 pretrain --data X:v0", "no option --data.", "Did you mean --art.data X:v0?"),
    ("nano3 pretrain --data", "no option --data.", "Did you mean --art.data?"),
    ("nano3 pretrain --gpus 8", "no option --gpus.", "Did you mean --run.gpus_per_node=8?"),
    ("nano3 pretrain --gpus-per-node=8", "no option --gpus-per-node.", "Did you mean --run.gpus_per_node=8?"),
    ("nano3 pretrain --nodes 4", "no option --nodes.", "Did you mean --run.nodes=4?"),
    ("nano3 pretrain --nodes --dry-run", "no option --nodes.", "Did you mean --run.nodes?"),
    ("nano3 pretrain --partition 'a b'", "no option --partition.", "Did you mean --run.partition='a b'?"),
    ("nano3 pretrain -x", "no option -x.", "There is: --blend-path, --output-dir, "),
    # what other launchers, trackers and schedulers call it
    ("nano3 pretrain -p gpu", "no option -p.", "Did you mean --run.partition=gpu?"),
    ("nano3 pretrain --num_processes 2", "no option --num_processes.", "Did you mean --run.nproc_per_node=2?"),
    ("nano3 pretrain -J x", "no option -J.", "Did you mean --name x?"),
    ("nano3 pretrain --wandb-project x", "no option --wandb-project.", "Did you mean --wandb.project x?"),
    ("nano3 pretrain --wandb", "no option --wandb.", "Did you mean --wandb.project VALUE?"),
    ("nano3 pretrain --profile C", "no option --profile.", "Did you mean --run C, or --batch C?"),
    ("nano3 pretrain --set train.lr=1", "no option --set.", "Did you mean train.lr=1 without an option?"),
    ("nano3 pretrain --sweep train.lr=1,2", "no option --sweep.", "Did you mean -m train.lr=1,2?"),
    ("nano3 pretrain --resume", "no option --resume.", "Did you mean nemotron runs resume ID?"),
    ("nano3 pretrain --learning-rate 1", "no option --learning-rate.", "Did you mean --train.lr?"),
    ("nano3 pretrain --zzz 1", "no option --zzz.", "There is: --blend-path"),
    ("nano3 pretrain sample = 3", "no further argument: 'sample'.", "Write it without spaces: sample=3"),
    ("nano3 pretrain sample =3", "no further argument: 'sample'.", "Write it without spaces: sample=3"),
    ("nano3 pretrain sample= 3", "no further argument: '3'.", "Write it without spaces: sample=3"),
    ("nano3 pretrain sample: 3", "no further argument: 'sample:'.", "Write it without spaces: sample=3"),
    ("nano3 pretrain sample 3", "no further argument: 'sample'.", "Write it without spaces: sample=3"),
    ("nano3 pretrain --sample = 3", "no further argument: '3'.", "Write it without spaces: sample=3"),
    ("nano3 pretrain sample=3 4", "no further argument: '4'.", "-m sample=3,4, or a list, 'sample=[3,4]'"),
    ("nano3 pretrain my/conf.yaml", "no further argument", "`-c my/conf.yaml`"),
    ("nano3 --bogus data prep pretrain", "nano3 data prep pretrain has no option --bogus.", ""),
    ("--bogus", "nemotron has no option --bogus", "`nemotron --help`"),
    ("nano3 data prep --force", "nemotron nano3 data prep has no option --force", "`nemotron nano3 data prep --help`"),
    (
        "nano3 pretrain --run --batch C",
        "--run needs a PROFILE, but is followed by '--batch'.",
        "nemotron profiles",
    ),
    ("nano3 pretrain --run", "--run needs a PROFILE.", "nemotron profiles"),
    ("nano3 pretrain --batch=", "--batch needs a PROFILE.", ""),
    ("nano3 pretrain --run train.x=5", "--run takes a profile, not 'train.x=5'.", "run.mode"),
    ("--run nano3 pretrain", "--run needs a PROFILE, but is followed by 'nano3'.", ""),
    ("nano3 pretrain --run C --batch C", "--run and --batch exclude each other.", ""),
    ("nano3 pretrain -r C run.profile=D", "run.profile is D, and -r is C.", ""),
    ("nano3 pretrain -r C -r D", "-r is D, and -r is C.", ""),
    ("nano3 pretrain -r C run.mode=batch", "run.mode is batch, and -r is run.", ""),
    ("nano3 pretrain -m -r C hydra.launcher.profile=D", "run.profile is C, and hydra.launcher.profile is D.", ""),
    ("nano3 pretrain -c tiny -c default", "-c is default, and -c is tiny.", ""),
    ("nano3 pretrain -c", "-c needs a NAME|PATH.", ""),
    ("nano3 pretrain -c --dry-run", "-c needs a NAME|PATH, but is followed by '--dry-run'.", ""),
    ("nano3 pretrain --tokenizer-model", "--tokenizer-model needs a VALUE.", "begins with a dash"),
    ("nano3 pretrain --tokenizer-model -5", "needs a VALUE, but is followed by '-5'", "--tokenizer-model=VALUE"),
    ("nano3 pretrain --dry-run=yes", "--dry-run takes no value, and got 'yes'.", ""),
    ("nano3 pretrain --no-force=1", "no option --no-force", ""),
    ("nano3 pretrain --cfg jub", "--cfg has no choice 'jub'.", "Did you mean job?"),
    ("nano3 pretrain --speed fost", "speed has no choice 'fost'.", "Did you mean fast?"),
    ("nano3 pretrain --speed fast,slow", "speed has no choice", "Sweep with -m speed=fast,slow"),
    ("nano3 pretrain --tags '[a]' --tags b", "tags is given as a whole list and by element.", ""),
    ("nano3 pretrain --recipe '{a: 1}'", "recipe is a block", "recipe.KEY=VALUE"),
    ("nano3 pretrain --art.dta X", "no artifact input 'dta'.", "Did you mean data?"),
    ("nano3 pretrain --art.env X", "no artifact input 'env'.", ""),
    ("nano3 pretrain --wandb.projekt X", "--wandb has no setting 'projekt'.", "Did you mean project?"),
    ("nano3 pretrain tiny", "nano3 pretrain takes no further argument: 'tiny'.", "`-c tiny`"),
    ("nano3 pretrain extra", "nano3 pretrain takes no further argument: 'extra'.", "key=value"),
    (
        "nano3 data prep pretrain --sizes 3 4 5 --force",
        "no further argument: '4'.",
        "A list is one value: --sizes 3,4,5",
    ),
    ("nano3 pretrain -- --x", "takes no further argument: '--x'.", ""),
    ("nano3 model import pretrain a b", "takes no further argument: 'b'.", ""),
    ("nano3 pretrain recipe=x", "sets recipe= and stage= already.", ""),
    ("nano3 dota --help", "nano3 has no command 'dota'.", "Did you mean data?"),
]


@pytest.mark.parametrize(("line", "message", "hint"), ERRORS)
def test_one_clear_error(line: str, message: str, hint: str, index: Index) -> None:
    with pytest.raises(UserError) as caught:
        parse(shlex.split(line), index)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("", Help(())),
        ("--help", Help(())),
        ("-h", Help(())),
        ("help", Help(())),
        ("nano3 --help", Help(("nano3",))),
        ("help nano3 data prep", Help(("nano3", "data", "prep"))),
        ("--help nano3 train", Help(("nano3", "pretrain"))),
        ("nano3 pretrain -c tiny --num-shards 4 --help", Help(("nano3", "pretrain"))),
        ("--num-shards 4 nano3 data --help", Help(("nano3", "data"))),
        ("nano3", Help(("nano3",), asked=False)),
        ("nano3 data", Help(("nano3", "data"), asked=False)),
        ("-c tiny", Help((), asked=False)),
        ("--hydra-help", Job(flags=("--hydra-help",))),
        ("--info plugins", Job(flags=("--info=plugins",))),
        ("--version", Version()),
        ("runs show x --json", Tool("runs", ("show", "x", "--json"))),
        ("--json runs", Tool("runs", ("--json",))),
        ("runs --help", Tool("runs", ("--help",))),
        ("help runs", Tool("runs", ("--help",))),
        ("help runs show", Tool("runs", ("show", "--help"))),
    ],
)
def test_what_is_no_job(line: str, request_: object, index: Index) -> None:
    assert parse(shlex.split(line), index) == request_


def test_dry_run_and_json_are_switches_of_the_request(index: Index) -> None:
    job = parse(["nano3", "pretrain", "-d", "--json"], index)
    assert isinstance(job, Job)
    assert (job.dry_run, job.json) == (True, True)
    assert job.path == ("nano3", "pretrain")
    assert shell_line(job) == "python -m nemotron_kit recipe=nano3 stage=pretrain"


def test_an_app_takes_its_own_name_as_said(index: Index) -> None:
    job = parse(["data", "prep", "pretrain", "-c", "tiny"], index, ("nano3",), "python -m myrecipe")
    assert job == Job("nano3", "data/prep/pretrain", config="tiny")
    assert parse([], index, ("nano3",)) == Help(("nano3",))
    with pytest.raises(UserError, match="`python -m myrecipe data --help`") as caught:
        parse(["data", "preq"], index, ("nano3",), "python -m myrecipe")
    assert "nano3 data has no command 'preq'" in caught.value.message
    with pytest.raises(UserError, match="nano3 has no command 'runs'"):
        parse(["runs"], index, ("nano3",))


def test_flags_of_hydra_can_be_asked_for(index: Index) -> None:
    job = parse(["nano3", "pretrain", "--cfg", "job", "-m"], index)
    assert isinstance(job, Job)
    assert (job.flag("--cfg"), job.flag("--multirun"), job.flag("--info"), job.multirun) == ("job", "", None, True)


def test_words_of_other_launchers_below_a_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word, ours in (("stop", "cancel"), ("ls", "list"), ("describe", "show"), ("retry", "resume")):
        with pytest.raises(UserError) as caught:
            run("runs", [word, "latest"])
        assert (caught.value.hint or "").startswith(f"Did you mean {ours}?")
    for line, ours in (("watch latest", "runs attach ID"), ("resume latest steps=5", "runs rerun ID KEY=VALUE")):
        with pytest.raises(UserError, match="unknown argument") as caught:
            run("runs", line.split())
        assert ours in (caught.value.hint or "")
    assert run("artifacts", ["list"]) == 0 == run("artifacts", ["show"])
    assert capsys.readouterr().out.count("Nothing is registered") == 2


@pytest.mark.parametrize(
    "words",
    [
        ("runs", "rm", "--older-than"), ("runs", "list", "--since"), ("artifacts", "gc", "--older-than"),
        ("profiles", "clean", "P", "--unused"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_date_in_the_future_selects_nothing(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="2999-01-01 is in the future: give a date that has passed"):
        run(words[0], [*words[1:], "2999-01-01"])


@pytest.mark.parametrize(
    ("argv", "hint"),
    [(["-n", "3"], "--limit N"), (["--failed"], "--state STATE"), (["plot", "latest", "-m", "loss"], "--metric NAME")],
)
def test_an_option_of_nemotron_runs_by_another_name(argv: list[str], hint: str) -> None:
    with pytest.raises(UserError, match="unknown argument") as caught:
        run("runs", argv)
    assert caught.value.hint == f"Did you mean {hint}?"
