"""A model over ranks: its layout, its sharding, and the initialisation of its weights.

The sharding is transformers' own (DistributedConfig): FSDP2 (torch's fully_shard; Zhao et al., arXiv 2304.11277), HSDP
(the same, with replicas of the sharded model), and expert parallelism with all-to-all (GShard: Lepikhin et al., arXiv
2006.16668). A tensor is sharded along its first dimension: a rank holds a range of rows.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nemotron_kit.errors import NemotronError, UserError, nearest
from nemotron_kit.lazy import Value
from nemotron_kit.training import processes

T = TypeVar("T")

if TYPE_CHECKING:
    import torch
    from transformers import NemotronHConfig, NemotronHForCausalLM

DDP = "ddp"


@dataclass(frozen=True, eq=False, repr=False)
class Layout(Value):
    """`train.parallelism`: the number of ranks over which a model's tensors are sharded (`fsdp_size`), of these the
    number over which its experts are divided (`ep_size`), and the number of replicas of that (`dp_replicate_size`).
    Not `sharded`: every rank holds the whole model (ddp)."""

    fsdp_size: int = 1
    ep_size: int = 1
    dp_replicate_size: int = 1
    sharded: bool = False

    @classmethod
    def of(cls, value: Any) -> Layout:
        """The layout that a setting names: `ddp`, or a mapping of sizes. UserError for anything else."""
        if value in (None, DDP):
            return cls()
        sizes = [field.name for field in fields(cls) if field.name != "sharded"]
        if not isinstance(value, Mapping):
            raise UserError(
                f"train.parallelism is {value!r}; it must be ddp, or sizes.",
                hint="For instance 'train.parallelism={fsdp_size: 8}'; sizes are " + ", ".join(sizes) + ".",
            )
        for name, size in value.items():
            if name not in sizes:
                raise UserError(f"train.parallelism.{name}: there is no such size; {nearest(str(name), sizes)}")
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UserError(f"train.parallelism.{name} is {size!r}; it must be a whole number, 1 or more.")
        layout = cls(**{str(name): size for name, size in value.items()}, sharded=True)
        if layout.fsdp_size % layout.ep_size:
            raise UserError(
                f"train.parallelism.ep_size {layout.ep_size} does not divide fsdp_size {layout.fsdp_size}: experts are "
                "dealt out within the ranks that share one model.",
                hint=f"ep_size can be {_divisors(layout.fsdp_size)}.",
            )
        return layout

    @property
    def ranks(self) -> int:
        """The processes that it takes; 0 where any number will do."""
        return self.fsdp_size * self.dp_replicate_size if self.sharded else 0

    def check_ranks(self, ranks: int) -> None:
        """UserError when it is not for this number of processes."""
        if not self.sharded or self.ranks == ranks:
            return
        if ranks % self.fsdp_size == 0:
            right = f"dp_replicate_size={ranks // self.fsdp_size}"
        elif ranks % self.dp_replicate_size == 0:
            right = f"fsdp_size={ranks // self.dp_replicate_size}"
        else:
            right = f"fsdp_size={ranks} with dp_replicate_size=1"
        raise UserError(
            f"train.parallelism: fsdp_size {self.fsdp_size} × dp_replicate_size {self.dp_replicate_size} is for "
            f"{self.ranks} process{'es' if self.ranks > 1 else ''}, and the job has {ranks}.",
            hint=f"Set {right}, or give the job {self.ranks} (nodes × nproc_per_node).",
        )

    def check_experts(self, experts: int | None) -> None:
        """UserError when the experts of a layer can't be dealt out evenly. None: their number is not known yet."""
        if experts is None:
            return
        if self.ep_size > 1 and not experts:
            raise UserError(f"train.parallelism.ep_size is {self.ep_size}, but the model has no experts.")
        if experts % self.ep_size:
            raise UserError(
                f"train.parallelism.ep_size {self.ep_size} does not divide the {experts} experts of a layer.",
                hint=f"ep_size can be {_divisors(experts, self.fsdp_size)}.",
            )

    def sizes(self) -> dict[str, int]:
        """The sizes by their names in `train.parallelism`."""
        return {name: value for name, value in asdict(self).items() if name != "sharded"}

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {size}" for name, size in self.sizes().items() if size > 1 or name == "fsdp_size")
        return shown if self.sharded else DDP


def _divisors(*numbers: int) -> str:
    return ", ".join(str(n) for n in range(1, min(numbers) + 1) if all(number % n == 0 for number in numbers))


