from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training.checkpoint import export_model
from nemotron_kit.training.model import layer_types, load_model, model_config, new_model, with_data_settings

from .test_state import BLOCK


def test_a_pattern_is_a_letter_a_layer() -> None:
    assert layer_types({"hybrid_override_pattern": "M*E-"}) == ["linear_attention", "full_attention", "moe", "mlp"]
    assert layer_types({"layers_block_type": ["moe"]}) == ["moe"]
    for pattern in ("MXE", ""):
        with pytest.raises(UserError, match=r"model\.hybrid_override_pattern"):
            layer_types({"hybrid_override_pattern": pattern})


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ({"hiden_size": 4}, r"model\.hiden_size: NemotronHConfig has no such field; did you mean hidden_size"),
        ({"hidden_size": "large"}, "hidden_size.*expected int"),
        ({"hybrid_override_pattern": "ME", "num_hidden_layers": 3}, "num_hidden_layers is 3, but the pattern has 2"),
    ],
)
def test_a_wrong_model_block_is_named(block: dict, error: str) -> None:
    with pytest.raises(UserError, match=error):
        model_config({"vocab_size": 8, **block})


def test_the_data_says_what_the_block_does_not(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({"metadata": {"vocab_size": 77, "eos_id": 5, "bos_id": None}}))
    filled = with_data_settings({"hidden_size": 8}, tmp_path)
    assert filled == {
        "hidden_size": 8,
        "vocab_size": 77,
        "eos_token_id": 5,
        "bos_token_id": None,
        "pad_token_id": 5,
    }
    assert with_data_settings({"vocab_size": 99, "eos_token_id": 1}, tmp_path)["vocab_size"] == 99
    assert with_data_settings({"vocab_size": 99, "eos_token_id": 1}, tmp_path)["eos_token_id"] == 1


def test_a_tokenizer_beside_the_data_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    added = [{"id": 8, "content": "<eos>"}, {"id": 3, "content": "b"}]  # b is 9 all the same: so tokenizers reads it
    tokenizer = {"model": {"vocab": {"a": 0, "b": 9}}, "added_tokens": added}
    (tmp_path / "tokenizer/tokenizer.json").write_text(json.dumps(tokenizer))
    assert with_data_settings({}, tmp_path) == {"vocab_size": 10}


def test_no_vocabulary_and_broken_metadata_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives the vocabulary size[\s\S]*model\.vocab_size"):
        with_data_settings({}, tmp_path)
    (tmp_path / "metadata.json").write_text('{"vocab_size": ')
    with pytest.raises(UserError, match=r"metadata\.json: broken JSON"):
        with_data_settings({}, tmp_path)


def test_weights_that_are_no_weights_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model here"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nemotron_h", "architectures": ["x"]}))
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(UserError, match="the model can't be read"):
        load_model(tmp_path)


def test_weights_that_lack_tensors_or_have_more_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    export_model(new_model(model_config(BLOCK), 1), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    gone, kept = sorted(whole)[:3], sorted(whole)[3:]
    save_file({name: whole[name] for name in kept}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"not those of its config\. 3 tensors are missing: ") as missing:
        load_model(tmp_path)
    assert all(name.removeprefix("backbone.") in missing.value.message for name in gone)
    save_file({**whole, "odd.weight": whole[gone[0]].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are none of the model's: odd\.weight"):
        load_model(tmp_path)
    save_file(whole, path, metadata={"format": "pt"})
    load_model(tmp_path)


def test_settings_hold_for_given_weights_or_are_refused_by_name(tmp_path: Path) -> None:
    export_model(new_model(model_config(BLOCK), 1), tmp_path)
    model = load_model(tmp_path, {"num_experts_per_tok": 1, "routed_scaling_factor": 3.0, "hidden_size": 16})
    routers = [module for module in model.modules() if hasattr(module, "e_score_correction_bias")]
    assert (model.config.num_experts_per_tok, model.config.routed_scaling_factor) == (1, 3.0)
    assert [(router.top_k, router.routed_scaling_factor) for router in routers] == [(1, 3.0)]
    for name, value in (("hidden_size", 8), ("moe_intermediate_size", 4), ("layers_block_type", ["moe"])):
        with pytest.raises(UserError, match=rf"a different model: model\.{name} is .* there and .* here"):
            load_model(tmp_path, {name: value})


def test_word_by_word_it_says_what_it_says_at_once(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    block = {**BLOCK, "hybrid_override_pattern": "MEM*"}
    model = new_model(model_config(block), 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                parameter.fill_(-8.0)  # softplus of it is less than time_step_min
            elif name.endswith("mixer.D"):
                parameter.zero_()
            elif parameter.dim() > 1:
                parameter.mul_(6)
    export_model(model, tmp_path)
    tokens = torch.arange(24).reshape(1, 24)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    for same in (model.eval(), load_model(tmp_path).eval(), plain.eval()):
        with torch.no_grad():
            at_once = same(input_ids=tokens, use_cache=False).logits
            told = same(input_ids=tokens[:, :8], use_cache=True)
            for position in range(8, 24):
                assert (told.logits[:, -1] - at_once[:, position - 1]).abs().max() < 1e-5
                next_one = tokens[:, position : position + 1]
                told = same(input_ids=next_one, past_key_values=told.past_key_values, use_cache=True)
