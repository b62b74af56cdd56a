"""Configs made for the reference are taken as they are: what they have is used, noted as without effect, or refused by
name; no key of theirs is unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from nemotron.recipes.nano3 import app
from omegaconf import OmegaConf

from nemotron_kit.config.compose import compose
from nemotron_kit.config.freeze import freeze, typed
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import Note
from nemotron_kit.training import nemo_rl

TREE = Tree(apps={"nano3": app})
PIPELINE = {
    "plan": {"planner_cpus": 0.5},
    "download": {"batch_size": 1, "hf_xet_high_performance": True, "max_retries": 3},
    "tokenization": {"cpus_per_worker": 4},
    "observability": {"pipeline_logging_interval_s": 30},
}
PACKED = {
    "tokenizer": {"model": "nano3-tiny", "add_bos": False, "add_eos": True},
    "num_shards": 4, "pack_size": 4096, "seed": None, "sample_seed": 42, "used_in_filter": "nano_v3", **PIPELINE,
}  # fmt: skip
LINES = {
    "shard_size": "64MB", "sample": 1000, "num_actors": None, "split_output": "train_val_test", "train_ratio": 0.98,
    "val_ratio": 0.01,
}  # fmt: skip
BRIDGE = {
    "recipe": {"_target_": "megatron.bridge.recipes.x.y_config", "packed_sequence": True, "peft": None},
    "dataset": {"nano3_packed_sft_dir": "/d", "seq_length": 64, "packed_sequence_specs": {"packed_sequence_size": 64}},
    "logger": {"log_interval": 10, "wandb_project": "p", "wandb_entity": "e", "wandb_exp_name": "n"},
    "checkpoint": {"save": "/s", "save_interval": 20, "pretrained_checkpoint": "/m", "finetune": True},
}
GRPO: dict[str, Any] = {
    "grpo": {
        "num_prompts_per_step": 4, "num_generations_per_prompt": 2, "use_best_at_k": False, "best_at_k_k": 8,
        "best_at_k_m": 1000, "use_combined_training": False, "combined_training_weight_mode": "auto",
        "combined_training_best_at_k_weight": 0.2, "combined_training_pass_at_1_weight": 1.0,
        "dynamic_sampling_oversample_ratio": 1.0, "reward_shaping": {"enabled": False},
    },
    "policy": {
        "model_name": "/m", "train_global_batch_size": 8, "train_micro_batch_size": 2, "logprob_chunk_size": 2048,
        "max_total_sequence_length": 64, "make_sequence_length_divisible_by": 1, "optimizer": None, "scheduler": None,
        "offload_optimizer_for_logprob": False, "megatron_cfg": {"enabled": True, "optimizer": {"lr": 1e-6}},
        "sequence_packing": {"enabled": False, "train_mb_tokens":
            "${mul:${policy.max_total_sequence_length}, ${policy.train_micro_batch_size}}"},
    },
    "data": {"train_jsonl_fpath": "/t.jsonl", "validation_jsonl_fpath": "/v.jsonl"},
    "logger": {"tensorboard": {}, "mlflow": {"run_name": "x"}, "gpu_monitoring": {"flush_interval": 10}},
    "convert_initial_checkpoint_to_hf": False, "converted_checkpoint_dir": None,
}  # fmt: skip
EVAL = {"deployment": {"checkpoint_path": "/m", "port": 1235}, "export": {"wandb": {"project": "p"}}}


def problems(tmp_path: Path, stage: str, values: dict[str, Any], *words: str) -> tuple[Any, list[str], list[str]]:
    """(config, problems, notes) of a command with a config file that has these values."""
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump(values))
    found = compose(TREE, ["recipe=nano3", f"stage={stage}", f"config={file}", *words], EnvFile())
    config: Any = typed(freeze(found.config, "/job"), found.command.load_config_cls())
    check = found.command.load_preflight()
    assert check is not None
    told = check(config, connect=False, here=False)
    return config, [each for each in told if not isinstance(each, Note)], [each for each in told if type(each) is Note]


@pytest.mark.parametrize(
    ("stage", "values", "unused"),
    [
        ("data/prep/pretrain", {"num_actors": 2, "valid_shards": 1, **PIPELINE}, tuple(PIPELINE)),
        ("data/prep/sft", PACKED, (*PIPELINE, "tokenizer.add_bos")),
        ("data/prep/rl", LINES, ("shard_size", "split_output")),
    ],
)
def test_data_prep(tmp_path: Path, stage: str, values: dict[str, Any], unused: tuple[str, ...]) -> None:
    config, wrong, notes = problems(tmp_path, stage, values)
    assert wrong == [] and all(name in " ".join(notes) for name in unused)
    handler = __import__(type(config).__module__, fromlist=["settings"])
    made = handler.settings(config)
    assert (stage != "data/prep/pretrain" or made.num_workers == 2) and (
        stage != "data/prep/rl" or (made.valid_ratio, made.test_ratio) == (0.01, 0.01)
    )


def test_fine_tuning(tmp_path: Path) -> None:
    config, wrong, _ = problems(tmp_path, "sft", BRIDGE)
    assert len(wrong) == 1 and "or set engine=megatron_bridge" in wrong[0]
    assert config.logger.wandb_exp_name == "n"
    assert problems(tmp_path, "sft", BRIDGE, "engine=megatron_bridge")[1] == []


def test_reinforcement_learning(tmp_path: Path) -> None:
    config, wrong, _ = problems(tmp_path, "rl", GRPO)
    assert [each.split(" ")[0] for each in wrong] == ["policy.megatron_cfg"]
    assert config.policy.sequence_packing["train_mb_tokens"] == 128
    assert not OmegaConf.has_resolver(
        "mul"
    )  # a recipe, or NeMo-RL's script, registers it, and a second time is an error
    _, off, _ = problems(tmp_path, "rl", GRPO, "policy.megatron_cfg=null", "grpo.use_best_at_k=true")
    assert off == ["grpo.use_best_at_k: this engine has no such thing. Set grpo.use_best_at_k=false."]
    theirs = ["engine=nemo_rl", "checkpointing.checkpoint_dir=/s"]
    config, wrong, _ = problems(tmp_path, "rl", GRPO, *theirs)
    assert wrong == []
    base = tmp_path / "base.yaml"
    optimizer = {"lr": 3e-6, "min_lr": 3e-6, "weight_decay": 0.5}
    policy = {**GRPO["policy"], "megatron_cfg": {"enabled": True, "optimizer": optimizer}}
    own = {"checkpointing": {"checkpoint_dir": "x"}, "logger": GRPO["logger"], "data": GRPO["data"]}
    base.write_text(yaml.safe_dump({"grpo": GRPO["grpo"], "policy": policy, **own}))
    found = yaml.safe_load(nemo_rl.merged(config, base))["policy"]
    assert (found["megatron_cfg"]["optimizer"], found["optimizer"]) == ({**optimizer, "lr": 1e-6}, None)
    _, wrong, _ = problems(tmp_path, "rl", {**GRPO, "initial_checkpoint": "/c"}, *theirs)
    assert len(wrong) == 1 and wrong[0].startswith("initial_checkpoint is a checkpoint of Megatron's")


def test_evaluation(tmp_path: Path) -> None:
    _, wrong, _ = problems(tmp_path, "eval", EVAL)
    assert [each.split(":")[0] for each in wrong] == ["export.wandb", "deployment.port"]
