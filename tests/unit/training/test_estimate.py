from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nemotron.recipes.nano3.stage0_pretrain.train as recipe
import pytest
import torch
import yaml
from transformers import NemotronHForCausalLM

from nemotron_kit.errors import Note, UserError
from nemotron_kit.training import PretrainConfig, TrainConfig, model_size
from nemotron_kit.training.model import model_config
from nemotron_kit.training.model_size import available_bytes, count_parameters, training_bytes

CONFIGS = Path(recipe.__file__).parent / "config"


def model_block(name: str) -> dict[str, Any]:
    block = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]
    return {"vocab_size": 4096, **block}  # tiny takes its vocabulary from the data


def meta_count(block: dict[str, Any]) -> int:
    with torch.device("meta"):
        model = NemotronHForCausalLM(model_config(block))
    return sum(parameter.numel() for parameter in model.parameters())


def test_default_is_the_published_model() -> None:
    block = model_block("default")
    count = meta_count(block)
    assert round(count / 1e9, 2) == 31.58
    assert count_parameters(block) == pytest.approx(count, rel=0.01)
    kinds = model_config(block).layers_block_type
    assert [kinds.count(kind) for kind in ("linear_attention", "full_attention", "moe")] == [23, 6, 23]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hybrid_override_pattern": "M-*E", "intermediate_size": 96, "mlp_bias": True, "use_bias": True},
        {"moe_latent_size": 24, "use_conv_bias": False, "n_groups": 2, "num_key_value_heads": 2},
        {"vocab_size": 100, "hidden_size": 32},
    ],
)
def test_the_formula_is_the_model(changes: dict[str, Any]) -> None:
    block = {**model_block("tiny"), **changes}
    assert count_parameters(block) == pytest.approx(meta_count(block), rel=0.01)


def test_a_block_that_says_nothing_is_transformers_default() -> None:
    assert count_parameters({}) == pytest.approx(meta_count({"vocab_size": 131072}), rel=0.01)


def test_what_can_not_be_held_is_said_at_once() -> None:
    config = PretrainConfig(
        recipe={"per_split_data_args_path": "/nowhere/blend.json"},
        model=model_block("default"),
        dataset={"seq_length": 8192},
        train=TrainConfig(global_batch_size=3072),
    )
    began = time.monotonic()
    (problem,) = recipe.preflight(config, connect=False)
    assert time.monotonic() - began < 5
    assert "31.6 B parameters" in problem and "try -c tiny" in problem
    assert 505e9 < training_bytes(config.model, 1, 8192) < 700e9


def test_tiny_fits_and_wrong_settings_are_problems(tiny_data: Path) -> None:
    config = PretrainConfig(recipe={"per_split_data_args_path": str(tiny_data)}, model=model_block("tiny"))
    assert recipe.preflight(config, connect=False) == []
    config.train.lr = -1.0
    config.recipe = {}
    (problem,) = recipe.preflight(config, connect=False)
    assert "train.lr is -1.0" in problem


def test_a_size_that_is_no_number_is_named() -> None:
    with pytest.raises(UserError, match=r"model\.hidden_size is 'large'; it must be a whole number"):
        count_parameters({"hidden_size": "large"})
    (problem,) = recipe.preflight(
        PretrainConfig(recipe={"per_split_data_args_path": "/x"}, model={"hidden_size": "large"}), connect=False
    )
    assert "model.hidden_size is 'large'" in problem


NANO3 = {"per_split_data_args_path": "${art:data,path}/blend.json"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        (
            {"model": {"hiden_size": 96}},
            "model.hiden_size: NemotronHConfig has no such field; did you mean hidden_size",
        ),
        ({"model": {"norm_topk_prob": 7}}, "model.norm_topk_prob is 7; it must be true or false."),
        ({"model": {"conv_kernel": True}}, "model.conv_kernel is True; it must be a whole number."),
        ({"model": {"layer_norm_epsilon": "small"}}, "model.layer_norm_epsilon is 'small'; it must be a number."),
        ({"model": {"num_hidden_layers": 3}}, "model.num_hidden_layers is 3, but the pattern has 4 layers"),
        ({"model": {"hidden_size": "${art:data,size}"}, "dataset": {"seq_length": "${art:data,n}"}}, None),
        (
            {"recipe": {**NANO3, "_target_": "megatron.bridge.pretrain"}},
            "recipe._target_ is 'megatron.bridge.pretrain'",
        ),
        ({"recipe": {}}, "recipe.per_split_data_args_path is not set"),
    ],
)
def test_a_run_elsewhere_is_judged_by_its_settings_alone(changes: dict[str, Any], said: str | None) -> None:
    config = PretrainConfig(**{"recipe": NANO3, "model": model_block("default"), **changes})
    found = recipe.preflight(config, connect=False, here=False)
    assert [said in problem for problem in found] == ([True] if said else [])


def test_without_transformers_a_strange_field_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_size, "find_spec", lambda _: None)
    config = PretrainConfig(recipe=NANO3, model={"hiden_size": 96})
    (note,) = recipe.preflight(config, connect=False, here=False)
    assert isinstance(note, Note) and "model.hiden_size" in note and "Did you mean hidden_size" in note


def test_the_fields_are_transformers_own() -> None:
    from dataclasses import fields as fields_of

    from transformers import NemotronHConfig

    assert {field.name for field in fields_of(NemotronHConfig)} <= model_size.FIELDS


def test_this_machines_memory_is_known() -> None:
    have, whose = available_bytes()
    assert 2**28 < have < 2**50 and whose.startswith("this machine")
