"""Help pages as text."""

from __future__ import annotations

import dataclasses
import io
import shlex

import pytest

from nemotron_kit.app import App, ArtifactInput
from nemotron_kit.cli.help import Page, Paint, draw, show
from nemotron_kit.cli.indexing import LiveIndex
from nemotron_kit.cli.parse import parse
from nemotron_kit.cli.request import Job
from nemotron_kit.cli.tree import Index


def _page(index: Index, *path: str, columns: int = 100, root: tuple[str, ...] = (), prog: str = "nemotron") -> str:
    page = Page(columns, Paint(False))
    draw(page, index, path, root, prog)
    return str(page)


def _rows(page: str, heading: str) -> list[str]:
    section = next(part for part in page.split("\n\n") if part.startswith(heading))
    return [" ".join(line.split()) for line in section.splitlines()[1:]]


def test_the_top_lists_recipes_tools_and_what_is_broken(index: Index) -> None:
    page = _page(index)
    assert _rows(page, "recipes") == ["nano3 A recipe"]
    assert _rows(page, "broken") == ["lost ImportError: no module named lost"]
    assert "runs list runs; print one, or its logs" in _rows(page, "commands")
    assert "nemotron nano3 --help" in _rows(page, "next")


def test_a_group_lists_its_commands_with_all_their_words(index: Index) -> None:
    assert _rows(_page(index, "nano3"), "commands") == [
        "pretrain Does what it says. (also: train)",
        "data prep pretrain Prepare",
        "model import pretrain Does what it says.",
        "rl Reinforcement learning",
    ]
    assert _rows(_page(index, "nano3", "data"), "commands") == ["prep pretrain Prepare"]


def test_a_command_shows_what_it_takes(index: Index) -> None:
    page = _page(index, "nano3", "pretrain")
    fields = _rows(page, "config (as")
    assert page.startswith("usage: nemotron nano3 pretrain [-c NAME|PATH]")
    assert "--num-shards int Shards to write [128]" in fields
    assert "--train.train-iters int Steps to train [10]" in fields
    assert "--force, --no-force [false]" in fields
    assert "--speed fast|slow [fast]" in fields
    assert "--blend-path path [from artifact data]" in fields
    assert "--sample int|null" in fields
    assert _rows(page, "artifacts") == ["--art.data Blend-default:latest (fills blend_path from path)"]
    assert _rows(page, "configs")[0].startswith("default, other, tiny")
    assert _rows(page, "config groups") == ["size=CHOICE big, small"]
    options = _rows(page, "options")
    assert any(row.startswith("-c, --config NAME|PATH") for row in options)
    assert any(row.startswith("--art.SLOT REF") for row in options)


def test_a_command_lists_every_setting_of_the_launcher(index: Index) -> None:
    from hydra_plugins.nemotron_kit_launcher.nemo_run import NemoRunConf

    rows = _rows(_page(index, "nano3", "pretrain"), "sweeps (-m")
    settings = {field.name for field in dataclasses.fields(NemoRunConf)} - {
        "_target_",
        "defaults",
        "env",
    }  # env: other programs'
    assert {row.partition("=")[0] for row in rows} == {f"hydra.launcher.{name}" for name in settings}


def test_positionals_shorts_required_and_products(index: Index) -> None:
    page = _page(index, "nano3", "model", "import", "pretrain")
    assert "usage: nemotron nano3 model import pretrain PATH" in page
    assert "PATH (path) (required)" in _rows(page, "config (as")
    assert "-s, --step int|null" in _rows(page, "config (as")
    assert "It saves Model-pretrain." in page
    assert "--art.SLOT" not in page


@pytest.mark.parametrize(
    "path", [("nano3", "pretrain"), ("nano3", "data", "prep", "pretrain"), ("nano3", "model", "import", "pretrain")]
)
def test_the_examples_work(index: Index, path: tuple[str, ...]) -> None:
    examples = _rows(_page(index, *path), "examples")
    assert len(examples) == 3
    for line in examples:
        program, *argv = shlex.split(line)
        assert program == "nemotron"
        job = parse(argv, index)
        assert isinstance(job, Job)
        assert job.path == path


def test_an_app_is_called_as_it_was(index: Index) -> None:
    page = _page(index, "nano3", "data", root=("nano3",), prog="python -m myrecipe")
    assert page.startswith("usage: python -m myrecipe data COMMAND")
    assert "python -m myrecipe data prep pretrain --help" in page


@pytest.mark.parametrize("columns", [50, 80, 110])
def test_lines_fit(index: Index, columns: int) -> None:
    for path in ((), ("nano3",), ("nano3", "data", "prep", "pretrain")):
        page = _page(index, *path, columns=columns).partition("\n\nconfigs")[0].partition("\n\nexamples")[0]
        assert max(len(line) for line in page.partition("\n\nnext")[0].splitlines()) <= columns


def test_a_command_broken_in_the_index_says_why(index: LiveIndex) -> None:
    leaf = {"name": "go", "path": ["r", "go"], "description": "Go", "broken": "ImportError: no", "line": 0}
    root = {
        "name": "",
        "path": [],
        "children": {"r": {"name": "r", "path": ["r"], "description": "", "children": {"go": leaf}}},
    }
    broken = Index(root, {}, ['{"fields": [], "artifacts": [], "configs": [], "produces": []}'])
    assert "broken: ImportError: no" in _page(broken, "r", "go")
    assert _rows(_page(broken, "r"), "commands") == ["go broken: ImportError: no"]


def test_a_group_without_a_command_is_an_error(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(index, ("nano3", "data"), asked=False) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Which command?")


def test_a_terminal_that_lacks_the_signs_gets_a_page_too(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    assert show(index, ()) == 0
    assert b"usage: nemotron RECIPE" in raw.getvalue()


def pipeline_index() -> LiveIndex:
    app = App("mine", description="Mine")
    app.command(
        "train", "no.such:Config", "no.such:main", artifacts={"data": ArtifactInput("D-x:latest")}, produces=["M"]
    )
    app.group("data").command("prep", "no.such:Config", "no.such:main", produces=["D-{config}"])
    app.pipeline("all", stages=["train", "data prep"])
    return LiveIndex({"mine": app}, {})


def test_a_pipeline_lists_its_stages_in_order_with_what_they_read_and_save() -> None:
    page = _page(pipeline_index(), "mine", "all")
    assert page.startswith("usage: nemotron mine all [-c NAME] [-r PROFILE | -b PROFILE] [options] [STAGE.key=value …]")
    assert _rows(page, "stages, in this order") == [
        "data prep saves D-{config}",
        "train reads data: D-x:latest of data.prep; saves M",
    ]
    assert [row.split()[0] for row in _rows(page, "which stages")] == ["--from", "--to", "--only", "--force"]
    assert not any("--multirun" in row or "--cfg" in row for row in _rows(page, "options"))
    assert "all Run data prep, train" in _rows(_page(pipeline_index(), "mine"), "commands")


def test_a_pipelines_line_is_a_job_of_hydras_words() -> None:
    job = parse(["mine", "all", "-c", "tiny", "--from", "data prep", "--force", "train", "train.n=1"], pipeline_index())
    assert isinstance(job, Job) and (job.recipe, job.stage, job.config) == ("mine", "all", "tiny")
    assert job.overrides == ("from='data prep'", "force=[train]", "train.n=1")
