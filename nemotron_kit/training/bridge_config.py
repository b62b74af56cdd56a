"""The engine megatron_bridge as a launch sees it: its blocks, what of a config it takes, and what is refused by name.
Light: every launch imports this module. The job's part is in `training.bridge`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any, Literal

from nemotron_kit.errors import Note, UserError, nearest
from nemotron_kit.training.config_blocks import free_block, unknown

BRIDGE = "megatron_bridge"
# A config can make nothing else be imported. The command's `targets` have the same prefix.
RECIPES = "megatron.bridge.recipes."
# What the mapping below was read against; scripts/check-engines compares it with the package itself.
READ_AGAINST = "the package megatron-bridge 0.6.2 with megatron-core 0.19.2"
NEVER_RUN = (
    f"engine megatron_bridge was written against {READ_AGAINST}: its config is built and checked by tests, but no "
    "training was ever run by us, and no image of NVIDIA's was opened (docs/how-to/engines.md)."
)

# transformers' name → Megatron's, the newest first. Names that are the same in both are not here.
MODEL_NAMES: dict[str, tuple[str, ...]] = {
    "hybrid_override_pattern": ("hybrid_layer_pattern", "hybrid_override_pattern"),
    "num_key_value_heads": ("num_query_groups",),
    "head_dim": ("kv_channels",),
    "ssm_state_size": ("mamba_state_dim",),
    "n_groups": ("mamba_num_groups",),
    "n_routed_experts": ("num_moe_experts",),
    "num_experts_per_tok": ("moe_router_topk",),
    "moe_intermediate_size": ("moe_ffn_hidden_size",),
    "routed_scaling_factor": ("moe_router_topk_scaling_factor",),
}
# transformers' settings that Megatron has as constants, or that decide nothing in training.
FIXED: dict[str, tuple[Any, ...]] = {
    "conv_kernel": (4,), "chunk_size": (128,), "norm_topk_prob": (True,), "n_shared_experts": (1,),
}  # fmt: skip
_NOT_TRAINING = ("max_position_embeddings",)


def engine_field(*engines: str) -> Any:
    """The field `engine` of a stage's config."""
    return field(default="hf", metadata={"help": f"What trains: {', '.join(engines)} (docs/how-to/engines.md)"})


@dataclass
class BridgeBlocks:
    """What a training config has for Megatron-Bridge alone. Its names are those of Bridge's ConfigContainer."""

    engine: Literal["hf", "megatron_bridge"] = engine_field("hf", BRIDGE)
    ddp: dict[str, Any] = free_block("Megatron-Bridge's block ddp")
    tokenizer: dict[str, Any] = free_block("Megatron-Bridge's block tokenizer (empty: the data's tokenizer)")
    mixed_precision: Any = field(
        default=None, metadata={"help": "Megatron-Bridge's: bf16_mixed, a block, or null for its recipe's"}
    )
    bridge: dict[str, Any] = free_block(
        "More settings of Megatron-Bridge, by the blocks of its ConfigContainer, in the last place: "
        "{train: {manual_gc: true}, comm_overlap: {tp_comm_overlap: true}}"
    )

    @property
    def on_bridge(self) -> bool:
        """Whether Megatron-Bridge trains, and not the hf engine."""
        return self.engine == BRIDGE

    def check_engine(self) -> None:
        """UserError for a block that the config's engine does not have."""
        if self.on_bridge:
            return
        for name in ("ddp", "tokenizer", "mixed_precision", "bridge"):
            if getattr(self, name):
                raise UserError(
                    f"{name} is set, which is Megatron-Bridge's; engine is {self.engine!r}.",
                    hint=f"Set engine={BRIDGE}, or leave {name} out.",
                )


def extras(block: Any) -> dict[str, Any]:
    """The settings of a block that are no fields of its class: those of an open one, and what `+key=` added."""
    known = {f.name for f in fields(block)}
    return {name: value for name, value in vars(block).items() if name not in known}


