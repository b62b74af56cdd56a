"""Chat data's preparation against template and tokenizer alone, and the speed of packing.

    python scripts/bench/sft_prep.py [--megabytes 30] [--rounds 5] [--memory-at 300]

The floor holds all conversations in memory, renders each with the compiled template, encodes the texts at its best
batch size and keeps nothing. Ours is all of `run_sft_data_prep`: plan, hashes, workers, filters, prompts and answers
apart, packing, Parquet, report, artifact. Rounds are paired, ratios are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import data_prep as texts
import numpy as np

from nemotron_kit.data_prep.packing import WINDOW, pack, rows_of

BATCHES = (64, 256, 1024)
FLOOR = """
import sys, time, json
from tokenizers import Tokenizer
from nemotron_kit.data_prep.chat import TEMPLATES
from transformers.utils.chat_template_utils import _compile_jinja_template
tokenizer = Tokenizer.from_file(sys.argv[1])
render = _compile_jinja_template(TEMPLATES["nano3"].read_text()).render
records = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
for size in map(int, sys.argv[3:]):
    began, spent = time.perf_counter(), time.process_time()
    for start in range(0, len(records), size):
        shown = [render(messages=record["messages"]) for record in records[start : start + size]]
        tokenizer.encode_batch_fast(shown, add_special_tokens=False)
    print(size, time.perf_counter() - began, time.process_time() - spent)
"""
OURS = """
import sys, time, resource
began = time.perf_counter()
from nemotron_kit.data_prep.config import SftPrepConfig
from nemotron_kit.data_prep.sft_prep import run_sft_data_prep
run_sft_data_prep(SftPrepConfig(
    blend_path=sys.argv[2], output_dir=sys.argv[3], tokenizer_model=sys.argv[1], num_shards=2, pack_size=4096,
))
seconds = time.perf_counter() - began
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(seconds, max(u.ru_maxrss for u in used) / 1024, sum(u.ru_utime + u.ru_stime for u in used))
"""


def write_talks(path: Path, megabytes: int) -> None:
    """Conversations of one to four turns out of this environment's Python files; some with reasoning."""
    rng = random.Random(1)
    source = path.with_name("texts.jsonl")
    texts.write_corpus(source, megabytes)
    pieces = (json.loads(line)["text"] for line in source.open(encoding="utf-8"))
    with path.open("w", encoding="utf-8") as out:
        while messages := turns(pieces, rng):
            out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    source.unlink()


def turns(pieces: object, rng: random.Random) -> list[dict[str, str]]:
    messages = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        text = next(pieces, None)  # type: ignore[call-overload]
        if text is None:
            break
        cut = len(text) // 4
        messages += [{"role": "user", "content": text[:cut]}, {"role": "assistant", "content": text[cut:]}]
    if len(messages) == 2 and rng.random() < 0.3:
        answer = messages[1]
        half = len(answer["content"]) // 2
        messages[1] = {**answer, "reasoning_content": answer["content"][:half], "content": answer["content"][half:]}
    return messages


def packing_speed(windows: int) -> tuple[float, float]:
    """(million tokens a CPU-second, how full) of first_fit_decreasing in windows of 10,000 sequences, rows built; after
    one that loads what is needed."""
    rng = np.random.default_rng(0)
    seconds = tokens = rows = 0.0
    for window in range(windows + 1):
        lengths = np.clip(rng.lognormal(6.3, 1.0, WINDOW).astype(np.int64), 16, 4096)
        ids = [rng.integers(0, 1 << 17, length, dtype=np.int32) for length in lengths.tolist()]
        masks = [np.ones(length, dtype=np.uint8) for length in lengths.tolist()]
        began = time.process_time()
        table = rows_of(ids, masks, lengths, pack(lengths, 4096, "first_fit_decreasing"))
        if window:
            seconds += time.process_time() - began
            tokens += int(lengths.sum())
            rows += table.num_rows
    return tokens / seconds / 1e6, tokens / rows / 4096


def ours(folder: Path, tokenizer: Path, source: Path) -> tuple[float, float, float]:
    """(seconds, peak megabytes of the largest process, CPU-seconds of all)."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        [[seconds, peak, spent]] = texts.child(OURS, tokenizer, texts.blend(folder, source), out)
    return seconds, peak, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-at", type=int, help="also the peak memory at this many megabytes, such as 300")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare(args.prepare, args.megabytes)
        return
    speed, full = packing_speed(10)
    print(f"packing: {speed:.0f} M tokens a CPU-second (goal 200) in windows of {WINDOW:,}")
    print(f"first_fit_decreasing: {100 * full:.2f} % full (goal 99.5)")
    with tempfile.TemporaryDirectory(prefix="bench-sft-prep-") as name:
        folder = Path(name)
        # In another process: a child's peak memory counts from its parent's.
        subprocess.run(
            [sys.executable, __file__, "--prepare", name, "--megabytes", str(args.megabytes)], check=True
        )  # fmt: skip
        compare(args, folder)


def prepare(folder: Path, megabytes: int) -> None:
    write_talks(folder / "talks.jsonl", megabytes)
    texts.write_corpus(folder / "corpus.jsonl", 5)
    texts.write_tokenizer(folder / "corpus.jsonl", folder / "tokenizer.json")


def compare(args: argparse.Namespace, folder: Path) -> None:
    tokenizer, talks = folder / "tokenizer.json", folder / "talks.jsonl"
    megabytes = talks.stat().st_size / 1e6
    timed = texts.child(FLOOR, tokenizer, talks, *BATCHES)
    best = int(min(timed, key=lambda row: row[1])[0])
    print(f"floor: batches of {best} conversations; {megabytes:.0f} MB, {os.cpu_count()} CPUs")
    ratios, spent, peaks = [], [], []
    for number in range(args.rounds):
        _, floor, floor_spent = texts.child(FLOOR, tokenizer, talks, best)[0]
        seconds, peak, ours_spent = ours(folder, tokenizer, talks)
        ratios.append(floor / seconds)
        spent.append(floor_spent / ours_spent)
        peaks.append(peak)
        print(f"round {number + 1}: floor {megabytes / floor:.2f} MB/s, ours {megabytes / seconds:.2f} MB/s")
    print(f"prep sft: {statistics.median(ratios):.2f}x of template and tokenizer alone (goal 0.7x)")
    print(f"in CPU-seconds, start-up included: {statistics.median(spent):.2f}x")
    if args.memory_at:
        write_talks(folder / "large.jsonl", args.memory_at)
        _, peak, _ = ours(folder, tokenizer, folder / "large.jsonl")
        print(f"memory: {max(peaks):.0f} MB a process at {args.megabytes} MB, {peak:.0f} MB at {args.memory_at} MB")


if __name__ == "__main__":
    main()
