"""The config of a training run and an estimate of its size. Light: every launch imports it, without torch."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemotron_kit.errors import Note, UserError, nearest, sentence
from nemotron_kit.training.model import LAYER_NAMES, check_keys, check_layers, layer_types, with_data_settings

PRECISIONS = ("auto", "bf16", "fp32")
DECAY_STYLES = ("WSD", "constant", "linear", "cosine")
DECAY_SHAPES = ("linear", "cosine", "minus_sqrt", "exponential")


@dataclass
class TrainConfig:
    """The `train` block; the names are Megatron's."""

    train_iters: int = field(default=1000, metadata={"help": "Optimizer steps"})
    global_batch_size: int = field(
        default=32, metadata={"help": "Sequences a step, over all processes and micro-batches"}
    )
    micro_batch_size: int = field(
        default=1, metadata={"help": "Sequences one process handles at a time; gradients are accumulated over the rest"}
    )
    lr: float = field(default=1e-3, metadata={"help": "Peak learning rate (its course: the scheduler block)"})
    weight_decay: float = field(
        default=0.1, metadata={"help": "AdamW's; norms, biases and all else of one dimension don't decay"}
    )
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = field(default=1.0, metadata={"help": "Largest norm of the gradients (0: no limit)"})
    seed: int = field(default=1234, metadata={"help": "Seed of the weights, and of everything random in a step"})
    precision: str = field(
        default="auto", metadata={"help": "bf16 (over float32 weights), fp32, or auto: bf16 on a GPU that has it"}
    )
    eval_interval: int | None = field(
        default=None, metadata={"help": "Steps between held-out evaluations (null: only at the end)"}
    )
    eval_iters: int | None = field(
        default=None, metadata={"help": "Global batches of the valid split an evaluation reads (null: the whole split)"}
    )
    moe_router_bias_update_rate: float = field(
        default=1e-3, metadata={"help": "How far an expert's bias moves in a step: aux-loss-free balancing (0: never)"}
    )
    fsdp: bool = field(default=False, metadata={"help": "Not available in this engine; true is refused"})

    def check(self) -> None:
        """Raises UserError for a value that can't be trained with."""
        for name in ("train_iters", "global_batch_size", "micro_batch_size", "eval_interval", "eval_iters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"train.{name} is {value}; it must be 1 or more.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"train.lr is {self.lr}; it must be more than 0.")
        if self.precision not in PRECISIONS:
            raise UserError(f"train.precision is {self.precision!r}; there is: {', '.join(PRECISIONS)}.")
        if self.fsdp:
            # The Trainer would take the wish on a CPU and train plain DDP without a word.
            raise UserError(
                "train.fsdp: this engine shards nothing; it trains data-parallel (DDP).", hint="Leave it out."
            )

    def check_split(self, processes: int) -> None:
        """Raises UserError when the global batch can't be dealt out evenly to `processes`."""
        share = self.micro_batch_size * processes
        if self.global_batch_size % share:
            raise UserError(
                f"train.global_batch_size {self.global_batch_size} is no multiple of train.micro_batch_size "
                f"{self.micro_batch_size} × {processes} process{'es' if processes > 1 else ''}.",
                hint=f"For instance train.global_batch_size={math.ceil(self.global_batch_size / share) * share}.",
            )


@dataclass
class OptimizerConfig:
    """The `optimizer` block of pretraining: Megatron's place for what `train` has too. What is set here wins."""

    lr: float | None = field(
        default=None, metadata={"help": "Peak learning rate (null: train.lr)", "same_as": "train.lr"}
    )
    min_lr: float | None = field(
        default=None, metadata={"help": "Where its decay ends (null: scheduler.min_lr)", "same_as": "scheduler.min_lr"}
    )
    weight_decay: float | None = field(
        default=None, metadata={"help": "AdamW's (null: train.weight_decay)", "same_as": "train.weight_decay"}
    )
    adam_beta1: float | None = field(
        default=None, metadata={"help": "null: train.adam_beta1", "same_as": "train.adam_beta1"}
    )
    adam_beta2: float | None = field(
        default=None, metadata={"help": "null: train.adam_beta2", "same_as": "train.adam_beta2"}
    )
    adam_eps: float | None = field(default=None, metadata={"help": "null: train.adam_eps", "same_as": "train.adam_eps"})
    clip_grad: float | None = field(
        default=None, metadata={"help": "Largest norm of the gradients (null: train's)", "same_as": "train.clip_grad"}
    )

    def check(self) -> None:
        """Raises UserError for a value that can't be trained with."""
        check_optimizer(self)


