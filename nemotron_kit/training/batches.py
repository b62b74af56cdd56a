"""Micro-batches of a range of steps, in an order that does not depend on how many processes share the work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    import torch

    from nemotron_kit.training.samples import Window


class Samples(Protocol):
    """Windows of seq_length + 1 tokens by number."""

    seq_length: int

    def __getitem__(self, position: int, /) -> Window: ...


@dataclass(frozen=True)
class Batches:
    """This rank's micro-batches of the steps first_step, first_step + 1, … last_step (counted from 1).

    Step s takes samples (s − 1)·global_batch_size … s·global_batch_size − 1, dealt to the ranks micro-batch by
    micro-batch. Yields {"input_ids", "labels"}, both int64 [micro_batch_size, seq_length]; labels are the next tokens.
    """

    samples: Samples
    first_step: int
    last_step: int
    global_batch_size: int
    micro_batch_size: int
    vocab_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def per_step(self) -> int:
        """Micro-batches a step on one rank: the gradient accumulation."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted in one step, over all ranks."""
        return self.global_batch_size * self.samples.seq_length

    def __len__(self) -> int:
        return (self.last_step - self.first_step + 1) * self.per_step

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(self.first_step, self.last_step + 1):
            for micro in range(self.per_step):
                yield collate(self.samples, self.positions(step, micro), self.vocab_size)

    def positions(self, step: int, micro: int) -> range:
        """The samples of this rank's micro-batch number `micro` (from 0) of `step`."""
        first = (step - 1) * self.global_batch_size + (micro * self.world_size + self.rank) * self.micro_batch_size
        return range(first, first + self.micro_batch_size)


def collate(samples: Samples, positions: range, vocab_size: int) -> dict[str, Any]:
    """{"input_ids", "labels"} of the samples at `positions`; UserError for a token that the model doesn't have."""
    import torch

    windows = np.stack([samples[position] for position in positions]).astype(np.int64, copy=False)
    largest = int(windows.max())
    if largest >= vocab_size or int(windows.min()) < 0:
        raise UserError(
            f"The data holds token {largest}, but the model's vocabulary has {vocab_size} (model.vocab_size).",
            hint=f"Set model.vocab_size={largest + 1} or more, or train on data made with the model's tokenizer.",
        )
    tokens = torch.from_numpy(windows)
    return {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
