"""The model: NemotronHConfig from the `model` block, and auxiliary-loss-free balancing of its experts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nemotron_kit.errors import UserError, listed, nearest
from nemotron_kit.training.config_blocks import unknown
from nemotron_kit.training.parallel import Layout, distributed_config, empty_model, initialise, require_layout
from nemotron_kit.training.processes import sum_over_ranks

if TYPE_CHECKING:
    import torch
    from transformers import NemotronHConfig, NemotronHForCausalLM


class ExpertBalance:
    """Auxiliary-loss-free load balancing of experts (Wang et al. 2024, arXiv 2408.15664): adjusts each router's
    `e_score_correction_bias`, [experts].

    `update()`, called after an optimizer step, adds `rate` to the bias of every expert that received fewer tokens than
    the average since the last update, summed over all ranks, and subtracts `rate` from the bias of every expert that
    received more. The bias takes part in the choice of the experts only, not in their weights, so it has no gradient.
    Tokens in eval mode are not counted; within `counting(real)` only those marked in `real` are: padding is no load.
    """

    def __init__(self, model: torch.nn.Module | None = None, rate: float = 0.0) -> None:
        """With a `rate` of 0, or without a model, no bias moves."""
        self.rate = rate
        self._real: torch.Tensor | None = None
        self.loads: list[tuple[torch.nn.Module, torch.Tensor]] = []
        if model is not None and rate:
            for module in model.modules():
                if hasattr(module, "e_score_correction_bias"):
                    self._watch(module)

    def _watch(self, router: Any) -> None:
        import torch

        load = torch.zeros_like(router.e_score_correction_bias, dtype=torch.int64)

        def count(module: Any, _inputs: Any, outputs: Any) -> None:
            # Not again where a backward pass computes activations anew.
            if module.training and torch._C._current_graph_task_id() == -1:
                # Neither bincount nor a mask as an index: for these a GPU has to tell the host a size, in each layer.
                chosen = outputs[2]
                ones = torch.ones_like(chosen) if self._real is None else self._real[:, None].expand_as(chosen).long()
                load.scatter_add_(0, chosen.flatten(), ones.flatten())

        router.register_forward_hook(count)
        self.loads.append((router, load))

    @contextlib.contextmanager
    def counting(self, real: torch.Tensor) -> Iterator[None]:
        """Within the block, a forward pass over tokens of the shape of `real` (bool) counts those for which it is
        true."""
        self._real = real.flatten()
        try:
            yield
        finally:
            self._real = None

    def update(self) -> None:
        """Move every bias by one step of size `rate`, and reset the token counts."""
        import torch

        if not self.loads:
            return
        # One reduction for all layers: they have the same number of experts.
        loads = sum_over_ranks(torch.stack([load for _, load in self.loads])).double()
        moves = torch.sign(loads.mean(dim=1, keepdim=True) - loads) * self.rate
        for (router, load), move in zip(self.loads, moves, strict=True):
            router.e_score_correction_bias.add_(move.to(router.e_score_correction_bias))
            load.zero_()


# The pattern's letters: Mamba-2, MoE, attention, a plain MLP.
PATTERN = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
# The names that published configs have for them, which transformers takes, too.
_OLDER_NAMES = {"mamba": "linear_attention", "attention": "full_attention"}


# The names under which a block may give its layers.
LAYER_NAMES = frozenset({"hybrid_override_pattern", "layers_block_type", "layer_types", "num_hidden_layers"})


class ModelField(NamedTuple):
    """A field of NemotronHConfig. `kind`: bool, int, float (any number) or object (none of these). `default`: that of
    NemotronHConfig, where parameters and memory are counted by it. `shapes`: it decides shapes of tensors: given
    weights have theirs. `fixed`: what holds in every model, since NemotronHForCausalLM does not read the field."""

    kind: type
    default: Any = MISSING
    shapes: bool = False
    fixed: Any = MISSING


# A test compares the names with the installed transformers; one that is not here is looked up there.
MODEL_FIELDS = {
    "vocab_size": ModelField(int, 131072, shapes=True),
    "hidden_size": ModelField(int, 4096, shapes=True),
    "layers_block_type": ModelField(object, shapes=True),
    "layer_types": ModelField(object),
    "hybrid_override_pattern": ModelField(object),
    "num_hidden_layers": ModelField(int),
    "tie_word_embeddings": ModelField(bool, shapes=True, fixed=False),
    "pad_token_id": ModelField(int),
    "bos_token_id": ModelField(int),
    "eos_token_id": ModelField(object),
    "max_position_embeddings": ModelField(int),
    "num_logits_to_keep": ModelField(int),
    "initializer_range": ModelField(float),
    "rescale_prenorm_residual": ModelField(bool),
    "layer_norm_epsilon": ModelField(float),
    # Attention
    "num_attention_heads": ModelField(int, 32, shapes=True),
    "num_key_value_heads": ModelField(int, 8, shapes=True),
    "head_dim": ModelField(int, 128, shapes=True),
    "attention_bias": ModelField(bool, shapes=True, fixed=False),
    "attention_dropout": ModelField(float),
    "use_cache": ModelField(bool),
    # MLP
    "intermediate_size": ModelField(int, 21504, shapes=True),
    "mlp_bias": ModelField(bool, False, shapes=True),
    "mlp_hidden_act": ModelField(object),
    # Mamba-2
    "ssm_state_size": ModelField(int, 128, shapes=True),
    "mamba_num_heads": ModelField(int, 128, shapes=True),
    "mamba_head_dim": ModelField(int, 64, shapes=True),
    "n_groups": ModelField(int, 8, shapes=True),
    "conv_kernel": ModelField(int, 4, shapes=True),
    "use_conv_bias": ModelField(bool, True, shapes=True),
    "use_bias": ModelField(bool, False, shapes=True),
    "mamba_proj_bias": ModelField(bool, shapes=True, fixed=False),
    "chunk_size": ModelField(int, 128),
    "expand": ModelField(int),
    "mamba_hidden_act": ModelField(object),
    "mamba_ssm_cache_dtype": ModelField(object),
    "use_mamba_kernels": ModelField(bool),
    "time_step_min": ModelField(float),
    "time_step_max": ModelField(float),
    "time_step_floor": ModelField(float),
    "time_step_limit": ModelField(object),
    # Mixture of experts
    "n_routed_experts": ModelField(int, 8, shapes=True),
    "num_local_experts": ModelField(int, shapes=True),
    "num_experts_per_tok": ModelField(int, 2),
    "n_shared_experts": ModelField(int, fixed=1),
    "moe_intermediate_size": ModelField(int, 7688, shapes=True),
    "moe_shared_expert_intermediate_size": ModelField(int, 7688, shapes=True),
    "moe_latent_size": ModelField(int, None, shapes=True),
    "moe_shared_expert_overlap": ModelField(bool),
    "n_group": ModelField(int),
    "topk_group": ModelField(int),
    "norm_topk_prob": ModelField(bool),
    "routed_scaling_factor": ModelField(float),
    # Predicting more tokens
    "num_nextn_predict_layers": ModelField(int, shapes=True, fixed=0),
    "mtp_layers_block_type": ModelField(object),
    # What every config of transformers has, and what is left of older ones
    "hidden_dropout": ModelField(float, fixed=0.0),
    "sliding_window": ModelField(int, fixed=None),
    "residual_in_fp32": ModelField(bool, fixed=False),
    "output_router_logits": ModelField(bool, fixed=False),
    "output_hidden_states": ModelField(bool),
    "return_dict": ModelField(bool),
    "is_encoder_decoder": ModelField(bool),
    "chunk_size_feed_forward": ModelField(int),
    "transformers_version": ModelField(object),
    "architectures": ModelField(object),
    "dtype": ModelField(object),
    "id2label": ModelField(object),
    "label2id": ModelField(object),
    "problem_type": ModelField(object),
}
SHAPE_SETTINGS = frozenset(name for name, each in MODEL_FIELDS.items() if each.shapes)
MODEL_DEFAULTS = {name: each.default for name, each in MODEL_FIELDS.items() if each.default is not MISSING}
UNUSED = {name: each.fixed for name, each in MODEL_FIELDS.items() if each.fixed is not MISSING}
_LISTED = 20


def layer_types(model: Mapping[str, Any]) -> list[str]:
    """The kind of every layer: from hybrid_override_pattern ("MEM*E"), or layers_block_type (a list of names)."""
    pattern = model.get("hybrid_override_pattern")
    if pattern is None:
        name = next((name for name in ("layers_block_type", "layer_types") if model.get(name)), None)
        given = model[name] if name else list(PATTERN.values())
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise UserError(
                f"model.{name} is {given!r}; it must be a list, a kind a layer: {', '.join(PATTERN.values())}."
            )
        found = [_OLDER_NAMES.get(str(kind), str(kind)) for kind in given]
        for kind in found:
            if kind not in PATTERN.values():
                raise UserError(f"model.{name}: there is no layer {kind!r}; {nearest(kind, PATTERN.values())}")
        return found
    strange = sorted(set(str(pattern)) - set(PATTERN))
    if strange or not pattern:
        raise UserError(
            f"model.hybrid_override_pattern {pattern!r} holds {''.join(strange) or 'nothing'}.",
            hint="One letter a layer: M (Mamba-2), E (mixture of experts), * (attention), - (MLP).",
        )
    return [PATTERN[letter] for letter in str(pattern)]


def model_config(model: Mapping[str, Any]) -> NemotronHConfig:
    """The transformers config of a `model` block. Raises UserError for a key or a value that NemotronHConfig
    refuses."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import NemotronHConfig

    check_keys(model)
    check_layers(model)
    check_unused(model)
    values = {name: value for name, value in model.items() if name not in LAYER_NAMES}
    try:
        config = NemotronHConfig(**values, layers_block_type=layer_types(model))
        check_divisions(vars(config), layer_types(model))
        return config
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"model: {' '.join(str(error).split())}") from error


