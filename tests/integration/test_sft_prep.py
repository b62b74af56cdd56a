"""Chat data on any number of workers and ranks, killed and started again: the same bytes; and the recipe's command."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import until
from ..project import Project, environment

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "recipes" / "nano3" / "tokenizers" / "tiny"
PREP = """
import sys
from nemotron_kit.data_prep.config import SftPrepConfig
from nemotron_kit.data_prep.sft_prep import run_sft_data_prep
run_sft_data_prep(SftPrepConfig(
    blend_path=sys.argv[1], output_dir=sys.argv[2], num_workers=int(sys.argv[3]), num_shards=7, pack_size=256,
    tokenizer_model=sys.argv[4], train_ratio=0.8, valid_ratio=0.1, test_ratio=0.1,
))
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of unequal weight, one of them large enough for byte ranges."""
    folder = tmp_path_factory.mktemp("sources")
    with (folder / "talks.jsonl").open("w", encoding="utf-8") as file:
        for number in range(4_000):
            answer = {"role": "assistant", "content": f"{number} is " + "one of many " * (number % 40)}
            if number % 5 == 0:
                answer["reasoning_content"] = f"since {number}"
            file.write(json.dumps({"messages": [{"role": "user", "content": f"{number}?"}, answer]}) + "\n")
    entries = [
        {"name": "talks", "path": "talks.jsonl", "weight": 2.0},
        {"name": "digits", "path": "exercises://last-digit?n=2400", "weight": 1.0},
    ]
    (folder / "blend.json").write_text(json.dumps({"datasets": entries}))
    return folder / "blend.json"


@pytest.fixture
def start(blend: Path, tmp_path: Path) -> Start:
    def run(output: Path, workers: int, **env: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PREP, str(blend), str(output), str(workers), str(TOKENIZER)]
        return subprocess.Popen(
            words,
            env=environment(tmp_path / "home", **env),
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def hashes(output: Path) -> dict[str, str]:
    """Of all that is made of the sources."""
    files = [*output.glob("s*/**/*.parquet"), output / "report.json"]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def end(process: subprocess.Popen[str]) -> str:
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    return errors


def test_workers_ranks_and_kills_change_no_byte(start: Start, tmp_path: Path) -> None:
    end(start(tmp_path / "one", 1))
    expected = hashes(tmp_path / "one")
    assert 2 < sum(name.startswith("splits/train/") for name in expected) < 7  # by the weights

    errors = end(start(tmp_path / "four", 4))
    assert hashes(tmp_path / "four") == expected
    assert "rows kept, by the weights" in errors

    ranks = [
        start(tmp_path / "ranks", 1, RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_PORT="1234")
        for rank in range(2)
    ]
    said = [end(process) for process in ranks]
    assert hashes(tmp_path / "ranks") == expected
    assert [text.count("data prep: read") for text in said] == [1, 0]

    killed = start(tmp_path / "killed", 4)
    until(lambda: list((tmp_path / "killed").glob("shards/.shard_*")) or killed.poll() is not None, every=0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    end(start(tmp_path / "killed", 2))
    assert hashes(tmp_path / "killed") == expected
    assert not list((tmp_path / "killed").glob("**/.*"))


def test_tiny_needs_nothing_but_python(tmp_path: Path) -> None:
    script = ROOT / "recipes" / "nano3" / "stage1_sft" / "data_prep.py"
    done = Project(tmp_path)("python", str(script), "--config", "tiny")
    output = tmp_path / "output" / "nano3" / "stage1_sft" / "tiny"
    piped = json.loads(done.stdout)["data"]
    assert (piped["type"], piped["path"]) == ("SFTDataArtifact", str(output / "splits"))
    metadata = json.loads((output / "splits" / "metadata.json").read_text())
    assert (metadata["name"], metadata["pack_size"]) == ("SFTDataArtifact-tiny", 512)
    report = json.loads((output / "report.json").read_text())
    assert report["splits"]["train"]["fill"] > 0.95
    assert min(split["sequences"] for split in report["splits"].values()) > 300
    assert [dataset["name"] for dataset in report["datasets"]] == ["docstrings-qa", "last-digit", "last-word"]