# FSDP2's units, by NemotronH's names: transformers' default plan has other models' names for the first and last.
_PLAN = {
    "model.embeddings": "free_full_weight",
    "model.layers.*": "free_full_weight",
    "model.norm_f": "keep_full_weight",
    "lm_head": "keep_full_weight",
}


def empty_model(config: NemotronHConfig, layout: Layout, *, bf16: bool = False) -> NemotronHForCausalLM:
    """A model in the layout, float32, whose tensors hold nothing yet; never more of it on a rank than is the rank's.

    With `bf16` a sharded model computes, and gathers weights, in bf16; gradients are reduced in float32. NemotronError
    when what runs would not be what the layout says.
    """
    import torch
    from transformers import NemotronHForCausalLM

    with torch.device("meta"):
        model = NemotronHForCausalLM(config).float()
    if layout.ranks > 1:
        from transformers.conversion_mapping import get_model_conversion_mapping

        # How its files name the tensors is found by its class, which sharding changes.
        model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
        plan, _, mesh = type(model).prepare_distribute_model(distributed_config(layout, bf16=bf16))
        model = type(model).maybe_distribute_model(model, plan, mesh)
        require_layout(model, layout)
    return model.to_empty(device=processes.device())


def distributed_config(layout: Layout, *, bf16: bool = False) -> Any:
    """transformers' DistributedConfig of a layout; None where each rank holds the whole model."""
    from transformers.distributed import DistributedConfig

    if layout.ranks <= 1:
        return None
    return DistributedConfig(**layout.sizes(), fsdp_plan=dict(_PLAN), fsdp_mixed_precision=bf16)


def require_layout(model: Any, layout: Layout) -> None:
    """Raises NemotronError if a parameter is not sharded as the layout says."""
    if layout.ranks <= 1:
        return
    for name, parameter in model.named_parameters():
        placed = getattr(parameter, "placements", ())
        is_expert = ".experts." in name
        wanted = (layout.dp_replicate_size > 1) + 1 + (layout.ep_size > 1 and is_expert)
        if len(placed) != wanted or not any(hasattr(one, "dim") for one in placed):
            raise NemotronError(
                f"train.parallelism ({layout}): {name} lies on the ranks as {placed or 'one whole'}: transformers has "
                "not sharded it as it was told.",
                hint="nemotron_kit's tests ran with the transformers of its constraints.txt.",
            )


# Parameters below which a second thread only costs time: operations are shorter than handing them over. Pretraining on
# two CPUs had with one thread 1.5 times the speed at 0.8 M parameters, 1.2 times at 1.6 M, and 0.8 times at 5.6 M. One
# thread also adds in one order, whatever the number of CPUs and of ranks (torchrun gives each one thread).
_SMALL = 2_000_000


def prepare(model: Any, *, activation_checkpointing: bool = False, compile_blocks: bool = False) -> None:
    """Prepare a model in its layout for training, in place. With `activation_checkpointing` (Chen et al., arXiv
    1604.06174) a block keeps its input alone and recomputes its activations in the backward pass; `compile_blocks`:
    torch.compile for each block. Afterwards `within` can be used with the model. A small model on CPUs gets one thread
    a process, unless OMP_NUM_THREADS or MKL_NUM_THREADS is set."""
    import torch

    set_by_user = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys()
    if not set_by_user and model.device.type == "cpu" and sum(p.numel() for p in model.parameters()) < _SMALL:
        torch.set_num_threads(1)
    if activation_checkpointing:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable({"use_reentrant": False})
        else:  # before transformers 5.22
            model.gradient_checkpointing_enable({"use_reentrant": False})
    if compile_blocks:
        for block in model.model.layers:
            # How many tokens a rank's experts get differs from step to step: each number would be compiled anew.
            if not (block.block_type == "moe" and is_on_ranks(model)):
                block.compile()
    for module in (model, model.lm_head):
        _take_functions(module)


def held_bytes(model: torch.nn.Module) -> int:
    """The bytes of the model's tensors that this rank holds."""
    return sum(part.numel() * part.element_size() for part in map(local_shard, tensors(model).values()))