def check_keys(names: Iterable[str]) -> None:
    """Raises UserError for a name that is no field of the installed transformers' NemotronHConfig."""
    import dataclasses

    from transformers import NemotronHConfig

    known = {field.name for field in dataclasses.fields(NemotronHConfig)}
    known |= {*LAYER_NAMES, "num_local_experts"}
    for name in names:
        if name not in known:
            raise UserError(f"model.{name}: NemotronHConfig has no such field; {nearest(name, known)}")


def check_unused(model: Mapping[str, Any]) -> None:
    """Raises UserError for a setting of a `model` block that would change nothing: transformers' model has no such
    thing, whatever its config says."""
    for name, fixed in UNUSED.items():
        value = model.get(name, fixed)
        if value != fixed and value is not None and not unknown(value):
            raise UserError(
                f"model.{name} is {value!r}: transformers' Nemotron-H has {fixed!r} and no other.", hint="Leave it out."
            )


def check_divisions(sizes: Mapping[str, Any], kinds: Iterable[str]) -> None:
    """Raises UserError for sizes of a whole `model` block that don't go together in layers of these kinds: the first
    forward pass would fail. Sizes that are missing, or that only the job knows, are not compared."""
    if sizes.get("num_local_experts"):
        sizes = {**sizes, "n_routed_experts": sizes["num_local_experts"]}
    for kind, whole, part, divides in (
        ("full_attention", "num_attention_heads", "num_key_value_heads", True),
        ("linear_attention", "mamba_num_heads", "n_groups", True),
        ("moe", "n_routed_experts", "n_group", True),
        ("moe", "n_routed_experts", "num_experts_per_tok", False),
        ("moe", "n_group", "topk_group", False),
    ):
        one, other = sizes.get(whole), sizes.get(part)
        if kind not in kinds or not isinstance(one, int) or not isinstance(other, int):
            continue
        if other < 1 or (one % other if divides else one < other):
            must = "divide" if divides else "be at most"
            raise UserError(f"model.{part} is {other}; it must {must} model.{whole}, {one}.")


