"""A step of reinforcement learning, ours against trl's GRPOTrainer: the same model, prompts, rewards and settings.

    OMP_NUM_THREADS=1 python scripts/bench/rl_step.py [--steps 6] [--rounds 3]

A step is all of it: prompts, sampled answers (16 prompts × 8, six tokens each), rewards, loss, gradients, optimizer.
The reward is a digest's bit, so that there is something to learn in almost every group. Rounds alternate; the figure is
the ratio of median step times, in CPU time of the process: on a shared machine, wall time measures the neighbours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import transformers
from train_step import MODEL, Clock

from nemotron_kit.data_prep.chat import TEMPLATES
from nemotron_kit.training.checkpoint import export_model
from nemotron_kit.training.grpo import _Run
from nemotron_kit.training.grpo_config import GRPOConfig
from nemotron_kit.training.model import load_model, model_config, new_model
from nemotron_kit.training.processes import StopRequest

TOKENIZER = Path(__file__).parents[2] / "recipes" / "nano3" / "tokenizers" / "tiny"
PROMPTS, ANSWERS, NEW = 16, 8, 6


def bit(text: str, row: Any = None) -> float:
    """A reward that differs between the answers to a prompt."""
    return float(hashlib.blake2b(text.encode("utf-8"), digest_size=1).digest()[0] & 1)


def make_model(folder: Path) -> None:
    """A tiny model with new weights, that chats."""
    export_model(new_model(model_config({**MODEL, "eos_token_id": [2, 5], "pad_token_id": 0}), 1), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    shutil.copyfile(TEMPLATES["nano3"], folder / "chat_template.jinja")


def questions(count: int) -> list[str]:
    return [f"What is the last digit of {n * 7919 % 100003}?" for n in range(count)]


def ours(model: Path, folder: Path, steps: int) -> list[float]:
    """CPU seconds of each step of ours."""
    rows = [
        {"responses_create_params": {"input": [{"role": "user", "content": text}]}, "agent_ref": {"name": "bit"}}
        for text in questions(PROMPTS * steps)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = GRPOConfig()
    config.grpo.num_prompts_per_step, config.grpo.num_generations_per_prompt = PROMPTS, ANSWERS
    config.grpo.max_num_steps = steps
    config.policy.model_name, config.policy.train_micro_batch_size = str(model), 64
    config.policy.tokenizer = {"chat_template_kwargs": {"enable_thinking": False}}
    config.policy.generation.max_new_tokens = NEW
    config.policy.optimizer.kwargs = {"lr": 1e-4}
    config.data.train_jsonl_fpath = str(data)
    config.env.verifiers = {"bit": {"_target_": f"{__name__}.bit"}}
    config.checkpointing.enabled, config.checkpointing.checkpoint_dir = False, str(folder / "ours")
    config.logger.log_interval = steps
    run = _Run(config, time.monotonic())
    with StopRequest() as stop:
        work = run.begin(stop)
    clock, step = Clock(), work.step

    def timed(number: int) -> Any:
        clock.on_step_end()
        return step(number)

    work.loop.run(timed)
    clock.on_step_end()
    return [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]


def theirs(model: Path, folder: Path, steps: int) -> list[float]:
    """CPU seconds of each step of trl's."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig as TrlConfig
    from trl import GRPOTrainer

    prompts = [[{"role": "user", "content": text}] for text in questions(PROMPTS * (steps + 1))]
    args = TrlConfig(
        output_dir=str(folder / "theirs"),
        max_steps=steps + 1,
        per_device_train_batch_size=PROMPTS * ANSWERS,
        num_generations=ANSWERS,
        max_completion_length=NEW,
        learning_rate=1e-4,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        chat_template_kwargs={"enable_thinking": False},
        save_strategy="no",
        logging_steps=1000,
        report_to=[],
        disable_tqdm=True,
    )
    clock = Clock()
    trainer = GRPOTrainer(
        load_model(model),
        reward_funcs=lambda completions, **_: [bit(one[0]["content"]) for one in completions],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[clock],
    )
    trainer.train()
    return [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    times: dict[str, list[float]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory, "model")
        make_model(model)
        for number in range(given.rounds):
            for name, measured in (("ours", ours), ("trl", theirs)):
                folder = Path(directory, f"{name}-{number}")
                folder.mkdir()
                times[name] += measured(model, folder, given.steps)[1:]
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, seconds in medians.items():
        print(f"{name}: {seconds:.3f} CPU-s a step of {PROMPTS * ANSWERS} answers")
    ratio = medians["trl"] / medians["ours"]
    print(f"trl / ours: {ratio:.2f} [load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores]")


if __name__ == "__main__":
    main()