def check_optimizer(block: Any) -> None:
    """UserError for a value of an `optimizer` block that can't be trained with; None is no value."""
    for name, least, most in (
        ("lr", None, math.inf),
        ("min_lr", 0, math.inf),
        ("weight_decay", 0, math.inf),
        ("adam_beta1", 0, 1),
        ("adam_beta2", 0, 1),
        ("adam_eps", None, math.inf),
        ("clip_grad", 0, math.inf),
    ):
        value = getattr(block, name)
        if value is None:
            continue
        if not (value > 0 if least is None else value >= least) or not value < most:
            lower = "more than 0" if least is None else f"{least} or more"
            upper = "" if most == math.inf else f" and less than {most}"
            raise UserError(f"optimizer.{name} is {value}; it must be {lower}{upper}.")


@dataclass
class SchedulerConfig:
    """The `scheduler` block; the names are Megatron's."""

    lr_warmup_iters: int = field(default=0, metadata={"help": "Steps of linear warm-up to train.lr"})
    lr_decay_style: str = field(
        default="WSD",
        metadata={"help": "WSD (stable, then a decay), constant, linear or cosine (a decay from the warm-up on)"},
    )
    lr_decay_iters: int | None = field(
        default=None, metadata={"help": "The step at which the decay ends (null: train.train_iters)"}
    )
    lr_wsd_decay_iters: int | None = field(
        default=None, metadata={"help": "How many steps WSD's decay takes (null: a fifth of lr_decay_iters)"}
    )
    lr_wsd_decay_style: str = field(
        default="cosine", metadata={"help": "The decay's shape: linear, cosine, minus_sqrt or exponential"}
    )
    min_lr: float = field(default=0.0, metadata={"help": "Where a decay ends"})

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        _one_of("scheduler.lr_decay_style", self.lr_decay_style, DECAY_STYLES)
        _one_of("scheduler.lr_wsd_decay_style", self.lr_wsd_decay_style, DECAY_SHAPES)
        for name in ("lr_warmup_iters", "lr_decay_iters", "lr_wsd_decay_iters", "min_lr"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"scheduler.{name} is {value}; it must be 0 or more.")


