"""The engine nemo_rl with a stand-in for NeMo-RL: the config that its script gets, what is refused, a run's end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_kit.config.convert import to_dataclass
from nemotron_kit.errors import Note, UserError
from nemotron_kit.training import nemo_rl
from nemotron_kit.training.grpo_config import GRPOConfig, preflight
from nemotron_kit.training.processes import Preempted

BASE = """
grpo: {num_prompts_per_step: 1, val_num_generations_per_prompt: 1, max_num_steps: 7, max_num_epochs: 9, seed: 1}
loss_fn: {ratio_clip_min: 0.5}
policy:
  model_name: none
  tokenizer: {name: "${policy.model_name}"}
  precision: bfloat16
  optimizer: null
  megatron_cfg: {enabled: true, optimizer: {lr: 1.0, sgd_momentum: 0.9}, scheduler: {lr_warmup_init: 0.1}}
  make_divisible_by: "${mul:2, 3}"
data: {shuffle: false, train: {data_path: x}, default: {env_name: nemo_gym}}
env: {should_use_nemo_gym: true, nemo_gym: {config_paths: [a]}}
checkpointing: {enabled: true, checkpoint_dir: x, checkpoint_must_save_by: null, save_period: 1}
logger: {log_dir: logs, wandb_enabled: false}
cluster: {gpus_per_node: 8, num_nodes: 1}
"""
# As NeMo-RL's own: it reads the file that --config names, and leaves checkpoints.
SCRIPT = """
import json, sys, yaml
from pathlib import Path

