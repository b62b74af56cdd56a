"""Pretraining: from a config to a model on disk."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import logging as std_logging
import os
import sys
import warnings
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError, listed
from nemotron_kit.files import sha256_of
from nemotron_kit.training import processes, sharded
from nemotron_kit.training.checkpoint import TrainingProgress
from nemotron_kit.training.content import registered_as, shard_contents
from nemotron_kit.training.data import BatchSampler, BlendSamples, HeldOutSamples, collate, read_blend
from nemotron_kit.training.export import (
    ChatTokens,
    export,
    model_card,
    model_folder,
    output_folder,
    prepare_output,
    require_place,
)
from nemotron_kit.training.loop import Loop, build_optimizer, preempted, use_bf16
from nemotron_kit.training.model import ExpertBalance, model_config, with_data_settings
from nemotron_kit.training.parallel import Layout, held_bytes, is_on_ranks, prepare, tensors
from nemotron_kit.training.pretrain_config import PretrainConfig, TrainConfig
from nemotron_kit.training.pretrain_loop import (
    TrainingRun,
    build_schedule,
    build_trainer,
    loop_settings,
    trainer_arguments,
)
from nemotron_kit.training.processes import HangWatch, StopRequest
from nemotron_kit.training.reporter import Reporter, metrics_path
from nemotron_kit.training.start import StartingPoint, find_start, identity, on_ranks, portable, start_model

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from nemotron_kit.training.config_blocks import ParallelBlock
    from nemotron_kit.training.sft_config import SFTOptimizerConfig
    from nemotron_kit.training.start import Resumable


@dataclass(frozen=True)
class TrainingOutcome:
    """A finished run: the model's folder (transformers' format), its last step, training and held-out loss (nats a
    token) and the number of tokens trained on.

    `changes`: settings that differed from the checkpoint's where the run was resumed ({step, name, there, here}).
    `before`, `after`: of RL, the held-out rewards (by name) before the first step and after the last; empty if they
    were not measured.
    """

    path: Path
    step: int
    loss: float | None
    valid_loss: float | None
    tokens: int
    changes: tuple[dict[str, Any], ...] = ()
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)


def pretrain(config: PretrainConfig) -> TrainingOutcome:
    """Train as `config` specifies, resuming from a checkpoint if there is one, and return where the model is.

    Runs in every process that torchrun starts; only rank 0 writes. Raises UserError if config or data are invalid,
    Preempted if a signal stopped the run (a checkpoint is saved by then).
    """
    passive_cpu_waits()
    config.check()
    config = config.with_optimizer()
    config.train.check_split(processes.world_size())
    run = _Run(config)
    return on_ranks(run.start, config.train.hang_minutes, run.go)


class _Run:
    """One run: its data and starting point, then the loop, then the export of the model."""

    def __init__(self, config: PretrainConfig) -> None:
        """Open and check every shard of the blend, and find the starting point, before anything is written. Raises
        UserError for data that is missing, damaged or too small."""
        self.config, path = config, config.blend_path
        blend = read_blend(path)
        if "train" not in blend:
            raise UserError(f"{path}: there is no train split.")
        limit = config.train.eval_iters
        windows = limit * config.train.global_batch_size if limit else None
        self.held_out = HeldOutSamples(blend["valid"], config.seq_length, windows) if "valid" in blend else None
        if self.held_out is not None and len(self.held_out) == 0:
            raise UserError(
                f"{path}: no shard of the valid split holds {config.seq_length + 1} tokens.",
                hint="Prepare more held-out data, set a smaller dataset.seq_length, or leave the split out of the "
                "file.",
            )
        self.samples = BlendSamples(blend["train"], config.seq_length, config.data_seed)
        self.model = with_data_settings(config.model, path.parent)
        load_libraries()
        self.folder = output_folder(config.checkpoint.save, "pretrain")
        model_config(self.model)  # refused before anything is written
        self.start = self._start()
        if processes.rank() == 0:
            prepare_output(self.folder)

    def _start(self) -> StartingPoint:
        """The starting point of the run. Only rank 0 reads large files and refuses a checkpoint of another run."""
        config, samples, held_out = self.config, self.samples, self.held_out
        if processes.rank() != 0:
            return find_start(config, {})
        shards = [*samples.shards, *(held_out.shards if held_out else ())]
        registered = registered_as(config.blend_path.parent)
        contents = shard_contents([shard.prefix for shard in shards], config.verify_data, registered)
        precision = "bf16" if use_bf16(config.train.precision) else "fp32"
        same = identity(config, self.model, samples, contents.digests, precision)
        start = begin_at(config, same, self.folder, config.train.train_iters)
        valid_on = None
        if held_out is not None:
            digests = [contents.digests[shard.prefix] for shard in held_out.shards]
            valid_on = sha256_of([digests, held_out.seq_length, len(held_out)])
            # Each token is checked: an evaluation at the end of the training must not be the first to read them.
            for first in range(0, len(held_out), 64):
                collate(held_out, range(first, min(first + 64, len(held_out))), self.model["vocab_size"])
        notes = (contents.summary, *_too_short(samples), *start.notes)
        return replace(start, notes=notes, valid_on=valid_on)

    def go(self, stop: StopRequest) -> TrainingOutcome:
        """Train, evaluate and export the model; what it raises is what `pretrain` does."""
        quiet()
        keep_freed_memory()
        config, start, train = self.config, self.start, self.config.train
        progress = start.progress or TrainingProgress()
        if self.held_out is None:
            progress.forget_held_out()
        args = trainer_arguments(train, self.folder, max(1, train.train_iters - progress.step))
        model: Any = start_model(start, self.model, train.seed, train.layout, bf16=use_bf16(train.precision))
        optimizer = make_ready(model, train, train, start)
        reporter = Reporter(metrics_path(config.logger, self.folder), progress.step, train.train_iters)
        loop = TrainingRun(
            loop_settings(config),
            model,
            optimizer,
            config=config,
            held_out=self.held_out,
            valid_on=start.valid_on,
            progress=progress,
            identity=start.identity,
            reporter=reporter,
            stop=stop,
            balance=ExpertBalance(model, train.moe_router_bias_update_rate),
        )
        try:
            for line in opening_lines(start, train.layout, model):
                reporter.print(line)
            if progress.step < train.train_iters:
                self._train(loop, args)
            elif self.held_out and processes.any_rank(processes.rank() == 0 and start.valid_on != progress.valid_on):
                loop.evaluate(loop.held_out_values)  # the loss that is known is that of other held-out data
        finally:
            reporter.close()
        loop.saves.finish()
        if loop.stopped and progress.step < train.train_iters:
            raise preempted(loop.stopped, progress.step, train.train_iters, config.checkpoint.save)
        tokenizer = config.blend_path.parent
        facts = {
            "steps": progress.step,
            "tokens": progress.tokens,
            "training loss, nats a token": progress.loss,
            "held-out loss, nats a token": progress.valid_loss,
        }
        given = {"data": tokenizer, "pretrained weights": config.checkpoint.pretrained_checkpoint}
        return export_run(loop, self.folder, "Nemotron-H, pretrained", given, facts, tokenizer)

    def _train(self, loop: TrainingRun, args: TrainingArguments) -> None:
        train = self.config.train
        batches = BatchSampler(
            self.samples,
            first_step=loop.first_step,
            last_step=train.train_iters,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            vocab_size=self.model["vocab_size"],
            rank=processes.rank(),
            world_size=processes.world_size(),
            first_sample=loop.first_sample,
        )
        schedule = build_schedule(train, self.config.scheduler, loop.optimizer, loop.progress.step)
        trainer = build_trainer(loop.model, args, (loop.optimizer, schedule), batches, loop, train.tokens_per_chunk)
        with HangWatch(train.hang_minutes) as loop.watch:
            trainer.train()


def _too_short(samples: BlendSamples) -> list[str]:
    """A note on the shards of the blend that nothing is read from."""
    names = samples.too_short
    if not names:
        return []
    tokens = samples.seq_length + 1
    return [f"Not trained on, as it is shorter than {tokens} tokens, whatever its weight: {listed(names, 3)}."]


def begin_at(config: Resumable, identity: dict[str, Any], folder: Path, steps: int) -> StartingPoint:
    """The starting point of a run of `steps` steps whose models go to `folder`. Raises UserError for a checkpoint of
    another run (see `find_start`), or where its model would replace another run's."""
    start = find_start(config, identity)
    if start.step < steps:
        require_place(model_folder(folder, steps), portable(start.identity))
    return start


