"""Text of any kind through every door at once, in jobs that really run: each job sees it exactly, or it was refused
before any job was submitted; nothing else runs.

One job checks hundreds of texts. `NEMOTRON_TEXTS` says how many there are (400 unless told otherwise).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydantic
import pytest

from nemotron_kit.artifacts.reference import Reference
from nemotron_kit.errors import UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.spec.plan import Plan

from .docker_world import world as on_docker  # noqa: F401
from .slurm_world import World, escaped, hydra, until
from .slurm_world import world as on_slurm  # noqa: F401
from .test_slurm_text import CANARY, HOSTILE

COUNT = int(os.environ.get("NEMOTRON_TEXTS", "400"))
# Of these there are fewer in a job: each variable is a string of the kernel's, each input a mount and a folder.
PER_JOB, INPUTS = 1000, 40

PROGRAM = '''
import json, os, sys
from dataclasses import dataclass, field
from pathlib import Path

from nemotron.kit import App, ArtifactInput


@dataclass
class Texts:
    file: list = field(default_factory=list)
    line: list = field(default_factory=list)
    names: list = field(default_factory=list)
    paths: list = field(default_factory=list)


def saved(name):
    """What became of an artifact of this name: its files' text, or that the name was refused."""
    sys.path.append("SITE")  # the image has no pydantic
    from nemotron.kit import Artifact

    try:
        folder = Path(os.environ["NEMO_RUN_DIR"], "made")
        folder.mkdir(exist_ok=True)
        (folder / "x").write_text(name)
        Artifact(path=folder).save(name=name)
        return "saved"
    except Exception as error:
        return type(error).__name__


def look(cfg: Texts) -> None:
    """Write down what arrived."""
    arrived = {
        "file": list(cfg.file), "line": list(cfg.line), "paths": list(cfg.paths),
        "variables": {name: text for name, text in os.environ.items() if name.startswith("TEXT_")},
        "names": [saved(name) for name in cfg.names],
        "there": [os.path.isdir(path) and os.listdir(path) for path in cfg.paths],
    }
    Path(os.environ["NEMO_RUN_DIR"], "arrived.json").write_text(json.dumps(arrived))


app = App("work")
inputs = {f"in{n}": ArtifactInput(default_name="./inputs/none", mappings={}) for n in range(INPUTS)}
app.command("look", Texts, look, artifacts=inputs)

if __name__ == "__main__":
    app.run()
