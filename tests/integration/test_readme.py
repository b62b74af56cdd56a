"""The README, executed in a fresh folder: its first command trains a model that has learned, and the rest is true."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from .document.extract import REPOSITORY
from .document.pages import File, Line, make, steps
from .document.world import World, environment

README = REPOSITORY / "README.md"
STEPS = list(steps(README))
TEXT = README.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Trained:
    """After the first command: where it was typed, and the seconds that its two nemotron steps took."""

    world: World
    by_the_clock: float
    of_processors: float

    @property
    def model(self) -> dict[str, object]:
        return self.world.registry.find("ModelArtifact-pretrain:v0").document


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """The README's first command, without its installation: what is installed is what runs the tests."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "here").mkdir()
    # No NEMOTRON_HOME: the README sets none, so its own default is tested.
    world = World({}, folder / "here", folder / ".nemotron")
    began, used = time.monotonic(), _children()
    for part in _first_command()[1]:
        world.run(f"unset NEMOTRON_HOME OMP_NUM_THREADS; {part}", forked=False)
    yield Trained(world, time.monotonic() - began, _children() - used)


def test_the_first_command_installs_and_then_runs_both_steps() -> None:
    install, run = _first_command()
    assert install == ["python3 -m venv .venv", ".venv/bin/pip install -c constraints.txt -e '.[train]'"]
    assert run == ["nemotron nano3 data prep pretrain -c tiny", "nemotron nano3 pretrain -c tiny"]


@pytest.mark.timeout(600)
def test_both_steps_take_less_than_two_minutes(trained: Trained) -> None:
    """By the clock; where others use the machine too, in processor time."""
    assert min(trained.by_the_clock, trained.of_processors) < 120


@pytest.mark.timeout(600)
def test_the_model_has_learned(trained: Trained) -> None:
    """Its held-out loss, as reported and as transformers alone measures it, against that text's unigram entropy: more
    than how often tokens occur."""
    shards, model = _held_out(trained), Path(str(trained.model["path"]))
    reported = trained.model["loss"]
    assert isinstance(reported, float) and reported <= 0.9 * _unigram_entropy(np.concatenate(shards))
    metrics = trained.world.runs()[-1] / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert rows[-1]["valid_loss"] == pytest.approx(_measured_loss(model, shards), abs=1e-4)
    assert rows[-1]["valid_loss"] == pytest.approx(reported, abs=1e-4)


@pytest.mark.timeout(600)
def test_the_models_folder_is_whole(trained: Trained) -> None:
    from transformers import AutoConfig, AutoTokenizer

    model, data = str(trained.model["path"]), trained.world.folder / "output/nano3/stage0_pretrain/tiny"
    config = AutoConfig.from_pretrained(model)
    assert len(AutoTokenizer.from_pretrained(model)) <= config.vocab_size
    assert config.eos_token_id == json.loads((data / "metadata.json").read_text())["metadata"]["eos_id"]


@pytest.mark.timeout(600)
def test_the_checkpoint_is_registered_with_what_it_was_made_from(trained: Trained) -> None:
    registry = trained.world.registry
    assert trained.world.parents("ModelArtifact-pretrain:v0") == ["PretrainBlendsArtifact-tiny:v0"]
    data = registry.find("PretrainBlendsArtifact-tiny:v0")
    assert data.path == str(trained.world.folder / "output/nano3/stage0_pretrain/tiny")
    assert registry.verify(registry.resolve("ModelArtifact-pretrain:v0"), deep=True) is not None
    assert trained.model["producer"] == trained.world.runs()[-1].parent.parent.name


@pytest.mark.timeout(600)
def test_a_run_leaves_what_the_table_says(trained: Trained) -> None:
    rows = TEXT.partition("## What a run leaves")[2].partition("\n## ")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", rows, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) >= 8
    for name in named:
        assert (trained.world.runs()[-1] / name).exists(), name