def check_bridge(config: Any) -> None:
    """UserError, naming the field, for every mistake in a config of this engine that can be found without Bridge."""
    target = config.recipe.get("_target_")
    if target is not None and not unknown(target) and not is_recipe(str(target)):
        raise UserError(
            f"recipe._target_ is {target!r}; engine {BRIDGE} calls functions of {RECIPES}* alone.",
            hint=f"For instance {RECIPES}nemotronh.nemotron_3_nano.nemotron_3_nano_pretrain_config.",
        )
    for key, value, instead in _not_bridges(config):
        if value:
            raise UserError(f"{key}: Megatron-Bridge has no such setting. {instead}")
    for block, values in config.bridge.items():
        if not isinstance(values, Mapping) and block != "mixed_precision":
            raise UserError(f"bridge.{block} is {values!r}; it must be a block of settings.")
    if not config.checkpoint.save:
        raise UserError("checkpoint.save is not set: Megatron-Bridge's model is its last checkpoint.")
    model_values(config.model)


def is_recipe(target: str) -> bool:
    """Whether this names something in megatron.bridge.recipes."""
    return target.startswith(RECIPES) and all(part.isidentifier() for part in target.split("."))


def _not_bridges(config: Any) -> Iterator[tuple[str, Any, str]]:
    train, own = config.train, "It is the hf engine's"
    yield "train.parallelism", train.layout.sharded, "Set model.tensor_model_parallel_size and its like."
    yield "train.activation_checkpointing", train.activation_checkpointing, "Set model.recompute_granularity."
    yield "train.compile", train.compile, f"{own}; leave it out."
    yield "train.loss_chunk", train.loss_chunk, f"{own}; leave it out."
    yield "train.hang_minutes", train.hang_minutes, "Set bridge.dist.distributed_timeout_minutes."
    yield "logger.metrics_file", config.logger.metrics_file, "Its metrics are in the job's folder; leave it out."
    yield "train.precision=fp32", train.precision == "fp32", "Set mixed_precision, or train.precision=auto."
    yield "checkpoint.may_differ", config.checkpoint.may_differ, f"{own}; leave it out."
    yield "dataset.verify", config.dataset.get("verify"), f"{own}; leave it out."
    lora = getattr(config, "lora", None)
    yield "peft", lora, f"Name a recipe with adapters (recipe._target_={RECIPES}…_peft_config) and leave peft out."


