"""Held-out loss: the mean over every token of the valid windows, exact for any number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemotron_kit.training.batches import collate
from nemotron_kit.training.ranks import rank, sum_over_ranks, world_size
from nemotron_kit.training.trainer import summed_nll

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nemotron_kit.training.samples import HeldOutSamples


def held_out_loss(model: PreTrainedModel, samples: HeldOutSamples, batch_size: int) -> float:
    """The mean negative log likelihood (nats a token) of the windows; each rank reads its share of them."""
    import torch

    total = torch.zeros(1, dtype=torch.float64, device=model.device)
    starts = range(rank() * batch_size, len(samples), world_size() * batch_size)
    model.eval()
    with torch.no_grad():
        for start in starts:
            positions = range(start, min(start + batch_size, len(samples)))
            batch = collate(samples, positions, model.config.vocab_size)
            logits = model(input_ids=batch["input_ids"].to(model.device)).logits
            total += summed_nll(logits, batch["labels"].to(model.device))
    model.train()
    return float(sum_over_ranks(total).item()) / (len(samples) * samples.seq_length)
