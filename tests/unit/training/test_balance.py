from __future__ import annotations

import torch

from nemotron_kit.training.model import ExpertBalance, model_config, new_model

BLOCK = {
    "hybrid_override_pattern": "E*E",
    "vocab_size": 32,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "moe_shared_expert_intermediate_size": 8,
}


def biases(model) -> list[torch.Tensor]:
    return [module.e_score_correction_bias for module in model.modules() if hasattr(module, "e_score_correction_bias")]


def test_busy_experts_lose_and_idle_ones_gain() -> None:
    model = new_model(model_config(BLOCK), seed=0).train()
    balance = ExpertBalance(model, rate=0.25)
    model(input_ids=torch.arange(32).reshape(2, 16))
    counts = [load.clone() for _, load in balance.loads]
    assert [int(count.sum()) for count in counts] == [32, 32]  # one expert a token
    balance.update()
    for bias, count in zip(biases(model), counts, strict=True):
        assert torch.equal(bias, 0.25 * torch.sign(8.0 - count))
    balance.update()  # nothing was seen since: nobody is above or below the average
    for bias, count in zip(biases(model), counts, strict=True):
        assert torch.equal(bias, 0.25 * torch.sign(8.0 - count))


def test_held_out_text_does_not_count() -> None:
    model = new_model(model_config(BLOCK), seed=0).eval()
    balance = ExpertBalance(model, rate=0.25)
    model(input_ids=torch.arange(32).reshape(2, 16))
    balance.update()
    assert all(bias.eq(0).all() for bias in biases(model))


def test_padding_does_not_count() -> None:
    model = new_model(model_config(BLOCK), seed=0).train()
    balance = ExpertBalance(model, rate=0.25)
    real = torch.arange(16) < torch.tensor([[16], [5]])
    with balance.counting(real):
        model(input_ids=torch.arange(32).reshape(2, 16))
    assert [int(load.sum()) for _, load in balance.loads] == [21, 21]
    model(input_ids=torch.arange(32).reshape(2, 16))
    assert [int(load.sum()) for _, load in balance.loads] == [53, 53]


def test_rate_zero_watches_nothing() -> None:
    assert ExpertBalance(new_model(model_config(BLOCK), seed=0), rate=0.0).loads == []


def test_load_becomes_even() -> None:
    model = new_model(model_config(BLOCK), seed=3).train()
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.weight.data.mul_(20)  # routers with strong preferences
    balance = ExpertBalance(model, rate=0.01)
    tokens = torch.randint(32, (8, 64), generator=torch.Generator().manual_seed(0))

    def spread() -> float:
        with torch.no_grad():
            model(input_ids=tokens)
        counts = torch.stack([load for _, load in balance.loads]).double()
        return float((counts.max(dim=1).values / counts.mean(dim=1)).max())

    before = spread()
    for _ in range(60):
        balance.update()
        after = spread()
    assert before > 1.4 and after < 1.2, (before, after)
