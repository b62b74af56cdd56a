"""What a launch asks of a training: what would prevent it, and what it takes, computed from the config: memory (see
memory.py), the disk of its checkpoints, and its wall time. Every launch imports it, so it imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nemotron_kit.errors import Note, UserError
from nemotron_kit.lazy import Value
from nemotron_kit.training.bridge_config import engine_problems
from nemotron_kit.training.config_blocks import CheckpointConfig, TrainBlock, unknown
from nemotron_kit.training.memory import GpuFacts, Step, memory_notes
from nemotron_kit.training.model import layer_types
from nemotron_kit.training.model_size import active_parameters, count_parameters, numbers

if TYPE_CHECKING:
    from nemotron_kit.training.pretrain_config import PretrainConfig
    from nemotron_kit.training.sft_config import SFTConfig

# float32 weights, and AdamW's two moments of them beside these.
_MODEL, _CHECKPOINT = 4, 12
# What is not worth a word: bytes on disk; operations, some minutes of a GPU; seconds.
_SMALL_DISK, _SMALL_WORK, _SMALL_TIME = 8 << 30, 1e17, 600.0
# The part of a GPU's peak that a training is taken to reach where nothing was measured.
UTILIZATION = 0.3
# What a run has in common with one that is as fast, by the names of the config.
SAME_SPEED = (
    "model",
    "dataset.seq_length",
    "peft",
    *(f"train.{name}" for name in ("global_batch_size", "micro_batch_size", "precision", "parallelism")),
    *(f"train.{name}" for name in ("activation_checkpointing", "compile", "loss_chunk")),
)
# What a reinforcement learning has in common with one whose steps take as long.
SAME_STEPS = (
    *(f"grpo.{name}" for name in ("num_prompts_per_step", "batch_size", "num_generations_per_prompt", "val_period")),
    *(f"policy.{name}" for name in ("model_name", "max_total_sequence_length", "precision")),
    *(f"policy.{name}" for name in ("train_micro_batch_size", "generation_batch_size", "generation.max_new_tokens")),
    *(f"train.{name}" for name in ("parallelism", "activation_checkpointing", "loss_chunk")),
    "loss_fn.reference_policy_kl_penalty",
)


class JobFacts(Protocol):
    """What a plan knows of a job."""

    @property
    def home(self) -> str | None:
        """The home folder where the job runs; None if that is not known."""

    @property
    def root(self) -> str | None:
        """The folder of the job's profile for jobs, where it runs; None if that is not known."""

    @property
    def seconds(self) -> float | None:
        """The time limit in seconds; None without one."""

    @property
    def segments(self) -> int | None:
        """How many times over the job gets that limit, each time going on from its last checkpoint; None for any
        number."""

    def free(self, folder: str) -> int | None:
        """The bytes that are free in a folder there; None where that is not known."""

    def earlier_rate(self, keys: Sequence[str], of: str = "tokens") -> tuple[float, str] | None:
        """(tokens a second, or with `of="steps"` steps a second; the run) of the newest run of this command and
        profile, on as many processes, whose config has the same values under `keys`; None if there is none."""


def preflight(
    config: PretrainConfig | SFTConfig,
    *,
    connect: bool,
    here: bool = True,
    processes: int | None = None,
    gpu: GpuFacts | None = None,
    job: JobFacts | None = None,
) -> list[str]:
    """The problems that would prevent a pretraining or a fine-tuning, one sentence each, and notes on what it takes.
    Opens no connection itself: `connect` is ignored. With `here=False` the run is for another machine, and only its
    settings are checked. `processes`: how many the job has, if that is known; `gpu`: the kind that it gets; `job`: what
    else is known of it."""
    del connect
    try:
        config.check()
        if config.on_bridge:
            return engine_problems(config, here=here)
        processes = processes or max(1, config.train.layout.ranks)
        config.train.check_split(processes)
        notes: list[str] = [*config.check_model()]
        work: Workload | None = config.workload()
        return notes + (work.notes(processes, here=here, gpu=gpu, job=job) if work else [])
    except UserError as error:
        return [" ".join(str(error).split("\n"))]


