"""Checks of a reinforcement learning config: settings of other engines, and invalid values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING

from nemotron_kit.errors import UserError, nearest
from nemotron_kit.training.config_blocks import check_keys, check_limits, unknown

if TYPE_CHECKING:
    from nemotron_kit.training.grpo_config import GRPOConfig

PRECISIONS = {"auto": "auto", "bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "fp32": "fp32"}
# What checkpointing.metric_name may be → the column of the metrics that it means.
METRICS = {"val:total_reward/mean": "val_reward", "val_reward": "val_reward", "val_reward_greedy": "val_reward_greedy"}
_BACKENDS = ("hf", "megatron", "vllm", "sglang")
_ADAMW = ("torch.optim.AdamW", "AdamW", "adamw")


def other_engines(config: GRPOConfig) -> Iterator[str]:
    """A sentence for each setting that only another engine has, with what to set instead."""
    policy, generation, grpo, loss = config.policy, config.policy.generation, config.grpo, config.loss_fn
    if generation.backend != "hf":
        also = f"; {nearest(generation.backend, _BACKENDS)}" if generation.backend not in _BACKENDS else ""
        yield (
            f"policy.generation.backend is {generation.backend!r}{also}: here the model that is trained "
            "answers itself. Set policy.generation.backend=hf."
        )
    for name in ("vllm_cfg", "vllm_kwargs", "colocated"):
        if getattr(generation, name):
            yield f"policy.generation.{name} is another engine's (vLLM). Set policy.generation.{name}=null."
    for name in ("megatron_cfg", "dtensor_cfg"):
        block = getattr(policy, name)
        if block and block.get("enabled", True):
            yield (
                f"policy.{name} is enabled: this engine shards a model by train.parallelism. Set "
                f"policy.{name}.enabled=false (the optimizer is policy.optimizer, its schedule policy.scheduler)."
            )
    for name in ("sequence_packing", "dynamic_batching"):
        if (getattr(policy, name) or {}).get("enabled"):
            yield f"policy.{name} is enabled, which this engine has not. Set policy.{name}.enabled=false."
    if config.env.should_use_nemo_gym or config.env.nemo_gym:
        key = "env.nemo_gym" if config.env.nemo_gym else "env.should_use_nemo_gym"
        paths = len((config.env.nemo_gym or {}).get("config_paths") or ())
        yield (
            f"{key} asks for NeMo-Gym's servers{f' ({paths} config_paths)' if paths else ''}, which this engine does "
            "not start. Set env.should_use_nemo_gym=false and env.nemo_gym=null: verifiers go by the rows' "
            "agent_ref.name, your own by env.verifiers."
        )
    yield from megatron_checkpoint(config)
    if config.cluster:
        yield (
            f"cluster ({', '.join(f'{k}={v}' for k, v in config.cluster.items())}) is Ray's. Set cluster=null: the "
            "profile says how many machines (nodes, nproc_per_node)."
        )
    for key, asked in (
        ("grpo.async_grpo.enabled", (grpo.async_grpo or {}).get("enabled")),
        ("grpo.use_dynamic_sampling", grpo.use_dynamic_sampling),
        ("grpo.batch_multiplier", grpo.batch_multiplier != 1),
        ("grpo.reward_shaping.enabled", (grpo.reward_shaping or {}).get("enabled")),
        ("grpo.reward_scaling.enabled", (grpo.reward_scaling or {}).get("enabled")),
        ("grpo.dynamic_sampling_oversample_ratio", grpo.dynamic_sampling_oversample_ratio != 1),
        ("grpo.use_best_at_k", grpo.use_best_at_k),
        ("grpo.use_combined_training", grpo.use_combined_training),
        ("grpo.max_rollout_turns", grpo.max_rollout_turns != 1),
        ("loss_fn.ratio_clip_c", loss.ratio_clip_c is not None),
        ("loss_fn.sequence_level_importance_ratios", loss.sequence_level_importance_ratios),
        ("loss_fn.truncated_importance_sampling_ratio", loss.truncated_importance_sampling_ratio is not None),
        ("policy.offload_optimizer_for_logprob", policy.offload_optimizer_for_logprob),
        ("policy.generation.top_p", generation.top_p != 1.0),
        ("policy.generation.top_k", generation.top_k is not None),
        ("policy.generation.stop_strings", bool(generation.stop_strings)),
        *((f"logger.{name}", getattr(config.logger, name)) for name in _LOGGERS),
    ):
        if asked:
            default = False if key.endswith(".enabled") else attrgetter(key)(type(config)())
            shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
            yield f"{key}: this engine has no such thing. Set {key}={shown}."


def missing_inputs(config: GRPOConfig) -> Iterator[str]:
    """A sentence for a model or prompts that are not given."""
    if config.policy.model_name is None:
        yield "policy.model_name is not set: there is no model. In the config: policy.model_name: ${art:model,path}"
    if config.data.train_jsonl_fpath is None:
        yield "data.train_jsonl_fpath is not set: there are no prompts. In the config: ${art:data,train}"


def megatron_checkpoint(config: GRPOConfig) -> Iterator[str]:
    """A sentence for an `initial_checkpoint`, which the reference's script reads beside NeMo-RL's config."""
    if config.initial_checkpoint is not None:
        yield (
            "initial_checkpoint is a checkpoint of Megatron's, which is not read here. Set it to null, and "
            "policy.model_name to the model's folder in transformers' format, as ${art:model,path}."
        )


_LOGGERS = ("tensorboard_enabled", "mlflow_enabled", "swanlab_enabled", "monitor_gpus")


def bad_values(config: GRPOConfig) -> Iterator[str]:
    """A sentence for each invalid value."""
    grpo, policy, saved = config.grpo, config.policy, config.checkpointing
    for alias, name in (("num_iterations", "max_num_steps"), ("batch_size", "num_prompts_per_step")):
        if getattr(grpo, alias) is not None and getattr(grpo, alias) < 1:
            yield f"grpo.{alias} ({name}) is {getattr(grpo, alias)}; it must be 1 or more."
    for where, names in (
        ("grpo", "num_prompts_per_step num_generations_per_prompt num_val_generations_per_prompt max_num_epochs "),
        ("grpo", "max_num_steps max_val_samples val_batch_size"),
        ("policy", "train_micro_batch_size generation_batch_size logprob_batch_size max_total_sequence_length"),
        ("policy.generation", "max_new_tokens"),
        ("checkpointing", "keep_top_k"),
        ("logger", "log_interval"),
    ):
        for name in names.split():
            value = attrgetter(f"{where}.{name}")(config)
            if value is not None and value < 1:
                yield f"{where}.{name} is {value}; it must be 1 or more."
    try:
        config.train.layout  # noqa: B018 - raises when it is none
        config.train.check_hang()
    except UserError as error:
        yield " ".join(str(error).split("\n"))
    if config.train.loss_chunk is not None and config.train.loss_chunk < 1:
        yield f"train.loss_chunk is {config.train.loss_chunk}; it must be 1 or more."
    if config.train.compile:
        yield "train.compile is true: here the model that is trained answers itself, token by token. Set it to false."
    if grpo.num_generations_per_prompt == 1:
        yield "grpo.num_generations_per_prompt is 1: an answer is compared with others to the same prompt; 2 at least."
    if policy.train_global_batch_size not in (None, config.answers):
        yield (
            f"policy.train_global_batch_size is {policy.train_global_batch_size}: this engine makes one optimizer step "
            f"of all answers of a step. Set it to null, or to {config.answers} ({config.prompts} prompts × "
            f"{grpo.num_generations_per_prompt} answers)."
        )
    if policy.precision not in PRECISIONS:
        yield f"policy.precision is {policy.precision!r}; {nearest(policy.precision, PRECISIONS)}"
    yield from missing_inputs(config)
    if not (math.isfinite(config.policy.generation.temperature) and config.policy.generation.temperature > 0):
        yield f"policy.generation.temperature is {config.policy.generation.temperature}; it must be more than 0."
    for place, block, known in (
        ("policy.tokenizer", policy.tokenizer, ("name", "chat_template_kwargs")),
        ("logger.wandb", config.logger.wandb, ("project", "name", "entity")),
    ):
        try:
            check_keys(place, block if isinstance(block, Mapping) else {}, known)
        except UserError as error:
            yield error.message
    yield from _optimizer_values(config)
    if config.loss_fn.reference_policy_kl_type != "k3":
        yield f"loss_fn.reference_policy_kl_type is {config.loss_fn.reference_policy_kl_type!r}; this engine has k3."
    for name in ("reference_policy_kl_penalty", "ratio_clip_min", "ratio_clip_max"):
        if not 0 <= getattr(config.loss_fn, name) < math.inf:
            yield f"loss_fn.{name} is {getattr(config.loss_fn, name)}; it must be 0 or more, and finite."
    for name in ("kl_input_clamp_value", "kl_output_clamp_value"):
        value = getattr(config.loss_fn, name)
        if value is not None and not value > 0:
            yield f"loss_fn.{name} is {value}; it must be more than 0, or null for no limit."
    for name in ("val_period", "seed"):
        value = getattr(grpo, name)
        if value is not None and value < 0:
            yield f"grpo.{name} is {value}; it must be 0 or more."
    if saved.metric_name is not None and saved.metric_name not in METRICS:
        yield f"checkpointing.metric_name is {saved.metric_name!r}; {nearest(saved.metric_name, METRICS)}"
    for name, weight in config.env.weights.items():
        if not unknown(weight) and not 0 <= weight < math.inf:
            yield f"env.weights.{name} is {weight}; it must be 0 or more, and finite."
    if config.env.weights and not any(config.env.weights.values()):
        yield "env.weights: every weight is 0."
    for name, settings in config.env.verifiers.items():
        if not (isinstance(settings, Mapping) and settings.get("_target_")):
            yield f"env.verifiers.{name} has no _target_, which names its function, as in my_recipe.rewards.brief."
    given = grpo.learning_rate
    peak = (
        (config.optimizer.value("lr"), "policy.optimizer.kwargs.lr") if given is None else (given, "grpo.learning_rate")
    )
    parts: tuple[Callable[[], object], ...] = (
        lambda: config.seconds,
        lambda: config.scheduler.check(),
        lambda: config.scheduler.check_peak(*peak),
        lambda: config.checkpoint.check(),
    )
    for check in parts:
        try:
            check()
        except UserError as error:
            yield renamed(error).message


def renamed(error: UserError) -> UserError:
    """An error of a component shared by the stages, with the keys of this config."""
    words = (
        ("checkpoint.pretrained_checkpoint", "policy.model_name"),
        ("checkpoint.save_interval", "checkpointing.save_period"),
        ("checkpoint.may_differ", "checkpointing.may_differ"),
        ("checkpoint.save", "checkpointing.checkpoint_dir"),
        ("scheduler.", "policy.scheduler."),
        ("train.precision", "policy.precision"),
    )
    message, hint = error.message, error.hint or ""
    for theirs, ours in words:
        message, hint = message.replace(theirs, ours), hint.replace(theirs, ours)
    # A checkpoint's record has AdamW's settings without the block that holds them (see GRPOConfig.checkpoint).
    message, hint = (re.sub(rf"{_RECORDED}(?!kwargs|name)", _SETTING, text) for text in (message, hint))
    return UserError(message, hint=hint or None)


# Where a checkpoint's record has AdamW's settings, and where a config has them.
_RECORDED, _SETTING = "policy.optimizer.", "policy.optimizer.kwargs."


def recorded_name(setting: str) -> str:
    """The name of a setting in a checkpoint's record."""
    return setting.replace(_SETTING, _RECORDED)


