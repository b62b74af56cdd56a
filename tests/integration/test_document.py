"""The user's document, executed: every snippet of it is completed, run, and judged.

The document is no part of the repository: it lies beside the checkout, or $NEMOTRON_DOCUMENT names it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .document.completions import COMPLETIONS
from .document.extract import REPOSITORY, USUAL_PLACE, Snippet, find_document, snippets
from .document.on_cluster import ON_CLUSTER
from .document.rows import table
from .document.world import ENV_TOML, World, environment, my_recipe

ROWS = table()


@pytest.fixture(scope="session")
def document() -> dict[str, Snippet]:
    path = find_document()
    if path is None:
        pytest.skip(f"the user's document is not at {USUAL_PLACE}; $NEMOTRON_DOCUMENT can name it")
    return snippets(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose registry has nano3's tiny data, made once."""
    folder = tmp_path_factory.mktemp("prepared")
    World({}, folder, folder / "home").run("nemotron nano3 data prep pretrain -c tiny")
    return folder / "home"


@pytest.fixture
def world(document: dict[str, Snippet], tmp_path: Path) -> Iterator[World]:
    (tmp_path / "user").mkdir()
    yield World(document, tmp_path / "user", tmp_path / "home")


def test_snippets_are_found_by_section_and_line() -> None:
    text = (
        "# One\n```bash\n# a comment\nls \\\n  -l\npwd\n```\n## Two\n```mermaid\nx\n```\n```python\n# no heading\n```\n"
    )
    assert {key: each.text for key, each in snippets(text).items()} == {
        "One/1:1": "ls -l",
        "One/1:2": "pwd",
        "Two/2": "# no heading\n",
    }
    for wrong in ("```python\n", "```perl\n```\n", "# A\n```toml\n```\n# A\n```toml\n```\n"):
        with pytest.raises(ValueError, match=r"/1: "):
            snippets(wrong)


def test_each_snippet_has_a_row(document: dict[str, Snippet]) -> None:
    known = [*ROWS, *ON_CLUSTER]
    assert sorted(known) == sorted(document)  # sorted lists: none twice, none missing, none too many
    assert set(COMPLETIONS) <= set(ROWS)


@pytest.mark.parametrize("key", list(ROWS))
def test_snippet(key: str, world: World, request: pytest.FixtureRequest) -> None:
    if ROWS[key].prepared:
        world.borrow(request.getfixturevalue("prepared_home"))
    ROWS[key].check(world)


@pytest.mark.parametrize("key", ON_CLUSTER)
def test_what_runs_on_a_cluster_can_be_planned_anywhere(key: str, world: World) -> None:
    """The document's profile as it is printed; that the lines run is for tests/cluster/test_document_cluster.py."""
    recipe = ENV_TOML + "\n" if "myrecipe" in world.text(key) else ""
    if recipe:
        my_recipe(world)
    world.write("env.toml", recipe + world.text("NeMo-Run Integration/2"))
    plan = world.run_line(key, " --dry-run --json").json
    assert (plan["profile"], plan["executor"]) == ("MY-CLUSTER", "slurm")
    assert plan["mode"] == ("batch" if "--batch" in world.text(key) else "run")
    assert plan["problems"], "what stops the real launch is listed"


def test_uv_run(document: dict[str, Snippet], tmp_path: Path) -> None:
    """The literal words, in a clone. Without uv's default group, which is torch and a download of gigabytes."""
    uv = Path(sys.executable).with_name("uv")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    env = {**environment(tmp_path / "home"), "UV_NO_DEFAULT_GROUPS": "1", "UV_CACHE_DIR": str(tmp_path / "cache")}
    env["UV_SYSTEM_CERTS"] = "1"  # as pip was told to
    line = document["Examples/1:6"].text + " --dry-run"
    assert line.startswith("uv run nemotron ")
    env = {key: value for key, value in env.items() if key != "VIRTUAL_ENV"}
    env["PATH"] = f"{uv.parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(["bash", "-c", line], cwd=clone, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "train_iters: 5000" in done.stdout
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert status.stdout == "", "nothing that git would see is left behind"
