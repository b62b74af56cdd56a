"""What Tab offers."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from nemotron_kit.app import App
from nemotron_kit.cli.completion import SCRIPTS, STATES, complete, split_line
from nemotron_kit.cli.indexing import LiveIndex
from nemotron_kit.cli.runs.plot import AXES
from nemotron_kit.cli.tools import TOOLS
from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.cli.tree import Index
from nemotron_kit.errors import UserError
from nemotron_kit.runs import job
from nemotron_kit.runs.cancel import GRACE


@pytest.fixture(autouse=True)
def known(home: Path, project: Path) -> None:
    (project / "env.toml").write_text("[CLUSTER]\nexecutor = 'slurm'\n[wandb]\nproject = 'x'\n")
    for run in ("run-a", "run-b"):
        (home / "runs" / run).mkdir(parents=True)
    for place in ("Blend-default/v0", "Blend-default/v1", "Blend-default/aliases", "Other/v0", ".registry"):
        (home / "artifacts" / place).mkdir(parents=True)
    (home / "artifacts" / "Blend-default" / "aliases" / "best").write_text("{}")


def _offered(index: Index, line: str) -> list[str]:
    *words, current = split_line(f"nemotron {line}")[1:]
    return [text for text, _ in complete(words, current, index)]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("na", ["nano3"]),
        ("r", ["runs"]),
        ("nano3 ", ["pretrain", "data", "model", "rl"]),
        ("nano3 data prep ", ["pretrain"]),
        ("nano3 pretrain -c ", ["default", "other", "tiny"]),
        ("nano3 pretrain siz", ["sizes=", "size="]),
        ("nano3 pretrain size=", ["size=big", "size=small"]),
        ("nano3 pretrain --size b", ["big"]),
        ("nano3 pretrain -c t", ["tiny"]),
        ("nano3 pretrain --config=t", ["--config=tiny"]),
        ("nano3 pretrain config=t", ["config=tiny"]),
        ("nano3 pretrain --run ", ["CLUSTER"]),
        ("nano3 pretrain -b C", ["CLUSTER"]),
        ("nano3 pretrain run.profile=", ["run.profile=CLUSTER"]),
        ("nano3 pretrain --num", ["--num-shards"]),
        ("nano3 pretrain --num-shards ", []),
        ("nano3 pretrain num", ["num_shards="]),
        ("nano3 pretrain --speed ", ["fast", "slow"]),
        ("nano3 pretrain --speed=f", ["--speed=fast"]),
        ("nano3 pretrain speed=s", ["speed=slow"]),
        ("nano3 pretrain force=", ["force=true", "force=false"]),
        ("nano3 pretrain --force nu", ["num_shards="]),
        ("nano3 pretrain --cfg ", ["job", "hydra", "all"]),
        ("nano3 pretrain --art.data ", ["Blend-default", "Other"]),
        ("nano3 pretrain --art.data Blend-default:",
         ["Blend-default:latest", "Blend-default:v0", "Blend-default:v1", "Blend-default:best"]),
        ("nano3 pretrain run.data=Oth", ["run.data=Other"]),
        ("nano3 pretrain --art", ["--art.data"]),
        ("nano3 model import pretrain -s ", []),
        ("nano3 bogus ", []),
        ("runs ", ["show", "attach", "logs", "wait", "cancel", "resume", "shell", "rerun", "diff", "plot", "tag",
                   "note", "rename", "rm", "du", "watch"]),
        ("runs show ", ["latest", "run-b", "run-a"]),
        ("runs logs -f run-", ["run-b", "run-a"]),
        ("runs --st", ["--stage", "--state"]),
        ("runs show run-a --", ["--job", "--json", "--sort", "--top", "--csv"]),
        ("runs --state s", ["succeeded"]),
        ("runs --recipe n", ["nano3"]),
        ("profiles show ", ["CLUSTER"]),
        ("artifacts ", ["rm", "du", "gc", "relocate", "Blend-default", "Other"]),
        ("artifacts Blend-default:v", ["Blend-default:v0", "Blend-default:v1"]),
        ("artifacts Other:v0 --v", ["--verify"]),
        ("nano3 pretrain --after ", ["latest", "run-b", "run-a"]),
        ("nano3 pretrain --info p", ["plugins"]),
        ("nano3 pretrain run.d", ["run.data="]),
        ("completion ", ["bash", "zsh", "fish"]),
    ],
)  # fmt: skip
def test_offers(line: str, offered: list[str], index: Index) -> None:
    assert _offered(index, line) == offered


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nemotron nano3 pre", ["nemotron", "nano3", "pre"]),
        ("nemotron nano3 ", ["nemotron", "nano3", ""]),
        ("nemotron 'a b' c\\ d \"e", ["nemotron", "a b", "c d", "e"]),
        ("", [""]),
    ],
)
def test_split_line(line: str, words: list[str]) -> None:
    assert split_line(line) == words


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o default"), ("zsh", "#compdef nemotron"), ("fish", "complete -c nemotron")]
)
def test_scripts(shell: str, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("completion", [shell]) == 0
    assert mark in capsys.readouterr().out


PAGES = [*TOOLS, *(f"{name} {word}" for name, own in TOOLS.items() for word in own.commands)]


def test_what_follows_a_tool_is_what_it_has() -> None:
    assert (*job.STATES, job.DAMAGED) == STATES
    assert set(TOOLS["completion"].choices) == set(SCRIPTS)
    runs = TOOLS["runs"].commands
    assert runs["plot"].options["--x"].kind == tuple(AXES)
    assert float(runs["cancel"].options["--grace"].default or 0) == GRACE


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_tools_is_true(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each subcommand's function is there, and has the options that Tab offers; its page shows what the table says."""
    tool, *words = page.split()
    own = TOOLS[tool]
    entry = own.commands[words[0]] if words else own
    assert run_tool(tool, [*words, "--help"]) == 0
    text = capsys.readouterr().out
    module, _, name = entry.function.partition(":")
    assert callable(getattr(import_module(module), name))
    if not words:
        assert all(f"  {word} {each.usage}".rstrip() in text for word, each in own.commands.items())
        text = text.partition("\noptions\n")[2]
    shown = set(re.findall(r"--[a-z][a-z-]*", text)) - {"--help"}
    assert set(entry.options) == shown - ({"--art", "--run"} - set(entry.options))
    text = text.replace("--run|--batch PROFILE", "--run PROFILE --batch PROFILE")  # the page of rerun
    valued = {name for name, option in entry.options.items() if option.metavar}
    assert valued == set(re.findall(r"(--[a-z-]+) [A-Z{]", text)) - {"--art"}


def test_usage_and_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("completion", []) == 0
    assert "usage: nemotron completion" in capsys.readouterr().out
    with pytest.raises(UserError, match="Did you mean bash"):
        run_tool("completion", ["bahs"])
    with pytest.raises(UserError, match="unknown argument 'zsh'"):
        run_tool("completion", ["bash", "zsh"])


def test_a_pipelines_options_take_its_stages() -> None:
    app = App("mine")
    app.command("train", "no.such:Config", "no.such:main")
    app.group("data").command("prep", "no.such:Config", "no.such:main")
    app.pipeline("all", stages=["data prep", "train"])
    index = LiveIndex({"mine": app}, {})
    assert "all" in _offered(index, "mine ")
    assert _offered(index, "mine all --from ") == ["data.prep", "train"]
    assert _offered(index, "mine all --fo") == ["--force"]