def model_values(model: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` block with Megatron's names; a tuple of candidates stands for one that versions name differently.
    UserError for a value that Megatron can't have."""
    found: dict[str, Any] = {}
    for name, value in model.items():
        if name in _NOT_TRAINING:
            continue
        if name in FIXED:
            if value not in FIXED[name] and not unknown(value):
                raise UserError(f"model.{name} is {value!r}; Megatron has {FIXED[name][0]!r} and no other.")
            continue
        if name == "num_hidden_layers":
            name = "num_layers"
        found["|".join(MODEL_NAMES.get(name, (name,)))] = value
    pattern = model.get("hybrid_override_pattern")
    if isinstance(pattern, str) and not unknown(pattern):
        # Megatron's pattern may have | between pipeline stages, and the layers that predict more tokens behind a /.
        found.setdefault("num_layers", len(pattern.partition("/")[0].replace("|", "")))
    if "moe_intermediate_size" in model:
        found.setdefault("ffn_hidden_size", model["moe_intermediate_size"])
    return found


def container_values(config: Any) -> dict[str, dict[str, Any]]:
    """What a config says, by the blocks of Bridge's ConfigContainer, without data and time limit. None is left out: the
    recipe's own value holds."""
    train, scheduler, checkpoint = config.train, config.scheduler, config.checkpoint
    optimizer = {f.name: getattr(config.optimizer, f.name) for f in fields(config.optimizer)}
    for name in optimizer:  # pretraining has them in `train`, too
        if optimizer[name] is None:
            optimizer[name] = getattr(train, name, None)
    if optimizer.get("min_lr") is None:
        optimizer["min_lr"] = scheduler.min_lr
    decay = train.train_iters if scheduler.lr_decay_iters is None else scheduler.lr_decay_iters
    values: dict[str, dict[str, Any]] = {
        "train": {
            "train_iters": train.train_iters,
            "global_batch_size": train.global_batch_size,
            "micro_batch_size": train.micro_batch_size,
            **extras(train),
        },
        "validation": {"eval_interval": train.eval_interval, "eval_iters": train.eval_iters},
        "rng": {"seed": train.seed},
        "optimizer": {**optimizer, **extras(config.optimizer)},
        "scheduler": {
            "lr_warmup_iters": scheduler.lr_warmup_iters,
            "lr_decay_style": scheduler.lr_decay_style,
            "lr_decay_iters": decay,
            # It is the scheduler's that Bridge applies; the optimizer's is overwritten in each step.
            "start_weight_decay": optimizer["weight_decay"],
            "end_weight_decay": optimizer["weight_decay"],
            **extras(scheduler),
        },
        "checkpoint": {
            "save": checkpoint.save,
            "save_interval": checkpoint.save_interval or train.train_iters,
            "most_recent_k": checkpoint.kept,
            "async_save": checkpoint.asynchronous or None,
            "pretrained_checkpoint": checkpoint.pretrained_checkpoint,
            "finetune": checkpoint.finetune or None,
            **extras(checkpoint),
        },
        "logger": {
            "log_interval": config.logger.log_interval,
            "wandb_project": config.logger.wandb_project,
            "wandb_entity": config.logger.wandb_entity,
            "wandb_exp_name": config.logger.wandb_exp_name,
            **extras(config.logger),
        },
        "model": {
            **model_values(config.model),
            "seq_length": config.seq_length,
            "moe_router_bias_update_rate": train.moe_router_bias_update_rate,
        },
        "dataset": {"seq_length": config.seq_length, "random_seed|seed": config.data_seed},
        "ddp": dict(config.ddp),
        "tokenizer": dict(config.tokenizer),
    }
    if scheduler.lr_decay_style == "WSD":
        steps = scheduler.lr_wsd_decay_iters
        values["scheduler"]["lr_wsd_decay_iters"] = max(1, decay // 5) if steps is None else steps
        values["scheduler"]["lr_wsd_decay_style"] = scheduler.lr_wsd_decay_style
    return {block: {k: v for k, v in given.items() if v is not None} for block, given in values.items()}


def engine_problems(config: Any, *, here: bool) -> list[str]:
    """What is known of the engine before the job is queued: whether this Python has it, where the job runs here; else
    what could not be looked at. And what was never run."""
    found: list[str] = [Note(NEVER_RUN)]
    if here and (find_spec("megatron") is None or find_spec("megatron.bridge") is None):
        version = "megatron-bridge 0.6.2 needs Python 3.12"
        found.append(f"engine={BRIDGE}: this Python has no megatron.bridge ({version}); use a profile with an image.")
    elif not here:
        found.append(
            Note(f"engine={BRIDGE}: whether the job's image or Python has megatron.bridge is seen when it starts.")
        )
    return found


def check_recipe_arguments(recipe: Mapping[str, Any], parameters: Mapping[str, Any], target: str) -> dict[str, Any]:
    """The arguments of a recipe's function that the `recipe` block gives. UserError for one that it does not take."""
    given = {k: v for k, v in recipe.items() if k not in ("_target_", "per_split_data_args_path", "packed_sequence")}
    given = {k: v for k, v in given.items() if v is not None}
    for name in given:
        if name not in parameters:
            takes = nearest(name, parameters) if parameters else "it takes no arguments"
            raise UserError(f"recipe.{name}: {target} has no such argument; {takes}.")
    return given
