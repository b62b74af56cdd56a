"""How large a model is and what training it takes, from the numbers of a config alone: no torch, no model built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.training.config import PretrainConfig
from nemotron_kit.training.fields import check_block
from nemotron_kit.training.model import layer_types, with_data

# NemotronHConfig's own defaults, for what a model block leaves out.
_DEFAULTS: dict[str, Any] = {
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
    "n_routed_experts": 8,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "moe_latent_size": None,
}
# float32 weights and gradients, and AdamW's two moments.
BYTES_PER_PARAMETER = 16
_GB = 1e9


def count_parameters(model: Mapping[str, Any]) -> int:
    """The parameters of NemotronHForCausalLM with this `model` block. UserError for what is no number."""
    m = _numbers(model)
    layers = {"linear_attention": _mamba, "full_attention": _attention, "moe": _moe, "mlp": _mlp}
    hidden = m["hidden_size"]
    blocks = sum(hidden + layers[kind](m) for kind in layer_types(model))
    return int(2 * m["vocab_size"] * hidden + hidden + blocks)


def _numbers(model: Mapping[str, Any]) -> dict[str, Any]:
    for name in _DEFAULTS:
        value = model.get(name)
        if not (value is None or isinstance(value, int)) or (value is not None and value < 0):
            raise UserError(f"model.{name} is {value!r}; it must be a whole number.")
    return {**_DEFAULTS, **{name: value for name, value in model.items() if value is not None}}


def _mamba(m: Mapping[str, Any]) -> int:
    inner = m["mamba_num_heads"] * m["mamba_head_dim"]
    conv = inner + 2 * m["n_groups"] * m["ssm_state_size"]
    projected = inner + conv + m["mamba_num_heads"]
    biases = (conv if m["use_conv_bias"] else 0) + (projected + m["hidden_size"] if m["use_bias"] else 0)
    matrices = m["hidden_size"] * projected + inner * m["hidden_size"] + conv * m["conv_kernel"]
    return int(matrices + biases + 3 * m["mamba_num_heads"] + inner)


def _attention(m: Mapping[str, Any]) -> int:
    return int(2 * m["hidden_size"] * m["head_dim"] * (m["num_attention_heads"] + m["num_key_value_heads"]))


def _moe(m: Mapping[str, Any]) -> int:
    hidden, experts, latent = m["hidden_size"], m["n_routed_experts"], m["moe_latent_size"]
    routed = experts * 2 * m["moe_intermediate_size"] * (latent or hidden)
    shared = _dense(m, m["moe_shared_expert_intermediate_size"])
    around = 2 * hidden * latent + (hidden + latent if m["mlp_bias"] else 0) if latent else 0
    return int(routed + experts * hidden + shared + around)


def _mlp(m: Mapping[str, Any]) -> int:
    return _dense(m, m["intermediate_size"])


def _dense(m: Mapping[str, Any], inner: int) -> int:
    return int(2 * m["hidden_size"] * inner + (inner + m["hidden_size"] if m["mlp_bias"] else 0))


def training_bytes(model: Mapping[str, Any], micro_batch_size: int, seq_length: int) -> int:
    """Memory that one process needs to train: weights, gradients and moments exactly, activations roughly."""
    m = _numbers(model)
    # About eight hidden vectors a token and layer are kept for the backward pass, and the logits three times.
    a_token = 8 * m["hidden_size"] * len(layer_types(model)) + 3 * m["vocab_size"]
    return int(BYTES_PER_PARAMETER * count_parameters(model) + 4 * a_token * micro_batch_size * seq_length)


def preflight(config: PretrainConfig, *, connect: bool, here: bool = True) -> list[str]:
    """What would stop this run, a sentence each. Opens no connection, whatever `connect` says. With `here=False` the
    run is another machine's: its settings are judged, and nothing of this machine."""
    del connect
    try:
        config.check()
        config.train.check_split(1)
        config.blend_path  # noqa: B018 - raises when it isn't set
        notes = check_block(config.model)
        return [*notes, *(memory_problems(config) if here else [])]
    except UserError as error:
        return [" ".join(str(error).split("\n"))]


def memory_problems(config: PretrainConfig) -> list[str]:
    """A sentence with the estimate when this machine can't hold the training of a model that `check` has passed."""
    model = {**config.model, "vocab_size": _vocab_size(config)}
    needed = training_bytes(model, config.train.micro_batch_size, config.seq_length)
    have, what = available_bytes()
    if needed <= have:
        return []
    return [
        f"Training this model of {count_parameters(model) / 1e9:.1f} B parameters needs about {needed / _GB:,.0f} GB "
        f"in one process (16 bytes a parameter, and activations), but {what} has {have / _GB:,.0f} GB; try -c tiny."
    ]


def _vocab_size(config: PretrainConfig) -> int:
    """The model's vocabulary if the config or the data tell it by now, else the largest that is common."""
    try:
        return int(with_data(config.model, config.blend_path.parent)["vocab_size"])
    except UserError:  # the data need not be there yet, and says so itself
        return int(_DEFAULTS["vocab_size"])


def available_bytes() -> tuple[int, str]:
    """(memory that one training process can use here, whose memory it is): the smallest GPU's, else the machine's."""
    gpus = _gpu_bytes()
    if gpus:
        return min(gpus), "this machine's GPU"
    limits = [_memory_total(), *_cgroup_limits()]
    return min(limits), "this machine"


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


def _memory_total() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise UserError("/proc/meminfo doesn't say how much memory this machine has.")


def _cgroup_limits() -> list[int]:
    places = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    texts = [Path(place).read_text(encoding="ascii").strip() for place in places if Path(place).is_file()]
    return [int(text) for text in texts if text.isdigit()]
