"""What a `model` block may hold, known without transformers: a launch checks it, and a login node has no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from nemotron_kit.errors import Note, UserError, nearest, sentence
from nemotron_kit.training.config import unknown
from nemotron_kit.training.model import LAYER_NAMES, check_keys, check_layers

# The fields of NemotronHConfig by what they hold. A test compares the names with the installed transformers; one that
# stands in none of these is looked up there.
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
    """UserError for a key or a value that NemotronHConfig will refuse. The notes are on keys that can't be judged here:
    a newer transformers may have them."""
    known = {name: value for name, value in model.items() if not unknown(value)}
    for names, kind, what in _KINDS:
        for name in sorted(names & known.keys()):
            value = known[name]
            if value is None:
                continue
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise UserError(f"model.{name} is {value!r}; it must be {what}.")
    strange = [name for name in model if name not in FIELDS]
    notes = _ask_transformers(strange) if strange else []
    if not any(unknown(model.get(name)) for name in LAYER_NAMES):
        check_layers(model)
    return notes


def _ask_transformers(names: list[str]) -> list[Note]:
    if find_spec("transformers") is None or find_spec("torch") is None:
        return [
            Note(
                f"model.{name}: no field of NemotronHConfig that is known here, and there is no transformers to ask. "
                + sentence(nearest(name, FIELDS))
            )
            for name in names
        ]
    check_keys(names)
    return []
