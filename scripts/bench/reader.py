"""Our shard reader against megatron-core's IndexedDataset, on the same file in the same run.

    python scripts/bench/reader.py [--documents 200000] [--rounds 5]

Prints documents/s and samples/s of both as ratios (medians of paired rounds), after checking that all documents are
identical. A sample is 1,024 + 1 consecutive tokens; Megatron is handed the offsets, ours works its own shuffle out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from nemotron_kit.training import BlendSamples, TokenShard
from nemotron_kit.training.data import BlendSource

SEQ_LENGTH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "shard")
        write(prefix, args.documents)
        ours, theirs = TokenShard(prefix), IndexedDataset(prefix)
        check(ours, theirs)
        documents = [(documents_per_second(ours), documents_per_second(theirs)) for _ in range(args.rounds)]
        show("documents", documents)
        samples = [sample_rates(prefix, theirs, args.samples) for _ in range(args.rounds)]
        show(f"samples of {SEQ_LENGTH}", samples)


def write(prefix: str, count: int) -> None:
    """Documents of lognormal length, about 300 tokens, written by Megatron's own builder."""
    random = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for length in np.clip(random.lognormal(5.3, 0.8, count).astype(int), 1, 20_000):
        builder.add_item(torch.from_numpy(random.integers(0, 60_000, length)))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def check(ours: TokenShard, theirs: IndexedDataset) -> None:
    assert len(ours) == len(theirs)
    assert all(np.array_equal(mine, theirs[n]) for n, mine in enumerate(ours)), "the documents differ"
    print(f"{len(ours):,} documents, {ours.token_count:,} tokens: identical")


def documents_per_second(dataset: TokenShard | IndexedDataset) -> float:
    def read() -> None:
        for index in range(len(dataset)):
            dataset[index]

    return len(dataset) / seconds(read)


def sample_rates(prefix: str, theirs: IndexedDataset, count: int) -> tuple[float, float]:
    ours = BlendSamples([BlendSource(1.0, prefix)], SEQ_LENGTH, seed=1)
    order = [int(ours[n].ctypes.data - ours.shards[0].tokens.ctypes.data) // 2 for n in range(count)]

    def read_ours() -> None:
        for position in range(count):
            ours[position]

    def read_theirs() -> None:
        for offset in order:
            theirs.get(0, offset, SEQ_LENGTH + 1)

    return count / seconds(read_ours), count / seconds(read_theirs)


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def show(what: str, rates: list[tuple[float, float]]) -> None:
    ratio = statistics.median(mine / other for mine, other in rates)
    mine, other = (statistics.median(pair[side] for pair in rates) for side in (0, 1))
    print(f"{what}: {mine:,.0f}/s, megatron-core {other:,.0f}/s: {ratio:.2f}x")


if __name__ == "__main__":
    main()
