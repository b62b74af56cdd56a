"""train.py as a user starts it: real processes, real data, the artifact in a real registry."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from nemotron_kit.polling import until

from ..project import environment, run, start
from ..shards import MODEL, write_tiny_data
from ..warm import programs, run_warm

SCRIPT = Path(__file__).parents[2] / "recipes/nano3/stage0_pretrain/train.py"
MODULE = "nemotron.recipes.nano3.stage0_pretrain.train"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with prepared data and a config.yaml."""
    config = {
        "recipe": {"per_split_data_args_path": str(write_tiny_data(tmp_path))},
        "model": MODEL,
        "dataset": {"seq_length": 32},
        "train": {"train_iters": 6, "global_batch_size": 4, "micro_batch_size": 2, "lr": 0.01},
        "scheduler": {"lr_warmup_iters": 2},
        "logger": {"log_interval": 1},
        "checkpoint": {"save": str(tmp_path / "save"), "save_interval": 3},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def train(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    env, words = environment(folder / "home"), ("--config", "config.yaml", *words)
    if not launcher:
        return run_warm(SCRIPT, *words, cwd=folder, env=env)
    return run(*launcher, *words, cwd=folder, env=env, timeout=240, code=None)


def begin(folder: Path, launcher: Sequence[str], words: list[str]) -> subprocess.Popen[str]:
    line = [*launcher, "--config", "config.yaml", *words]
    env = environment(folder / "home", NEMOTRON_NODES_FOLDER=str(folder / "nodes"))
    return start(*line, cwd=folder, env=env, stdout=subprocess.DEVNULL)


def forked() -> tuple[str, ...]:
    """What a launcher starts as a rank."""
    return ("--no-python", str(programs() / "python"), "-m", MODULE)


def torchrun() -> tuple[str, ...]:
    return (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *forked())


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path, step: int = 6) -> bytes:
    return (folder / f"save/model-{step:08d}/model.safetensors").read_bytes()


def test_a_run_leaves_a_model_that_plain_transformers_loads(folder: Path) -> None:
    run = train(folder, launcher=("python", str(SCRIPT)))
    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)  # standard output is not a terminal: it is for the next step
    assert printed["model"]["type"] == "ModelArtifact"
    path = Path(printed["model"]["path"])
    metrics = rows(folder / "save/metrics.jsonl")
    assert [row["step"] for row in metrics if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "tokens_per_second", "elapsed", "grad_norm"} <= set(metrics[0])
    assert metrics[5]["loss"] < metrics[0]["loss"]

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path).eval()
    stream = np.fromfile(folder / "data/valid/a.bin", np.uint16).astype(np.int64)
    windows = torch.from_numpy(np.stack([stream[n : n + 33] for n in range(0, len(stream) - 32, 32)]))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            model(input_ids=windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten()
        )
    assert metrics[-1]["valid_loss"] == pytest.approx(float(loss), abs=1e-5)
    registered = json.loads((path / "metadata.json").read_text())
    assert registered["loss"] == metrics[-1]["valid_loss"] and registered["step"] == 6
    assert list((folder / "home/artifacts").rglob("v0"))

    again = train(folder)  # nothing is left to do: the same model, the same version
    assert again.returncode == 0, again.stderr
    assert "Resuming" in again.stderr and "step 6/6" not in again.stderr
    assert json.loads(again.stdout)["model"]["path"] == str(path)
    assert not list((folder / "home/artifacts").rglob("v1"))


