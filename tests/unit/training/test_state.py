from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from nemotron_kit.errors import UserError
from nemotron_kit.training.checkpoint import export_model, save_optimizer
from nemotron_kit.training.loop import build_optimizer
from nemotron_kit.training.lora import save_adapters
from nemotron_kit.training.model import load_model, model_config, new_model
from nemotron_kit.training.pretrain_config import TrainConfig
from nemotron_kit.training.sharded import load_optimizer

BLOCK = {
    "hybrid_override_pattern": "ME*",
    "vocab_size": 32,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "mamba_num_heads": 2,
    "mamba_head_dim": 8,
    "ssm_state_size": 4,
    "n_groups": 1,
    "chunk_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "moe_shared_expert_intermediate_size": 8,
}


def stepped(model, optimizer) -> None:
    logits = model(input_ids=torch.arange(32).reshape(2, 16)).logits
    logits.logsumexp(-1).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_step_after_loading_is_the_step_without(tmp_path: Path) -> None:
    model = new_model(model_config(BLOCK), seed=1)
    optimizer = build_optimizer(TrainConfig(), model)
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias.copy_(torch.linspace(-1, 1, 4))
    stepped(model, optimizer)
    export_model(model, tmp_path / "model")
    save_optimizer(optimizer, model, tmp_path / "optimizer.safetensors")

    other = load_model(tmp_path / "model")
    assert all(torch.equal(a, other.state_dict()[name]) for name, a in model.state_dict().items())
    other_optimizer = build_optimizer(TrainConfig(), other)
    load_optimizer(other_optimizer, other, tmp_path / "optimizer.safetensors")
    stepped(model, optimizer)
    stepped(other, other_optimizer)
    assert all(torch.equal(a, other.state_dict()[name]) for name, a in model.state_dict().items())


def test_what_is_saved_is_safe_to_open(tmp_path: Path) -> None:
    model = new_model(model_config(BLOCK), seed=1)
    export_model(model, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors"}
    assert not model.config.use_cache or load_model(tmp_path).config.use_cache


def test_a_disk_that_refuses_is_an_os_error_whatever_is_written(tmp_path: Path) -> None:
    """The other processes hear of an OSError, and of nothing else (processes.on_all_ranks)."""
    model = new_model(model_config(BLOCK), seed=1)
    optimizer = build_optimizer(TrainConfig(), model)
    stepped(model, optimizer)
    gone = tmp_path / "gone" / "file"
    for write in (partial(save_optimizer, optimizer, model), partial(save_adapters, model)):
        with pytest.raises(OSError, match="No such file"):
            write(gone)


def test_another_models_state_is_refused(tmp_path: Path) -> None:
    model, other = (new_model(model_config({**BLOCK, "hybrid_override_pattern": p}), seed=1) for p in ("ME*", "MEM"))
    optimizer = build_optimizer(TrainConfig(), model)
    stepped(model, optimizer)
    save_optimizer(optimizer, model, tmp_path / "o.safetensors")
    with pytest.raises(UserError, match="doesn't fit the model"):
        load_optimizer(build_optimizer(TrainConfig(), other), other, tmp_path / "o.safetensors")


def test_the_same_seed_is_the_same_model() -> None:
    a, b, c = (new_model(model_config(BLOCK), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_one_dimension_does_not_decay() -> None:
    model = new_model(model_config(BLOCK), seed=1)
    decayed, kept = build_optimizer(TrainConfig(weight_decay=0.3), model).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert all(p.dim() > 1 for p in decayed["params"]) and all(p.dim() == 1 for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))
