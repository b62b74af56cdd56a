"""Any number of workers, killed and started again, by datatrove or not: the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..conftest import until

ROOT = Path(__file__).parents[2]
PREP = """
import sys
from nemotron_kit.data_prep import DataPrepConfig, run_data_prep
run_data_prep(DataPrepConfig(
    blend_path=sys.argv[1], output_dir=sys.argv[2], num_workers=int(sys.argv[3]), num_shards=5,
    tokenizer_model=sys.argv[4],
))
"""
TOKENIZER = ROOT / "recipes" / "nano3" / "tokenizers" / "tiny"


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of several kinds, some large enough for byte ranges."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("sources")
    rng = random.Random(3)
    words = ["token", "data", "shard", "model", "Über", "naïve", "42", "\n\n", "def f(x):", "return"]
    texts = [" ".join(rng.choices(words, k=rng.randrange(5, 400))) for _ in range(4_000)]
    rows = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "a").mkdir()
    (folder / "a" / "large.jsonl").write_text("".join(rows[:2_500]))
    (folder / "a" / "small.jsonl.gz").write_bytes(gzip.compress("".join(rows[2_500:3_000]).encode()))
    pq.write_table(pa.table({"text": texts[3_000:]}), folder / "b.parquet", row_group_size=300)
    (folder / "notes.txt").write_text("\n\n".join(texts[:50]))
    entries = [
        {"name": "a", "path": "a", "weight": 2.0},
        {"name": "b", "path": "b.parquet"},
        {"name": "notes", "path": "notes.txt", "weight": 0.5},
    ]
    (folder / "blend.json").write_text(json.dumps({"datasets": entries}))
    return folder / "blend.json"


def command(blend: Path, output: Path, workers: int) -> list[str]:
    return [sys.executable, "-c", PREP, str(blend), str(output), str(workers), str(TOKENIZER)]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "NEMOTRON_HOME": str(tmp_path / "home")}


def hashes(output: Path) -> dict[str, str]:
    files = [path for path in output.glob("*/shard_*") if path.suffix in (".bin", ".idx")]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def expected(blend: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one worker makes."""
    output = tmp_path_factory.mktemp("one")
    subprocess.run(command(blend, output, 1), check=True, env=environment(output.parent))
    found = hashes(output)
    assert sum(name.startswith("train/") and name.endswith(".bin") for name in found) == 5
    return found


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_no_byte(
    blend: Path, expected: dict[str, str], tmp_path: Path, workers: int
) -> None:
    subprocess.run(command(blend, tmp_path / "out", workers), check=True, env=environment(tmp_path))
    assert hashes(tmp_path / "out") == expected