def test_two_processes_train_what_one_trains(folder: Path) -> None:
    alone = train(folder)
    assert alone.returncode == 0, alone.stderr
    pair = train(folder, f"checkpoint.save={folder}/pair", launcher=torchrun())
    assert pair.returncode == 0, pair.stderr
    assert pair.stderr.count("step 3/6: loss") == 1
    assert list(json.loads(pair.stdout)) == ["model"]
    ours, theirs = rows(folder / "save/metrics.jsonl"), rows(folder / "pair/metrics.jsonl")
    assert [row["loss"] for row in theirs[:-1]] == pytest.approx([row["loss"] for row in ours[:-1]], rel=1e-4)
    assert theirs[-1]["valid_loss"] == pytest.approx(ours[-1]["valid_loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_told_to_stop_it_saves_and_goes_on_later(folder: Path, name: str) -> None:
    whole = train(folder)
    assert whole.returncode == 0, whole.stderr
    words = ["train.train_iters=6", f"checkpoint.save={folder}/stopped", "checkpoint.save_interval=100"]
    process = begin(folder, ["python", str(SCRIPT)], words)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 2/6"):
            process.send_signal(signal.Signals[name])
            break
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 75
    assert re.search(rf"Stopped by {name} after step \d of 6; saved in .*/stopped", rest)
    saved = sorted(path.name for path in (folder / "stopped").glob("step-*"))
    assert len(saved) == 1 and saved[0] < "step-00000006"
    assert not list((folder / "stopped").glob("model-*"))

    resumed = train(folder, *words)
    assert resumed.returncode == 0, resumed.stderr
    assert (folder / "stopped/model-00000006/model.safetensors").read_bytes() == weights(folder)
    assert [row["step"] for row in rows(folder / "stopped/metrics.jsonl") if "loss" in row] == [1, 2, 3, 4, 5, 6]


def test_every_process_stops_when_one_is_told_to(folder: Path) -> None:
    words = ["train.train_iters=400", "checkpoint.save_interval=1000", "logger.log_interval=5"]
    process = begin(folder, torchrun(), words)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 10/400"):
            _signal_one_worker(process.pid)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=60) != 0
    assert "Stopped by" in rest and re.search(r"exitcode ?: 75", rest)
    assert len(list((folder / "save").glob("step-*"))) == 1


def _signal_one_worker(parent: int, number: signal.Signals = signal.SIGUSR1) -> None:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    workers = [int(pid) for pid in children if MODULE in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(workers[-1], number)


def test_a_killed_process_is_replaced_and_nothing_changes(folder: Path) -> None:
    words = ["train.train_iters=40", "checkpoint.save_interval=5"]
    whole = train(folder, *words, f"checkpoint.save={folder}/whole", launcher=torchrun())
    assert whole.returncode == 0, whole.stderr
    launcher = list(torchrun())
    launcher.insert(3, "--max-restarts=2")
    process = begin(folder, launcher, words)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 8/40"):
            _signal_one_worker(process.pid, signal.SIGKILL)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 0, rest
    assert re.search(r"Resuming from .*/step-\d+ \(step (5|10|15)\)", rest)
    end = "model-00000040/model.safetensors"
    assert (folder / "whole" / end).read_bytes() == (folder / "save" / end).read_bytes()
    # The worker's torchrun starts again across nodes, too.
    port, again = free_port(), [*words, f"checkpoint.save={folder}/nodes2", "train.hang_minutes=5"]
    agents = [begin(folder, node_of_two(node, port), again) for node in (0, 1)]
    until((folder / "nodes2/step-00000005/checkpoint.json").exists, 0.05, within=60)
    _signal_one_worker(agents[1].pid, signal.SIGKILL)
    for agent in agents:
        said = agent.communicate(timeout=90)[1]
        assert agent.returncode == 0, said
        assert said.count("torchrun: all ranks start again from their last checkpoint (restart 1 of 1)") == 1
    assert (folder / "nodes2" / end).read_bytes() == (folder / "whole" / end).read_bytes()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def node_of_two(node: int, port: int) -> tuple[str, ...]:
    """The worker's torchrun for one rank on each of two nodes."""
    start = (sys.executable, "-m", "nemotron_kit.worker.elastic", "--max-restarts=1", "--nproc-per-node=1")
    rendezvous = ("--nnodes=2", f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}")
    return (*start, *rendezvous, "--rdzv-id=1", *forked())


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["train.lrr=1"], r"train\.lrr"),
        (["train.train_iters=many"], r"train\.train_iters"),
        (["model.hiden_size=8"], r"did you mean hidden_size"),
        (["train.fsdp=true"], r"train\.fsdp does not say over how many processes"),
        (["recipe._target_=os.system"], r"recipe\._target_ is 'os\.system'"),
        (["train.global_batch_size=5"], r"train\.global_batch_size 5 is no multiple"),
        (["recipe.per_split_data_args_path=/none/blend.json"], r"/none/blend\.json: No such file"),
        (["checkpoint.pretrained_checkpoint=/none"], r"/none: no model here"),
        (["model.hidden_size=99999999"], r"parameters needs .* GiB in one process .* try -c tiny"),
        (["model.vocab_size=8"], r"the model's vocabulary has 8"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, words: list[str], error: str) -> None:
    run = train(folder, *words)
    assert run.returncode == 2, run.stderr
    assert re.search(error, run.stderr) and "Traceback" not in run.stderr
    assert not list((folder / "save").glob("*-0*"))


def test_a_damaged_shard_is_never_read(folder: Path) -> None:
    path = folder / "data/train/b.bin"
    path.write_bytes(path.read_bytes()[:-2])
    run = train(folder)
    assert run.returncode == 2 and re.search(r"b\.bin: 3,198 bytes, but its index says 3,200", run.stderr)


def test_another_model_in_the_folder_is_refused(folder: Path) -> None:
    assert train(folder).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "save").rglob("*")}
    run = train(folder, "model.hidden_size=48")
    assert run.returncode == 2
    assert re.search(r"a different model: model\.hidden_size is 32 there and 48 here", run.stderr)
    assert {path: path.stat().st_mtime_ns for path in (folder / "save").rglob("*")} == before
    longer = train(folder, "train.train_iters=8")  # longer is the same run, further on
    assert longer.returncode == 0 and "(step 6)" in longer.stderr
    assert (folder / "save/model-00000006").is_dir() and (folder / "save/model-00000008").is_dir()


def test_a_full_disk_keeps_the_checkpoint_before(folder: Path) -> None:
    assert train(folder, "train.train_iters=3", "scheduler.lr_decay_style=constant").returncode == 0
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (90_000,) * 2);"
    limited += f"sys.argv = sys.argv[1:]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    launcher = (sys.executable, "-c", limited, str(SCRIPT))
    run = train(folder, "scheduler.lr_decay_style=constant", launcher=launcher)
    assert run.returncode == 1, run.stderr
    assert re.search(r"step-00000006: the checkpoint can't be written", run.stderr) and "Traceback" not in run.stderr
    assert [path.name for path in (folder / "save").glob("*step-*")] == ["step-00000003"]
    rerun = train(folder, "scheduler.lr_decay_style=constant")
    assert rerun.returncode == 0, rerun.stderr


def test_started_in_its_own_folder_it_finds_its_config(folder: Path) -> None:
    began = time.monotonic()
    words = ["--config", "config/tiny.yaml", "train.train_iters=2", "run.data=Nothing:v7"]
    refused = run("python", "train.py", *words, cwd=SCRIPT.parent, env=environment(folder / "home"), code=2)
    assert "Nothing" in refused.stderr and "Traceback" not in refused.stderr
    assert time.monotonic() - began < 20
