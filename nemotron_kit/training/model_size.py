"""The `model` block: its fields by what they hold, and the number of its parameters. Light: every launch imports it,
without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemotron_kit.errors import Note, UserError, nearest, sentence
from nemotron_kit.training.config_blocks import unknown
from nemotron_kit.training.model import (
    LAYER_NAMES,
    check_divisions,
    check_keys,
    check_layers,
    check_unused,
    layer_types,
)

# The fields of NemotronHConfig by what they hold. A test compares the names with the installed transformers; one that
# is in none of these is looked up there.
_INTEGERS = [
    "vocab_size",
    "hidden_size",
    "num_logits_to_keep",
    "pad_token_id",
    "bos_token_id",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "intermediate_size",
    "ssm_state_size",
    "mamba_num_heads",
    "mamba_head_dim",
    "n_groups",
    "conv_kernel",
    "expand",
    "chunk_size",
    "n_routed_experts",
    "num_local_experts",
    "n_shared_experts",
    "moe_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "moe_latent_size",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "num_nextn_predict_layers",
    "num_hidden_layers",
    "chunk_size_feed_forward",
]
_NUMBERS = [
    "attention_dropout",
    "time_step_min",
    "time_step_max",
    "time_step_floor",
    "routed_scaling_factor",
    "initializer_range",
    "layer_norm_epsilon",
    "hidden_dropout",
]
_BOOLEANS = [
    "tie_word_embeddings",
    "use_cache",
    "attention_bias",
    "mlp_bias",
    "use_mamba_kernels",
    "use_conv_bias",
    "mamba_proj_bias",
    "output_router_logits",
    "moe_shared_expert_overlap",
    "norm_topk_prob",
    "use_bias",
    "residual_in_fp32",
    "rescale_prenorm_residual",
    "output_hidden_states",
    "return_dict",
    "is_encoder_decoder",
]
_OTHERS = [
    "transformers_version",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "layers_block_type",
    "layer_types",
    "hybrid_override_pattern",
    "eos_token_id",
    "mlp_hidden_act",
    "mamba_hidden_act",
    "time_step_limit",
    "mamba_ssm_cache_dtype",
    "mtp_layers_block_type",
]
FIELDS = frozenset([*_INTEGERS, *_NUMBERS, *_BOOLEANS, *_OTHERS, *LAYER_NAMES])
_KINDS: tuple[tuple[frozenset[str], type | tuple[type, ...], str], ...] = (
    (frozenset(_INTEGERS), int, "a whole number"),
    (frozenset(_NUMBERS), (int, float), "a number"),
    (frozenset(_BOOLEANS), bool, "true or false"),
)


def check_block(model: Mapping[str, Any]) -> list[Note]:
    """Raises UserError for a key or a value that NemotronHConfig would refuse. Returns notes on keys that can't be
    judged here, since a newer transformers may have them."""
    known = {name: value for name, value in model.items() if not unknown(value)}
    for names, kind, what in _KINDS:
        for name in sorted(names & known.keys()):
            value = known[name]
            if value is None:
                continue
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise UserError(f"model.{name} is {value!r}; it must be {what}.")
    check_unused(model)
    strange = [name for name in model if name not in FIELDS]
    notes = []
    if strange and (find_spec("transformers") is None or find_spec("torch") is None):
        told = "no field of NemotronHConfig that is known here, and there is no transformers to ask."
        notes = [Note(f"model.{name}: {told} {sentence(nearest(name, FIELDS))}") for name in strange]
    elif strange:
        check_keys(strange)
    if not any(unknown(model.get(name)) for name in LAYER_NAMES):
        check_layers(model)
        # Other values are another model's where the block does not name layers: that of given weights.
        check_divisions({**(MODEL_DEFAULTS if LAYER_NAMES & model.keys() else {}), **known}, layer_types(model))
    return notes


# NemotronHConfig's own defaults, for what a model block leaves out.
MODEL_DEFAULTS: dict[str, Any] = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 21504,
    "mlp_bias": False,
    "ssm_state_size": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "use_bias": False,
    "chunk_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "moe_latent_size": None,
}


def given_block(folder: str | None) -> Mapping[str, Any]:
    """The config of the model in a folder; {} where there is none that can be read, which the run reports."""
    try:
        found = json.loads((Path(folder or "") / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# The sizes that every model has.
_POSITIVE = ("vocab_size", "hidden_size", "chunk_size")


def count_parameters(model: Mapping[str, Any]) -> int:
    """The number of parameters of NemotronHForCausalLM with this `model` block. Raises UserError for a value that is no
    number."""
    m = numbers(model)
    return int(2 * m["vocab_size"] * m["hidden_size"] + m["hidden_size"]) + sum(n for n, _ in block_parameters(model))


def block_parameters(model: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """(number of parameters, kind) of each layer."""
    m = numbers(model)
    sizes = {
        "linear_attention": _mamba(m),
        "full_attention": 2 * m["hidden_size"] * m["head_dim"] * (m["num_attention_heads"] + m["num_key_value_heads"]),
        "moe": _moe(m),
        "mlp": _dense(m, m["intermediate_size"]),
    }
    return ((int(m["hidden_size"] + sizes[kind]), kind) for kind in layer_types(model))


def routed_parameters(m: Mapping[str, Any]) -> int:
    """The parameters of all routed experts of one layer, from its `numbers`."""
    return int(m["n_routed_experts"] * 2 * m["moe_intermediate_size"] * (m["moe_latent_size"] or m["hidden_size"]))


def active_parameters(model: Mapping[str, Any]) -> int:
    """How many parameters a token is multiplied with: of the experts those that it is sent to; not the embeddings,
    which are looked up. UserError for a value that is no number."""
    m = numbers(model)
    idle = max(0, m["n_routed_experts"] - m["num_experts_per_tok"])
    of_experts = routed_parameters(m) * idle // max(1, m["n_routed_experts"])
    layers = sum(size - (of_experts if kind == "moe" else 0) for size, kind in block_parameters(model))
    return int(m["vocab_size"] * m["hidden_size"] + layers)


def expert_count(model: Mapping[str, Any]) -> int | None:
    """How many experts a layer of NemotronHForCausalLM has with this `model` block: 0 without such layers, None where
    only the job knows."""
    given = model.get("num_local_experts") or model.get("n_routed_experts") or MODEL_DEFAULTS["n_routed_experts"]
    if unknown(given) or any(unknown(model.get(name)) for name in LAYER_NAMES):
        return None
    return int(given) if "moe" in layer_types(model) else 0


def numbers(model: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a `model` block, NemotronHConfig's defaults included. UserError for one that is no number."""
    for name in (*MODEL_DEFAULTS, "num_local_experts"):
        value = model.get(name)
        least = 1 if name in _POSITIVE else 0
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f"model.{name} is {value!r}; it must be a whole number, {least} or more.")
    experts = model.get("num_local_experts") or model.get("n_routed_experts")  # of two names the one that wins
    given = {**model, "n_routed_experts": experts}
    return {**MODEL_DEFAULTS, **{name: value for name, value in given.items() if value is not None}}


def _mamba(m: Mapping[str, Any]) -> int:
    inner = m["mamba_num_heads"] * m["mamba_head_dim"]
    conv = inner + 2 * m["n_groups"] * m["ssm_state_size"]
    projected = inner + conv + m["mamba_num_heads"]
    biases = (conv if m["use_conv_bias"] else 0) + (projected + m["hidden_size"] if m["use_bias"] else 0)
    matrices = m["hidden_size"] * projected + inner * m["hidden_size"] + conv * m["conv_kernel"]
    return int(matrices + biases + 3 * m["mamba_num_heads"] + inner)


def _moe(m: Mapping[str, Any]) -> int:
    hidden, experts, latent = m["hidden_size"], m["n_routed_experts"], m["moe_latent_size"]
    routed = routed_parameters(m)
    shared = _dense(m, m["moe_shared_expert_intermediate_size"])
    around = 2 * hidden * latent + (hidden + latent if m["mlp_bias"] else 0) if latent else 0
    return int(routed + experts * hidden + shared + around)


def _dense(m: Mapping[str, Any], inner: int) -> int:
    return int(2 * m["hidden_size"] * inner + (inner + m["hidden_size"] if m["mlp_bias"] else 0))