@dataclass
class CheckpointConfig:
    """The `checkpoint` block; the names are Megatron's."""

    save: str | None = field(
        default=None,
        metadata={
            "help": "Folder for checkpoints and the trained model; a complete checkpoint there, of the same "
            "configuration, is resumed from (null: the model goes to the job's folder, without checkpoints)"
        },
    )
    save_interval: int | None = field(
        default=None, metadata={"help": "Steps between checkpoints (null: only at the end, and when told to stop)"}
    )
    most_recent_k: int = field(default=2, metadata={"help": "How many checkpoints are kept"})
    load: str | None = field(
        default=None, metadata={"help": "Folder of checkpoints to go on from while `save` has none yet"}
    )
    pretrained_checkpoint: str | None = field(
        default=None, metadata={"help": "Model in transformers' format whose weights a new run starts from"}
    )
    finetune: bool = field(default=False, metadata={"help": "Take only the weights from `load`; start at step 0"})
    may_differ: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Settings in which a checkpoint may differ from this run and is resumed all the same, such as "
            "train.lr or dataset.content; the model's metadata lists them (none: what differs is refused by name)"
        },
    )

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        for name in ("save_interval", "most_recent_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"checkpoint.{name} is {value}; it must be 1 or more.")
        if self.finetune and not (self.load or self.pretrained_checkpoint):
            raise UserError(
                "checkpoint.finetune is true, but there is nothing to start from.",
                hint="Set checkpoint.load or checkpoint.pretrained_checkpoint.",
            )
        if self.load and self.pretrained_checkpoint:
            raise UserError("checkpoint.load and checkpoint.pretrained_checkpoint are both set; give one of them.")


@dataclass
class LoggerConfig:
    """The `logger` block; the names are Megatron's."""

    log_interval: int = field(default=10, metadata={"help": "Steps between two rows of metrics"})
    metrics_file: str | None = field(
        default=None,
        metadata={"help": "Where the rows go (null: metrics.jsonl in the job's folder or checkpoint.save)"},
    )
    wandb_project: str | None = field(default=None, metadata={"help": "W&B project, when no launcher has set one up"})
    wandb_entity: str | None = field(default=None, metadata={"help": "W&B entity, likewise"})

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        if self.log_interval < 1:
            raise UserError(f"logger.log_interval is {self.log_interval}; it must be 1 or more.")


def _one_of(field: str, value: str, known: Iterable[str]) -> None:
    names = list(known)
    if value not in names:
        raise UserError(f"{field} is {value!r}; {nearest(value, names)}")


# What a config may name in recipe._target_: nothing else is ever imported on a config's word.
TARGETS = ("nemotron_kit.training.pretrain",)
_RECIPE_KEYS = ("_target_", "per_split_data_args_path")
_DATASET_KEYS = ("seq_length", "seed", "verify")


@dataclass
class PretrainConfig:
    """A pretraining run."""

    recipe: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "per_split_data_args_path: the data's blend.json; _target_: the engine, if named at all"},
    )
    model: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "Fields of transformers' NemotronHConfig; hybrid_override_pattern gives the layers, a letter each; "
            "vocab_size is the data's unless set"
        },
    )
    dataset: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "seq_length (4096); seed, of the shuffle (1234); verify, whether to read all shards and compare "
            "them with their records before the run (null: where that takes seconds)"
        },
    )
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def with_optimizer(self) -> PretrainConfig:
        """The same run with the values of the `optimizer` block where they take effect, and that block empty."""
        given = {name: value for name, value in asdict(self.optimizer).items() if value is not None}
        min_lr = given.pop("min_lr", self.scheduler.min_lr)
        return replace(
            self,
            train=replace(self.train, **given),
            scheduler=replace(self.scheduler, min_lr=min_lr),
            optimizer=OptimizerConfig(),
        )

    @property
    def peak_lr(self) -> float:
        return self.train.lr

    @property
    def seq_length(self) -> int:
        return int(self.dataset.get("seq_length", 4096))

    @property
    def data_seed(self) -> int:
        return int(self.dataset.get("seed", 1234))

    @property
    def verify_data(self) -> bool | None:
        """Whether every recorded shard is read before the run; None: where that takes seconds."""
        value: bool | None = self.dataset.get("verify")
        return value

    @property
    def blend_path(self) -> Path:
        """The blend.json. UserError when the config names none."""
        path = self.recipe.get("per_split_data_args_path")
        if not path:
            raise UserError(
                "recipe.per_split_data_args_path is not set: there is no data to train on.",
                hint="In the config: recipe.per_split_data_args_path: ${art:data,path}/blend.json",
            )
        return Path(str(path))

    def check(self) -> None:
        """Raises UserError, naming the field, for anything that can be told to be wrong without the data."""
        _known("recipe", self.recipe, _RECIPE_KEYS)
        _known("dataset", self.dataset, _DATASET_KEYS)
        target = self.recipe.get("_target_")
        if target is not None and not unknown(target) and target not in TARGETS:
            raise UserError(
                f"recipe._target_ is {target!r}, which this recipe doesn't run.",
                hint=f"Leave it out, or set it to {' or '.join(TARGETS)}.",
            )
        whole_number("dataset.seq_length", self.dataset.get("seq_length", 4096), least=1)
        whole_number("dataset.seed", self.dataset.get("seed", 1234), least=0)
        if not isinstance(self.verify_data, bool | None) and not unknown(self.verify_data):
            raise UserError(f"dataset.verify is {self.verify_data!r}; it must be true, false or null.")
        for block in (self.train, self.optimizer, self.scheduler, self.checkpoint, self.logger):
            block.check()


def _known(block: str, values: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in values:
        if name not in names:
            raise UserError(f"{block}.{name}: this engine has no such setting; {nearest(name, names)}")


def unknown(value: Any) -> bool:
    """Whether a value is a reference that only the job can resolve (`${art:…}`): a plan may hold such."""
    return isinstance(value, str) and "${" in value


def whole_number(name: str, value: Any, *, least: int) -> None:
    if unknown(value):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} is {value!r}; it must be a whole number, {least} or more.")


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
    """What would stop this run, one sentence each. It opens no connection: `connect` is ignored. With `here=False`
    the run is another machine's: only its settings are checked."""
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
    """The vocabulary size that the config or the data give; the largest common one where neither does yet."""
    try:
        return int(with_data_settings(config.model, config.blend_path.parent)["vocab_size"])
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
