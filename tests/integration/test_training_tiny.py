"""The tiny recipe, both steps, as a newcomer runs it: the model must have learned more than how often tokens occur."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ..project import environment, run

STAGE = Path(__file__).parents[2] / "recipes/nano3/stage0_pretrain"


def made(script: str, *words: str, cwd: Path) -> dict:
    """What the stage's script says that it has made."""
    done = run("python", str(STAGE / script), *words, cwd=cwd, env=environment(cwd / "home"), timeout=280)
    return json.loads(done.stdout)


def unigram_entropy(tokens: np.ndarray) -> float:
    """Nats a token: the loss of the best model that knows only how often each token occurs in this very text."""
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum())


def test_tiny_learns_real_text(tmp_path: Path) -> None:
    data = Path(made("data_prep.py", "--config", "tiny", cwd=tmp_path)["data"]["path"])
    model = Path(made("train.py", "--config", "config/tiny.yaml", cwd=tmp_path)["model"]["path"])
    prefixes = json.loads((data / "blend.json").read_text())["valid"][1::2]
    shards = [np.fromfile(f"{prefix}.bin", np.uint16).astype(np.int64) for prefix in prefixes]

    rows = [json.loads(line) for line in (model.parent / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["valid_loss"] <= 0.9 * unigram_entropy(np.concatenate(shards))

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    judge = AutoModelForCausalLM.from_pretrained(model).eval()
    windows = [shard[n : n + 129] for shard in shards for n in range(0, len(shard) - 128, 128)]
    chosen = torch.from_numpy(np.stack([windows[n * len(windows) // 320] for n in range(320)]))
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(judge(input_ids=part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten())
            for part in chosen.split(16)
        ]
    assert rows[-1]["valid_loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert len(tokenizer) <= judge.config.vocab_size
    assert judge.config.eos_token_id == json.loads((data / "metadata.json").read_text())["metadata"]["eos_id"]
