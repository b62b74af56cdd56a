"""Fine-tuning, ours against trl's SFTTrainer: the same tiny model and conversations, tokens a second of CPU time.

    OMP_NUM_THREADS=1 python scripts/bench/sft_step.py [--steps 30] [--rounds 3]

Ours reads packed rows (each with the sequences of a few conversations); trl refuses packing without the kernels of a
GPU, and gets the same sequences one by one, four rows' worth a step, padded by its own collator, with the same mask; it
may group them by length, which saves it most of the padding. Padding counts for nobody.
Rounds alternate; what is compared is the CPU time of the process over the steps after the first three.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from train_step import MODEL
from transformers import TrainerCallback

from nemotron_kit.data_prep.packing import PackedWriter
from nemotron_kit.training.checkpoint import TrainingProgress, export_model
from nemotron_kit.training.config_blocks import CheckpointConfig, LoggerConfig, SchedulerConfig
from nemotron_kit.training.loop import LoopSettings, build_optimizer
from nemotron_kit.training.model import ExpertBalance, load_model, model_config, new_model
from nemotron_kit.training.processes import StopRequest
from nemotron_kit.training.reporter import Reporter
from nemotron_kit.training.sft import SFTWork
from nemotron_kit.training.sft_config import SFTConfig, SFTOptimizerConfig, SFTTrainConfig
from nemotron_kit.training.sft_data import PackedRows
from nemotron_kit.training.step_loop import StepLoop

PACK, ROWS = 512, 4
WARM = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        data(folder, args.steps)
        export_model(new_model(model_config(MODEL), 0), folder / "model")
        rounds = [
            (ours(folder, args.steps), trls(folder, args.steps, False), trls(folder, args.steps, True))
            for _ in range(args.rounds)
        ]
    mine, plain, grouped = (statistics.median(figures[side] for figures in rounds) for side in range(3))
    ratios = [statistics.median(figures[0] / figures[side] for figures in rounds) for side in (1, 2)]
    print(f"tokens a CPU-second: ours {mine:,.0f}")
    print(
        f"trl's SFTTrainer {plain:,.0f}, grouped by length {grouped:,.0f}: ours {ratios[0]:.2f}, {ratios[1]:.2f} times"
    )


def data(folder: Path, steps: int) -> None:
    """Packed rows of conversations of 109 tokens on average, half of each an answer."""
    rng = np.random.default_rng(0)
    with PackedWriter(folder / "train/a.parquet", PACK, algorithm="first_fit_shuffle") as writer:
        while writer.tokens + len(writer._ids) < steps * ROWS * PACK:
            length = int(np.clip(rng.lognormal(4.4, 0.7), 16, PACK))
            mask = np.arange(length) >= length // 2
            writer.add(rng.integers(16, 4096, length), mask)
        writer.publish()


def ours(folder: Path, steps: int) -> float:
    config = SFTConfig(
        dataset={"nano3_packed_sft_dir": str(folder), "seq_length": PACK},
        train=SFTTrainConfig(train_iters=steps, global_batch_size=ROWS, micro_batch_size=ROWS),
        optimizer=SFTOptimizerConfig(lr=1e-4),
        logger=LoggerConfig(log_interval=10),
    )
    model = load_model(folder / "model")
    rows = PackedRows(folder / "train", PACK, 1)
    rows.vocab_size = model.config.vocab_size
    reporter = Reporter(folder / "metrics.jsonl", 0, steps)
    reporter.print = lambda text: None  # type: ignore[method-assign]
    times: list[tuple[float, int]] = []
    with StopRequest() as stop:
        loop = StepLoop(
            LoopSettings(steps, 1e-4, SchedulerConfig(lr_decay_style="constant"), CheckpointConfig()),
            model,
            build_optimizer(config.optimizer, model),
            progress=TrainingProgress(),
            identity={},
            reporter=reporter,
            stop=stop,
            balance=ExpertBalance(model, 1e-3),
        )
        work = SFTWork(config, rows, None, model, loop)

        def step(number: int) -> dict[str, Any]:
            result = work.step(number)
            times.append((time.process_time(), result["tokens"]))
            return result

        loop.run(step)
    return sum(tokens for _, tokens in times[WARM:]) / (times[-1][0] - times[WARM - 1][0])


def trls(folder: Path, steps: int, grouped: bool) -> float:
    from datasets import Dataset
    from trl import SFTConfig as TrlConfig
    from trl import SFTTrainer

    ids: list[list[int]] = []
    masks: list[list[int]] = []
    sizes: list[int] = []
    for row in PackedRows(folder / "train", PACK, 1).rows_at(0, steps * ROWS):
        ends = [*row.starts[1:].tolist(), len(row.ids)]
        for start, end in zip(row.starts.tolist(), ends, strict=True):
            ids.append(row.ids[start:end].tolist())
            masks.append([0, *row.mask[start : end - 1].tolist()])
        sizes.append(len(ends))
    per_step = round(ROWS * sum(sizes) / len(sizes))
    model = load_model(folder / "model")
    args = TrlConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        per_device_train_batch_size=per_step,
        learning_rate=1e-4,
        max_length=PACK,
        packing=False,
        use_cpu=True,
        bf16=False,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        activation_checkpointing=False,
        train_sampling_strategy="group_by_length" if grouped else "sequential",
    )

    times: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.process_time())

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            tokens.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *rest, **named)

    tokenizer = _tokenizer()
    dataset = Dataset.from_dict({"input_ids": ids, "completion_mask": masks})
    trainer = Counting(model, args=args, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()])
    trainer.log = lambda *_, **__: None  # type: ignore[method-assign]
    trainer.train()
    return sum(tokens[WARM:]) / (times[-1] - times[WARM - 1])


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "recipes/nano3/tokenizers/tiny")


if __name__ == "__main__":
    main()
