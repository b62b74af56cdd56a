"""Runs over two and four processes (gloo): every layout has the same curve, and goes on from any other.

This file is also the program that makes the runs: it loads torch once, and forks the processes of each.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nemotron_kit.errors import UserError
from nemotron_kit.training import (
    CheckpointConfig,
    LoggerConfig,
    PretrainConfig,
    SchedulerConfig,
    TrainConfig,
    checkpoint,
    engine,
    parallel,
    pretrain,
    processes,
    step_loop,
)
from nemotron_kit.training import grpo as grpo_module
from nemotron_kit.training import sft as sft_module
from nemotron_kit.training.config_blocks import ParallelBlock
from nemotron_kit.training.grpo import grpo
from nemotron_kit.training.grpo_config import GRPOConfig
from nemotron_kit.training.sft import sft
from nemotron_kit.training.sft_config import SFTConfig, SFTOptimizerConfig, SFTTrainConfig

from ..packed import write_packed_data, write_questions
from ..shards import MODEL, write_chat_model, write_tiny_data

REPOSITORY = Path(__file__).resolve().parents[2]
DDP: dict[str, Any] = {"parallelism": "ddp"}


def sharded(**sizes: int) -> dict[str, Any]:
    return {"parallelism": sizes}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> dict[str, Any]:
    """All runs: "name on processes" → what it came to."""
    place = tmp_path_factory.mktemp("sharded")
    chat = {"stage": "sft", "data": str(write_packed_data(place)), "base": str(base_model)}
    rows = write_questions(place, train=12, val=5)
    asked = {"stage": "rl", "base": str(write_chat_model(place / "chat")), "rows": rows}
    # What judges an answer: how many letters it has.
    (place / "odd_words.py").write_text("def likes_odd(answer, row):\n    return float(len(answer) % 2)\n")

    def load(name: str, **more: Any) -> dict[str, Any]:
        return {"load": str(place / name), **more}

    longer = {"train_iters": 6}
    fewer = {"checkpoint": load("hsdp on 4"), "train": sharded(fsdp_size=2)}
    sft_on, rl_on = {**chat, "checkpoint": load("sft ep on 2")}, {**asked, "copy": str(place / "rl ep on 2")}
    layouts = [
        (2, {
            "ddp": {"train": DDP},
            "fsdp": {"train": sharded(fsdp_size=2)},
            "ep": {"train": sharded(fsdp_size=2, ep_size=2) | {"activation_checkpointing": True, "loss_chunk": 24}},
            "wrong": {"train": sharded(fsdp_size=4)},
            "sft ddp": {**chat, "train": DDP},
            "sft ep": {**chat, "train": sharded(fsdp_size=2, ep_size=2)},
            "rl ddp": {**asked, "train": DDP},
            "rl ep": {**asked, "train": sharded(fsdp_size=2, ep_size=2)},
        }),
        (4, {
            "hsdp": {
                "train": sharded(fsdp_size=2, ep_size=2, dp_replicate_size=2),
                "checkpoint": {"asynchronous": True, "save_interval": 1, "keep": 3},
            },
            "longer": {"train": sharded(fsdp_size=4, ep_size=2) | longer, "checkpoint": load("ep on 2")},
            "of ddp": {"train": sharded(fsdp_size=4), "checkpoint": load("ddp on 2")},
        }),
        (2, {
            "of hsdp": fewer,
            "longer of hsdp": {**fewer, "train": sharded(fsdp_size=2) | longer},
            "sft longer": {**sft_on, "train": sharded(fsdp_size=2) | longer},
        }),
        (1, {
            **{f"of {name}": {"train": DDP, "checkpoint": load(f"{name} on 2")} for name in ("ddp", "fsdp", "ep")},
            "of hsdp": {"train": DDP, "checkpoint": load("hsdp on 4")},
            "longer": {"train": DDP | longer, "checkpoint": load("ep on 2")},
            "longer of hsdp": {"train": DDP | longer, "checkpoint": load("hsdp on 4")},
            "sft of ep": {**sft_on, "train": DDP},
            "sft longer": {**sft_on, "train": DDP | longer},
            "rl of ep": {**rl_on, "train": DDP},
        }),
    ]  # fmt: skip
    told = place / "runs.json"
    told.write_text(json.dumps({"layouts": layouts, "folder": str(place), "data": str(write_tiny_data(place))}))
    env = {**os.environ, "PYTHONPATH": str(place), "NEMOTRON_HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __name__, str(told)]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = {}
    for number in range(len(layouts)):
        found |= json.loads((place / f"{number}.out").read_text())
    return found


def test_every_layout_has_the_same_curve(runs: dict[str, Any]) -> None:
    expected = runs["ddp on 2"]
    assert len(expected["loss"]) == 4 and expected["loss"][0] > expected["loss"][-1] + 0.2
    for name in ("fsdp on 2", "ep on 2", "hsdp on 4"):
        assert runs[name]["loss"] == pytest.approx(expected["loss"], rel=1e-6), name
        assert runs[name]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6), name
        assert runs[name]["valid"] == pytest.approx(expected["valid"], rel=1e-6), name


def test_fine_tuning_has_the_same_curve_where_ranks_have_unequal_work(runs: dict[str, Any]) -> None:
    """Rows are batched by length: the ranks have different numbers of passes, and in the evaluation one has none."""
    expected, found = runs["sft ddp on 2"], runs["sft ep on 2"]
    assert len(expected["loss"]) == 4 and found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    assert found["valid"] == pytest.approx(expected["valid"], rel=1e-6)
    assert "FSDPNemotronHExperts" in found["types"] and checkpoint.latest(Path(found["save"])) is not None
    here, there = (load_file(Path(run["model"]) / "model.safetensors") for run in (expected, found))
    assert here.keys() == there.keys()
    assert all(torch.allclose(value, there[key], atol=1e-4) for key, value in here.items())


def test_reinforcement_learning_samples_the_same_answers(runs: dict[str, Any]) -> None:
    """Answers end at different tokens on the ranks, and no two of these learn from the same number of them."""
    expected, found = runs["rl ddp on 2"], runs["rl ep on 2"]
    for column in ("reward", "length", "val_reward", "val_reward_greedy"):
        assert found[column] == pytest.approx(expected[column], abs=1e-9) and found[column], column
    for column in ("loss", "kl", "grad_norm"):
        assert found[column] == pytest.approx(expected[column], rel=1e-4, abs=1e-7), column
    assert min(expected["grad_norm"]) > 0 and "FSDPNemotronHExperts" in found["types"]


def test_what_is_asked_for_is_what_runs(runs: dict[str, Any]) -> None:
    block, expert = "FSDPNemotronHBlock", "FSDPNemotronHExperts"
    assert "NemotronHBlock" in runs["ddp on 2"]["types"] and block not in runs["ddp on 2"]["types"]
    assert block in runs["fsdp on 2"]["types"] and expert not in runs["fsdp on 2"]["types"]
    assert {block, expert} <= set(runs["ep on 2"]["types"]) and {block, expert} <= set(runs["hsdp on 4"]["types"])
    whole = runs["ddp on 2"]["bytes"][0]
    assert runs["ddp on 2"]["bytes"] == [whole, whole]
    for name, shares in (("fsdp on 2", 2), ("ep on 2", 2), ("hsdp on 4", 2), ("longer on 4", 4)):
        # Some tensors have no even number of rows, and what is learned beside the parameters is everywhere.
        assert all(held == pytest.approx(whole / shares, rel=0.05) for held in runs[name]["bytes"]), name
    assert "is for 4 processes, and the job has 2" in runs["wrong on 2"]["error"]


def test_another_layout_goes_on_with_the_same_bits(runs: dict[str, Any]) -> None:
    """Resumed after the last step, a run exports what it has read."""
    pairs = [(f"{name} on 2", f"of {name} on 1") for name in ("ddp", "fsdp", "ep")]
    pairs += [("hsdp on 4", "of hsdp on 1"), ("hsdp on 4", "of hsdp on 2"), ("ddp on 2", "of ddp on 4")]
    pairs += [("sft ep on 2", "sft of ep on 1"), ("rl ep on 2", "rl of ep on 1")]
    for there, here in pairs:
        before, after = (load_file(Path(runs[name]["model"]) / "model.safetensors") for name in (there, here))
        assert before.keys() == after.keys(), here
        assert all(torch.equal(value, after[key]) for key, value in before.items()), here
    for here, there in (
        ("longer on 1", "longer on 4"),
        ("longer of hsdp on 1", "longer of hsdp on 2"),
        ("sft longer on 1", "sft longer on 2"),
    ):
        assert len(runs[here]["loss"]) == 2 and runs[there]["loss"] == pytest.approx(runs[here]["loss"], rel=1e-6), here


def test_checkpoints_are_each_ranks_own_files_without_a_pickle(runs: dict[str, Any]) -> None:
    saved = Path(runs["ep on 2"]["save"])
    assert sorted(path.name for path in checkpoint.all_in(saved)) == ["step-00000002", "step-00000004"]
    newest = saved / "step-00000004"
    names = sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())
    ranks = [f"shards/rank-{rank:05d}.safetensors" for rank in range(2)]
    config = ["model/config.json", "model/generation_config.json"]
    assert names == ["checkpoint.json", *config, "shards/index.json", *ranks]
    assert checkpoint.read(newest, verify=True)["parallelism"] == "fsdp_size 2, ep_size 2"
    # Written while training went on, and only the newest are kept; of equal replicas one writes.
    kept = checkpoint.all_in(Path(runs["hsdp on 4"]["save"]))
    assert sorted(path.name for path in kept) == [f"step-{step:08d}" for step in (2, 3, 4)]
    for path in kept:
        checkpoint.read(path, verify=True)
        assert len(list(path.glob("shards/*.safetensors"))) == 2


def questions(run: dict[str, Any], save: Path) -> GRPOConfig:
    config = GRPOConfig(train=ParallelBlock(**run["train"]))
    config.grpo.num_prompts_per_step, config.grpo.num_generations_per_prompt = 4, 3
    config.grpo.max_num_steps, config.grpo.num_val_generations_per_prompt, config.grpo.val_batch_size = 2, 1, 4
    config.policy.model_name = run["base"]
    config.policy.tokenizer = {"chat_template_kwargs": {"enable_thinking": False}}
    config.policy.train_micro_batch_size, config.policy.generation_batch_size = 2, 5
    config.policy.generation.max_new_tokens = 6
    config.policy.optimizer.kwargs = {"lr": 1e-2}
    config.loss_fn.reference_policy_kl_penalty = 0.05
    config.data.train_jsonl_fpath, config.data.validation_jsonl_fpath = run["rows"]["train"], run["rows"]["val"]
    config.env.verifiers = {"odd": {"_target_": "odd_words.likes_odd"}}
    config.checkpointing.checkpoint_dir, config.checkpointing.save_period = str(save), 1
    return config


def do(name: str, run: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One run, in each of its processes."""
    save = Path(settings["folder"], f"{name} on {processes.world_size()}")
    train = {"train_iters": 4, "global_batch_size": 8, "micro_batch_size": 1, "lr": 0.01, **run["train"]}
    around: dict[str, Any] = {
        "scheduler": SchedulerConfig(lr_warmup_iters=1),
        "checkpoint": CheckpointConfig(**{"save": str(save), "save_interval": 2, **run.get("checkpoint", {})}),
        "logger": LoggerConfig(log_interval=1),
    }
    try:
        if run.get("stage") == "rl":
            if "copy" in run:  # RL goes on from its own folder alone
                shutil.copytree(run["copy"], save)
            outcome: Any = grpo(questions(run, save))
        elif "stage" in run:
            lr = SFTOptimizerConfig(lr=train.pop("lr"))
            around["checkpoint"].pretrained_checkpoint = run["base"]
            around["checkpoint"].finetune = "checkpoint" not in run
            chat = {"nano3_packed_sft_dir": run["data"], "seq_length": 80}
            outcome = sft(SFTConfig(dataset=chat, train=SFTTrainConfig(**train), optimizer=lr, **around))
        else:
            recipe, trained = {"per_split_data_args_path": settings["data"]}, TrainConfig(**train)
            text = {"seq_length": 32}
            outcome = pretrain(PretrainConfig(recipe=recipe, model=dict(MODEL), dataset=text, train=trained, **around))
    except UserError as error:
        return {"error": str(error)}
    file = save / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    names = ("loss", "grad_norm", "reward", "length", "kl", "val_reward", "val_reward_greedy")
    columns = {key: [row[key] for row in rows if key in row] for key in names}
    valid = getattr(outcome, "valid_loss", None)
    return {**columns, "valid": valid, "model": str(outcome.path), "save": str(save)}


