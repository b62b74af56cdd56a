"""Whole runs in this process: a few steps of a very small model."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.training import (
    CheckpointConfig,
    LoggerConfig,
    Preempted,
    PretrainConfig,
    SchedulerConfig,
    TrainConfig,
    TrainingOutcome,
    checkpoint,
    pretrain,
)
from nemotron_kit.training.reporter import Reporter

from ..old_home import unpack
from ..shards import MODEL


@pytest.fixture
def config(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    monkeypatch.delenv("NEMO_RUN_DIR", raising=False)
    return PretrainConfig(
        recipe={"per_split_data_args_path": str(tiny_data)},
        model=dict(MODEL),
        dataset={"seq_length": 32},
        train=TrainConfig(train_iters=4, global_batch_size=8, micro_batch_size=4, lr=0.01),
        scheduler=SchedulerConfig(lr_warmup_iters=1),
        checkpoint=CheckpointConfig(save=str(tmp_path / "save")),
        logger=LoggerConfig(log_interval=2),
    )


def into(config: PretrainConfig, folder: str, **train: Any) -> PretrainConfig:
    """The same run in a folder of its own, with other `train` values."""
    save = str(Path(str(config.checkpoint.save)).parent / folder)
    return replace(config, checkpoint=CheckpointConfig(save=save), train=replace(config.train, **train))


def weights(outcome: TrainingOutcome) -> dict[str, Any]:
    return load_file(outcome.path / "model.safetensors")


def rows(config: PretrainConfig) -> list[dict[str, Any]]:
    path = Path(str(config.checkpoint.save)) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_same_config_is_the_same_model_and_another_seed_is_not(config: PretrainConfig) -> None:
    runs = [pretrain(into(config, name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    files = [(run.path / "model.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1] != files[2]
    assert runs[0].valid_loss == runs[1].valid_loss
    assert (runs[0].step, runs[0].tokens) == (4, 4 * 8 * 32)


def test_micro_batches_add_up(config: PretrainConfig) -> None:
    whole, parts = (pretrain(into(config, f"m{size}", micro_batch_size=size)) for size in (8, 2))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-4)
    assert parts.valid_loss == pytest.approx(whole.valid_loss, rel=1e-3)


def test_precision_can_change_from_run_to_run(config: PretrainConfig) -> None:
    full, half = pretrain(into(config, "fp32")), pretrain(into(config, "bf16", precision="bf16"))
    assert half.valid_loss == pytest.approx(full.valid_loss, rel=0.03) and half.valid_loss != full.valid_loss
    assert {str(tensor.dtype) for tensor in weights(half).values()} == {"torch.float32"}
    assert pretrain(into(config, "again")).valid_loss == full.valid_loss


def test_experts_are_balanced_while_training(config: PretrainConfig) -> None:
    name = next(name for name in weights(pretrain(config)) if "e_score_correction_bias" in name)
    moved = weights(pretrain(into(config, "on")))[name]
    still = weights(pretrain(into(config, "off", moe_router_bias_update_rate=0.0)))[name]
    assert still.abs().max() == 0
    assert 0 < moved.abs().max() <= 4e-3 + 1e-6


def test_rows_say_what_happened(config: PretrainConfig) -> None:
    config.train.eval_interval = 2
    outcome = pretrain(config)
    losses = [row for row in rows(config) if "loss" in row]
    assert [row["step"] for row in losses] == [2, 4]
    assert {"lr", "tokens_per_second", "tokens", "elapsed", "grad_norm"} <= set(losses[0])
    assert losses[1]["tokens"] == 1024 and losses[1]["loss"] == outcome.loss
    assert [row["step"] for row in rows(config) if "valid_loss" in row] == [2, 4]


def test_a_valid_split_may_be_missing(config: PretrainConfig, tiny_data: Path) -> None:
    blend = json.loads(tiny_data.read_text())
    tiny_data.write_text(json.dumps({"train": blend["train"], "valid": None}))
    assert pretrain(config).valid_loss is None


def test_given_weights_are_where_a_new_run_starts(config: PretrainConfig) -> None:
    first = pretrain(config)
    second = into(config, "second", train_iters=1, lr=1e-9)
    second.checkpoint.pretrained_checkpoint = str(first.path)
    assert pretrain(second).valid_loss == pytest.approx(first.valid_loss, abs=1e-4)
    third = into(config, "third", train_iters=1, lr=1e-9)
    third.checkpoint.load, third.checkpoint.finetune = str(config.checkpoint.save), True
    outcome = pretrain(third)
    assert outcome.valid_loss == pytest.approx(first.valid_loss, abs=1e-4) and outcome.step == 1


def test_given_weights_of_another_shape_are_refused(config: PretrainConfig) -> None:
    first = pretrain(config)
    second = into(config, "second")
    second.model = {**MODEL, "hidden_size": 64}
    second.checkpoint.pretrained_checkpoint = str(first.path)
    with pytest.raises(UserError, match=r"a different model: model\.hidden_size is 32 there and 64 here"):
        pretrain(second)


def test_a_model_is_never_another_runs(config: PretrainConfig, tiny_data: Path) -> None:
    first = pretrain(config)
    save, whole = Path(str(config.checkpoint.save)), (first.path / "model.safetensors").read_bytes()
    shard = tiny_data.parent / "train/a.bin"
    tokens = shard.read_bytes()
    shard.write_bytes(tokens[2:] + tokens[:2])  # as many tokens, other ones
    with pytest.raises(UserError, match=r"another configuration: dataset\.content is .* there and .* here"):
        pretrain(config)
    size = config.train.global_batch_size
    config.checkpoint.may_differ = ["dataset.content", "train.global_batch_size"]
    config.train.train_iters, config.train.global_batch_size = 5, size // 2
    longer = pretrain(config)
    assert [change["name"] for change in longer.changes] == config.checkpoint.may_differ
    assert longer.tokens == first.tokens * 9 // 8
    config.train.global_batch_size = size
    shard.write_bytes(tokens)
    config.train.train_iters, config.checkpoint.may_differ = 4, []
    for path in save.glob("step-*"):
        checkpoint.remove(path)
    config.train.seed = 5
    with pytest.raises(UserError, match=r"model-00000004 is there already, the model of another run \(other train\)"):
        pretrain(config)
    assert (first.path / "model.safetensors").read_bytes() == whole
    config.train.seed = 1234
    (first.path / "model.safetensors").write_bytes(whole[:-100])
    assert (pretrain(config).path / "model.safetensors").read_bytes() == whole


def test_the_held_out_loss_is_that_of_the_data_given(config: PretrainConfig, tiny_data: Path, capsys) -> None:
    first = pretrain(config)
    assert pretrain(config).valid_loss == first.valid_loss
    assert capsys.readouterr().err.count("held-out loss") == 1
    shard = tiny_data.parent / "valid/a.bin"
    shard.write_bytes(shard.read_bytes()[:2] * (shard.stat().st_size // 2))  # one token over and over
    again = pretrain(config)
    assert again.step == 4 and abs(again.valid_loss - first.valid_loss) > 0.05
    whole = shard.read_bytes()
    shard.write_bytes(b"\xff\xff" * (len(whole) // 2))
    other = into(config, "other")
    with pytest.raises(UserError, match="The data holds token 65535"):  # before the first step
        pretrain(other)
    assert not Path(str(other.checkpoint.save)).exists()
    shard.write_bytes(whole)
    blend = config.blend_path
    blend.write_text(json.dumps({"train": json.loads(blend.read_text())["train"]}))
    assert pretrain(config).valid_loss is None
    assert capsys.readouterr().err.count("held-out loss") == 1


def test_two_runs_in_one_folder_are_told_apart(config: PretrainConfig, monkeypatch) -> None:
    other = replace(into(config, "save", seed=5), scheduler=config.scheduler)
    config.checkpoint.save_interval = 2
    started = Reporter.print

    def meanwhile(reporter: Reporter, text: str) -> None:
        started(reporter, text)
        if text == "Starting with fresh weights." and not list(Path(str(config.checkpoint.save)).glob("step-*")):
            monkeypatch.setattr(Reporter, "print", started)
            pretrain(replace(other, train=replace(other.train, train_iters=2)))

    monkeypatch.setattr(Reporter, "print", meanwhile)
    with pytest.raises(NemotronError, match=r"step-00000002 appeared while this run was under way"):
        pretrain(config)


def test_without_save_the_model_goes_to_the_job(config: PretrainConfig, tmp_path: Path, monkeypatch) -> None:
    config.checkpoint.save = None
    with pytest.raises(UserError, match=r"checkpoint\.save is not set"):
        pretrain(config)
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path / "job"))
    outcome = pretrain(config)
    assert outcome.path == tmp_path / "job/pretrain/model-00000004"
    assert [file.name for file in outcome.path.iterdir() if str(tmp_path).encode() in file.read_bytes()] == []
    assert sorted(path.name for path in (tmp_path / "job").rglob("*-0*")) == ["model-00000004"]
    assert (tmp_path / "job/metrics.jsonl").is_file()


def test_divergence_is_an_error_and_never_a_checkpoint(config: PretrainConfig) -> None:
    config.train = replace(config.train, lr=1e30, clip_grad=0.0, train_iters=20)
    config.checkpoint.save_interval = 1
    with pytest.raises(
        NemotronError,
        match=r"(The loss|The gradients' norm) is (nan|inf) at step \d+: training has diverged[\s\S]*train\.lr",
    ):
        pretrain(config)
    for path in Path(str(config.checkpoint.save)).glob("step-*/model/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stopped_after_any_step_the_rest_is_the_same(config: PretrainConfig, monkeypatch, step: int) -> None:
    whole = pretrain(into(config, "whole"))
    broken = into(config, "broken")
    done = []

    def stop_there(_: Reporter) -> None:
        done.append(True)
        if len(done) == step:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "advance", stop_there)
        with pytest.raises(
            Preempted, match=rf"Stopped by SIGUSR1 after step {step} of 4; saved in .*broken"
        ) as stopped:
            pretrain(broken)
    assert stopped.value.exit_code == 75
    rest = pretrain(broken)
    assert (rest.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    assert (rest.loss, rest.valid_loss) == (whole.loss, whole.valid_loss)
    losses = [
        [(row["step"], row["loss"]) for row in rows(into(config, name)) if "loss" in row]
        for name in ("whole", "broken")
    ]
    assert losses[0] == losses[1]


def test_old_checkpoints_go_and_models_stay(config: PretrainConfig) -> None:
    config.checkpoint.save_interval, config.checkpoint.most_recent_k = 1, 2
    pretrain(config)
    names = sorted(path.name for path in Path(str(config.checkpoint.save)).iterdir())
    assert names == ["metrics.jsonl", "model-00000004", "step-00000003", "step-00000004"]


def test_a_checkpoint_that_can_not_be_removed_ends_nothing(config: PretrainConfig, monkeypatch, capsys) -> None:
    config.checkpoint.save_interval, config.checkpoint.most_recent_k = 1, 1
    unlink = Path.unlink

    def busy(path: Path, missing_ok: bool = False) -> None:
        if path.name == "optimizer.safetensors":
            raise OSError(16, "Device or resource busy")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", busy)
        assert pretrain(config).step == 4
    said = capsys.readouterr().err
    assert said.count("optimizer.safetensors: Device or resource busy") == 3 == said.count("It is tried again")
    config.train.train_iters = 5
    assert pretrain(config).step == 5
    assert not list(Path(str(config.checkpoint.save)).glob(".step-*"))


def test_a_folder_that_can_not_be_written_to_is_named_before_any_work(config: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config.checkpoint.save = str(tmp_path / "file/save")
    with pytest.raises(UserError, match=r"checkpoint\.save: .*/file/save can't be written to: Not a directory"):
        pretrain(config)


def test_a_mistake_in_the_model_leaves_nothing_behind(config: PretrainConfig) -> None:
    config.model["hiden_size"] = 8
    with pytest.raises(UserError, match="did you mean hidden_size"):
        pretrain(config)
    assert not Path(str(config.checkpoint.save)).exists()


def test_a_checkpoint_of_an_older_version_is_gone_on_with(tmp_path: Path) -> None:
    work = unpack(tmp_path) / "work"
    there = json.loads((work / "model/step-00000002/checkpoint.json").read_text())["identity"]
    model = {name: value for name, value in there["model"].items() if name in MODEL}
    config = PretrainConfig(
        recipe={"per_split_data_args_path": str(work / "shards/blend.json")},
        model={**model, "hybrid_override_pattern": MODEL["hybrid_override_pattern"]},
        dataset={"seq_length": 16},
        train=TrainConfig(train_iters=4, global_batch_size=2, micro_batch_size=2, lr=0.01),
        scheduler=SchedulerConfig(lr_warmup_iters=1),
        checkpoint=CheckpointConfig(save=str(work / "model")),
        logger=LoggerConfig(log_interval=1),
    )
    outcome = pretrain(config)
    assert (outcome.step, outcome.tokens, outcome.changes) == (4, 4 * 2 * 16, ())
    assert [row["step"] for row in rows(config) if "loss" in row] == [1, 2, 3, 4]
