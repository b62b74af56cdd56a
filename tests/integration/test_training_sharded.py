"""Runs over two and four processes (gloo): every layout has the same curve, and goes on from any other.

This file is also the program that torchrun starts, once for many runs: a process takes seconds to load torch.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nemotron_kit.training import checkpoint

MODEL: dict[str, Any] = {
    "hybrid_override_pattern": "ME*",
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "mamba_num_heads": 2,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
}
DDP: dict[str, Any] = {"parallelism": "ddp"}


def sharded(**sizes: int) -> dict[str, Any]:
    return {"parallelism": sizes}


def start(processes: int, runs: dict[str, dict[str, Any]], folder: Path, data: Path) -> dict[str, Any]:
    """Do the runs, one after the other, with so many processes: name → what they came to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = folder / f"runs-{processes}.json"
    told.write_text(json.dumps({"runs": runs, "folder": str(folder), "data": str(data)}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command = [*torchrun, "--master-port", str(port), __file__, str(told)]
    if processes == 1:
        command = [sys.executable, __file__, str(told)]
    env = {**os.environ, "NEMOTRON_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    found: dict[str, Any] = json.loads(told.with_suffix(".out").read_text())
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def data(place: Path) -> Path:
    from ..shards import write_tiny_data

    return write_tiny_data(place)


@pytest.fixture(scope="module")
def on_two(place: Path, data: Path) -> dict[str, Any]:
    runs = {
        "ddp": {"train": DDP},
        "fsdp": {"train": sharded(fsdp_size=2)},
        "ep": {"train": sharded(fsdp_size=2, ep_size=2) | {"activation_checkpointing": True, "loss_chunk": 24}},
        "wrong": {"train": sharded(fsdp_size=4)},
    }
    return start(2, runs, place, data)


@pytest.fixture(scope="module")
def on_four(place: Path, data: Path, on_two: dict[str, Any]) -> dict[str, Any]:
    again = {"train_iters": 6}
    runs = {
        "hsdp": {
            "train": sharded(fsdp_size=2, ep_size=2, dp_replicate_size=2),
            "checkpoint": {"asynchronous": True, "save_interval": 1, "keep": 3},
        },
        "ep→4": {"train": sharded(fsdp_size=4, ep_size=2) | again, "checkpoint": {"load": on_two["ep"]["save"]}},
        "ddp→4": {"train": sharded(fsdp_size=4), "checkpoint": {"load": on_two["ddp"]["save"]}},
    }
    return start(4, runs, place, data)


@pytest.fixture(scope="module")
def on_one(place: Path, data: Path, on_four: dict[str, Any], on_two: dict[str, Any]) -> dict[str, Any]:
    runs: dict[str, Any] = {
        f"{name}→1": {"train": DDP, "checkpoint": {"load": found["save"]}}
        for name, found in {**on_two, **on_four}.items()
        if "save" in found and "→" not in name
    }
    runs["ep→1, on"] = {"train": {**DDP, "train_iters": 6}, "checkpoint": {"load": on_two["ep"]["save"]}}
    return start(1, runs, place, data)


def test_every_layout_has_the_same_curve(on_two: dict[str, Any], on_four: dict[str, Any]) -> None:
    expected = on_two["ddp"]
    assert len(expected["loss"]) == 4 and expected["loss"][0] > expected["loss"][-1] + 0.2
    for name in ("fsdp", "ep"):
        assert on_two[name]["loss"] == pytest.approx(expected["loss"], rel=1e-6), name
        assert on_two[name]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6), name
        assert on_two[name]["valid"] == pytest.approx(expected["valid"], rel=1e-6), name
    assert on_four["hsdp"]["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert on_four["hsdp"]["valid"] == pytest.approx(expected["valid"], rel=1e-6)


def test_what_is_asked_for_is_what_runs(on_two: dict[str, Any], on_four: dict[str, Any]) -> None:
    block, expert = "FSDPNemotronHBlock", "FSDPNemotronHExperts"
    assert "NemotronHBlock" in on_two["ddp"]["types"] and block not in on_two["ddp"]["types"]
    assert block in on_two["fsdp"]["types"] and expert not in on_two["fsdp"]["types"]
    assert {block, expert} <= set(on_two["ep"]["types"]) and {block, expert} <= set(on_four["hsdp"]["types"])
    whole = on_two["ddp"]["bytes"][0]
    assert on_two["ddp"]["bytes"] == [whole, whole]
    for name, shares, found in (("fsdp", 2, on_two), ("ep", 2, on_two), ("hsdp", 2, on_four), ("ddp→4", 4, on_four)):
        # Some tensors have no even number of rows, and what is learned beside the parameters is everywhere.
        assert all(held == pytest.approx(whole / shares, rel=0.05) for held in found[name]["bytes"]), name
    assert "error" in on_two["wrong"] and "is for 4 processes, and the job has 2" in on_two["wrong"]["error"]


def test_another_layout_goes_on_with_the_same_bits(
    on_two: dict[str, Any], on_four: dict[str, Any], on_one: dict[str, Any]
) -> None:
    """Resumed after the last step, a run exports what it has read."""
    pairs = [(on_two[name], on_one[f"{name}→1"]) for name in ("ddp", "fsdp", "ep")]
    pairs += [(on_four["hsdp"], on_one["hsdp→1"]), (on_two["ddp"], on_four["ddp→4"])]
    for there, here in pairs:
        mine, theirs = (
            {path.name: load_file(path) for path in Path(run["model"]).glob("*.safetensors")} for run in (there, here)
        )
        assert mine.keys() == theirs.keys() == {"model.safetensors"}
        before, after = mine["model.safetensors"], theirs["model.safetensors"]
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert on_four["ep→4"]["loss"] == pytest.approx(on_one["ep→1, on"]["loss"], rel=1e-6)
    assert len(on_one["ep→1, on"]["loss"]) == 2


def test_checkpoints_are_each_ranks_own_files_without_a_pickle(on_two: dict[str, Any], on_four: dict[str, Any]) -> None:
    saved = Path(on_two["ep"]["save"])
    assert sorted(path.name for path in checkpoint.all_in(saved)) == ["step-00000002", "step-00000004"]
    newest = checkpoint.latest(saved)
    assert newest is not None
    names = sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())
    ranks = [f"shards/rank-{rank:05d}.safetensors" for rank in range(2)]
    config = ["model/config.json", "model/generation_config.json"]
    assert names == ["checkpoint.json", *config, "shards/index.json", *ranks]
    assert checkpoint.read(newest, verify=True)["parallelism"] == "fsdp_size 2, ep_size 2"
    # Written while training went on, and only the newest are kept.
    kept = checkpoint.all_in(Path(on_four["hsdp"]["save"]))
    assert sorted(path.name for path in kept) == [f"step-{step:08d}" for step in (2, 3, 4)]
    assert all(checkpoint.read(path, verify=True) for path in kept)
    held = [sum(file.stat().st_size for file in path.glob("shards/*.safetensors")) for path in kept]
    assert len(set(held)) == 1 and held[0] < 1.2 * sum(
        file.stat().st_size for file in Path(on_two["ddp"]["save"]).glob("step-00000004/**/*.safetensors")
    )


def main(told: Path) -> None:
    """One process of `start`: all runs, and on the first what they came to."""
    from nemotron_kit.errors import UserError
    from nemotron_kit.training import (
        CheckpointConfig,
        LoggerConfig,
        PretrainConfig,
        SchedulerConfig,
        TrainConfig,
        engine,
        parallel,
        pretrain,
        processes,
    )

    settings = json.loads(told.read_text())
    results: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    build = engine._build

    def watched(*given: Any) -> Any:
        model, optimizer = build(*given)
        seen["bytes"] = processes.together(lambda: parallel.held_bytes(model))
        seen["types"] = sorted({type(module).__name__ for module in model.modules()})
        return model, optimizer

    engine._build = watched
    for number, (name, run) in enumerate(settings["runs"].items()):
        # Each run opens a process group of its own, by names that the last one has not used.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        save = Path(settings["folder"], f"{name} on {processes.world_size()}")
        train = {"train_iters": 4, "global_batch_size": 8, "micro_batch_size": 1, "lr": 0.01, **run["train"]}
        config = PretrainConfig(
            recipe={"per_split_data_args_path": settings["data"]},
            model=dict(MODEL),
            dataset={"seq_length": 32},
            train=TrainConfig(**train),
            scheduler=SchedulerConfig(lr_warmup_iters=1),
            checkpoint=CheckpointConfig(**{"save": str(save), "save_interval": 2, **run.get("checkpoint", {})}),
            logger=LoggerConfig(log_interval=1),
        )
        try:
            outcome = pretrain(config)
        except UserError as error:
            results[name] = {"error": str(error)}
            continue
        file = save / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        columns = {key: [row[key] for row in rows if key in row] for key in ("loss", "grad_norm")}
        results[name] = {**columns, **seen, "valid": outcome.valid_loss, "model": str(outcome.path), "save": str(save)}
    if processes.rank() == 0:
        told.with_suffix(".out").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
