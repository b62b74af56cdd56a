"""What makes a checkpoint another run's, and how one goes on with it all the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training import PretrainConfig, SchedulerConfig, TrainConfig
from nemotron_kit.training.content import shard_contents
from nemotron_kit.training.data import BlendSamples, BlendSource
from nemotron_kit.training.start import differences, identity, portable, require_same


@pytest.fixture
def config(tmp_path: Path, write_shard) -> PretrainConfig:
    write_shard(tmp_path / "a", [[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    for name, weight in (("one", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weight)
    return PretrainConfig(dataset={"seq_length": 4}, train=TrainConfig(train_iters=10), scheduler=SchedulerConfig())


def same(config: PretrainConfig, folder: Path, **model: Any) -> dict[str, Any]:
    samples = BlendSamples([BlendSource(1.0, str(folder / "a"))], config.seq_length, config.data_seed)
    digests = shard_contents([str(folder / "a")], None).digests
    return identity(config, {"hybrid_override_pattern": "M", **model}, samples, digests, "fp32")


def rewrite_data(config: PretrainConfig, folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes([9, *(folder / "a.bin").read_bytes()[1:]]))


CHANGES = {
    "train.lr": lambda config, _: setattr(config.train, "lr", 0.5),
    "train.seed": lambda config, _: setattr(config.train, "seed", 5),
    "train.global_batch_size": lambda config, _: setattr(config.train, "global_batch_size", 5),
    "train.moe_router_bias_update_rate": lambda config, _: setattr(config.train, "moe_router_bias_update_rate", 0.0),
    "scheduler.lr_warmup_iters": lambda config, _: setattr(config.scheduler, "lr_warmup_iters", 5),
    "dataset.seed": lambda config, _: config.dataset.update(seed=5),
    "dataset.content": rewrite_data,
    "checkpoint.pretrained_checkpoint": lambda config, folder: setattr(
        config.checkpoint, "pretrained_checkpoint", str(folder / "two")
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_the_weights_is_named_and_refused(config: PretrainConfig, tmp_path: Path, name: str) -> None:
    config.checkpoint.pretrained_checkpoint = str(tmp_path / "one")
    there = same(config, tmp_path)
    assert differences(there, same(config, tmp_path), config, 5) == []
    CHANGES[name](config, tmp_path)
    found = differences(there, same(config, tmp_path), config, 5)
    assert [difference.name for difference in found] == [name]
    with pytest.raises(UserError, match=rf"{name} is .* there and .* here[\s\S]*may_differ=\[{name}\]"):
        require_same(tmp_path, found, [])
    assert require_same(tmp_path, found, [name]) == require_same(tmp_path, found, [name.split(".")[0]]) == found


def test_how_the_work_is_cut_is_free(config: PretrainConfig, tmp_path: Path) -> None:
    there = same(config, tmp_path)
    config.train.micro_batch_size, config.train.eval_interval, config.train.eval_iters = 2, 3, 4
    config.checkpoint.save_interval, config.logger.log_interval = 7, 8
    assert differences(there, same(config, tmp_path), config, 5) == []


def test_a_longer_run_is_the_same_until_the_rate_decays(config: PretrainConfig, tmp_path: Path) -> None:
    there = same(config, tmp_path)  # WSD: the last 2 of 10 steps decay
    config.train.train_iters = 20
    here = same(config, tmp_path)
    assert differences(there, here, config, 8) == []
    assert [found.name for found in differences(there, here, config, 10)] == ["train.train_iters"]
    config.scheduler.lr_decay_style = "constant"
    assert differences(there | {"scheduler": same(config, tmp_path)["scheduler"]}, here, config, 0) != []


def test_weights_are_told_by_content_and_not_by_place(config: PretrainConfig, tmp_path: Path) -> None:
    config.checkpoint.pretrained_checkpoint = str(tmp_path / "one")
    there = same(config, tmp_path)
    (tmp_path / "one").rename(tmp_path / "moved")
    assert differences(there, same(config, tmp_path), config, 5) == []  # gone by now: the setting is the same
    config.checkpoint.pretrained_checkpoint = str(tmp_path / "moved")
    here = same(config, tmp_path)
    assert differences(there, here, config, 5) == [] and portable(there) == portable(here)
    (tmp_path / "moved/model.safetensors").write_bytes(b"3")
    assert [found.name for found in differences(there, same(config, tmp_path), config, 5)] == [
        "checkpoint.pretrained_checkpoint"
    ]


def test_a_run_that_goes_on_elsewhere_keeps_the_weights_it_began_with(config: PretrainConfig, tmp_path: Path) -> None:
    config.checkpoint.pretrained_checkpoint = str(tmp_path / "one")
    there = same(config, tmp_path)
    config.checkpoint.pretrained_checkpoint, config.checkpoint.load = None, str(tmp_path / "ckpt")
    assert differences(there, same(config, tmp_path), config, 5) == []
    config.checkpoint.load = None
    assert [found.name for found in differences(there, same(config, tmp_path), config, 5)] == [
        "checkpoint.pretrained_checkpoint"
    ]


def test_numbers_as_keys_are_the_same_after_json(config: PretrainConfig, tmp_path: Path) -> None:
    import json

    here = same(config, tmp_path, id2label={10: "a", 2: "b"})
    assert differences(copy.deepcopy(json.loads(json.dumps(here))), here, config, 5) == []