def is_sharded(tensor: Any) -> bool:
    """Whether it is a rank's part of a tensor that lies on several."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


class Rows(NamedTuple):
    """The rows of a tensor that this rank holds: [start, stop)."""

    start: int
    stop: int


def rows_of(tensor: torch.Tensor) -> Rows:
    """Which rows of the whole tensor this rank holds (all of a plain one)."""
    if not is_sharded(tensor):
        return Rows(0, tensor.shape[0] if tensor.dim() else 1)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    given: Any = tensor
    shape, offset = compute_local_shape_and_global_offset(given.shape, given.device_mesh, given.placements)
    if shape[1:] != tuple(given.shape[1:]):
        raise NemotronError(f"A tensor of the shape {tuple(given.shape)} is cut along more than its first dimension.")
    return Rows(offset[0], offset[0] + shape[0])


def local_shard(tensor: Any) -> torch.Tensor:
    """This rank's rows of a tensor, as a plain tensor that shares its memory."""
    return (tensor.to_local() if is_sharded(tensor) else tensor).detach()


def is_first_replica(tensor: Any) -> bool:
    """Whether this rank is in the first replica, of those that hold the same rows of the tensor."""
    if not is_sharded(tensor):
        return processes.rank() == 0
    mesh = tensor.device_mesh
    return all(mesh.get_local_rank(n) == 0 for n, placed in enumerate(tensor.placements) if placed.is_replicate())


def whole(tensor: Any) -> torch.Tensor:
    """The whole tensor, on every rank; all ranks must call it."""
    if not is_sharded(tensor):
        return tensor.detach()
    import torch

    # DTensor's full_tensor needs twice the tensor's memory for this, and 2.5 times that of experts on ranks of their
    # own. The rows are put in their places and summed, as whole numbers: bit for bit, whatever the placements are.
    own = local_shard(tensor)
    full = torch.zeros(tensor.shape, dtype=own.dtype, device=own.device)
    if is_first_replica(tensor):
        start, stop = rows_of(tensor)
        full[start:stop] = own
    processes.sum_over_ranks(full.view(torch.int32 if own.element_size() == 4 else torch.uint8))
    return full


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint has of a model: parameters, and what is learned beside them, by name."""
    return dict(model.state_dict(keep_vars=True))


def initialise(model: Any, seed: int) -> None:
    """Give the model fresh weights. They depend on the seed and on the model alone, not on the layout: each block is
    made by itself, from random numbers of its own, and each rank keeps its rows of it."""
    import torch

    target = tensors(model)
    filled = set()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for name, block in _fresh_blocks(model.config):
            torch.manual_seed(seed_of(seed, name))
            block = block.to_empty(device="cpu").apply(model._init_weights)
            for key, value in block.state_dict().items():
                full = f"{name}.{key}"
                put(target[full], value)
                filled.add(full)
    if filled != set(target):
        raise NemotronError(f"No fresh weights for {', '.join(sorted(set(target) ^ filled)[:4])}.")


def seed_of(*parts: object) -> int:
    """A seed for torch that several numbers and names have together."""
    text = " ".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def put(target: Any, value: torch.Tensor) -> None:
    """Write a whole tensor's values into a tensor of the model, or this rank's rows of them."""
    start, stop = rows_of(target)
    local_shard(target).copy_(value[start:stop] if is_sharded(target) else value)


def _fresh_blocks(config: NemotronHConfig) -> Iterator[tuple[str, Any]]:
    """(name, module) of each part of the model that is made by itself, without memory of its own yet."""
    import torch
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHBlock, NemotronHRMSNorm

    made: dict[str, Callable[[], Any]] = {
        "model.embeddings": lambda: torch.nn.Embedding(config.vocab_size, config.hidden_size),
        "model.norm_f": lambda: NemotronHRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon),
        "lm_head": lambda: torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False),
    }
    for number in range(config.num_hidden_layers):
        made[f"model.layers.{number}"] = functools.partial(NemotronHBlock, config, layer_idx=number)
    for name, make in made.items():
        with torch.device("meta"):
            block = make()
        yield name, block


def _take_functions(module: Any) -> None:
    """Let `module(…, inside=function)` call the function in place of its forward, for `within`."""
    forward = module.forward

    def with_function(_self: Any, *args: Any, inside: Callable[..., Any] | None = None, **named: Any) -> Any:
        return forward(*args, **named) if inside is None else inside(*args, **named)

    module.forward = MethodType(with_function, module)
    module._takes_functions = True


def equal_passes(own: Sequence[T], spare: T | None, model: Any) -> list[tuple[T, bool]]:
    """(input, whether it counts) of each forward pass of this rank, given its own inputs. Where ranks share the model,
    each pass is a collective operation: all ranks make equally many, and one with fewer inputs repeats its last one
    (or `spare`), whose result does not count. All ranks must call it. NemotronError without any input."""
    turns = [(one, True) for one in own]
    if not is_on_ranks(model):
        return turns
    missing = processes.max_over_ranks(len(own)) - len(own)
    last = own[-1] if own else spare
    if missing and last is None:
        raise NemotronError("A process has nothing that it could pass through the shared model.")
    return [*turns, *([(last, False)] * missing if last is not None else [])]


def scale_gradients(model: torch.nn.Module, clip: float) -> torch.Tensor:
    """Turn the sharded gradients, which FSDP reduces to means over the ranks, into sums, in place, and clip them to the
    norm `clip` (0: no limit). Returns their norm before clipping, float64 []. All ranks must call it."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    own = [local_shard(parameter.grad) for parameter in trained]
    squares = torch.zeros((), dtype=torch.float64, device=processes.device())
    for parameter, gradient in zip(trained, own, strict=True):
        gradient.mul_(processes.world_size())
        if is_first_replica(parameter):
            squares += gradient.double().square().sum()
    norm = processes.sum_over_ranks(squares).sqrt()
    if clip > 0:
        factor = (clip / (norm + 1e-6)).clamp(max=1.0)
        for gradient in own:
            gradient.mul_(factor.to(gradient.dtype))
    return norm


