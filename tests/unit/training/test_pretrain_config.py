from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training import PretrainConfig, SchedulerConfig, TrainConfig


def test_importing_the_config_loads_nothing_heavy() -> None:
    code = (
        "import sys, nemotron.recipes.nano3.stage0_pretrain.train as t;"
        "import nemotron.recipes.nano3.stage1_sft.train as s;"
        "t.preflight(t.PretrainConfig(), connect=False); s.preflight(s.SFTConfig(), connect=False);"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'pydantic', 'rich', 'wandb', 'pyarrow'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_blocks_have_the_contracts_names() -> None:
    names = {field.name for field in fields(PretrainConfig)}
    theirs = {"recipe", "model", "dataset", "train", "optimizer", "scheduler", "checkpoint", "logger"}
    assert names == {*theirs, "engine", "ddp", "tokenizer", "mixed_precision", "bridge"}
    config = PretrainConfig()
    for block, keys in {
        "train": ("train_iters", "global_batch_size", "micro_batch_size", "lr", "seed"),
        "scheduler": ("lr_warmup_iters",),
        "logger": ("log_interval", "wandb_project", "wandb_entity", "wandb_exp_name"),
        "checkpoint": ("save", "save_interval", "pretrained_checkpoint", "finetune"),
    }.items():
        for key in keys:
            assert hasattr(getattr(config, block), key), f"{block}.{key}"


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (
            PretrainConfig(recipe={"per_split_args": "x"}),
            r"recipe\.per_split_args: .* did you mean per_split_data_args_path",
        ),
        (PretrainConfig(dataset={"seq_len": 3}), r"dataset\.seq_len: .* did you mean seq_length"),
        (PretrainConfig(dataset={"seq_length": "long"}), r"dataset\.seq_length is 'long'; it must be a whole number"),
        (PretrainConfig(dataset={"seq_length": 0}), r"dataset\.seq_length is 0"),
        (PretrainConfig(dataset={"seed": -1}), r"dataset\.seed is -1"),
        (PretrainConfig(dataset={"seed": 1 << 64}), r"dataset\.seed is 18446744073709551616; it must be \d+ at most"),
        (PretrainConfig(recipe={"_target_": "os.system"}), r"recipe\._target_ is 'os\.system', which this recipe"),
        (PretrainConfig(train=TrainConfig(train_iters=0)), r"train\.train_iters is 0"),
        (PretrainConfig(train=TrainConfig(lr=float("nan"))), r"train\.lr is nan"),
        (PretrainConfig(train=TrainConfig(adam_beta2=1.0)), r"train\.adam_beta2 is 1\.0; .* 0 or more and less than 1"),
        (PretrainConfig(train=TrainConfig(clip_grad=-1.0)), r"train\.clip_grad is -1\.0; it must be 0 or more"),
        (PretrainConfig(train=TrainConfig(weight_decay=float("inf"))), r"train\.weight_decay is inf; .* and finite"),
        (PretrainConfig(train=TrainConfig(moe_router_bias_update_rate=-0.1)), r"train\.moe_router_bias_update_rate"),
        (PretrainConfig(train=TrainConfig(seed=-1)), r"train\.seed is -1; .* from 0 to 4294967295"),
        (PretrainConfig(scheduler=SchedulerConfig(min_lr=float("nan"))), r"scheduler\.min_lr is nan"),
        (PretrainConfig(scheduler=SchedulerConfig(min_lr=0.1)), r"min_lr is 0\.1, more than train\.lr 0\.001"),
        (PretrainConfig(train=TrainConfig(precision="fp8")), r"train\.precision is 'fp8'"),
        (PretrainConfig(train=TrainConfig(fsdp=True)), r"train\.fsdp does not say over how many processes"),
    ],
)
def test_a_wrong_value_is_named(config: PretrainConfig, error: str) -> None:
    with pytest.raises(UserError, match=error):
        config.check()


def test_the_engine_may_be_named() -> None:
    PretrainConfig(recipe={"_target_": "nemotron_kit.training.pretrain"}).check()


def test_no_data_is_an_error() -> None:
    with pytest.raises(UserError, match=r"recipe\.per_split_data_args_path is not set"):
        _ = PretrainConfig().blend_path


def test_a_batch_must_divide_evenly() -> None:
    TrainConfig(global_batch_size=8, micro_batch_size=2).check_split(4)
    with pytest.raises(
        UserError, match=r"global_batch_size 8 is no multiple of .* 3 × 2 processes[\s\S]*batch_size=12"
    ):
        TrainConfig(global_batch_size=8, micro_batch_size=3).check_split(2)
