from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_kit.training.data import Interleave, key, permute


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_permute_is_a_permutation(size: int, seed: int) -> None:
    places = permute(np.arange(size, dtype=np.uint64), size, key(seed))
    assert sorted(places.tolist()) == list(range(size))


def test_one_entry_is_found_without_the_others() -> None:
    whole = permute(np.arange(1000, dtype=np.uint64), 1000, key(5))
    assert [int(permute(np.array([n], np.uint64), 1000, key(5))[0]) for n in (0, 17, 999)] == whole[
        [0, 17, 999]
    ].tolist()


def test_keys_give_different_shuffles_in_one_call() -> None:
    index = np.tile(np.arange(50, dtype=np.uint64), 2)
    both = permute(index, 50, key(1, np.repeat(np.arange(2, dtype=np.uint64), 50)))
    assert sorted(both[:50].tolist()) == sorted(both[50:].tolist()) == list(range(50))
    assert both[:50].tolist() != both[50:].tolist()


def test_the_shuffle_never_changes() -> None:
    """Its values are part of what resuming a run relies on, across machines and versions of numpy."""
    assert permute(np.arange(8, dtype=np.uint64), 8, key(1, 2, 3)).tolist() == [3, 5, 0, 6, 7, 1, 2, 4]


def test_a_shuffle_looks_shuffled() -> None:
    places = permute(np.arange(20000, dtype=np.uint64), 20000, key(9)).astype(np.int64)
    assert abs(np.corrcoef(np.arange(20000), places)[0, 1]) < 0.03
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.03


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), span=st.integers(1, 50), blocks=st.integers(1, 5)
)
def test_blocks_join_into_one_sequence(weights: list[float], span: int, blocks: int) -> None:
    interleave = Interleave(np.array(weights), span)
    seen: list[tuple[int, int]] = []
    for block in range(blocks):
        first, sources, items = interleave.block(block)
        assert first == len(seen)
        seen += list(zip(sources.tolist(), items.tolist(), strict=True))
    for source in range(len(weights)):  # each source's items come once each, in their order
        items_of = [item for number, item in seen if number == source]
        assert items_of == list(range(len(items_of)))
    for position in range(len(seen)):
        assert interleave.block(interleave.block_of(position))[0] <= position


def test_every_stretch_holds_the_shares() -> None:
    interleave = Interleave(np.array([7.0, 2.0, 1.0]), span=1000)
    sources = np.concatenate([interleave.block(block)[1] for block in range(3)])
    for start in range(0, 2900, 100):
        counts = np.bincount(sources[start : start + 100], minlength=3)
        assert np.abs(counts - [70, 20, 10]).max() <= 1


def test_weights_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        Interleave(np.array([1.0, 0.0]))
