"""Dealing: every cell goes to one shard, shards are even, and no split gets only the end of a source."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_kit.data_prep.planning import apportion, assign_shards
from nemotron_kit.data_prep.shard_plan import SourceFile

MB = 1 << 20


def files(*sizes: int, ending: str = ".jsonl") -> list[SourceFile]:
    return [SourceFile(f"/d/{n}{ending}", size, f"id{n}") for n, size in enumerate(sizes)]


def fractions(pieces: tuple, sizes: list[int]) -> float:
    return sum(sizes[piece.file] * len(piece.parts) / piece.of for piece in pieces)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 500 * MB), min_size=1, max_size=12),
    shards=st.integers(1, 12),
    ending=st.sampled_from([".jsonl", ".jsonl.gz", ".parquet", ".txt"]),
)
def test_each_part_of_each_file_is_dealt_once(sizes: list[int], shards: int, ending: str) -> None:
    dealt = assign_shards(files(*sizes, ending=ending), [1 / shards] * shards)
    parts: dict[int, list[int]] = {}
    for pieces in dealt:
        for piece in pieces:
            parts.setdefault(piece.file, []).extend(piece.parts)
            assert piece.parts
    assert {file: sorted(found) for file, found in parts.items()} == {
        n: list(range(next(p.of for pieces in dealt for p in pieces if p.file == n)))
        for n, size in enumerate(sizes)
        if size
    }


def test_shards_are_even_and_shares_are_met() -> None:
    sizes = [60 * MB, 3 * MB, 17 * MB]
    shares = [0.3, 0.3, 0.3, 0.05, 0.05]
    dealt = assign_shards(files(*sizes), shares)
    for pieces, share in zip(dealt, shares, strict=True):
        assert abs(fractions(pieces, sizes) / sum(sizes) - share) < 0.01


def test_a_held_out_shard_comes_from_all_over_the_source() -> None:
    held_out = assign_shards(files(600 * MB), [0.49, 0.49, 0.02])[2]
    parts = [part / piece.of for piece in held_out for part in piece.parts]
    assert min(parts) < 0.25
    assert max(parts) > 0.75


def test_one_compressed_file_is_dealt_out_and_many_are_left_whole() -> None:
    assert all(pieces for pieces in assign_shards(files(50 * MB, ending=".jsonl.gz"), [0.125] * 8))
    many = assign_shards(files(*[50 * MB] * 64, ending=".jsonl.gz"), [0.125] * 8)
    assert all(piece.of == 1 for pieces in many for piece in pieces)


def test_the_deal_depends_on_its_input_only() -> None:
    assert assign_shards(files(5 * MB, 9 * MB), [0.5, 0.5]) == assign_shards(files(5 * MB, 9 * MB), [0.5, 0.5])


def test_no_bytes_no_pieces() -> None:
    assert assign_shards(files(0), [0.5, 0.5]) == [(), ()]
    assert assign_shards([], [1.0]) == [()]


@settings(deadline=None)
@given(sizes=st.lists(st.floats(0, 1e12), min_size=1, max_size=20), count=st.integers(1, 200))
def test_apportion_gives_each_source_one_and_adds_up(sizes: list[float], count: int) -> None:
    shares = apportion(count, sizes)
    assert min(shares) >= 1
    assert sum(shares) == max(count, len(sizes))


def test_apportion_follows_sizes() -> None:
    assert apportion(8, [600, 100, 100]) == [6, 1, 1]
