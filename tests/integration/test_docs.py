"""The pages under docs/: their commands run as they stand, links lead somewhere, the rooms are the real ones."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
import yaml

from .document.extract import REPOSITORY
from .document.pages import File, Line, anchors, links, make, steps
from .document.world import World

TOP = ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "examples/README.md")
PAGES = [*(REPOSITORY / name for name in TOP), *sorted((REPOSITORY / "docs").rglob("*.md"))]
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
HOW_TO = REPOSITORY / "docs" / "how-to"
METRICS = HOW_TO / "metrics.md"
# Typed one after the other in one folder: each reads what those before it have left there.
IN_ORDER = [
    HOW_TO / f"{name}.md"
    for name in (
        *("install", "configs", "runs", "clean-up", "artifacts", "sweeps", "profiles", "slurm", "ssh", "docker"),
        *("scripts", "recipe", "pretrain", "wandb", "hydra-app"),
    )
]
CONTRIBUTING = REPOSITORY / "CONTRIBUTING.md"


def _run(pages: list[Path], place: Path) -> None:
    """Do what the reader of pages does, in the folder `reader`."""
    folder = place / "reader"
    folder.mkdir()
    world = World({}, folder, place / "home")
    for step in chain.from_iterable(map(steps, pages)):
        if isinstance(step, File):
            make(step, folder)
        elif not step.skipped:
            world.run(step.text, code=step.code)


@pytest.mark.timeout(900)
def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    _run([TUTORIAL], tmp_path)


@pytest.mark.timeout(900)
def test_the_how_tos_run_one_after_the_other(tmp_path: Path) -> None:
    _run(IN_ORDER, tmp_path)


@pytest.mark.skipif(not find_spec("optuna"), reason="hydra-optuna-sweeper is not installed")
def test_the_page_on_metrics_runs_from_top_to_bottom(tmp_path: Path) -> None:
    _run([METRICS], tmp_path)
    assert list((tmp_path / "home" / "runs").glob("*/jobs/0/tensorboard/events.out.tfevents.*"))


def test_what_the_pages_claim_of_single_lines(tmp_path: Path) -> None:
    """The recipe, the artifact and the script that the pages show print what they say."""
    folder = tmp_path / "reader"
    folder.mkdir()
    world = World({}, folder, tmp_path / "home")
    for step in chain.from_iterable(map(steps, IN_ORDER)):
        if isinstance(step, File) and step.name.startswith(("letters/", "env.toml", "vocabulary", "settings")):
            make(step, folder)
    missing = world.run("echo 1 | nemotron letters count", code=2)
    assert "Make it with: nemotron letters data collect" in missing.err
    assert "left unread. --art.data - reads it." in missing.err
    world.run("nemotron letters data collect -c greek")
    assert world.run("nemotron letters count letter=a").out == "5\n"
    assert world.run("python -m letters count --letter b").out == "1\n"
    assert world.run("nemotron letters count data_path=letters_data").out == "0\n"
    assert world.inputs() == {}
    assert world.run("python vocabulary.py").out == "2\n"
    assert world.run("python settings.py lr=0.5 --steps 30").out == "Settings(lr=0.5, steps=30)\n"


@pytest.mark.parametrize(
    "line", [step.text for step in steps(CONTRIBUTING) if isinstance(step, Line) and not step.skipped]
)
def test_what_contributors_type(tmp_path: Path, line: str) -> None:
    World({}, REPOSITORY, tmp_path / "home").run(line)


def test_contributors_are_sent_to_files_and_names_that_exist() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)` in `([\w./]+)`", text)
    assert len(named) >= 8
    assert [pair for pair in named if not re.search(rf"\b{pair[0]}\b", (REPOSITORY / pair[1]).read_text())] == []
    paths = re.findall(r"`((?:nemotron_kit|recipes|tests|scripts|\.ci)/[\w./]*)`", text)
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_pre_commit_has_the_ruff_of_ci_and_the_issue_forms_can_be_read() -> None:
    (hooks,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={hooks['rev'].removeprefix('v')}" in (REPOSITORY / "constraints.txt").read_text().splitlines()
    for name in ("bug", "feature"):
        form = yaml.safe_load((REPOSITORY / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
        assert {"name", "description", "body"} <= set(form)
        assert any(part.get("validations", {}).get("required") for part in form["body"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if there.parent == REPOSITORY / "docs" / "reference":  # made when the site is built, which checks links to it
            continue
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_fences_keep_the_conventions(page: Path) -> None:
    for step in steps(page):
        assert isinstance(step, File | Line)


def test_architecture_names_the_rooms_in_the_order_that_is_enforced() -> None:
    """The picture's rooms are import-linter's layers."""
    layers = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0][
        "layers"
    ]
    table = re.findall(
        r"^\| `([^|]+?)` \|", (REPOSITORY / "docs" / "explanation" / "design.md").read_text(), re.MULTILINE
    )
    rooms = [[f"nemotron_kit.{room}" for room in row.replace("`", "").split(", ")] for row in table]
    assert rooms == [layer.split(" | ") for layer in layers]


def test_the_comparison_is_of_the_versions_that_are_tested() -> None:
    """Who raises one of them reads it again."""
    pinned = dict(re.findall(r"^([\w-]+)==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    page = (REPOSITORY / "docs" / "explanation" / "comparison.md").read_text()
    readme = (REPOSITORY / "README.md").read_text()
    assert f"submitit {pinned['submitit']}" in page
    for title, name in (("hydra-submitit-launcher", "hydra-submitit-launcher"), ("NeMo-Run", "nemo-run")):
        assert f"{title} {pinned[name]}" in page and f"{title} {pinned[name]}" in readme


def test_each_decision_is_about_half_a_page() -> None:
    decisions = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
    assert len(decisions) >= 6
    for number, page in enumerate(decisions, 1):
        assert page.name.startswith(f"{number:04}-")
        assert 60 <= len(page.read_text().split()) <= 500, page.name


def test_every_private_name_of_hydras_that_is_used_stands_in_a_decision() -> None:
    pages = "".join(page.read_text() for page in (REPOSITORY / "docs" / "decisions").glob("*.md"))
    private = re.compile(r"from ((?:hydra\._internal|omegaconf\._utils)[\w.]*) import ([\w, ]+)")
    used = {
        (module, name.strip())
        for file in (REPOSITORY / "nemotron_kit").rglob("*.py")
        for module, names in private.findall(file.read_text())
        for name in names.split(",")
    }
    assert len(used) >= 5
    assert [name for name in sorted(used) if f"`{name[0]}." not in pages or name[1] not in pages] == []
