"""Samples answers from the model in training, and computes the probabilities of their tokens.

The sample for a prompt depends on its key only, not on the rest of the batch, the process, or whether the run was
resumed: each token uses one random number of a stream seeded by the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from nemotron_kit.errors import UserError
from nemotron_kit.training import processes
from nemotron_kit.training.export import TURN_END
from nemotron_kit.training.parallel import head_logprobs, is_on_ranks, within

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# Identifies a sampled answer: seed, step, prompt, number of the answer.
Key = tuple[int, int, int, int]


@dataclass(frozen=True)
class Completion:
    """A generated answer: token ids, including the one that ends the turn if the model produced it (`ended`). `entropy`
    is the summed entropy (nats) of the distributions that the tokens were drawn from; 0 for a greedy answer."""

    ids: tuple[int, ...]
    ended: bool
    entropy: float = 0.0

    def text(self, tokenizer: Any) -> str:
        """Its text, without the token that ends the turn. Other special tokens stay: a turn that goes on in another one
        is not the answer."""
        ids = self.ids[:-1] if self.ended else self.ids
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def end_ids(model: Any, tokenizer: Any, more: Sequence[int] | None = None, *, required: bool = True) -> frozenset[int]:
    """The ids of the tokens that end an answer: `more`, those in the model's and its tokenizer's settings, and for a
    chat model the end of a turn. Raises UserError if there is none and one is `required`."""
    found: set[int] = set(more or ())
    for place in (model.generation_config, model.config, tokenizer):
        given = getattr(place, "eos_token_id", None)
        found |= set(given if isinstance(given, list | tuple) else [] if given is None else [given])
    # The end-of-turn token may be set in the tokenizer only.
    if getattr(tokenizer, "chat_template", None) and (turn_end := tokenizer.get_vocab().get(TURN_END)) is not None:
        found.add(turn_end)
    if required and not found:
        raise UserError("The model has no token that ends its turn (eos_token_id).", hint="Start from an SFT model.")
    return frozenset(int(one) for one in found)


@contextmanager
def answering(model: torch.nn.Module) -> Iterator[None]:
    """Within the block, the model is in eval mode and records no gradients."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    max_new_tokens: int | Sequence[int],
    *,
    pad: int = 0,
    temperature: float = 1.0,
    keys: Sequence[Key] | None = None,
) -> list[Completion]:
    """An answer to each prompt, all in one batch, of at most `max_new_tokens` (one number, or one a prompt); greedy
    without `keys`. Must be called within `answering`."""
    import torch

    if not prompts:
        return []
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    most = max(limits)
    device = model.lm_head.weight.device
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad, device=device)
    mask = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):  # padded on the left, so that all continue from the same column
        ids[number, longest - len(prompt) :] = torch.as_tensor(prompt, device=device)
        mask[number, longest - len(prompt) :] = 1
    numbers = None if keys is None else torch.from_numpy(uniform(keys, most)).to(device)
    ending = torch.as_tensor(sorted(ends), device=device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    # Ranks that share the model go on until all of them are done: each takes part in the others' passes.
    shared = is_on_ranks(model)
    passes = processes.max_over_ranks(most) if shared else most
    last = torch.as_tensor(limits, device=device) - 1
    entropy = torch.zeros(len(prompts), dtype=torch.float64, device=device)
    written: list[torch.Tensor] = []
    cache = None
    for at in range(passes):
        # The mask goes along in every step: what is padded is no part of a prompt.
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        if at < most and not (shared and bool(done.all())):  # else it is the others' pass
            logits = out.logits[:, -1].float()
            if numbers is None:
                chosen = logits.argmax(dim=-1)
            else:
                chosen, spread = drawn(logits / temperature, numbers[:, at])
                entropy += spread.masked_fill(done, 0.0)
            chosen = chosen.masked_fill(done, pad)
            written.append(chosen)
            done = done | torch.isin(chosen, ending) | (at >= last)
        unfinished = at + 1 < most and not bool(done.all())
        if not (processes.any_rank(unfinished) if shared else unfinished):
            break
        ids = chosen.unsqueeze(1)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    rows = zip(torch.stack(written, dim=1).tolist(), limits, entropy.tolist(), strict=True)
    return [_answer(row[:limit], ends, spread) for row, limit, spread in rows]


def drawn(logits: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens, [batch], selected by the random numbers in [0, 1), [batch], from the distributions of `logits`,
    [batch, vocabulary], by inverse transform sampling; and the entropies of these distributions."""
    import torch

    logs = logits.double().log_softmax(dim=-1)
    shares = logs.exp()
    entropy = -(shares * logs).sum(dim=-1)
    shares = shares.cumsum(dim=-1)
    chosen = torch.searchsorted(shares, (numbers * shares[:, -1]).unsqueeze(1), right=True).squeeze(1)
    return chosen.clamp(max=logits.shape[-1] - 1), entropy


def uniform(keys: Sequence[Key], count: int) -> NDArray[Any]:
    """`count` random numbers in [0, 1) for each key, float64 [keys, count]: a key is that of a Philox generator
    (Salmon et al., SC 2011)."""
    import numpy as np

    streams = []
    for key in keys:
        words = int.from_bytes(hashlib.blake2b(repr(key).encode("ascii"), digest_size=16).digest(), "big")
        streams.append(np.random.Generator(np.random.Philox(key=words)).random(count))
    return np.stack(streams)


def _answer(row: list[int], ends: frozenset[int], entropy: float) -> Completion:
    for at, token in enumerate(row):
        if token in ends:
            return Completion(tuple(row[: at + 1]), True, entropy)
    return Completion(tuple(row), False, entropy)


class TokenProbabilities(NamedTuple):
    """For every generated token, [tokens], answer by answer: its log probability, and the number of its answer."""

    logprobs: torch.Tensor
    answers: torch.Tensor


def probabilities(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Completion],
    temperature: float,
    *,
    pad: int = 0,
    chunk: int | None = None,
) -> TokenProbabilities:
    """The log probabilities of the answers' tokens in one forward pass, right-padded: in a causal model padding does
    not affect the tokens before it. The head is applied only at the positions needed."""
    import torch

    device = model.lm_head.weight.device
    sequences = [[*prompt, *answer.ids] for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.full((len(sequences), max(map(len, sequences))), pad)
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    for number, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
        ids[number, : len(sequence)] = torch.as_tensor(sequence)
        wanted[number, len(prompt) - 1 : len(sequence) - 1] = True
    ids, wanted = ids.to(device), wanted.to(device)
    taken = ids[:, 1:][wanted[:, :-1]]

    def both() -> torch.Tensor:
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        return head_logprobs(model.lm_head, hidden[wanted[:, :-1]], taken, temperature, chunk)

    logprobs = within(model, both)
    rows = torch.arange(len(sequences), device=device).unsqueeze(1).expand_as(ids[:, :-1])
    return TokenProbabilities(logprobs, rows[wanted[:, :-1]])
