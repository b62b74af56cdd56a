"""The blocks of fine-tuning, and the optimizer block that pretraining has too."""

from __future__ import annotations

import dataclasses

import pytest

from nemotron_kit.config.schema import contradictions
from nemotron_kit.errors import UserError
from nemotron_kit.training import CheckpointConfig, PretrainConfig, TrainConfig
from nemotron_kit.training.cost import preflight
from nemotron_kit.training.pretrain_config import OptimizerConfig
from nemotron_kit.training.sft_config import PeftConfig, SFTConfig, SFTOptimizerConfig, SFTTrainConfig

# The keys that the reference's configs have.
REFERENCE = {
    "recipe": {"packed_sequence": True, "peft": None},
    "dataset": {
        "dataset_root": "${art:data,path}",
        "seq_length": "${art:data,pack_size}",
        "packed_sequence_specs": {
            "packed_sequence_size": "${art:data,pack_size}",
            "packed_train_data_path": "${art:data,training_path}",
            "packed_val_data_path": "${art:data,validation_path}",
            "packed_metadata_path": "${art:data,metadata_path}",
            "pad_cu_seqlens": False,
        },
    },
    "model": {
        "seq_length": "${art:data,pack_size}",
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "calculate_per_token_loss": True,
    },
}
GIVEN = CheckpointConfig(save="s", pretrained_checkpoint="${art:model,path}", finetune=True)


def config(**blocks) -> SFTConfig:
    return SFTConfig(**{**REFERENCE, "checkpoint": GIVEN, **blocks})


def test_the_references_keys_are_taken() -> None:
    assert preflight(config(), connect=False, here=False) == []
    newer = config(dataset={"nano3_packed_sft_dir": "/d", "seq_length": 512}, model={"seq_length": 512})
    assert preflight(newer, connect=False, here=False) == []
    assert [str(newer.split_folder(split)) for split in ("train", "valid")] == ["/d/train", "/d/valid"]
    assert newer.seq_length == 512


@pytest.mark.parametrize(
    ("blocks", "error"),
    [
        ({"recipe": {"_target_": "megatron.bridge.x"}}, r"recipe\._target_ is 'megatron\.bridge\.x', which this"),
        ({"recipe": {"peft": "dora"}}, r"recipe\.peft is 'dora'; this engine has lora, or null"),
        ({"recipe": {"packed_sequence": False}}, r"recipe\.packed_sequence: the rows are packed"),
        (
            {"model": {"tensor_model_parallel_size": 4}},
            r"model\.tensor_model_parallel_size is 4: .*by train\.parallelism",
        ),
        ({"model": {"context_parallel_size": 2}}, r"model\.context_parallel_size is 2"),
        ({"model": {"hiden_size": 4}}, r"model\.hiden_size: this engine has no such setting; did you mean hidden_size"),
        (
            {"model": {"seq_length": 8}, "dataset": {"dataset_root": "/d", "seq_length": 9}},
            r"model\.seq_length is 8",
        ),
        ({"dataset": {"seq_length": 512}}, r"there is no data to train on[\s\S]*art:data,path"),
        ({"dataset": {"seq_len": 512}}, r"dataset\.seq_len: this engine has no such setting; did you mean seq_length"),
        ({"checkpoint": CheckpointConfig()}, r"there is no model to fine-tune[\s\S]*art:model,path"),
        ({"peft": PeftConfig(scheme="lora", dim=0)}, r"peft: dim 0"),
        ({"peft": PeftConfig(scheme="lora", alpha=float("nan"))}, r"alpha nan must be more than 0, and finite"),
        ({"peft": PeftConfig(dropout=0.1)}, r"peft\.dropout is 0\.1; this engine's adapters have none"),
        ({"peft": PeftConfig(target_modules=["linear_qkv"])}, r"target_modules: 'linear_qkv' is no linear layer"),
        (
            {"recipe": {"peft": "lora"}, "checkpoint": CheckpointConfig(load="c")},
            "a checkpoint of adapters",
        ),
        ({"optimizer": SFTOptimizerConfig(lr=1e-6, min_lr=1e-5)}, r"min_lr is 1e-05, more than optimizer\.lr 1e-06"),
        ({"train": SFTTrainConfig(train_iters=0)}, r"train\.train_iters is 0"),
        ({"train": SFTTrainConfig(precision="fp8")}, r"train\.precision is 'fp8'"),
    ],
)
def test_what_this_engine_does_not_do_is_refused_by_name(blocks: dict, error: str) -> None:
    with pytest.raises(UserError, match=error):
        config(**blocks).check()


def test_a_run_to_go_on_with_comes_before_the_pretrained_model() -> None:
    loads = config(checkpoint=dataclasses.replace(GIVEN, load="c"))
    loads.check()
    block = loads.without_finetune().checkpoint
    assert (block.load, block.pretrained_checkpoint, block.finetune) == ("c", None, False)


def test_the_global_batch_is_dealt_out() -> None:
    SFTTrainConfig(global_batch_size=6, micro_batch_size=4).check_split(3)
    with pytest.raises(UserError, match=r"6 is no multiple of 4 processes[\s\S]*global_batch_size=8"):
        SFTTrainConfig(global_batch_size=6).check_split(4)


def test_pretrainings_optimizer_block_wins() -> None:
    given = PretrainConfig(train=TrainConfig(lr=1.0), optimizer=OptimizerConfig(lr=0.5, min_lr=0.1, clip_grad=2.0))
    used = given.with_optimizer()
    assert (used.train.lr, used.scheduler.min_lr, used.train.clip_grad, used.peak_lr) == (0.5, 0.1, 2.0, 0.5)
    assert used.optimizer == OptimizerConfig() and used.with_optimizer() == used
    assert used.train.weight_decay == given.train.weight_decay
    with pytest.raises(UserError, match=r"optimizer\.lr is 0; it must be more than 0"):
        PretrainConfig(optimizer=OptimizerConfig(lr=0)).check()
    with pytest.raises(UserError, match=r"optimizer\.adam_beta1 is 1\.0; it must be 0 or more and less than 1"):
        PretrainConfig(optimizer=OptimizerConfig(adam_beta1=1.0)).check()


@pytest.mark.parametrize(
    ("line", "lr", "found"),
    [
        (["train.lr=1", "optimizer.lr=2"], (1.0, 2.0), ["optimizer.lr is 2.0 and train.lr is 1.0"]),
        (["train.lr=1", "optimizer.lr=1"], (1.0, 1.0), []),
        (["optimizer.lr=2"], (1.0, 2.0), []),
        (["train.lr=1"], (1.0, None), []),
    ],
)
def test_two_values_for_one_setting_are_refused(line: list[str], lr: tuple, found: list[str]) -> None:
    values = PretrainConfig(train=TrainConfig(lr=lr[0]), optimizer=OptimizerConfig(lr=lr[1]))
    told = contradictions(line, dataclasses.asdict(values), PretrainConfig)
    assert [sentence.partition(",")[0] for sentence in told] == found


def test_a_layout_is_checked_before_the_job() -> None:
    sharded = SFTTrainConfig(parallelism={"fsdp_size": 2}, global_batch_size=32)
    (found,) = preflight(config(train=sharded), connect=False, here=False, processes=4)
    assert "is for 2 processes, and the job has 4" in found
    assert preflight(config(train=sharded), connect=False, here=False, processes=2) == []
    (found,) = preflight(config(train=sharded, peft=PeftConfig(scheme="lora")), connect=False, here=False, processes=2)
    assert "adapters (peft) are trained with the whole model in each process" in found