assert __name__ == "__main__" and sys.argv[1] == "--config"
config = yaml.safe_load(Path(sys.argv[2]).read_text())
step = json.loads(Path("steps.json").read_text())
folder = Path(config["checkpointing"]["checkpoint_dir"], f"step_{step}")
folder.mkdir(parents=True)
(folder / "training_info.json").write_text(json.dumps({"total_steps": step, "val_reward": 0.5}))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like NeMo-RL's, as the working folder."""
    for folder in ("configs", "nemo_gym"):
        (tmp_path / "examples" / folder).mkdir(parents=True)
    (tmp_path / "examples/nemo_gym/base.yaml").write_text(BASE)
    (tmp_path / "examples/nemo_gym/grpo_nanov3.yaml").write_text(
        "defaults: base.yaml\nloss_fn: {ratio_clip_min: 0.2}\n"
    )
    (tmp_path / "examples/nemo_gym/run_grpo_nemo_gym.py").write_text(SCRIPT)
    (tmp_path / "train.jsonl").write_text("{}\n" * 25)
    monkeypatch.chdir(tmp_path)
    for name, value in {"NEMO_RUN_DIR": str(tmp_path), "NEMOTRON_TIME_LIMIT": "7200", "SLURM_NNODES": "4"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def config(place: Path, **changes: Any) -> GRPOConfig:
    values: dict[str, Any] = {
        "engine": "nemo_rl",
        "grpo": {"num_iterations": 4, "batch_size": 5, "learning_rate": 0.25, "num_val_generations_per_prompt": 3},
        "policy": {
            "model_name": "/model",
            "tokenizer": {"name": None, "chat_template_kwargs": {"enable_thinking": False}},
        },
        "data": {"train_jsonl_fpath": str(place / "train.jsonl")},
        "env": {"should_use_nemo_gym": True},
        "checkpointing": {"checkpoint_dir": str(place / "saved"), "checkpoint_must_save_by": "00:03:40:00"},
    }
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return to_dataclass(values, GRPOConfig)


def test_its_script_gets_our_config_in_its_own(place: Path) -> None:
    given = config(place, nemo_rl={"policy": {"megatron_cfg": {"optimizer": {"sgd_momentum": 0.1}}}, "+x": {"y": 1}})
    found = yaml.safe_load(nemo_rl.merged(given, place / "examples/nemo_gym/grpo_nanov3.yaml"))
    assert found["grpo"] == {
        "num_prompts_per_step": 5, "val_num_generations_per_prompt": 3, "max_num_steps": 4, "max_num_epochs": 1,
        "seed": 42, "val_period": 5,
    }  # fmt: skip
    megatron = found["policy"]["megatron_cfg"]
    assert {k: megatron["optimizer"][k] for k in ("lr", "min_lr", "sgd_momentum")} == {
        "lr": 0.25, "min_lr": 0.25, "sgd_momentum": 0.1,
    }  # fmt: skip
    assert (megatron["scheduler"]["lr_warmup_init"], megatron["scheduler"]["lr_decay_style"]) == (0.1, "constant")
    assert found["policy"]["tokenizer"] == {"name": "/model", "chat_template_kwargs": {"enable_thinking": False}}
    assert (found["policy"]["precision"], found["policy"]["make_divisible_by"]) == ("bfloat16", "${mul:2, 3}")
    assert found["data"]["train"]["data_path"] == str(place / "train.jsonl")
    assert found["env"]["nemo_gym"] == {"config_paths": ["a"]} and found["x"] == {"y": 1}
    # The job's limit is two hours, and saving may take five minutes.
    assert found["checkpointing"]["checkpoint_must_save_by"] == "00:01:50:00"
    assert found["cluster"] == {"gpus_per_node": 8, "num_nodes": 4}


def test_a_checkpoint_is_saved_before_the_limit_that_slurm_gave_the_job() -> None:
    limits = {"NEMOTRON_TIME_LIMIT": "14400", "NEMOTRON_SIGNAL_LEAD": "300"}
    assert nemo_rl.stopping(None, 1000.0, limits) == 13800
    assert nemo_rl.stopping(None, 1000.0, {**limits, "SLURM_JOB_END_TIME": "4600"}) == 3000, "its partition's, one hour"
    assert nemo_rl.stopping(90.0, 1000.0, {"SLURM_JOB_END_TIME": "x"}) == 90
    assert nemo_rl.stopping(None, 1000.0, {}) is None


def test_a_schedule_and_a_tokenizers_settings_reach_it_whole(place: Path) -> None:
    scheduler = {"lr_decay_style": "WSD", "lr_warmup_iters": 2, "lr_wsd_decay_style": "linear"}
    tokenizer = {"name": None, "chat_template": "{{ messages }}", "chat_template_kwargs": None}
    given = config(place, policy={"scheduler": scheduler, "tokenizer": tokenizer}, grpo={"num_iterations": 50})
    found = yaml.safe_load(nemo_rl.merged(given, place / "examples/nemo_gym/grpo_nanov3.yaml"))["policy"]
    assert found["tokenizer"] == {"name": "/model", "chat_template": "{{ messages }}"}
    assert found["megatron_cfg"]["scheduler"] == {
        "lr_warmup_init": 0.1, "lr_decay_style": "WSD", "lr_warmup_iters": 2, "lr_wsd_decay_iters": 10,
        "lr_wsd_decay_style": "linear",
    }  # fmt: skip
    workers = nemo_rl.merged(config(place, data={"num_workers": 3}), place / "examples/nemo_gym/grpo_nanov3.yaml")
    assert yaml.safe_load(workers)["data"]["num_workers"] == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nemo_rl": {"grpo": {"max_num_stepss": 1}}}, r"nemo_rl\.grpo\.max_num_stepss: .* did you mean max_num_steps"),
        ({"nemo_rl": {"polic": {}}}, r"nemo_rl\.polic: .* did you mean policy"),
        (
            {"nemo_rl": {}, "policy": {"megatron_cfg": {"enabled": False}, "scheduler": {"lr_warmup_iters": 5}}},
            r"policy\.scheduler: without policy\.megatron_cfg\.enabled",
        ),
        ({"loss_fn": {"ratio_clip_max": 0.9}}, r"loss_fn\.ratio_clip_max: NeMo-RL's config has no such setting"),
    ],
)
def test_what_it_does_not_have_is_refused_by_name(place: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        nemo_rl.train(config(place, **changes))
    assert not (place / "nemo_rl.yaml").exists()


def test_the_end_of_a_run(place: Path) -> None:
    argv = list(sys.argv)
    (place / "steps.json").write_text("3")
    with pytest.raises(Preempted, match="stopped after step 3 of 4") as stopped:
        nemo_rl.train(config(place))
    assert stopped.value.exit_code == 75 and sys.argv == argv
    (place / "steps.json").write_text("4")
    assert nemo_rl.train(config(place)) == nemo_rl.NemoRLOutcome(place / "saved" / "step_4", 4, 0.5)
    # 25 rows are five steps of five: a run of one epoch is done there.
    assert nemo_rl.last_step(config(place, grpo={"num_iterations": 1000})) == 5
    assert nemo_rl.last_step(config(place, grpo={"num_iterations": 1000, "batch_size": 4, "max_num_epochs": 2})) == 12
    for path in (place / "saved").glob("*/training_info.json"):
        path.write_text(json.dumps({"val_reward": -99999999.0}))
    assert nemo_rl.outcome(config(place)).reward is None
    with pytest.raises(UserError, match="left no checkpoint"):
        nemo_rl.outcome(config(place, checkpointing={"checkpoint_dir": str(place / "none")}))


def test_what_the_launch_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = preflight(config(place, cluster={"num_nodes": 32}), connect=False, here=False, processes=4)
    problems = [each for each in found if not isinstance(each, Note)]
    assert problems == ["cluster.num_nodes is 32, and the job has 4. Set cluster.num_nodes=4, or run.env.nodes=32."]
    assert "NeMo-RL itself was never run by us" in found[0] and "is seen in the job" in found[-1]
    (problem,) = preflight(
        config(place, engine="hf", env={"should_use_nemo_gym": False}, nemo_rl={"grpo": {}}), connect=False
    )
    assert problem.startswith("nemo_rl is set")
    refused = preflight(
        config(
            place, env={"weights": {"a": 1.0}}, train={"parallelism": {"fsdp_size": 8}}, logger={"log_interval": 5},
            checkpointing={"may_differ": ["grpo.seed"]}, grpo={"batch_size": 0},
        ), connect=False, here=False,
    )  # fmt: skip
    for name in ("env.weights", "train.parallelism", "logger.log_interval", "checkpointing.may_differ"):
        assert any(each.startswith(f"{name}: NeMo-RL has no such setting. ") for each in refused), name
    assert "grpo.num_prompts_per_step is 0; it must be 1 or more." in refused
    monkeypatch.chdir(place / "examples")
    assert "there is no NeMo-RL here" in preflight(config(place), connect=False)[-1]
    with pytest.raises(UserError, match="there is no NeMo-RL here"):
        config(place).check()
