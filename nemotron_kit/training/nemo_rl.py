"""The engine nemo_rl, on the head of the job's Ray cluster: a config merged into an example of NeMo-RL's, NeMo-RL's own
script run with it, and what came of it. Light until it runs: a launch asks it what it would refuse."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import Note, UserError, nearest
from nemotron_kit.files import write_text
from nemotron_kit.training.config_blocks import unknown
from nemotron_kit.training.grpo_checks import megatron_checkpoint, missing_inputs
from nemotron_kit.training.processes import Preempted, seconds_left, signal_lead

if TYPE_CHECKING:
    from nemotron_kit.training.grpo_config import GRPOConfig

NEMO_RL = "nemo_rl"
READ_AGAINST = "NeMo-RL 0.7.0"
NEVER_RUN = (
    f"engine nemo_rl was written against the sources of {READ_AGAINST}: Ray cluster, config and the end of a run "
    "are tested, but NeMo-RL itself was never run by us: it needs its image and GPUs (docs/how-to/engines.md)."
)
# Where NeMo-RL lies in its images. ray_working_dir of the profile names another place.
ROOT = Path("/opt/nemo-rl")
# With NeMo-Gym and without: NeMo-RL's script, and the config that ours is merged into.
_GYM = ("examples/nemo_gym/run_grpo_nemo_gym.py", "examples/nemo_gym/grpo_nanov3.yaml")
_OWN = ("examples/run_grpo.py", "examples/configs/grpo_math_1B_megatron.yaml")
CONFIG_FILE = "nemo_rl.yaml"
# Ours → NeMo-RL's where its versions have another name, the newest first.
_NAMES = {
    "grpo.num_val_generations_per_prompt": ("val_num_generations_per_prompt", "num_val_generations_per_prompt"),
}
# Settings that NeMo-RL has under other names: `_values` puts them there.
_ELSEWHERE = {
    "grpo.num_iterations", "grpo.batch_size", "grpo.learning_rate", "grpo.val_period", "policy.optimizer",
    "policy.scheduler", "policy.tokenizer", "policy.precision", "data.train_jsonl_fpath",
    "data.validation_jsonl_fpath", "data.num_workers",
}  # fmt: skip
# Blocks whose keys are another program's (vLLM's arguments, NeMo-Gym's servers): NeMo-RL's own config names few.
_OPEN = {"policy.generation.vllm_kwargs", "env.nemo_gym"}
# Settings of the hf engine that NeMo-RL does not have → what to do instead.
_HF_ONLY = {
    "env.weights": "Weigh the data instead.",
    "env.verifiers": "Use a resources server of NeMo-Gym.",
    "checkpointing.may_differ": "Leave it out.",
    "logger.log_interval": "Leave it out.",
    "train.parallelism": "Set policy.megatron_cfg.tensor_model_parallel_size and its like.",
    "train.activation_checkpointing": "Set policy.megatron_cfg.activation_checkpointing.",
    "train.compile": "Leave it out.",
    "train.loss_chunk": "Leave it out.",
    "train.hang_minutes": "Leave it out.",
}


@dataclass(frozen=True)
class NemoRLOutcome:
    """A finished run: the folder of its last checkpoint, its step, and its held-out reward where it has one."""

    path: Path
    step: int
    reward: float | None


def problems(config: GRPOConfig, *, here: bool, processes: int | None) -> Iterator[str]:
    """What would prevent a run by NeMo-RL, and what was never run, as notes."""
    yield Note(NEVER_RUN)
    yield from missing_inputs(config)
    yield from megatron_checkpoint(config)
    if not config.checkpoint.save:
        name = "checkpoint_dir is not set" if config.checkpointing.enabled else "enabled is false"
        yield f"checkpointing.{name}: NeMo-RL's model is its last checkpoint."
    for name, value in (("max_num_steps", config.steps), ("num_prompts_per_step", config.prompts)):
        if value < 1:
            yield f"grpo.{name} is {value}; it must be 1 or more."
    plain = type(config)()
    for name, instead in _HF_ONLY.items():
        if attrgetter(name)(config) != attrgetter(name)(plain):
            yield f"{name}: NeMo-RL has no such setting. {instead}"
    nodes = (config.cluster or {}).get("num_nodes")
    if processes is not None and nodes is not None and not unknown(nodes) and nodes != processes:
        yield (
            f"cluster.num_nodes is {nodes}, and the job has {processes}. "
            f"Set cluster.num_nodes={processes}, or run.env.nodes={nodes}."
        )
    try:
        config.seconds  # noqa: B018 - raises when it is no time
    except UserError as error:
        yield error.message
    if here and _root() is None:
        yield f"engine=nemo_rl: there is no NeMo-RL here ({ROOT} and the working folder have no examples/)."
    elif not here:
        yield Note(f"engine=nemo_rl: whether the image has NeMo-RL (in ray_working_dir, or {ROOT}) is seen in the job.")


def train(config: GRPOConfig) -> NemoRLOutcome:
    """Train as `config` says, by NeMo-RL's own script. Raises UserError for a setting that it does not have, Preempted
    where it has stopped before its last step."""
    root = _root()
    if root is None:
        raise UserError(
            f"There is no NeMo-RL in {Path.cwd()} or {ROOT}.",
            hint="Use its image, or set ray_working_dir to its folder.",
        )
    script, base = (root / each for each in (_GYM if config.env.should_use_nemo_gym else _OWN))
    for each in (script, base):
        if not each.is_file():
            raise UserError(f"{each}: no such file.", hint=f"This engine was written against {READ_AGAINST}.")
    text = merged(config, base)
    file = Path(os.environ.get("NEMO_RUN_DIR", "."), CONFIG_FILE).absolute()
    write_text(file, text)
    print(f"{script} --config {file}", file=sys.stderr, flush=True)  # noqa: T201
    os.chdir(root)
    _run(script, file)
    return outcome(config)


def _run(script: Path, config: Path) -> None:
    import runpy

    before = sys.argv
    sys.argv = [str(script), "--config", str(config)]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise
    finally:
        sys.argv = before
        sys.path.remove(str(script.parent))


def _root() -> Path | None:
    """NeMo-RL's own folder: the working folder where it is one, else the images'."""
    return next((each for each in (Path.cwd(), ROOT) if (each / "examples" / "configs").is_dir()), None)


# --- the config


def merged(config: GRPOConfig, base: Path) -> str:
    """NeMo-RL's config as YAML: `base`, one of its own, with what ours says. Raises UserError for a key that it does
    not have."""
    import yaml
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(_with_defaults(base), resolve=False)
    for block, given in _values(config, values).items():
        _set(values, block, given, block)
    for block, given in config.nemo_rl.items():
        _set(values, block, given, f"nemo_rl.{block}", known=True)
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _with_defaults(path: Path) -> Any:
    """A config of NeMo-RL's with those that its `defaults` name beneath it, as NeMo-RL itself reads them."""
    from omegaconf import OmegaConf

    found: Any = OmegaConf.load(path)
    parents = found.pop("defaults", None) or []
    merged: Any = OmegaConf.create({})
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = OmegaConf.merge(merged, _with_defaults(path.parent / str(parent)))
    return OmegaConf.merge(merged, found)


