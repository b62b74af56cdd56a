from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.training.data import BatchSampler, BlendSamples, collate, read_blend


def batches(samples: BlendSamples, **changes: int) -> BatchSampler:
    fields = {"first_step": 1, "last_step": 5, "global_batch_size": 8, "micro_batch_size": 2, "vocab_size": 64}
    return BatchSampler(samples, **{**fields, **changes})


@pytest.fixture
def samples(tiny_data: Path) -> BlendSamples:
    return BlendSamples(read_blend(tiny_data)["train"], 16, seed=1)


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 1), (2, 2), (4, 2), (8, 1)])
def test_a_step_takes_the_same_samples_however_it_is_split(samples: BlendSamples, world: int, micro: int) -> None:
    for step in (1, 2, 5):
        taken = [
            position
            for rank in range(world)
            for part in range(8 // (world * micro))
            for position in batches(samples, micro_batch_size=micro, rank=rank, world_size=world).positions(step, part)
        ]
        assert sorted(taken) == list(range(8 * (step - 1), 8 * step))


def test_a_resumed_run_goes_on_where_it_was(samples: BlendSamples) -> None:
    whole = [batch["input_ids"].tolist() for batch in batches(samples)]
    rest = [batch["input_ids"].tolist() for batch in batches(samples, first_step=4)]
    assert len(batches(samples)) == len(whole) == 20
    assert rest == whole[12:]
    other = batches(samples, first_step=4, first_sample=12)  # three steps of 4 came before
    assert [other.positions(step, 0) for step in (4, 5)] == [range(12, 14), range(20, 22)]


def test_labels_are_the_next_tokens(samples: BlendSamples) -> None:
    batch = next(iter(batches(samples)))
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 16)
    assert batch["input_ids"].tolist()[0] == samples[0][:-1].tolist()
    assert batch["labels"].tolist()[0] == samples[0][1:].tolist()


def test_a_token_that_the_model_lacks_is_an_error(samples: BlendSamples) -> None:
    with pytest.raises(UserError, match=r"The data holds token \d+, but the model's vocabulary has 40"):
        list(batches(samples, vocab_size=40))
    with pytest.raises(UserError, match=r"The data holds token -3; tokens are numbers from 0"):
        collate({0: np.array([1, -3, 5])}, range(1), 40)  # type: ignore[arg-type]