@dataclass(frozen=True, eq=False, repr=False)
class Workload(Value):
    """A run of pretraining or fine-tuning whose model is known: what it is called, its `model` block, its settings.
    `instead`: what else to do where its memory is too small; `adapters`: beside frozen weights these are trained;
    `gradients_stay`: their memory is there all the time."""

    what: str
    model: Mapping[str, Any]
    seq_length: int
    train: TrainBlock
    checkpoint: CheckpointConfig
    instead: str
    adapters: bool = False
    gradients_stay: bool = True

    def memory(self, processes: int, *, here: bool, gpu: GpuFacts | None = None) -> list[str]:
        """See `memory_notes`; nothing for adapters, whose memory is not estimated."""
        if self.adapters:
            return []
        train = self.train
        per_step = max(1, train.global_batch_size // (train.micro_batch_size * processes))
        step = Step(
            self.model,
            self.seq_length,
            train.layout,
            processes,
            train.micro_batch_size,
            micro_batches=2 if self.gradients_stay else per_step,
            activation_checkpointing=train.activation_checkpointing,
            loss_chunk=train.tokens_per_chunk,
        )
        return memory_notes(self.what, step, train.precision, here=here, gpu=gpu, instead=self.instead)

    def notes(self, processes: int, *, here: bool, gpu: GpuFacts | None, job: JobFacts | None) -> list[str]:
        """What it takes of memory, disk and time, for a plan."""
        train, place = self.train, self.checkpoint.save
        found = self.memory(processes, here=here, gpu=gpu)
        if place and not unknown(place):
            found += disk_notes(self.model, place, self.checkpoint.kept, job, adapters=self.adapters)
        tokens = train.train_iters * train.global_batch_size * self.seq_length
        return [*found, *self.time_notes(tokens, processes, gpu, job)]

    def time_notes(self, tokens: int, processes: int, gpu: GpuFacts | None, job: JobFacts | None) -> list[Note]:
        """A Note on the hours that training on so many `tokens` takes, if these are many: by the tokens a second of an
        earlier run that was as fast, else by the peak of the job's GPUs; nothing where neither is known. It warns where
        the job's time limit is shorter, and nothing goes on after it."""
        train = self.train
        recomputes = train.activation_checkpointing
        work = step_work(self.model, self.seq_length, checkpointing=recomputes, adapters=self.adapters)
        if work * tokens < _SMALL_WORK:
            return []
        measured = job.earlier_rate(SAME_SPEED) if job is not None else None
        if measured is not None:
            rate, run = measured
            why = f"at the {rate:,.0f} tokens/s of {run}"
        elif gpu is not None and gpu.flops and train.precision != "fp32":
            rate = processes * gpu.flops * UTILIZATION / work
            why = (
                f"of {work / 1e9:,.1f} GFLOP, if {processes:,} GPUs reach {UTILIZATION:.0%} of their peak "
                f"({gpu.flops / 1e12:,.0f} TFLOPS in bf16), which is assumed, not measured: {rate:,.0f} tokens/s"
            )
        else:
            return []
        seconds = tokens / rate
        sizes = ((1e12, " T"), (1e9, " B"), (1e6, " M"))
        count = next((f"{tokens / size:,.1f}{unit}" for size, unit in sizes if tokens >= size), f"{tokens:,.0f}")
        return [_against_limit(seconds, f"{_hours(seconds)} for {count} tokens {why}.", self.checkpoint.save, job)]

    def problems(self) -> list[str]:
        """A sentence with the estimate if this machine's memory is too small."""
        here = int(os.environ.get("WORLD_SIZE", "1"))
        return [found for found in self.memory(here, here=True) if not isinstance(found, Note)]


def disk_notes(
    model: Mapping[str, Any],
    place: str,
    kept: int,
    job: JobFacts | None,
    *,
    adapters: bool = False,
    key: str = "checkpoint.save",
) -> list[Note]:
    """A Note on the disk that checkpoints in `place`, the value of `key`, and the model take, if that is much: `kept`
    of them, and the one that is being written. It warns where less is free, or where the place is below the home
    folder. Those of `adapters` take next to nothing."""
    whole = _MODEL * count_parameters(model)
    size = 0 if adapters else _CHECKPOINT * count_parameters(model)
    needed = size * (kept + 1) + whole
    if needed < _SMALL_DISK:
        return []
    text = f"the model is {_gigabytes(whole)}"
    if size:
        text = f"a checkpoint is {_gigabytes(size)}; {kept} are kept while one is written, and {text}"
        text += f": {_gigabytes(needed)}"
    warnings = []
    left = job.free(place) if job is not None else None
    if left is not None and left < needed:
        warnings.append(f"Only {_gigabytes(left)} are free there.")
    if job is not None and job.home and _below(place, job.home):
        other = (
            f"{key} to a folder below {job.root}"
            if job.root and not _below(job.root, job.home)
            else f"remote_job_dir in the profile, or {key}, to a file system for it"
        )
        warnings.append(f"That is below the home folder: set {other}.")
    return [Note(f"{'Warning: ' if warnings else ''}{' '.join([f'{key}: {text} in {place}.', *warnings])}")]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f} GB"