# Block → what its settings are called there, by Megatron's names.
_CALLED = {
    "grpo": {"lr": "learning_rate"},
    "policy": {"clip_grad": "max_grad_norm"},
    "policy.optimizer.kwargs": {"adam_eps": "eps", "adam_beta1": "betas[0]", "adam_beta2": "betas[1]"},
}


def _optimizer_values(config: GRPOConfig) -> Iterator[str]:
    block = config.optimizer
    if block.name not in _ADAMW:
        yield f"policy.optimizer.name is {block.name!r}; this engine has torch.optim.AdamW."
    known = type(block)().kwargs
    for name in block.kwargs:
        if name not in known:
            yield f"policy.optimizer.kwargs.{name}: AdamW has no such setting here; {nearest(name, known)}"
    values = {"weight_decay": block.value("weight_decay"), "adam_eps": block.value("eps")}
    betas = block.value("betas")
    if isinstance(betas, list | tuple) and len(betas) == 2:
        values |= {"adam_beta1": betas[0], "adam_beta2": betas[1]}
    elif not unknown(betas):
        yield f"policy.optimizer.kwargs.betas is {betas!r}; it must be two numbers, such as [0.9, 0.999]."
    given = config.grpo.learning_rate
    for where, numbers in (
        ("grpo", {"lr": given}),
        ("policy.optimizer.kwargs", {**values, **({} if given is not None else {"lr": block.value("lr")})}),
        ("policy", {"clip_grad": config.policy.max_grad_norm}),
    ):
        try:
            check_limits(where, numbers, called=_CALLED[where])
        except UserError as error:
            yield error.message