@pytest.mark.parametrize("workers", [1, 4])
def test_killed_at_any_point_and_started_again(
    blend: Path, expected: dict[str, str], tmp_path: Path, workers: int
) -> None:
    output = tmp_path / "out"
    rng = random.Random(workers)
    for _ in range(4):
        process = subprocess.Popen(
            command(blend, output, workers),
            env=environment(tmp_path),
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        until(lambda process=process: process.poll() is not None or list(output.glob("*/.shard_*")), every=0.005)
        time.sleep(rng.random() * 0.15)  # the moment of the kill
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (output / "blend.json").exists() or hashes(output) == expected
    subprocess.run(command(blend, output, workers), check=True, env=environment(tmp_path))
    assert hashes(output) == expected
    assert not list(output.glob("*/.shard_*"))  # nothing of the killed runs is left


def test_a_killed_worker_is_told_and_the_rest_is_kept(blend: Path, expected: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = subprocess.Popen(command(blend, output, 2), env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    worker = None
    while worker is None and process.poll() is None:
        names = [path.name for path in output.glob("train/.shard_*.bin.*")]
        worker = int(names[0].split(".")[3]) if names else None
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "A worker process ended with exit code -9" in errors
    subprocess.run(command(blend, output, 2), check=True, env=environment(tmp_path))
    assert hashes(output) == expected


def test_an_error_in_a_worker_reaches_the_user_whole(blend: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n' * 9 + "{broken\n")
    entries = [*json.loads(blend.read_text())["datasets"][:1], {"name": "bad", "path": str(bad)}]
    entries[0]["path"] = str(blend.parent / "a")
    (tmp_path / "blend.json").write_text(json.dumps({"datasets": entries}))
    done = subprocess.run(
        command(tmp_path / "blend.json", tmp_path / "out", 4), env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"{bad}, line 10: malformed JSON" in done.stderr
    assert not (tmp_path / "out" / "blend.json").exists()
    assert not list((tmp_path / "out").glob("*/.shard_*"))


def test_a_full_disk_is_one_error_and_the_rest_is_kept(blend: Path, expected: dict[str, str], tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    words = command(blend, tmp_path / "out", 1)
    words[2] = limit + words[2]  # the limit on a file's size stands for the disk's
    done = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode != 0
    assert ".bin: can't be written: File too large." in done.stderr
    assert not list((tmp_path / "out").glob("*/.shard_*"))
    subprocess.run(command(blend, tmp_path / "out", 2), check=True, env=environment(tmp_path))
    assert hashes(tmp_path / "out") == expected


def test_datatroves_local_executor_gives_the_same_bytes(
    blend: Path, expected: dict[str, str], home: Path, tmp_path: Path
) -> None:
    pytest.importorskip("datatrove")
    from datatrove.executor import LocalPipelineExecutor

    from nemotron_kit.data_prep import DataPrepConfig, freeze_plan, run_data_prep
    from nemotron_kit.data_prep.datatrove_step import MegatronShards

    config = DataPrepConfig(
        blend_path=blend, output_dir=tmp_path / "out", num_shards=5, num_workers=1, tokenizer_model=str(TOKENIZER)
    )
    freeze_plan(config)
    steps = [MegatronShards(config.output_dir)]
    LocalPipelineExecutor(pipeline=steps, tasks=3, workers=2, logging_dir=str(tmp_path / "logs")).run()
    assert hashes(config.output_dir) == expected
    times = {path: path.stat().st_mtime_ns for path in config.output_dir.glob("*/shard_*")}
    artifact = run_data_prep(config)
    assert {path: path.stat().st_mtime_ns for path in config.output_dir.glob("*/shard_*")} == times
    assert artifact.total_sequences == 4_001


def test_torchruns_ranks_share_the_shards_and_give_the_same_bytes(
    blend: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "prep.py"
    script.write_text(PREP)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", str(script)]
    done = subprocess.run(
        [*words, *command(blend, tmp_path / "out", 1)[3:]], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "out") == expected
    assert "4 shards of 11 by rank 0 of 3" in done.stderr
    assert done.stderr.count("data prep: read") == 1
    assert not list((tmp_path / "out").glob(".ranks-*"))
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["total_sequences"] == 4_001


def test_a_rank_that_is_killed_ends_the_others_and_the_next_launch_goes_on(
    blend: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def start(rank: int) -> subprocess.Popen[str]:
        env = environment(tmp_path) | {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
        env["SLURM_PROCID"] = str(rank)
        words = command(blend, output, 1)
        if rank == 1:  # it stops for good before its first shard
            words[2] = (
                "import nemotron_kit.data_prep.pool as p, time\np.make_one = lambda *a: time.sleep(99)\n" + words[2]
            )
        return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)

    first, second = start(0), start(1)
    until(lambda: first.poll() is not None or list(output.glob("train/*.json")), every=0.02)
    second.kill()
    second.communicate()
    errors = first.communicate(timeout=60)[1]
    assert first.returncode != 0
    assert f"Rank 1 (process {second.pid} on" in errors
    assert not (output / "blend.json").exists()
    subprocess.run(command(blend, output, 2), check=True, env=environment(tmp_path))
    assert hashes(output) == expected