def make_ready(
    model: Any, train: ParallelBlock, optimizer: TrainConfig | SFTOptimizerConfig, start: StartingPoint
) -> torch.optim.AdamW:
    """Prepare the model for training on this process's device, in place, as its `train` block says. Returns its
    optimizer, in the state that the run goes on from."""
    if not is_on_ranks(model):
        model.to(processes.device())
    prepare(model, activation_checkpointing=train.activation_checkpointing, compile_blocks=train.compile)
    made = build_optimizer(optimizer, model)
    if start.optimizer is not None:
        sharded.load_optimizer(made, model, start.optimizer)
    return made


def opening_lines(
    start: StartingPoint, layout: Layout, model: Any, notes: Iterable[str] = (), described: str | None = None
) -> list[str]:
    """What a run's log begins with: GPUs that are not seen, what was found on the way to the start, `notes`, where it
    starts (or `described`), and how the model lies on the processes, if it lies on several."""
    lines = [*processes.gpus_not_seen(), *start.notes, *notes, described or start.describe()]
    if layout.ranks > 1:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors(model).values())
        held = held_bytes(model)
        lines.append(f"Sharded over {layout.ranks} processes ({layout}): {held:,} of {size:,} bytes of weights here.")
    return lines


def export_run(
    loop: Loop,
    folder: Path,
    title: str,
    given: Mapping[str, str | Path | None],
    facts: Mapping[str, Any],
    tokenizer: Path,
    chat: ChatTokens | None = None,
) -> TrainingOutcome:
    """Export the model of a run that is done, below `folder`, with its record and a card (see `model_card`) and the
    tokenizer in a folder."""
    progress, step = loop.progress, loop.progress.step
    path, same = model_folder(folder, step), portable(loop.identity)
    changes = [change for change in progress.changes if change["step"] < step]
    record = {"step": step, "identity": same, "changes": changes}
    export(loop.model, path, tokenizer, record, card=model_card(title, given, facts, same), chat=chat)
    return TrainingOutcome(path, step, progress.loss, progress.valid_loss, progress.tokens, tuple(changes))


