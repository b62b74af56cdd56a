"""An estimate of a training step, computed from the config: bytes of memory by purpose, and bytes sent over the
network. Every launch imports it, so it imports no torch.

The terms were compared with torch's FSDPMemTracker for the published model and with measured processes for small ones
(scripts/bench/memory.py).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from nemotron_kit.errors import Note
from nemotron_kit.lazy import Value
from nemotron_kit.training.config_blocks import LOSS_CHUNK
from nemotron_kit.training.model import layer_types
from nemotron_kit.training.model_size import block_parameters, count_parameters, numbers, routed_parameters
from nemotron_kit.training.parallel import Layout

GIB = 1 << 30
# float32 weights and AdamW's two moments of them.
_WEIGHTS, _GRADIENTS, _MOMENTS = 4, 4, 8
# Of a GPU's memory: CUDA's own, NCCL's buffers, and what lies between the allocator's blocks.
_RESERVED = 0.08
# What is not worth a word.
_SMALL = 8 << 30
# The largest model over the most GPUs that is looked for.
_MOST_RANKS = 4096


@dataclass(frozen=True, eq=False, repr=False)
class Step(Value):
    """One process's part of a training step. `bf16`: it computes in bf16. `fused`: with the Mamba kernels of a GPU,
    whose scan keeps no matrices for the backward pass. `micro_batches`: how many, one after the other. `reference`:
    beside the model there are the weights that it started with."""

    model: Mapping[str, Any]
    seq_length: int
    layout: Layout = field(default_factory=Layout)
    processes: int = 1
    micro_batch_size: int = 1
    micro_batches: int = 1
    bf16: bool = True
    fused: bool = True
    activation_checkpointing: bool = False
    loss_chunk: int | None = None
    reference: bool = False

    @property
    def tokens(self) -> int:
        """The tokens of a micro-batch."""
        return self.micro_batch_size * self.seq_length

    @property
    def element(self) -> int:
        """The bytes of a number that is computed with."""
        return 2 if self.bf16 else 4

    @property
    def shards(self) -> int:
        """Over how many processes each tensor is divided."""
        return self.layout.fsdp_size


@dataclass(frozen=True, eq=False, repr=False)
class Memory(Value):
    """Bytes of one process. They are not all there at the same time: `peak` is the most that are.

    `activations` are what the backward pass waits for; `block`: those of one block, computed again or with their
    gradients. `copies`: weights gathered or cast to be computed with, and gradients on their way to the other processes
    (`head`: of these what the loss needs). `held`: of whole logits what is there until the step ends.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    block: int
    logits: int
    held: int
    copies: int
    head: int
    accumulates: bool

    @property
    def states(self) -> int:
        """Bytes of weights, gradients and the optimizer's moments together."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """The most of three moments: the loss, with all activations and the logits; the begin of the backward pass,
        with the activations still; and its end, with all gradients. Where micro-batches follow one another, the
        gradients of earlier ones are there at each."""
        before = 0 if self.accumulates else self.gradients
        loss = self.states - before + self.activations + self.head + self.logits
        passing = self.block + self.copies + self.held
        return max(loss, self.states - before + self.activations + passing, self.states + passing)

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations + self.block,
            "logits": self.logits,
            "gathers and copies": max(self.copies, self.head),
        }
        return ", ".join(f"{name} {in_gib(size)}" for name, size in parts.items() if size)


def in_gib(size: float) -> str:
    """A size for people: `71.2 GiB`, whole ones from 100 on; small ones in MiB."""
    if size < GIB / 10:
        return f"{size / (1 << 20):,.0f} MiB"
    return f"{size / GIB:,.1f} GiB" if size < 100 * GIB else f"{size / GIB:,.0f} GiB"


def memory_of(step: Step) -> Memory:
    """The memory of one process. UserError for a model block whose sizes are no numbers."""
    m = numbers(step.model)
    kinds, element, tokens, shards = layer_types(step.model), step.element, step.tokens, step.shards
    total = count_parameters(step.model)
    # Of the process that has most: experts are cut between each other, and no further.
    experts = _experts(m, step)
    own = int(total + experts * (_padding(m, step.layout) - 1)) // shards if experts else total // shards
    a_token = {kind: _kept(kind, m, step) for kind in set(kinds)}
    block = max(a_token.values(), default=0) * tokens
    kept = sum(element * m["hidden_size"] if step.activation_checkpointing else a_token[kind] for kind in kinds)
    head = m["vocab_size"] * m["hidden_size"]
    chunk = min(tokens, step.loss_chunk or tokens)
    if shards > 1:
        copies = max(
            _copied(head, "head", m, step), *(_copied(*each, m, step) for each in set(block_parameters(step.model)))
        )
        whole = element * head * (2 if step.loss_chunk else 1)
    else:
        # DDP reduces gradients in buckets beside them; autocast keeps a copy of each weight that it has cast.
        copies = (4 * total if step.processes > 1 else 0) + (2 * total if step.bf16 else 0)
        whole = copies + (element * head if step.loss_chunk else 0)  # the head's gradient so far
    return Memory(
        weights=_WEIGHTS * own * (1 + step.reference),
        gradients=_GRADIENTS * own,
        optimizer=_MOMENTS * own,
        activations=kept * tokens,
        block=block,
        # Logits, in float32 too if they are not; log-probabilities; and the gradients of each but these.
        logits=chunk * m["vocab_size"] * (16 if step.bf16 else 12),
        held=4 * tokens * m["vocab_size"] if shards > 1 and not step.loss_chunk else 0,
        copies=copies,
        head=whole,
        accumulates=step.micro_batches > 1,
    )


def _experts(m: Mapping[str, Any], step: Step) -> int:
    """The parameters of the routed experts of all layers."""
    return routed_parameters(m) * sum(kind == "moe" for kind in layer_types(step.model))


def _padding(m: Mapping[str, Any], layout: Layout) -> float:
    """How many times the size of a layer's experts their equal parts have together: where processes are left over,
    or experts, some parts are not full."""
    each, around = int(m["n_routed_experts"]) / layout.ep_size, layout.fsdp_size // layout.ep_size
    return math.ceil(each / around) * around / each


def _copied(size: int, kind: str, m: Mapping[str, Any], step: Step) -> int:
    """Bytes beside its own part that a process has of a block, of dealt-out experts its own: its gradients, with its
    weights, or once these are freed, with the gradients in float32 for their reduction. What is sent is of equal
    parts. (The next block's weights come early, and are few: a block of experts is followed by one without.)"""
    routed = routed_parameters(m) if kind == "moe" else 0
    held = size - routed + routed // step.layout.ep_size
    parts = held + (int(routed * (_padding(m, step.layout) - 1)) // step.layout.ep_size if routed else 0)
    return held * step.element + parts * max(step.element, 4)


def _kept(kind: str, m: Mapping[str, Any], step: Step) -> int:
    """Bytes that a block keeps for each token until its backward pass, as read from what autograd saves."""
    element, hidden = step.element, m["hidden_size"]
    norm = hidden * (4 + 4 + element)  # the norm's input and result in float32, and what the layer takes
    if kind == "mlp":
        return int(norm + element * 2 * m["intermediate_size"])
    if kind == "full_attention":
        heads = m["num_attention_heads"]
        return int(norm + element * 2 * m["head_dim"] * (heads + m["num_key_value_heads"]) + 4 * heads)
    if kind == "moe":
        routed = m["num_experts_per_tok"] * 2 * ((m["moe_latent_size"] or hidden) + m["moe_intermediate_size"])
        router = 5 * m["n_routed_experts"] + 8 * 8 + (4 * hidden if step.bf16 else 0)
        return int(norm + element * (routed + 2 * m["moe_shared_expert_intermediate_size"]) + router)
    heads, state, chunk = m["mamba_num_heads"], m["ssm_state_size"], m["chunk_size"]
    inner = heads * m["mamba_head_dim"]
    conv = inner + 2 * m["n_groups"] * state
    projected = element * (inner + conv + heads + conv + inner)  # the input projection, the convolution, the result
    states = 4 * inner * state // chunk
    if step.fused:
        return int(norm + projected + 4 * 5 * inner + states + element * inner)
    scan = 4 * (9 * inner + 3 * heads * chunk + 5 * heads * state) + 2 * states
    return int(norm + projected + scan + (0 if step.bf16 else 4 * conv))


def network_bytes(step: Step) -> int:
    """Bytes that one process sends in a step, of all its micro-batches: weights gathered in the forward and the
    backward pass, gradients reduced, tokens to experts and back."""
    m, layout = numbers(step.model), step.layout
    total = count_parameters(step.model)
    if step.shards <= 1:
        return int(_part(step.processes) * 2 * _GRADIENTS * total)
    experts = _experts(m, step)
    gathered = _part(step.shards) * (total - experts)
    if experts:
        gathered += _part(layout.fsdp_size // layout.ep_size) * experts * _padding(m, layout) / layout.ep_size
    replicas = _part(layout.dp_replicate_size) * 2 * _GRADIENTS * total / step.shards
    passes = 4 + 2 * step.activation_checkpointing  # there and back, forward and backward
    layers = sum(kind == "moe" for kind in layer_types(step.model))
    width = m["moe_latent_size"] or m["hidden_size"]
    tokens = _part(layout.ep_size) * passes * layers * step.tokens * m["num_experts_per_tok"] * width * step.element
    return int(step.micro_batches * (gathered * (2 * step.element + _GRADIENTS) + replicas + tokens))


def _part(processes: int) -> float:
    """The part of a tensor that does not stay on its process."""
    return (processes - 1) / processes


def usable(memory: int) -> int:
    """How much of a GPU's memory a step can have."""
    return int(memory * (1 - _RESERVED))


def smallest_layout(step: Step, memory: int) -> Step | None:
    """The step on the fewest processes that fits into `memory` bytes of each: on those that the job has, if it fits
    there in some layout, else on more of them. None if it does not fit on any."""
    powers = (1 << n for n in range(_MOST_RANKS.bit_length()))
    for ranks in (step.processes, *(count for count in powers if count > step.processes)):
        for found in _layouts(step, ranks):
            if memory_of(found).peak <= memory:
                return found
    return None


def _layouts(step: Step, ranks: int) -> Iterator[Step]:
    """The layouts of this many processes, from the one that sends least over the network."""
    same = step.activation_checkpointing
    experts = numbers(step.model)["n_routed_experts"] if "moe" in layer_types(step.model) else 0
    batch = step.micro_batches * step.processes
    # One that accumulates gradients still does: fine-tuning and RL have theirs all the time.
    micro_batches = max(min(2, step.micro_batches), batch // ranks)
    base = replace(step, processes=ranks, micro_batches=micro_batches, layout=Layout())
    for checkpointing in dict.fromkeys((same, True)):
        yield replace(base, activation_checkpointing=checkpointing)
    for size in (size for size in range(2, ranks + 1) if ranks % size == 0):
        in_node = max(each for each in range(1, 9) if size % each == 0 and experts % each == 0) if experts else 1
        for checkpointing in dict.fromkeys((same, True)):
            layouts = [Layout(size, ep_size, ranks // size, sharded=True) for ep_size in dict.fromkeys((1, in_node))]
            chosen = replace(base, activation_checkpointing=checkpointing, loss_chunk=step.loss_chunk or LOSS_CHUNK)
            yield from sorted((replace(chosen, layout=each) for each in layouts), key=network_bytes)


def settings_of(step: Step) -> str:
    """What to set for a step's layout, as on a command line."""
    sizes = {name: size for name, size in step.layout.sizes().items() if size > 1}
    sizes_text = ", ".join(f"{name}: {size}" for name, size in sizes.items())
    layout = f"'train.parallelism={{{sizes_text}}}'" if step.layout.sharded else "train.parallelism=ddp"
    return f"{layout} train.activation_checkpointing=true" if step.activation_checkpointing else layout


def fit_problem(what: str, step: Step, memory: int, whose: str, instead: str = "") -> str | None:
    """A sentence with the estimate, and the smallest layout that fits, where `step` does not fit into `memory`, which
    is that of `whose`; None where it does. `instead`: what else to do."""
    found = memory_of(step)
    if found.peak <= memory:
        return None
    fitting = smallest_layout(step, memory)
    needs = f"{what} needs {in_gib(found.peak)} in each of {step.processes} processes"
    if step.processes == 1:
        needs = f"{what} needs {in_gib(found.peak)} in one process"
    ways = [
        f"it fits on {fitting.processes} of these with {settings_of(fitting)} ({in_gib(memory_of(fitting).peak)} each)"
        if fitting
        else f"no layout on up to {_MOST_RANKS} of these fits: shorten the sequences or the micro-batch"
    ]
    ways += [instead] if instead else []
    return f"{needs} ({found}), and {whose} has {in_gib(memory)} for it; {'; or '.join(ways)}."


class GpuFacts(Protocol):
    """A kind of GPU, as a profile gives it."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def memory(self) -> int:
        """Bytes."""

    @property
    def unsure(self) -> str | None:
        """The sizes that it may have, of which `memory` is the largest; None where it has one."""

    @property
    def flops(self) -> float | None:
        """Operations a second, at most, of dense matrices in bf16; None where that is not known."""


def memory_notes(
    what: str, step: Step, precision: str, *, here: bool, gpu: GpuFacts | None = None, instead: str = ""
) -> list[str]:
    """The problem (see `fit_problem`) of a step that does not fit on the job's GPUs (`gpu`), or without them on this
    machine's, or into its memory if the job runs `here`. A Note with the estimate for a step that fits, or whose GPUs
    are not known; nothing for one that fits on any."""
    memory, whose = None, ""
    step = replace(step, bf16=precision != "fp32")
    if gpu is not None:
        memory, whose = usable(gpu.memory), gpu.name
    elif here:
        memory, whose = available_bytes()
        if whose == _MACHINE:
            memory //= step.processes
            step = replace(step, bf16=precision == "bf16", fused=False)
        else:
            memory = usable(memory)
    found = memory_of(step)
    if memory is not None and (problem := fit_problem(what, step, memory, whose, instead)):
        return [problem]
    if found.peak < _SMALL or (here and gpu is None):
        return []
    sent = network_bytes(step) / 1e9
    figures = f"{what} takes about {in_gib(found.peak)} in each of {step.processes} processes ({found})"
    figures += f", and sends {sent:,.0f} GB from each in a step" if step.processes > 1 else ""
    if memory is None:
        unknown = 'the profile does not say what its GPUs have: gpu_memory = "80GB"'
        return [Note(f"{figures}; {unknown}.")]
    unsure = f" There are such GPUs with {gpu.unsure} GB: gpu_memory says which." if gpu and gpu.unsure else ""
    return [Note(f"{figures}; {whose} has {in_gib(memory)} for it.{unsure}")]


_MACHINE = "this machine"


def available_bytes() -> tuple[int, str]:
    """(bytes of memory that training can use here, a description of that memory): the smallest GPU's, for each process,
    else the machine's, for all of them."""
    gpus = _gpu_bytes()
    if gpus:
        return min(gpus), "this machine's GPU"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cgroups = map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    limits = [file.read_text(encoding="ascii").strip() for file in cgroups if file.is_file()]
    return min([total, *(int(limit) for limit in limits if limit.isdigit())]), _MACHINE


def _gpu_bytes() -> list[int]:
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    import subprocess

    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = answer.stdout.split() if answer.returncode == 0 else []
    return [int(line) << 20 for line in lines if line.isdigit()]