def check_layers(model: Mapping[str, Any]) -> None:
    """Raises UserError for an invalid pattern, or for a num_hidden_layers that differs from the pattern's."""
    layers = len(layer_types(model))
    if model.get("num_hidden_layers", layers) != layers:
        raise UserError(
            f"model.num_hidden_layers is {model['num_hidden_layers']}, but the pattern has {layers} layers."
        )


def new_model(
    config: NemotronHConfig, seed: int, layout: Layout | None = None, *, bf16: bool = False
) -> NemotronHForCausalLM:
    """A model with fresh weights, float32; the same for the same seed, in every layout."""
    model = empty_model(config, layout or Layout(), bf16=bf16)
    initialise(model, seed)
    return _unclamped(model)


def require_model(folder: Path) -> None:
    """Raises UserError if `folder` holds no model."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model here (no config.json).", hint="Give a folder in transformers' format.")


def settings_of(model: Mapping[str, Any]) -> list[str]:
    """The fields of NemotronHConfig that a `model` block sets, its layers among them."""
    return [
        *(name for name in model if name not in LAYER_NAMES),
        *(["layers_block_type"] if LAYER_NAMES & set(model) else []),
    ]


def load_model(
    folder: Path, settings: Mapping[str, Any] | None = None, layout: Layout | None = None, *, bf16: bool = False
) -> NemotronHForCausalLM:
    """A model from a folder in transformers' format, or of a sharded checkpoint, float32, in the layout, with
    `settings` of NemotronHConfig in place of its own.

    Raises UserError if there is no readable model, if a setting implies tensors of another shape, or if the folder's
    tensors are not exactly the model's: a missing one would have random values.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import GenerationConfig, NemotronHConfig, NemotronHForCausalLM

    from nemotron_kit.training import sharded  # a dry-run needs no checkpoints

    require_model(folder)
    try:
        config = NemotronHConfig.from_pretrained(folder, local_files_only=True)
        for name, value in (settings or {}).items():
            there = getattr(config, name)
            if there == value:
                continue
            if name in SHAPE_SETTINGS:
                raise UserError(
                    f"{folder} is a different model: model.{name} is {there!r} there and {value!r} here.",
                    hint="Give the model block of those weights, or other weights.",
                )
            setattr(config, name, value)
        if sharded.is_one(folder.parent):
            model = empty_model(config, layout or Layout(), bf16=bf16)
            sharded.load_weights(model, folder.parent)
            if (folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
            return _unclamped(model)
        placed = {"distributed_config": distributed_config(layout, bf16=bf16)} if layout else {}
        model, loaded = NemotronHForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True, **placed
        )
    except (OSError, ValueError, SafetensorError, RuntimeError, StrictDataclassError) as error:
        raise UserError(f"{folder}: the model can't be read: {' '.join(str(error).split())}") from error
    _require_all_tensors(folder, loaded)
    require_layout(model, layout or Layout())
    return _unclamped(model)