'''

_PIECES = "ab01 \t\n\r'\"`$(){}[]<>|&;\\#!%~*?-=,:/@^+._\x01\x07\x1b\x7f\x85\xa0éß☃漢字🦆\u202e\u2028\ufeff\U0010ffff"


def texts(count: int, seed: int, canary: Path) -> list[str]:
    """As many texts, the same ones for the same seed: what is known to hurt, and mixtures of it with anything."""
    source = random.Random(seed)
    known = [piece.format(canary) for piece in HOSTILE]

    def piece() -> str:
        if source.random() < 0.3:
            return source.choice(known)
        if source.random() < 0.2:
            return chr(source.choice([source.randrange(1, 0xD800), source.randrange(0xE000, 0x110000)]))
        return "".join(source.choices(_PIECES, k=source.randint(1, 30)))

    found = known[:count]
    while len(found) < count:
        found.append("".join(piece() for _ in range(source.randint(1, 4))))
    return found


@dataclass
class Tally:
    """How many texts went where, for whoever runs many."""

    arrived: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def add(self, door: str, arrived: int, refused: int = 0) -> None:
        self.arrived[door] = self.arrived.get(door, 0) + arrived
        self.refused[door] = self.refused.get(door, 0) + refused


@pytest.fixture(params=["on_slurm", "on_docker"])
def any_world(request: pytest.FixtureRequest) -> Iterator[World]:
    found: World = request.getfixturevalue(request.param)
    site = Path(pydantic.__file__).parents[1]
    (found.folder / "work.py").write_text(PROGRAM.replace("INPUTS", str(INPUTS)).replace("SITE", str(site)))
    env = (found.folder / "env.toml").read_text()
    (found.folder / "env.toml").write_text(env.replace("[C]\n", f'[C]\nmounts = ["{site}:{site}"]\n', 1))
    (found.folder / "inputs" / "none").mkdir(parents=True)
    before = sorted(path.name for path in found.folder.iterdir())
    yield found
    canary = found.folder.parent / CANARY
    assert not canary.exists()
    assert [path for path in found.folder.parent.rglob(f"{CANARY}*") if path.is_file()] == []
    left = {path.name for path in found.folder.iterdir()} - {"__pycache__", "config"}
    assert sorted(left) == before, "something wrote into the folder of the launch"


def test_texts_arrive_exactly_or_are_refused(any_world: World) -> None:
    canary, tally = any_world.folder.parent / CANARY, Tally()
    each = max(1, COUNT // 5)
    for start in range(0, each, PER_JOB):
        count = min(PER_JOB, each - start)
        doors = {n: texts(count, seed, canary) for seed, n in enumerate(("file", "line", "variables", "names"), start)}
        folders = _folders(any_world.folder / "inputs" / str(start), texts(min(count, INPUTS), start + 4, canary))
        _one_job(any_world, doors, folders, tally)
    _references(texts(each, 5, canary), tally)
    print(f"\narrived exactly: {tally.arrived}\nrefused before submitting: {tally.refused}")


def test_a_text_of_100_kb(any_world: World) -> None:
    long = ["x" * 100_000, "'\"$`\\\n" * 16_000, "漢" * 33_000]
    _one_job(any_world, {"file": long, "line": long[:1], "variables": long, "names": long[:1]}, [], Tally())


def test_a_profile_of_any_name(any_world: World) -> None:
    """It is only looked up; launched are the first few."""
    canary = any_world.folder.parent / CANARY
    names = [name for name in dict.fromkeys(texts(max(30, COUNT // 50), 6, canary)) if name]
    tables = "".join(f'\n[{json.dumps(name, ensure_ascii=True)}]\nextends = "C"\n' for name in names if _plain(name))
    with (any_world.folder / "env.toml").open("a") as env:
        env.write(tables)
    launched = 0
    for name in names:
        with any_world.seen():
            try:
                plan = any_world.plan("look", profile=hydra(name))
            except UserError:
                continue
        assert plan.profile == name
        if launched < 3:
            with any_world.seen():
                _submit(plan)
            launched += 1
    assert launched, "every name was refused"


def _one_job(world: World, doors: dict[str, list[str]], folders: list[Path], tally: Tally) -> None:
    variables = {f"TEXT_{n}": text for n, text in enumerate(doors["variables"])}
    words = [f"line={hydra(doors['line'])}"]
    words.append(f"run.env.env_vars={hydra([f'{name}={_literal(text)}' for name, text in variables.items()])}")
    with world.seen():
        kept = _accepted(world, folders)
        words += [f"run.in{n}={hydra(str(folder))}" for n, folder in enumerate(kept)]
        path = _config(world, doors, [f"${{art:in{n},path}}" for n in range(len(kept))])
        plan = world.plan("look", f"config={path}", *words)
        assert plan.problems == ()
        run = _submit(plan)
    arrived = json.loads((run.job().path / "arrived.json").read_text())
    assert arrived["file"] == doors["file"]
    assert arrived["line"] == doors["line"]
    assert arrived["variables"] == variables
    assert arrived["paths"] == [str(folder) for folder in kept]
    assert all(names == ["data.txt"] for names in arrived["there"])
    for name, became in zip(doors["names"], arrived["names"], strict=True):
        assert became in ("saved", "UserError"), name
    for door in ("file", "line", "variables"):
        tally.add(door, len(doors[door]))
    tally.add("names", arrived["names"].count("saved"), arrived["names"].count("UserError"))
    tally.add("paths", len(kept), len(folders) - len(kept))


def _literal(text: str) -> str:
    """A variable's value in which `$NAME` is meant as it stands: env_vars refer to other variables so."""
    return re.sub(r"\$(?=[A-Za-z_]|\{[A-Za-z_][A-Za-z0-9_]*\})", r"\\$", text)


def _config(world: World, doors: dict[str, list[str]], paths: list[str]) -> Path:
    """A config file: JSON, which holds any text; `${` is OmegaConf's, and escaped."""
    values = {key: [escaped(text) for text in doors[key]] for key in ("file", "names")}
    path = world.folder / "config" / "texts.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**values, "paths": paths}))
    return path


def _accepted(world: World, folders: list[Path]) -> list[Path]:
    """The folders that can be an input, each asked for alone."""
    kept = []
    for folder in folders:
        with contextlib.suppress(UserError):
            if not world.plan("look", f"run.in0={hydra(str(folder))}").problems:
                kept.append(folder)
    return kept


def _folders(place: Path, names: list[str]) -> list[Path]:
    """A folder of each name that the file system takes."""
    found = []
    for n, name in enumerate(names):
        folder = place / str(n) / (name.replace("/", "_").encode()[:200].decode(errors="ignore") or "_")
        if folder.name in (".", ".."):
            continue
        folder.mkdir(parents=True)
        (folder / "data.txt").write_text("data")
        found.append(folder)
    return found


def _references(names: list[str], tally: Tally) -> None:
    """As an artifact's reference a text is one that says the same again, or it is refused."""
    refused = 0
    for name in names:
        try:
            reference = Reference.parse(name)
        except UserError:
            refused += 1
            continue
        assert Reference.parse(str(reference)) == reference
        assert reference.path is not None or set(reference.slug) <= set(_SLUG), name
    tally.add("references", len(names) - refused, refused)


_SLUG = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"


def _plain(name: str) -> bool:
    """TOML's quoted keys have no escape for what lies beyond the basic plane as JSON writes it."""
    return all(ord(character) < 0x10000 and character not in "\x7f" for character in name)


def _submit(plan: Plan) -> RunFolder:
    run = create_run(plan.run_id, plan.to_dict(), [plan.files])
    executor_for(plan.settings).submit(run, [plan])
    log = run.job().path / "logs" / "job.log"
    until(lambda: run.job().state().terminal, 120, lambda: log.read_text() if log.exists() else "no log")
    assert run.job().state().state == "succeeded", log.read_text()[-3000:]
    return run
