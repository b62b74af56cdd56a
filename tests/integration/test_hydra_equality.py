"""Both spellings give the same bytes, and the bytes that a plain @hydra.main app with our primary config prints."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from nemotron_kit.cli.indexing import LiveIndex
from nemotron_kit.cli.parse import parse
from nemotron_kit.cli.request import hydra_overrides
from nemotron_kit.config.compose import compose
from nemotron_kit.discovery import discover
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import UserError

HERE = Path(__file__).parent
TRAIN = [
    ("train.train_iters", ["5", "5000", "1"]),
    ("train.lr", ["1e-3", "3e-4", "0.01"]),
    ("train.global_batch_size", ["8", "16"]),
    ("train.micro_batch_size", ["1", "2"]),
    ("scheduler.lr_warmup_iters", ["0", "32"]),
    ("checkpoint.save", ["/tmp/ckpt", "'a b'", "${oc.env:PWD}/x"]),
    ("checkpoint.save_interval", ["20"]),
    ("logger.log_interval", ["1", "10"]),
    ("model.hidden_size", ["64"]),
    ("+model.anything.nested", ["[1,2,3]", "{a: 1}"]),
    ("dataset.new_key", ["true", "null", "text"]),
    ("run.data", ["Other:v3", "'art://Blend:latest'"]),
    ("run.env.nodes", ["4"]),
    ("run.env.time", ["'04:00:00'"]),
    ("+extra", ["1", "abc", "[a,b]"]),
    ("train.no_such_field", ["1"]),
    ("train.train_iters", ["not-a-number"]),
]
PREP = [
    ("num_shards", ["4", "64"]),
    ("sample", ["100", "null"]),
    ("force", ["true", "false"]),
    ("output_dir", ["/tmp/out", "${oc.env:PWD}/o"]),
    ("tokenizer_model", ["'a/b c'", "meta/x"]),
    ("nothing_like_it", ["3"]),
]


def random_line(rng: random.Random) -> tuple[list[str], list[str]]:
    """One random job: (words for `nemotron`, words for Hydra)."""
    words, stage, pool = rng.choice(
        [
            (["nano3", "pretrain"], "pretrain", TRAIN),
            (["nano3", "data", "prep", "pretrain"], "data/prep/pretrain", PREP),
        ]
    )
    config = rng.choice([None, "tiny", "default"])
    overrides = [f"{key}={rng.choice(values)}" for key, values in rng.sample(pool, rng.randint(0, 4))]
    option = ["-c", config] if config else []
    place = rng.randint(0, len(words))
    shim = [*words[:place], *option, *words[place:], *overrides]
    hydra = ["recipe=nano3", f"stage={stage}", *([f"config={config}"] if config else []), *overrides]
    return shim, hydra


def composed_text(tree, words) -> str:
    try:
        return OmegaConf.to_yaml(compose(tree, words, EnvFile()).config)
    except UserError:
        return "error"


def test_two_hundred_random_command_lines(tmp_path: Path) -> None:
    rng = random.Random(20261124)
    lines = [random_line(rng) for _ in range(200)]
    asked = tmp_path / "lines.json"
    different = sorted({tuple(hydra) for _, hydra in lines})
    asked.write_text(json.dumps(different))
    plain = subprocess.run(
        [sys.executable, str(HERE / "plain_hydra_app.py"), str(asked)],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "NEMOTRON_HOME": str(tmp_path)},
    )  # fmt: skip
    expected = dict(zip(different, json.loads(plain.stdout), strict=True))
    tree, known = discover(EnvFile()), {}
    index = LiveIndex(tree.apps, tree.broken)
    accepted = 0
    for shim, hydra in lines:
        judge, words = expected[tuple(hydra)], hydra_overrides(parse(shim, index))
        for given in (hydra, words):  # most often the same list: composed once
            if tuple(given) not in known:
                known[tuple(given)] = composed_text(tree, given)
        ours = known[tuple(hydra)]
        assert known[tuple(words)] == ours, shim
        if judge.startswith("error"):
            assert ours == "error", hydra
        else:
            accepted += 1
            assert ours.rstrip("\n") == judge.rstrip("\n"), hydra
    assert accepted > 100
