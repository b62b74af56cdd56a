"""What a run does around its steps, against a bare transformers Trainer and a bare loop of torch: the same model (that
of `-c tiny`), data and steps, one process.

    OMP_NUM_THREADS=1 python scripts/bench/train_step.py [--steps 100] [--rounds 5] [--micro 4]

Ours reads shards, shuffles and blends, seeds each step, balances experts, counts losses and writes a row every ten
steps; the bare ones are handed ready-made tensors. Rounds alternate; the figures are ratios of median step times. CPU
time of the process is what is compared: on a shared machine, wall time measures the neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from nemotron_kit.training import BlendSamples, LoggerConfig, PretrainConfig, SchedulerConfig, TrainConfig
from nemotron_kit.training.checkpoint import TrainingProgress
from nemotron_kit.training.data import BatchSampler, BlendSource
from nemotron_kit.training.engine import keep_freed_memory
from nemotron_kit.training.loop import build_optimizer
from nemotron_kit.training.model import ExpertBalance, model_config, new_model
from nemotron_kit.training.parallel import prepare
from nemotron_kit.training.pretrain_loop import (
    TrainingRun,
    build_schedule,
    build_trainer,
    loop_settings,
    trainer_arguments,
)
from nemotron_kit.training.processes import StopRequest
from nemotron_kit.training.reporter import Reporter

MODEL = {
    "hybrid_override_pattern": "MEM*E",
    "vocab_size": 4096,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "ssm_state_size": 16,
    "n_groups": 1,
    "chunk_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 128,
}
SEQ_LENGTH = 128


class Clock(TrainerCallback):
    """CPU time of every step, from one step's end to the next one's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.process_time())

    @property
    def median(self) -> float:
        steps = np.diff(self.times[3:])  # the first ones warm caches up
        return float(np.median(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--micro", type=int, default=8, help="sequences of a micro-batch, of the 8 of a step")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    keep_freed_memory()  # for all three
    with tempfile.TemporaryDirectory() as folder:
        samples = data(Path(folder))
        rounds = [
            tuple(run(Path(folder), samples, args.steps, args.micro) for run in (ours, bare, loop))
            for _ in range(args.rounds)
        ]
    mine, trainer, torchs = (statistics.median(times[side] for times in rounds) for side in range(3))
    ratio, of_loop = (statistics.median(times[0] / times[side] for times in rounds) for side in (1, 2))
    print(f"a step: {1e3 * mine:.2f} ms, bare Trainer {1e3 * trainer:.2f} ms: {100 * (ratio - 1):+.2f} %")
    tokens = 8 * SEQ_LENGTH
    print(
        f"tokens a CPU-second: {tokens / mine:,.0f}, a bare loop {tokens / torchs:,.0f}: {1 / of_loop:.3f} times that"
    )


def data(folder: Path) -> BlendSamples:
    tokens = np.random.default_rng(0).integers(0, 4096, 500_000).astype(np.uint16)
    (folder / "a.bin").write_bytes(tokens.tobytes())
    header = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + b"\x08" + np.array([1, 2], "<u8").tobytes()
    arrays = np.array([len(tokens)], "<i4").tobytes() + np.array([0, 0, 1], "<i8").tobytes()
    (folder / "a.idx").write_bytes(header + arrays)
    return BlendSamples([BlendSource(1.0, str(folder / "a"))], SEQ_LENGTH, seed=1)


def config(steps: int, micro: int) -> PretrainConfig:
    return PretrainConfig(
        dataset={"seq_length": SEQ_LENGTH},
        train=TrainConfig(train_iters=steps, global_batch_size=8, micro_batch_size=micro),
        scheduler=SchedulerConfig(lr_decay_style="constant"),
        logger=LoggerConfig(log_interval=10),
    )


def ours(folder: Path, samples: BlendSamples, steps: int, micro: int) -> float:
    cfg, model, clock = config(steps, micro), new_model(model_config(MODEL), 0), Clock()
    prepare(model)
    optimizer = build_optimizer(cfg.train, model)
    reporter = Reporter(folder / "metrics.jsonl", 0, steps)
    reporter.print = lambda text: None  # type: ignore[method-assign]
    with StopRequest() as stop:
        run = TrainingRun(
            loop_settings(cfg),
            model,
            optimizer,
            config=cfg,
            held_out=None,
            progress=TrainingProgress(),
            identity={},
            reporter=reporter,
            stop=stop,
            balance=ExpertBalance(model, 1e-3),
        )
        batches = BatchSampler(samples, 1, steps, 8, micro, 4096)
        schedule = build_schedule(cfg.train, cfg.scheduler, optimizer, 0)
        trainer = build_trainer(model, trainer_arguments(cfg.train, folder, steps), (optimizer, schedule), batches, run)
        trainer.add_callback(clock)
        trainer.train()
    return clock.median


def bare(folder: Path, samples: BlendSamples, steps: int, micro: int) -> float:
    windows = np.stack([samples[n] for n in range(8 * steps)]).astype(np.int64)[:, :-1]
    rows = [{"input_ids": row, "labels": row} for row in torch.from_numpy(windows)]
    model, clock = new_model(model_config(MODEL), 0), Clock()
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=8 // micro,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        log_level="error",
    )
    optimizer = build_optimizer(TrainConfig(), model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = Trainer(model, args, train_dataset=rows, optimizers=(optimizer, schedule), callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.median


def loop(_folder: Path, samples: BlendSamples, steps: int, micro: int) -> float:
    """Forward, loss, backward, clip, step, and nothing else."""
    windows = torch.from_numpy(np.stack([samples[n] for n in range(8 * steps)]).astype(np.int64))
    model, clock = new_model(model_config(MODEL), 0).train(), Clock()
    optimizer = build_optimizer(TrainConfig(), model)
    for step in range(steps):
        for rows in windows[8 * step : 8 * step + 8].split(micro):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            (loss * micro / 8).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.on_step_end()
    return clock.median


if __name__ == "__main__":
    main()
