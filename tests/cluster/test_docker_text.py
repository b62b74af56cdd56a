"""Whatever text a user gives reaches a job in a container as it is, or is refused before; and nothing else runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.executors.base import executor_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.spec.plan import stored_plan

from .docker_world import containers, world  # noqa: F401
from .slurm_world import World, until

LOOK_AT_ALL = '''

@dataclass
class Texts:
    texts: list = __import__("dataclasses").field(default_factory=list)


def look_at_all(cfg: Texts) -> None:
    """Write down the texts that arrived."""
    Path(os.environ["NEMO_RUN_DIR"], "texts.json").write_text(json.dumps(list(cfg.texts)))


app.command("look_at_all", Texts, look_at_all)
'''

HOSTILE = [
    "$(touch MARK)",
    "`touch MARK`",
    "'; touch MARK; '",
    '"; touch MARK; "',
    "a\nb\n",
    "$HOME $$ $(HOME)",
    "--privileged",
    "-v /:/host",
    "\\' \\\" \\\\",
    "tab\tand\rreturn",
    "ünïcödé \u202e 🙂",
    "&& touch MARK || touch MARK | touch MARK > MARK",
    "/nemo_run/code",
    "{{.State}} %s %%",
    "~ * ? [a-z] {a,b}",
    "#!/bin/sh\ntouch MARK",
    " leading and trailing ",
    "null",
    "x" * 100_000,
]
_ALPHABET = "ab 01'\"`$(){}[]<>|&;\\\n\t#!%~*?-=,:/@^é☃"


def _random_texts(count: int) -> list[str]:
    source = random.Random(20)
    texts = ["".join(source.choices(_ALPHABET, k=source.randint(1, 60))) for _ in range(count)]
    return [text.replace("${", "$") for text in texts]  # OmegaConf's own language, by intent


@pytest.mark.parametrize("texts", [[t.replace("MARK", "/tmp/mark") for t in HOSTILE], _random_texts(60)])
def test_text_reaches_the_job_as_it_is(world: World, texts: list[str]) -> None:  # noqa: F811
    source = world.folder / "work.py"
    source.write_text(
        source.read_text().replace('\nif __name__ == "__main__"', LOOK_AT_ALL + '\nif __name__ == "__main__"')
    )
    (world.folder / "texts.json").write_text(json.dumps({"texts": texts}))
    before = sorted(path.name for path in world.folder.iterdir())
    done = world.run("look_at_all", "-c", "./texts.json", "--run", "C")
    assert done.returncode == 0, done.stderr
    job = world.job(done.stderr)
    assert json.loads((job.path / "texts.json").read_text()) == texts
    assert sorted(path.name for path in world.folder.iterdir() if path.name != "__pycache__") == before
    assert not list(world.home.rglob("mark")) and not Path("/tmp/mark").exists()


@pytest.mark.parametrize("text", ["$(touch MARK)", "a'b\"c `id` \\", "-v /:/host", "snow ☃\nman"])
def test_text_in_an_override_and_a_variable(world: World, text: str) -> None:  # noqa: F811
    variables = json.dumps([f"WORK_TEXT={text}"], ensure_ascii=False)
    (world.folder / "env.toml").write_text(
        (world.folder / "env.toml").read_text() + f'\n[texts]\nextends = "C"\nenv_vars = {variables}\n'
    )
    done = world.run("look", "--text", text, "--run", "texts")
    if done.returncode == 2:  # refused: then nothing was started
        assert not (world.home / "runs").exists(), done.stderr
        return
    assert done.returncode == 0, done.stderr
    seen = json.loads((world.job(done.stderr).path / "seen-0.json").read_text())
    assert seen["text"] == text and seen["environment"]["WORK_TEXT"] == text


@pytest.mark.parametrize("home", ["with space", "a,b", "c:d", 'q"uote', "$(x)`y`", "üñ", "line\nbreak"])
def test_a_home_of_any_name_works_or_is_refused(world: World, home: str) -> None:  # noqa: F811
    folder = world.folder.parent / home
    folder.mkdir()
    done = world.run("look", "text=ok", "--run", "C", NEMOTRON_HOME=str(folder))
    if done.returncode == 2:
        assert "Traceback" not in done.stderr and list(folder.iterdir()) == []
        return
    assert done.returncode == 0, done.stderr
    (seen,) = folder.glob("runs/*/jobs/0/seen-0.json")
    assert json.loads(seen.read_text())["text"] == "ok"


@pytest.mark.parametrize("image", ["-v", "--privileged", "a b", "$(id)", "x;id", ""])
def test_an_image_that_is_no_name_is_refused(world: World, image: str) -> None:  # noqa: F811
    done = world.run("speak", "--run", "C", f"--run.container-image={image}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (world.home / "runs").exists()


def test_a_sweep_is_one_run_of_many_containers(world: World) -> None:  # noqa: F811
    done = world.run("look", "-m", "text=a,b,c", "--run", "C", timeout=180)
    assert done.returncode == 0, done.stderr
    run: Any = world.only_run()
    texts = {json.loads((job.path / "seen-0.json").read_text())["text"] for job in run.jobs()}
    assert texts == {"a", "b", "c"}
    with world.seen():
        seen = executor_for(stored_plan(run).settings).observe(RunFolder(run.path), run.jobs())
    assert {o.state for o in seen.values()} == {"succeeded"}
    assert until(lambda: containers(world, run.id) == [], 10)