def do_all(runs: dict[str, Any], settings: dict[str, Any]) -> None:
    """What one process does: its part of all runs; the first writes what they came to."""
    found: dict[str, Any] = {}
    seen: dict[str, Any] = {}

    def watch(model: Any) -> None:
        seen["bytes"] = processes.on_all_ranks(lambda: parallel.held_bytes(model))
        seen["types"] = sorted({type(module).__name__ for module in model.modules()})

    class WatchedRun(engine.TrainingRun):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            watch(self.model)

    class WatchedLoop(step_loop.StepLoop):
        def run(self, *given: Any) -> None:
            watch(self.model)
            super().run(*given)

    engine.TrainingRun, sft_module.StepLoop, grpo_module.StepLoop = WatchedRun, WatchedLoop, WatchedLoop
    for number, (name, run) in enumerate(runs.items()):
        # Each run opens a process group of its own, by names that the last one has not used.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        found[f"{name} on {processes.world_size()}"] = {**do(name, run, settings), **seen}
    if processes.rank() == 0:
        Path(settings["folder"], f"{settings['number']}.out").write_text(json.dumps(found))


def main(settings: dict[str, Any]) -> None:
    gc.freeze()
    for number, (count, runs) in enumerate(settings["layouts"]):
        text = str(count)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = {}
        for rank in range(int(text)):
            child = os.fork()
            if child == 0:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": text, "LOCAL_WORLD_SIZE": text}
                place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({key: str(value) for key, value in place.items()})
                try:
                    do_all(runs, {**settings, "number": number})
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children[child] = rank
        while children:
            child, status = os.wait()
            del children[child]
            if status:
                for other in children:
                    os.kill(other, signal.SIGKILL)
                sys.exit(1)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
