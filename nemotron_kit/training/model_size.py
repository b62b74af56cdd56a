"""The `model` block: a check of its values, and the number of its parameters. Light: every launch imports it, without
torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemotron_kit.errors import Note, UserError, near
from nemotron_kit.training.config_blocks import unknown
from nemotron_kit.training.model import (
    LAYER_NAMES,
    MODEL_DEFAULTS,
    MODEL_FIELDS,
    check_divisions,
    check_keys,
    check_layers,
    check_unused,
    layer_types,
)

# How messages call the kinds of values that a field may hold.
_KINDS: tuple[tuple[type, str], ...] = ((int, "a whole number"), (float, "a number"), (bool, "true or false"))


def check_block(model: Mapping[str, Any]) -> list[Note]:
    """Raises UserError for a key or a value that NemotronHConfig would refuse. Returns notes on keys that can't be
    judged here, since a newer transformers may have them."""
    known = {name: value for name, value in model.items() if not unknown(value)}
    for kind, what in _KINDS:
        for name in sorted(known.keys() & MODEL_FIELDS.keys()):
            value = known[name]
            if MODEL_FIELDS[name].kind is not kind or value is None:
                continue
            fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
            if not fits or (isinstance(value, bool) and kind is not bool):
                raise UserError(f"model.{name} is {value!r}; it must be {what}.")
    check_unused(model)
    strange = [name for name in model if name not in MODEL_FIELDS]
    notes = []
    if strange and (find_spec("transformers") is None or find_spec("torch") is None):
        told = "no field of NemotronHConfig that is known here, and there is no transformers to ask."
        notes = [Note(f"model.{name}: {told} {near(name, MODEL_FIELDS)}") for name in strange]
    elif strange:
        check_keys(strange)
    if not any(unknown(model.get(name)) for name in LAYER_NAMES):
        check_layers(model)
        # Other values are another model's where the block does not name layers: that of given weights.
        check_divisions({**(MODEL_DEFAULTS if LAYER_NAMES & model.keys() else {}), **known}, layer_types(model))
    return notes


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
