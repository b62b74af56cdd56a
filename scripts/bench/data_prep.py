"""Data prep against the tokenizer alone: how much of `encode_batch_fast`'s speed is left when files come and go.

    python scripts/bench/data_prep.py [--megabytes 60] [--rounds 5] [--memory-at 600] [--datatrove]

The floor holds all texts in memory, encodes them at its best batch size and keeps nothing. Ours is all of
`run_data_prep`: plan, hashes, workers' start, shards, blend.json, artifact. Rounds are paired, ratios are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

BATCHES = (64, 128, 256, 512, 1024)
FLOOR = """
import sys, time, json
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = [json.loads(line)["text"] for line in open(sys.argv[2], encoding="utf-8")]
for size in map(int, sys.argv[3:]):
    began = time.perf_counter()
    for start in range(0, len(texts), size):
        tokenizer.encode_batch_fast(texts[start : start + size], add_special_tokens=False)
    print(size, time.perf_counter() - began)
"""
OURS = """
import sys, time, resource
began = time.perf_counter()
from nemotron_kit.data_prep import DataPrepConfig, run_data_prep
run_data_prep(DataPrepConfig(blend_path=sys.argv[2], output_dir=sys.argv[3], tokenizer_model=sys.argv[1], num_shards=8))
seconds = time.perf_counter() - began
peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(seconds, max(peaks) / 1024)
"""
DATATROVE = """
import sys, time, os
if __name__ == "__main__":
    began = time.perf_counter()
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer
    steps = [
        JsonlReader(os.path.dirname(sys.argv[2]), glob_pattern=os.path.basename(sys.argv[2])),
        MegatronDocumentTokenizer(sys.argv[3], tokenizer_name_or_path=sys.argv[1], eos_token="</s>"),
    ]
    LocalPipelineExecutor(pipeline=steps, tasks=1, workers=1, logging_dir=sys.argv[3] + "/logs").run()
    print(time.perf_counter() - began)
"""


def write_corpus(path: Path, megabytes: int) -> None:
    """Documents of log-normal length, cut from the Python files of this environment."""
    rng = random.Random(0)
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    files = sorted({file for root in roots for file in root.rglob("*.py")})
    rng.shuffle(files)
    left = megabytes * 1_000_000
    with path.open("w", encoding="utf-8") as out:
        while left > 0:
            for file in files:
                text = file.read_text(encoding="utf-8", errors="replace")
                while text and left > 0:
                    cut = max(64, int(rng.lognormvariate(7.5, 1.0)))
                    left -= out.write(json.dumps({"text": text[:cut]}, ensure_ascii=False) + "\n")
                    text = text[cut:]


def write_parquet(source: Path, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [json.loads(line)["text"] for line in source.open(encoding="utf-8")]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=2_000)


def write_tokenizer(source: Path, path: Path) -> None:
    """A byte-level BPE of 32,000 tokens, trained on a fifth of the corpus."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [json.loads(line)["text"] for line in source.open(encoding="utf-8")]
    tokenizer.train_from_iterator(texts[::5], trainer)
    tokenizer.save(str(path))


def child(code: str, *arguments: object) -> list[list[float]]:
    """The lines of numbers that code prints, run in another process."""
    env = {**os.environ, "NEMOTRON_HOME": tempfile.gettempdir() + "/bench-home"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [[float(field) for field in line.split()] for line in done.stdout.splitlines()]


def blend(folder: Path, source: Path) -> Path:
    path = folder / f"{source.name}.blend.json"
    path.write_text(json.dumps({"datasets": [{"name": "bench", "path": str(source)}]}), encoding="utf-8")
    return path


def ours(folder: Path, tokenizer: Path, source: Path) -> tuple[float, float]:
    """(seconds, peak megabytes of the largest process)."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        [[seconds, peak]] = child(OURS, tokenizer, blend(folder, source), out)
    return seconds, peak


def datatrove(folder: Path, tokenizer: Path, source: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        script = folder / "datatrove_run.py"
        script.write_text(DATATROVE, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script), str(tokenizer), str(source), out], capture_output=True, text=True, check=True
        )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-at", type=int, help="also the peak memory at this many megabytes, such as 600")
    parser.add_argument("--datatrove", action="store_true", help="also datatrove's MegatronDocumentTokenizer")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare(args.prepare, args.megabytes)
        return
    with tempfile.TemporaryDirectory(prefix="bench-data-prep-") as name:
        folder = Path(name)
        # In another process: a child's peak memory counts from its parent's.
        command = [sys.executable, __file__, "--prepare", name, "--megabytes", str(args.megabytes)]
        subprocess.run(command, check=True)
        compare(args, folder)
        if args.memory_at:
            write_corpus(folder / "large.jsonl", args.memory_at)
            _, peak = ours(folder, folder / "tokenizer.json", folder / "large.jsonl")
            print(f"jsonl of {args.memory_at} MB: peak {peak:.0f} MB a process (goal 150 MB)")


def prepare(folder: Path, megabytes: int) -> None:
    write_corpus(folder / "corpus.jsonl", megabytes)
    write_parquet(folder / "corpus.jsonl", folder / "corpus.parquet")
    write_tokenizer(folder / "corpus.jsonl", folder / "tokenizer.json")


def compare(args: argparse.Namespace, folder: Path) -> None:
    tokenizer, jsonl, parquet = (folder / name for name in ("tokenizer.json", "corpus.jsonl", "corpus.parquet"))
    megabytes = jsonl.stat().st_size / 1e6
    timed = child(FLOOR, tokenizer, jsonl, *BATCHES)
    best = int(min(timed, key=lambda row: row[1])[0])
    print(f"floor: batches of {best} documents; {megabytes:.0f} MB, {os.cpu_count()} CPUs")
    ratios: dict[str, list[float]] = {"jsonl": [], "parquet": [], "datatrove": []}
    peaks: dict[str, float] = {"jsonl": 0.0, "parquet": 0.0}
    for number in range(args.rounds):
        floor = child(FLOOR, tokenizer, jsonl, best)[0][1]
        for kind, source in (("jsonl", jsonl), ("parquet", parquet)):
            seconds, peak = ours(folder, tokenizer, source)
            ratios[kind].append(floor / seconds)
            peaks[kind] = max(peaks[kind], peak)
        if args.datatrove:
            ratios["datatrove"].append(floor / datatrove(folder, tokenizer, jsonl))
        shown = ", ".join(f"{kind} {values[-1]:.2f}x" for kind, values in ratios.items() if values)
        print(f"round {number + 1}: floor {megabytes / floor:.2f} MB/s; {shown}")
    for kind, goal in (("jsonl", 0.8), ("parquet", 0.7)):
        print(f"{kind}: {statistics.median(ratios[kind]):.2f}x (goal {goal}x), peak {peaks[kind]:.0f} MB (goal 150 MB)")
    if ratios["datatrove"]:
        print(f"datatrove: {statistics.median(ratios['datatrove']):.2f}x")


if __name__ == "__main__":
    main()