@pytest.mark.timeout(600)
def test_every_other_command_of_the_readme(trained: Trained) -> None:
    """In order, in the same folder; `bash scripts/test` is this very run."""
    for step in _after_the_first_command():
        if isinstance(step, File):
            make(step, trained.world.folder)
        elif step.skipped:
            continue
        elif step.text == "bash scripts/test":
            assert (REPOSITORY / "scripts/test").is_file()
            assert "bash scripts/test" in (REPOSITORY / ".ci/run").read_text()
        elif " pipeline " in step.text:  # takes minutes; test_nano3_pipeline.py runs it with fewer steps
            shown = trained.world.run(f"{step.text.removeprefix('.venv/bin/')} --dry-run").out
            assert all(stage in shown for stage in ("pretrain", "sft", "rl", "eval"))
        else:
            result = trained.world.run(step.text, code=step.code)
            assert step.code != 2 or result.err.startswith("error: ")
            if " -m train.lr=" in step.text and not step.code:
                _is_what_the_session_shows(result.out + result.err)
    greeting = trained.world.folder / "greetings" / "greeting.txt"
    assert greeting.read_text() == "Hello, Ada!\n" * 2


def _is_what_the_session_shows(printed: str) -> None:
    """The session at the README's top is the terminal's own output: a sweep's end has the same columns and lines."""
    session = TEXT.partition("```text\n")[2].partition("```")[0].splitlines()
    header = next(line for line in session if line.startswith("JOB "))
    columns = next(line for line in printed.splitlines() if line.startswith("JOB ")).split()
    assert set(header.split()) <= set(columns)
    assert next(line for line in session if line.startswith("sorted by ")) in printed.splitlines()
    best = next(line for line in session if line.startswith("best: "))
    assert re.search(r"^best: \S+/\d  valid_loss [\d.]+  train\.lr=[\d.]+$", printed, re.MULTILINE)
    assert re.fullmatch(r"best: …/\d  valid_loss [\d.]+  train\.lr=[\d.]+", best)


@pytest.mark.skipif(
    os.environ.get("NEMOTRON_TEST_INSTALL") != "1", reason="NEMOTRON_TEST_INSTALL=1 installs from nothing"
)
@pytest.mark.timeout(1800)
def test_the_first_command_from_nothing(tmp_path: Path) -> None:
    """The line itself, in a fresh clone. CI installs from nothing by scripts/test, so this is not done twice there."""
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(tmp_path / "clone")], check=True)
    env = environment(tmp_path / "home")
    done = subprocess.run(
        ["bash", "-c", _lines()[0].text], cwd=tmp_path / "clone", env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["model"]["name"] == "ModelArtifact-pretrain"


def _children() -> float:
    """Processor seconds of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _lines() -> list[Line]:
    return [step for step in STEPS if isinstance(step, Line)]


def _first_command() -> tuple[list[str], list[str]]:
    """(its installing parts, its nemotron parts by the name that is on the PATH here)"""
    parts = [part.strip() for part in _lines()[0].text.split("&&")]
    run = [part.removeprefix(".venv/bin/") for part in parts if part.startswith(".venv/bin/nemotron ")]
    return [part for part in parts if not part.startswith(".venv/bin/nemotron ")], run


def _after_the_first_command() -> list[File | Line]:
    return STEPS[STEPS.index(_lines()[0]) + 1 :]


def _held_out(trained: Trained) -> list[np.ndarray]:
    """The tokens of each valid shard: plain little-endian 16-bit numbers, since the vocabulary has 4096."""
    blend = json.loads((trained.world.folder / "output/nano3/stage0_pretrain/tiny/blend.json").read_text())
    return [np.fromfile(f"{prefix}.bin", dtype="<u2") for prefix in blend["valid"][1::2]]


def _unigram_entropy(tokens: np.ndarray) -> float:
    """Nats a token, under the best unigram model of this very text: no unigram model can do better on it."""
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / tokens.size
    return float(-(shares * np.log(shares)).sum())


def _measured_loss(model: Path, shards: list[np.ndarray], length: int = 128) -> float:
    """The mean loss of the windows that a training evaluates, 320 spread over all shards, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model).eval()
    windows = [
        shard[at : at + length + 1].astype(np.int64) for shard in shards for at in range(0, len(shard) - length, length)
    ]
    chosen = torch.from_numpy(np.stack([windows[number * len(windows) // 320] for number in range(320)]))
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                network(input_ids=part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten()
            )
            for part in chosen.split(16)
        ]
    return float(torch.stack(losses).mean())
