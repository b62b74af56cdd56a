"""Whole fine-tuning runs in this process: a few steps of a very small model."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nemotron_kit.errors import UserError
from nemotron_kit.training import CheckpointConfig, LoggerConfig, Preempted, TrainingOutcome, checkpoint
from nemotron_kit.training.checkpoint import NO_TIME_STEP_LIMIT
from nemotron_kit.training.config_blocks import SchedulerConfig
from nemotron_kit.training.reporter import Reporter
from nemotron_kit.training.sft import sft
from nemotron_kit.training.sft_config import PeftConfig, SFTConfig, SFTOptimizerConfig, SFTTrainConfig

from ..packed import write_rows
from ..project import environment, run
from ..warm import programs


@pytest.fixture
def config(tmp_path: Path, packed_data: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch) -> SFTConfig:
    monkeypatch.delenv("NEMO_RUN_DIR", raising=False)
    return SFTConfig(
        dataset={"nano3_packed_sft_dir": str(packed_data), "seq_length": 80},
        train=SFTTrainConfig(train_iters=4, global_batch_size=4, micro_batch_size=2),
        optimizer=SFTOptimizerConfig(lr=0.01),
        scheduler=SchedulerConfig(lr_warmup_iters=1),
        checkpoint=CheckpointConfig(save=str(tmp_path / "save"), pretrained_checkpoint=str(base_model), finetune=True),
        logger=LoggerConfig(log_interval=2),
    )


def into(config: SFTConfig, folder: str, **blocks: Any) -> SFTConfig:
    """The same run in a folder of its own, with other blocks."""
    save = str(Path(str(config.checkpoint.save)).parent / folder)
    return replace(config, checkpoint=replace(config.checkpoint, save=save), **blocks)


def weights(outcome: TrainingOutcome) -> dict[str, torch.Tensor]:
    return load_file(outcome.path / "model.safetensors")


def rows(config: SFTConfig) -> list[dict[str, Any]]:
    timed = ("elapsed", "tokens_per_second", "_timestamp")
    lines = (Path(str(config.checkpoint.save)) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, done = Reporter.advance, []

    def advanced(self: Reporter) -> None:
        advance(self)
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Reporter, "advance", advanced)


LORA = PeftConfig(scheme="lora", dim=2)


@pytest.mark.parametrize("peft", [PeftConfig(), LORA], ids=["whole", "adapters"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    config: SFTConfig, peft: PeftConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = into(config, "straight", peft=peft)
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_GPUS_ON_NODE", "8")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        outcome = sft(straight)
    assert "Slurm gave 8 GPUs on this node" in capsys.readouterr().err
    stopped = into(config, "stopped", peft=peft)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Preempted, match="Stopped by SIGTERM after step 3 of 4; saved in"):
            sft(stopped)
    resumed = sft(stopped)
    assert (resumed.path / "model.safetensors").read_bytes() == (outcome.path / "model.safetensors").read_bytes()
    assert rows(stopped) == rows(straight) and resumed.valid_loss == outcome.valid_loss
    assert [sorted(row) for row in rows(straight)][-1] == ["step", "valid_loss"]
    assert {"loss", "lr", "grad_norm", "loss_tokens", "tokens"} <= set(rows(straight)[0])
    again = sft(stopped)  # nothing is left to do
    assert (again.step, again.valid_loss, again.tokens) == (4, outcome.valid_loss, outcome.tokens)


def test_it_learns_to_answer_and_to_end_its_turn(config: SFTConfig, base_model: Path) -> None:
    config = replace(config, train=replace(config.train, train_iters=40, eval_interval=1))
    outcome = sft(config)
    losses = [row["valid_loss"] for row in rows(config) if "valid_loss" in row]
    assert outcome.valid_loss == losses[-1] < 0.6 * losses[0]

    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model, tokenizer = (kind.from_pretrained(outcome.path) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.eos_token_id == model.generation_config.eos_token_id == [2, 5]
    assert GenerationConfig.from_pretrained(outcome.path).pad_token_id == model.config.pad_token_id == 0
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<pad>")
    assert tokenizer.apply_chat_template([{"content": "w1 w2"}], tokenize=False) == "<|im_start|>w1 w2<|im_end|>"
    assert model.config.time_step_min == NO_TIME_STEP_LIMIT  # so that it decodes as it forwards
    with torch.no_grad():
        model.lm_head.weight[5] = 10 * model.lm_head.weight[5].sign()
    prompt = tokenizer("w1 w2 w3 w4 w5", return_tensors="pt").input_ids
    said = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=True)
    assert said.shape[1] < 35 and said[0, -1] in (2, 5)
    card = (outcome.path / "README.md").read_text()
    assert (
        f"| base model | {base_model.name} |" in card and f"{outcome.valid_loss:.4f}" in card and '"lr": 0.01' in card
    )
    home = str(base_model.parent).encode()
    assert [file.name for file in outcome.path.iterdir() if home in file.read_bytes()] == []


def test_adapters_leave_the_rest_alone(config: SFTConfig, base_model: Path) -> None:
    outcome = sft(replace(config, peft=LORA))
    before, after = load_file(base_model / "model.safetensors"), weights(outcome)
    changed = {name.rpartition(".")[0].rpartition(".")[2] for name in after if not after[name].equal(before[name])}
    assert set(before) == set(after)
    assert changed == {"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    saved = checkpoint.latest(Path(str(config.checkpoint.save)))
    assert saved is not None
    assert sorted(path.name for path in saved.iterdir()) == [
        "adapters.safetensors",
        "checkpoint.json",
        "optimizer.safetensors",
    ]
    assert {name.rpartition(".")[2] for name in load_file(saved / "adapters.safetensors")} == {"a", "b"}
    with pytest.raises(UserError, match=r"another configuration: peft\.dim is 2 there and 4 here"):
        sft(replace(config, peft=replace(LORA, dim=4)))


def test_only_its_answers_are_learned(config: SFTConfig, packed_data: Path) -> None:
    config = replace(config, train=replace(config.train, train_iters=1))
    sft(config)
    counted = sum(row for row in (row["loss_tokens"] for row in rows(config) if "loss" in row))
    tokens = next(row["tokens"] for row in rows(config) if "loss" in row)
    assert 0.4 * tokens < counted < 0.6 * tokens
    for path in (packed_data / "valid").iterdir():
        write_rows(path, [[([7, 99], [1, 0])]])
    with pytest.raises(UserError, match="the data holds token 99, but the model's vocabulary has 64"):
        sft(into(config, "wrong"))
    assert not list((Path(str(config.checkpoint.save)).parent / "wrong").rglob("step-*"))  # found before the first step
    for path in (packed_data / "valid").iterdir():
        path.unlink()
    assert sft(into(config, "no-valid")).valid_loss is None
    assert sft(config).valid_loss is None  # its checkpoint has that of the rows that are gone


def test_what_can_not_be_is_refused_before_anything_is_written(config: SFTConfig, packed_data: Path) -> None:
    save = Path(str(config.checkpoint.save))
    (packed_data / "train").rename(packed_data / "gone")
    with pytest.raises(UserError, match=r"splits/train: there is no train split[\s\S]*data prep sft"):
        sft(config)
    (packed_data / "gone").rename(packed_data / "train")
    tokenizer = packed_data / "tokenizer/tokenizer.json"
    whole = tokenizer.read_text()
    tokenizer.write_text(whole.replace('"w1": 7', '"w1": 8').replace('"w2": 8', '"w2": 7'))
    with pytest.raises(UserError, match=r"is not that of .*: 'w1' is 8 in the data and 7 in the model"):
        sft(config)
    tokenizer.write_text(whole)
    with pytest.raises(UserError, match=r"model\.hidden_size is 32 there and 64 here"):
        sft(replace(config, model={"hidden_size": 64}))
    assert not [path for path in save.rglob("*") if path.is_file()]


def test_two_processes_train_what_one_trains(config: SFTConfig) -> None:
    one, pair = sft(config), into(config, "pair")
    file = Path(str(pair.checkpoint.save)).with_name("pair.yaml")
    file.write_text(yaml.safe_dump(asdict(pair)))
    module = "nemotron.recipes.nano3.stage1_sft.train"
    ranks = ["--no-python", str(programs() / "python"), "-m", module]
    launcher = ["python", "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *ranks]
    env = environment(file.with_name("home"), OMP_NUM_THREADS=str(torch.get_num_threads()))
    done = run(*launcher, "--config", str(file), env=env, timeout=250)
    model = json.loads(done.stdout)["model"]
    assert model["name"] == "ModelArtifact-sft"
    assert (Path(model["path"]) / "model.safetensors").read_bytes() == (one.path / "model.safetensors").read_bytes()
    timed = {"loss": pytest.approx(one.loss), "valid_loss": pytest.approx(one.valid_loss)}
    told = {name: value for row in rows(pair) for name, value in row.items() if name in timed}
    assert told == timed