def _below(place: str, folder: str) -> bool:
    return f"{place}/".startswith(f"{folder.rstrip('/')}/")


def step_work(model: Mapping[str, Any], seq_length: int, *, checkpointing: bool = False, adapters: bool = False) -> int:
    """Operations that training takes for each token: 2 for each active parameter forward and 4 backward, of which
    frozen weights beside `adapters` need 2; attention to half of a sequence on average. `checkpointing`: one more
    forward pass. Mamba's scan, about a hundredth of the published model's, is left out."""
    m = numbers(model)
    layers = sum(kind == "full_attention" for kind in layer_types(model))
    attention = 2 * layers * seq_length * m["num_attention_heads"] * m["head_dim"]  # 4 · heads · dim · length / 2
    weights = 2 * active_parameters(model)
    forward = weights + attention
    backward = weights * (1 if adapters else 2) + 2 * attention
    return int(forward * (1 + checkpointing) + backward)


def steps_notes(model: Mapping[str, Any], steps: int, place: str | None, job: JobFacts | None) -> list[Note]:
    """A Note on the hours of a reinforcement learning of so many steps at the most, if these are many: by the steps a
    second of an earlier run like it. Where there is none a Note says so for a large model: most of the time goes into
    answers, whose length nobody knows before."""
    measured = job.earlier_rate(SAME_STEPS, of="steps") if job is not None else None
    if measured is not None:
        rate, run = measured
        seconds = steps / rate
        text = f"{_hours(seconds)} for {steps:,} steps (the most) at the {1 / rate:,.1f} s a step of {run}."
        return [] if seconds < _SMALL_TIME else [_against_limit(seconds, text, place, job)]
    if _CHECKPOINT * count_parameters(model) < _SMALL_DISK:
        return []
    return [
        Note(
            "How long the training takes is not known: its time goes into the answers, and no run like it has logged "
            "its steps here. After a short one (grpo.max_num_steps=5) of the same profile and settings a plan tells it."
        )
    ]


def _against_limit(seconds: float, text: str, place: str | None, job: JobFacts | None) -> Note:
    """The Note that a training takes so many seconds, which `text` says, and what the job's time limit means for it."""
    limit = job.seconds if job is not None else None
    if job is None or limit is None or seconds <= limit:
        return Note(f"Training takes about {text}")
    parts = -(-seconds // limit)
    of = f"the time limit is {_hours(limit)}"
    if place is None:
        then = f"{of}, and without a folder for checkpoints nothing goes on after it."
    elif job.segments is not None and parts > job.segments:
        then = f"{of}, which the job gets {job.segments} times." if job.segments > 1 else f"{of}, and nothing goes on."
    else:
        then = f"The job is queued again each time that its limit of {_hours(limit)} ends it: about {parts:,.0f} times."
        return Note(f"Training takes about {text} {then}")
    return Note(f"Warning: training takes about {text} But {then}")


def _hours(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:,.0f} minutes"
    return f"{seconds / 3600:,.1f} hours" if seconds < 36000 else f"{seconds / 3600:,.0f} hours"