def _unclamped(model: NemotronHForCausalLM) -> NemotronHForCausalLM:
    """Remove the Mamba-2 mixers' lower limit of dt. transformers applies it in the forward pass over whole sequences
    (SSD) and not in the one for single tokens: without it, generation computes what was trained."""
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    return model


def _require_all_tensors(folder: Path, loaded: Mapping[str, Any]) -> None:
    wrong = []
    for key, what in (("missing_keys", "are missing"), ("unexpected_keys", "are none of the model's")):
        names = sorted(loaded.get(key) or ())
        if names:
            wrong.append(f"{len(names)} tensors {what}: {listed(names, _LISTED)}")
    if loaded.get("mismatched_keys"):
        wrong.append(
            f"{len(loaded['mismatched_keys'])} tensors have another shape: {sorted(loaded['mismatched_keys'])[0]}"
        )
    if wrong:
        raise UserError(
            f"{folder}: its weights are not those of its config. {'; '.join(wrong)}.",
            hint="Export or download the model again; a model block that describes other layers needs other weights.",
        )


def with_data_settings(model: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """The `model` block, with settings that it leaves out taken from the data in the folder `data`.

    These are vocab_size, from metadata.json or else the tokenizer.json there, and the ids of the special tokens. Raises
    UserError if neither gives the size of the vocabulary.
    """
    metadata = _read_json(data / "metadata.json")
    known = {**(metadata.get("metadata") or {}), **metadata}
    found = model.get("vocab_size") or known.get("vocab_size")
    for name in ("tokenizer/tokenizer.json", "tokenizer.json"):
        found = found or max(vocabulary(_read_json(data / name)).values(), default=-1) + 1
    if not found:
        raise UserError(
            f"{data}: neither metadata.json nor a tokenizer gives the vocabulary size.",
            hint="Set it: model.vocab_size=<size>",
        )
    eos = known.get("eos_id")
    ends = {} if eos is None else {"eos_token_id": eos, "bos_token_id": known.get("bos_id"), "pad_token_id": eos}
    return {**ends, **model, "vocab_size": int(found)}


def vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token → id of a tokenizer.json. Of an added token that is in the vocabulary too the latter id is in use."""
    vocab = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = dict(vocab) if isinstance(vocab, Mapping) else {str(entry[0]): number for number, entry in enumerate(vocab)}
    return {**{str(token["content"]): int(token["id"]) for token in tokenizer.get("added_tokens") or []}, **ids}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object was expected.")
    return value