def _values(config: GRPOConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    """What our config says, under NeMo-RL's names. A setting that it does not have is left out where it has our
    default, and refused where it was set."""
    given, plain = asdict(config), asdict(type(config)())
    found: dict[str, Any] = {}
    for block in ("grpo", "loss_fn", "policy", "data", "env", "checkpointing", "logger"):
        found[block] = _known(given[block], plain[block], base.get(block) or {}, block)
    grpo, policy = found["grpo"], found["policy"]
    grpo |= {"max_num_steps": config.steps, "num_prompts_per_step": config.prompts}
    grpo["val_period"] = config.grpo.val_period or 0  # 0: it does not validate
    block = config.policy.tokenizer
    more = {key: value for key, value in block.items() if value} if isinstance(block, Mapping) else {}
    policy["tokenizer"] = {**more, "name": config.tokenizer or config.policy.model_name}
    if config.policy.precision != "auto":
        policy["precision"] = {"bf16": "bfloat16", "fp32": "float32"}[config.precision]
    _optimizer(config, policy, base)
    data, rows = found["data"], config.data
    if "train_jsonl_fpath" in (base.get("data") or {}):
        data |= {"train_jsonl_fpath": rows.train_jsonl_fpath, "validation_jsonl_fpath": rows.validation_jsonl_fpath}
    else:
        data["train"] = {"data_path": rows.train_jsonl_fpath}
        if rows.validation_jsonl_fpath:
            data["validation"] = {"data_path": rows.validation_jsonl_fpath}
    if rows.num_workers != plain["data"]["num_workers"]:
        data["num_workers"] = rows.num_workers
    if (seconds := stopping(config.seconds, time.time())) is not None:
        minutes, rest = divmod(int(seconds), 60)
        clock = f"{minutes // 1440:02}:{minutes // 60 % 24:02}:{minutes % 60:02}:{rest:02}"
        found["checkpointing"]["checkpoint_must_save_by"] = clock
    folder = os.environ.get("NEMO_RUN_DIR")
    if not config.logger.log_dir and folder:
        found["logger"]["log_dir"] = f"{folder}/nemo_rl_logs"
    nodes = os.environ.get("SLURM_NNODES")
    found["cluster"] = {**(config.cluster or {}), **({"num_nodes": int(nodes)} if nodes else {})}
    return found


def _known(given: Mapping[str, Any], plain: Mapping[str, Any], base: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in given.items():
        dotted = f"{where}.{key}"
        if dotted in _ELSEWHERE or dotted in _HF_ONLY or value is None:
            continue
        name = next((each for each in _NAMES.get(dotted, (key,)) if each in base), None)
        if dotted == "policy.generation.backend" and value == "hf":
            continue
        default = plain.get(key)
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and dotted not in _OPEN:
            inner = _known(value, default if isinstance(default, Mapping) else {}, base[key], dotted)
            found |= {key: inner} if inner else {}
        elif name is not None:
            found[name] = value
        elif value != default:
            raise UserError(f"{dotted}: NeMo-RL's config has no such setting; {nearest(key, base)}")
    return found


def _optimizer(config: GRPOConfig, policy: dict[str, Any], base: Mapping[str, Any]) -> None:
    """Learning rate, its schedule and AdamW, in Megatron's block where that is enabled, else in the optimizer's own:
    UserError for a schedule then, which torch's schedulers would have to make."""
    block, scheduler, rate = config.optimizer, config.scheduler, config.grpo.learning_rate
    # Null is NeMo-RL's word for "Megatron's block has it", or its own config.
    absent = config.policy.optimizer is None
    megatron = {**((base.get("policy") or {}).get("megatron_cfg") or {}), **(policy.get("megatron_cfg") or {})}
    first, second = block.value("betas")
    if not megatron.get("enabled"):
        kwargs = {"lr": config.peak_lr, **{k: block.value(k) for k in ("weight_decay", "betas", "eps")}}
        if not absent:
            policy["optimizer"] = {"name": block.name, "kwargs": kwargs}
        elif rate is not None:
            policy["optimizer"] = {"kwargs": {"lr": rate}}
        if scheduler != type(config)().scheduler:
            raise UserError(
                "policy.scheduler: without policy.megatron_cfg.enabled NeMo-RL has torch's schedulers and not these.",
                hint="Leave it out, and set nemo_rl.policy.scheduler as NeMo-RL has it.",
            )
        return
    own = policy.setdefault("megatron_cfg", {})
    constant = scheduler.lr_decay_style == "constant"
    rates = {"lr": config.peak_lr, "min_lr": config.peak_lr if constant else scheduler.min_lr}
    if not absent:
        others = {"weight_decay": block.value("weight_decay"), "adam_beta1": first, "adam_beta2": second}
        own["optimizer"] = {**rates, **others, "adam_eps": block.value("eps")}
    elif rate is not None:
        own["optimizer"] = {**own.get("optimizer", {}), **rates}
    if config.policy.scheduler is None:
        return
    schedule: dict[str, Any] = {
        "lr_decay_style": scheduler.lr_decay_style,
        "lr_warmup_iters": scheduler.lr_warmup_iters,
        "lr_decay_iters": scheduler.lr_decay_iters,
    }
    if scheduler.lr_decay_style == "WSD":
        end = scheduler.lr_decay_iters or config.steps
        schedule["lr_wsd_decay_iters"] = scheduler.lr_wsd_decay_iters or max(1, end // 5)
        schedule["lr_wsd_decay_style"] = scheduler.lr_wsd_decay_style
    own["scheduler"] = {name: value for name, value in schedule.items() if value is not None}


def _set(values: dict[str, Any], key: str, given: Any, where: str, *, known: bool = False) -> None:
    """Set a key of NeMo-RL's config. With `known` it must be there already, unless it begins with `+`."""
    if known and not key.startswith("+") and key not in values:
        hint = f"To add what its config leaves out: {where.rpartition('.')[0]}: {{+{key}: …}}"
        raise UserError(f"{where}: NeMo-RL's config has no such setting; {nearest(key, values)}", hint=hint)
    name = key.removeprefix("+")
    before = values.get(name)
    if not isinstance(given, Mapping) or not isinstance(before, dict):
        values[name] = given
        return
    for inner, value in given.items():
        _set(before, inner, value, f"{where}.{inner}", known=known)


def stopping(asked: float | None, now: float, environ: Mapping[str, str] = os.environ) -> float | None:
    """After how many seconds a checkpoint must have been saved: as asked, and before the job's time limit."""
    limit = seconds_left(now, environ)
    if limit is None:
        return asked
    left = max(60.0, limit - 2 * signal_lead(environ))
    return left if asked is None else min(asked, left)


# --- the end


def outcome(config: GRPOConfig) -> NemoRLOutcome:
    """What a run that has ended without an error has left. Raises Preempted where steps are missing."""
    folder = Path(str(config.checkpoint.save))
    steps = {file.parent.name.removeprefix("step_"): file for file in folder.glob("step_*/training_info.json")}
    step, file = max(((int(n), file) for n, file in steps.items() if n.isdecimal()), default=(0, folder))
    if not step:
        raise UserError(f"{folder}: NeMo-RL has ended and left no checkpoint there.")
    total = last_step(config)
    if step < total:
        raise Preempted(f"NeMo-RL stopped after step {step} of {total}; saved in {folder}.")
    reward = json.loads(file.read_text(encoding="utf-8")).get("val_reward")
    if not isinstance(reward, int | float) or reward < -1e7:  # its own mark of "never validated"
        reward = None
    return NemoRLOutcome(file.parent, step, reward)


def last_step(config: GRPOConfig) -> int:
    """The step at which the run is done: the largest, or the end of the last epoch, whose last prompts make no whole
    step."""
    with Path(str(config.data.train_jsonl_fpath)).open("rb") as file:
        rows = sum(1 for line in file if line.strip())
    return min(config.steps, max(1, rows // config.prompts) * config.grpo.max_num_epochs)
