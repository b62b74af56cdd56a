"""What a newcomer types and pipes, in processes of its own: one clear line each, and nothing dropped in silence."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from ..project import Project, files_with
from ..warm import LAUNCH, programs

RECIPE = """
from dataclasses import dataclass, field
from pathlib import Path

from nemotron.kit import App, Artifact
from nemotron_kit.errors import UserError


@dataclass
class Optim:
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])


@dataclass
class Config:
    note: str = ""
    optim: Optim = field(default_factory=Optim)
    tags: dict[str, int] = field(default_factory=dict)


def go(cfg: Config) -> None:
    print("note:", cfg.note)
    if cfg.note == "wrong":
        raise UserError("This note is wrong.")
    Path("made").mkdir(exist_ok=True)
    Path("made/file").write_text(cfg.note)
    Artifact(path=Path("made")).save(name="Made")


app = App("mine", description="A recipe of one's own")
app.command("go", Config, go)

if __name__ == "__main__":
    app.run()
"""


PROFILES = '[cli]\nrecipes = ["mine"]\n[here]\nexecutor = "local"\n[two]\nexecutor = "local"\nnproc_per_node = 2\n'


class Shell(Project):
    """`shell.type(line)` is a line typed in bash; programs in it may be `forked`."""

    def type(self, line: str, code: int = 0, *, forked: bool = False, **env: str) -> "subprocess.CompletedProcess[str]":
        if forked:
            env["PATH"] = f"{programs(LAUNCH)}{os.pathsep}{self.env['PATH']}"
        done = self("bash", "-c", f"set -o pipefail; {line}", code=code, **env)
        assert "Traceback" not in done.stderr and "Logging error" not in done.stderr, done.stderr
        return done


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    files = {"mine/__init__.py": "", "mine/__main__.py": RECIPE, "env.toml": PROFILES}
    return Shell(tmp_path_factory.mktemp("newcomer"), files)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nemotron mine go =3", "'=3' sets no key.\nAn override is key=value"),
        ("nemotron mine go note=ü", "note=ü: Hydra's grammar can't read the value.\nSuch a text has to be quoted"),
        ("nemotron mine go 'note=a(b'", "note=a(b: Hydra's grammar can't read the value."),
        ("nemotron mine go 'no te=1'", "'no te=1': no override that Hydra reads."),
        ("nemotron mine go note=$'\\xff'", r"b'note=\xff' on the command line is not UTF-8 text."),
        ("nemotron mine go hydra/launcher=3", "has no effect on a single job"),
        ("nemotron mine go '+schema=[1,2]'", "Hydra can't compose recipe=mine stage=go +schema=[1,2]"),
        ("nemotron mine go job=3", "job=3: job is a group of configs, which takes the name of one, and no field."),
        ("nemotron mine go tags.a=x", "tags.a: expected int, got 'x'"),
        ("nemotron mine go 'optim.betas=[1,x]'", "optim.betas[1]: expected float, got 'x'"),
        ("nemotron mine go hydra.run.dir=x", "hydra.run.dir=x: has no effect on a single job."),
        ("nemotron mine go hydra.job.chdir=true", "${oc.env:NEMO_RUN_DIR} is the job's folder."),
        ("nemotron mine go +hydra.job.env_set.A=1", "env_vars in env.toml"),
        ("nemotron mine go recipe=nano3", "The command 'mine go' sets recipe= and stage= already."),
        ("nemotron mine go --cfg job --package optm", "package 'optm' not found in config"),
        ("nemotron mine go --cfg hydra --package launcher", "as in --package hydra.launcher"),
        ("nemotron mine go run.wandb.projct=x", "run.wandb.projct: no such setting.\nDid you mean project?"),
        ("nemotron mine go 'run.wandb=${oc.select:a,b}'", "run.wandb: expected a block of settings, got 'b'."),
        ("nemotron mine go -m 'note=}'", "note=}: Hydra's grammar can't read the value."),
        ("nemotron mine go -m 'note=}' --dry-run", "note=}: Hydra's grammar can't read the value."),
        ("nemotron mine go 'run.wandb={tags: x}'", "run.wandb.tags: expected a list of texts, got 'x' (str)."),
        ("nemotron mine go -c ''", "-c needs a NAME|PATH"),
        (f"nemotron mine go -c c/{'x' * 300}.yaml", "no such config file"),
        ("nemotron --info searchpath", "--info searchpath needs a command"),
        ("nemotron artifacts /etc", "/etc is a folder, not a name in the registry."),
        ("nemotron artifacts --verify", "--verify is about a version; none is named."),
        ("NEMOTRON_ENV_FILE=home/none.toml nemotron nope", "error"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_error_and_leaves_nothing(line: str, said: str, shell: Shell) -> None:
    before = shell.runs()
    assert said in shell.type(line, code=2, forked=True).stderr
    assert shell.runs() == before


def test_a_folder_that_nobody_named_yet(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "env.toml").touch()
    told = shell.type("nemotron mine go", code=2, NEMOTRON_ENV_FILE=str(tmp_path / "env.toml")).stderr
    assert 'run it as `python -m mine …`, or add [cli] recipes = ["mine"] to it.' in told


def test_a_value_may_be_another_recipes_name(shell: Shell) -> None:
    assert "note: nano3" in shell.type("nemotron mine go --note nano3").stdout
    assert "note: nano3" in shell.type("nemotron --note nano3 mine go").stdout


def test_words_are_text_in_any_locale(shell: Shell) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    assert "note: ü" in shell.type("nemotron mine go --note ü --dry-run", **plain).stdout


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("nemotron --help >&-", 0),
        ("nemotron mine go --dry-run >&-", 0),
        ("nemotron mine go --cfg job >&-", 0),
        ("nemotron mine go <&- >&- 2>&-", 0),
        ("nemotron runs >&-", 0),
        ("nemotron nope 2>&-", 2),
        ("PYTHONUNBUFFERED= nemotron nope 2>/dev/full", 2),
        ("PYTHONUNBUFFERED=1 nemotron nope 2>/dev/full", 2),
        ("PYTHONUNBUFFERED= python -m nemotron_kit recipe=nope 2>/dev/full", 2),
        ("nemotron mine go --info plugins >/dev/full", 1),
        ("nemotron mine go --info | head -1", 0),
        ("nemotron mine go --cfg all | head -1", 0),
        ("nemotron mine go --hydra-help | head -1", 0),
    ],
)  # fmt: skip
def test_streams_that_are_closed_or_full(line: str, code: int, shell: Shell) -> None:
    shell.type(line, code=code)


def test_the_plan_names_every_word_that_makes_it(shell: Shell) -> None:
    (shell.folder / "extra" / "experiment").mkdir(parents=True)
    (shell.folder / "extra" / "experiment" / "hot.yaml").write_text("# @package _global_\nnote: hot\n")
    plan = json.loads(shell.type("nemotron mine go --config-dir extra +experiment=hot --dry-run --json").stdout)
    assert plan["config"]["note"] == "hot"
    again = json.loads(shell.type(f"{plan['hydra']} --dry-run --json").stdout)
    assert again["config"] == plan["config"]


def test_a_sweep_over_a_file_is_shown_as_it_would_run(shell: Shell) -> None:
    (shell.folder / "file.yaml").write_text("note: from the file\n")
    shown = shell.type("nemotron mine go -c file.yaml -m optim.lr=1,2 --dry-run").stdout
    assert shown.count("note: from the file") == 2 and "config=file.yaml optim.lr=2" in shown


def test_json_of_a_launch_says_how_it_ended(shell: Shell) -> None:
    last = json.loads(shell.type("nemotron mine go --json note=one").stdout.splitlines()[-1])
    assert (last["state"], last["exit_code"]) == ("succeeded", 0)
    assert Path(last["folder"]).name == last["run_id"]
    last = json.loads(shell.type("nemotron mine go --json hydra.mode=MULTIRUN note=two").stdout.splitlines()[-1])
    assert (last["state"], last["exit_code"], last["jobs"]) == ("succeeded", 0, {"succeeded": 1})


def test_a_file_that_sets_what_a_single_job_would_not_notice(shell: Shell) -> None:
    (shell.folder / "odd.yaml").write_text("hydra: {job: {chdir: true}}\n")
    said = shell.type("nemotron mine go -c odd.yaml", code=2).stderr
    assert "hydra.job.chdir: has no effect on a single job." in said
    shell.type("nemotron mine go -c odd.yaml -m")


def test_what_a_rank_refuses_is_in_the_log(shell: Shell) -> None:
    done = shell.type("nemotron mine go note=wrong --run two", code=1)
    assert re.search(r"error: rank [01]: This note is wrong\.", done.stdout + done.stderr)


def test_a_sweep_shows_what_each_job_was_given(shell: Shell) -> None:
    shell.type("nemotron mine go -m optim.lr=1,2 note=same")
    shown = shell.type("nemotron runs show latest").stdout
    assert re.findall(r"^(JOB|[01])  +(STATE|succeeded)  +(optim.lr|[12])$", shown, re.MULTILINE) == [
        ("JOB", "STATE", "optim.lr"), ("0", "succeeded", "1"), ("1", "succeeded", "2"),
    ]  # fmt: skip
    assert "optim.lr=2 note=same" in shell.type("nemotron runs show latest --job 1").stdout


def test_verify_says_what_it_found(shell: Shell) -> None:
    shell.type("nemotron mine go note=verified")
    assert "verified  1 file read again: as registered" in shell.type("nemotron artifacts Made --verify").stdout
    assert json.loads(shell.type("nemotron artifacts Made --verify --json").stdout)["verified"] is True
    assert "'' is no alias." in shell.type("nemotron artifacts Made --alias ''", code=2).stderr
    (shell.folder / "made" / "file").write_text("other")
    assert "Made" in shell.type("nemotron artifacts Made:latest --verify", code=2).stderr


def test_a_pipe_that_brought_nothing_is_told(shell: Shell) -> None:
    reader = shell.folder / "reader"
    reader.mkdir()
    (reader / "__main__.py").write_text(
        RECIPE.replace("App, Artifact", "App, Artifact, ArtifactInput")
        .replace('App("mine"', 'App("reader"')
        .replace("Config, go)", 'Config, go, artifacts={"data": ArtifactInput("Made:latest", {"path": "note"})})')
    )
    (reader / "__init__.py").touch()
    shell.type("nemotron mine go note=piped")
    assert "note: Nothing came through the pipe" in shell.type("true | python -m reader go").stderr
    assert "Nothing came through the pipe" in shell.type("true | python -m reader go --dry-run").stdout
    assert "Nothing came" not in shell.type("python -m reader go --dry-run").stdout


def test_a_secrets_value_is_printed_and_kept_nowhere(shell: Shell) -> None:
    word, env = "note='${secret:DEMO_KEY}'", {"DEMO_KEY": "canary-5f31", "DEMO_TOKEN": "canary-77aa"}
    shown = shell.type(f"nemotron mine go {word} --cfg job --resolve", **env).stdout
    assert "note: '***'" in shown or "note: ***" in shown
    assert "canary" not in shell.type("nemotron mine go note='${oc.env:DEMO_TOKEN}' --cfg job --resolve", **env).stdout
    assert "note: ***" in shell.type(f"nemotron mine go {word}", **env).stdout
    assert (shell.folder / "made" / "file").read_text() == "canary-5f31", "the job itself has it"
    for launcher in ("basic", "nemo_run"):
        sweep = f"nemotron mine go -m {word} optim.lr=1 +hydra.job.env_set.PLAIN=canary-plain hydra/launcher={launcher}"
        assert "canary" not in shell.type(sweep, **env).stdout
    assert not [path for path in files_with("canary", shell.home) if "artifacts" not in path.parts]
    multirun = list((shell.folder / "home").rglob("multirun.yaml"))
    assert multirun and all(path.stat().st_mode & 0o77 == 0 for path in multirun if b"PLAIN" in path.read_bytes())


def test_a_misspelt_table_stops_a_launch(shell: Shell, tmp_path: Path) -> None:
    mine = shell.folder / "mine"
    (tmp_path / "env.toml").write_text(f'[cli]\nrecipes = ["{mine}"]\n[wandb]\nprojct = "x"\n')
    told = shell.type("nemotron mine go", code=2, NEMOTRON_ENV_FILE=str(tmp_path / "env.toml")).stderr
    assert "env.toml:4: [wandb] projct: no such key.\nDid you mean project?" in told


@pytest.mark.parametrize("command", ["mine go", "runs"])
def test_a_home_that_is_a_file(command: str, shell: Shell) -> None:
    told = shell.type(f"NEMOTRON_HOME=env.toml nemotron {command}", code=2).stderr
    assert (
        "env.toml, the folder for runs and artifacts, is not a folder.\nName another one: export NEMOTRON_HOME=" in told
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ln -sfn /nowhere/at/all gone; NEMOTRON_HOME=gone nemotron mine go", "gone: File exists."),
        ("ulimit -f 0; nemotron mine go", "the run can't be recorded there: File too large."),
        (
            "mkdir left; cd left; rmdir ../left; nemotron nano3 pretrain -d",
            "the working folder does not exist any more.",
        ),
    ],
)
def test_a_machine_that_says_no(line: str, said: str, shell: Shell) -> None:
    before = shell.runs()
    assert said in shell.type(line, code=1).stderr
    assert shell.runs() == before, "nothing half-made is left"