# What mallopt takes is an int.
_MOST_KEPT = (1 << 31) - 1


def passive_cpu_waits() -> None:
    """Let torch's CPU threads sleep while they wait (OMP_WAIT_POLICY, which torch reads when it is loaded).

    By default they spin, and a step takes twenty times as long if another process competes for the cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def load_libraries() -> None:
    """Import torch and transformers, and exempt from garbage collection what is loaded by then.

    They are some hundred thousand objects that stay. To search them is a fifth of the time of the import, then half a
    second for each collection: a training has several, and the end of the process, too. If a library is missing,
    whatever needs it says so.
    """
    if "transformers.modeling_utils" in sys.modules:
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        with suppress(ImportError):
            from transformers import NemotronHForCausalLM, Trainer  # noqa: F401
    finally:
        if enabled:
            gc.enable()
    # Python writes what a file still holds in memory when it finalises the file, which it doesn't if a cycle of exempt
    # objects holds it: a job may have opened one before.
    kinds: dict[type, int] = {io.TextIOWrapper: 0, io.BufferedWriter: 1, io.BufferedRandom: 1}
    files = sorted((each for each in gc.get_objects() if type(each) in kinds), key=lambda each: kinds[type(each)])
    atexit.register(_flush, [weakref.ref(file) for file in files])
    gc.freeze()


def _flush(files: list[weakref.ref[io.IOBase]]) -> None:
    for file in filter(None, (reference() for reference in files)):
        with suppress(OSError, ValueError):  # it is closed, or its other end is
            file.flush()


def keep_freed_memory() -> None:
    """Let this process's allocator (glibc's) keep what is freed for the next step, when it trains on the CPU.

    By default it returns large tensors to the system, and a step of a small model spends a quarter of its time on page
    faults. What is resident is then the most that a step has needed.
    """
    import torch

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or torch.cuda.is_available():
        return
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    mallopt(trim, _MOST_KEPT)
    if not mallopt(mmap, 1 << 30):
        mallopt(mmap, 1 << 25)  # the most that older versions allow


def quiet() -> None:
    """Suppress other libraries' progress bars and advice."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # torch's advice on how a norm over two mesh dimensions could be one reduction.
    std_logging.getLogger("torch.distributed.tensor._redistribute").setLevel(std_logging.ERROR)
    # What accelerate passes on to DDP has a new name in the newest torch only.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
