"""The loss of GRPO: advantages of answers, and the loss of each token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemotron_kit.training.grpo_config import LossBlock

if TYPE_CHECKING:
    import torch


def advantages(rewards: torch.Tensor, *, leave_one_out: bool, normalize: bool) -> torch.Tensor:
    """The advantage of each answer over the others to its prompt, [prompts, answers], from the rewards, [prompts,
    answers].

    GRPO (Shao et al., arXiv 2402.03300): the baseline is the mean of all answers, or of the others (leave-one-out:
    RLOO, Ahmadian et al., arXiv 2402.14740); with `normalize` the scale is their standard deviation, if it is not 0. A
    prompt whose answers have equal rewards gets advantages of 0. Both are float32.
    """
    import torch

    values = rewards.double()
    count = values.shape[1]
    if leave_one_out:
        total, squares = values.sum(dim=1, keepdim=True), values.square().sum(dim=1, keepdim=True)
        mean = (total - values) / (count - 1)
        variance = (squares - values.square()) / (count - 1) - mean.square()
    else:
        mean = values.mean(dim=1, keepdim=True).expand_as(values)
        variance = values.square().mean(dim=1, keepdim=True) - mean.square()
    found = values - mean
    found = torch.where(values.amax(dim=1, keepdim=True) == values.amin(dim=1, keepdim=True), 0.0, found)
    if normalize:
        deviation = variance.clamp(min=0).sqrt()
        found = torch.where(deviation > 1e-6, found / deviation.clamp(min=1e-6), found)
    return found.float()


def token_losses(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    block: LossBlock,
    reference: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss of each token, float32 [tokens], and its divergence from the reference, [tokens] (None without one).

    `logprobs`, `old` and `reference` are the log probabilities (nats, [tokens]) of the sampled tokens by the model that
    is trained, by the one that sampled them, and by the reference; `advantages` is that of each token's answer,
    [tokens]. The objective is PPO's (Schulman et al., arXiv 1707.06347), clipped to 1 − ratio_clip_min … 1 +
    ratio_clip_max ("clip-higher": DAPO, Yu et al., arXiv 2503.14476). The divergence is estimated by k3: exp(d) − d − 1
    with d = reference − logprobs (Schulman, "Approximating KL Divergence", 2020, joschu.net/blog/kl-approx.html).
    """
    import torch

    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1 - block.ratio_clip_min, 1 + block.ratio_clip_max)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if reference is None:
        return loss, None
    difference = reference - logprobs
    if block.kl_input_clamp_value is not None:
        difference = difference.clamp(-block.kl_input_clamp_value, block.kl_input_clamp_value)
    divergence = difference.exp() - difference - 1
    if block.kl_output_clamp_value is not None:
        divergence = divergence.clamp(max=block.kl_output_clamp_value)
    return loss + block.reference_policy_kl_penalty * divergence, divergence