def within(module: Any, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, called while the module's weights are whole: FSDP gathers them around a module's own forward,
    and what uses them must run inside of it. `module` may be one that wraps such a module."""
    inner = getattr(module, "module", module)
    if getattr(inner, "_takes_functions", False):
        return module(*args, inside=function)
    if inner is not module or is_on_ranks(inner):
        raise NemotronError("A model that lies on several ranks was not prepared for training.")
    return function(*args)


def layout_of(model: Any) -> Layout:
    """The layout that the model has."""
    if not is_on_ranks(model):
        return Layout()
    found = model.config.distributed_config
    return Layout(found.fsdp_size, found.ep_size, found.dp_replicate_size, sharded=True)


def is_on_ranks(model: torch.nn.Module) -> bool:
    """Whether the model's tensors lie on several ranks: then all of them take part in what is done with it."""
    return any(is_sharded(parameter) for parameter in model.parameters())


def token_nll(model: Any, input_ids: torch.Tensor, labels: torch.Tensor, chunk: int | None) -> torch.Tensor:
    """The summed −log p (nats, float32 []) of `labels`, int64 [batch, sequence], after `input_ids` of the same shape.

    The head is applied to `chunk` tokens at a time (None: all at once): the logits of all tokens, [tokens, vocabulary],
    are the largest tensor of a step.
    """

    def both() -> torch.Tensor:
        inner = getattr(model, "module", model)
        hidden = inner.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return head_nll(inner.lm_head, hidden.flatten(0, -2), labels.flatten(), chunk)

    return within(model, both)


def head_nll(head: Any, hidden: torch.Tensor, labels: torch.Tensor, chunk: int | None) -> torch.Tensor:
    """The summed −log p (nats, float32 []) of labels, int64 [tokens], after hidden states, [tokens, hidden]."""
    import torch
    from torch.nn.functional import cross_entropy

    def nll(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return cross_entropy(_logits(head, states), wanted, reduction="sum")

    def summed(states: torch.Tensor) -> torch.Tensor:
        parts = _in_chunks(nll, states, labels, chunk)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    return within(head, summed, hidden)


def head_logprobs(
    head: Any, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, chunk: int | None
) -> torch.Tensor:
    """The log probability (nats, float32 [tokens]) of each label, int64 [tokens], after hidden states, [tokens,
    hidden], at a temperature."""

    def logprobs(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = _logits(head, states) / temperature
        return logits.gather(1, wanted.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)

    def all_of_them(states: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.cat(_in_chunks(logprobs, states, labels, chunk))

    return within(head, all_of_them, hidden)


def _logits(head: Any, states: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import linear

    return linear(states, head.weight, head.bias).float()


def _in_chunks(
    function: Callable[..., torch.Tensor], hidden: torch.Tensor, labels: torch.Tensor, chunk: int | None
) -> list[torch.Tensor]:
    """What the function makes of each chunk. A chunk's logits are made again for its backward pass, not kept."""
    from torch.utils.checkpoint import checkpoint

    if chunk is None or len(labels) <= chunk:
        return [function(hidden, labels)]
    return [
        checkpoint(function, states, wanted, use_reentrant=False)
        for states, wanted in zip(hidden.split(chunk), labels.split(chunk), strict=True)
    ]
