"""The engine megatron_bridge, in the job: a config merged into Megatron-Bridge's own, its training, and the outcome of
the run. Imports nothing of the hf engine, whose transformers the images of Megatron-Bridge need not have."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import os
import signal
import sys
import time
import types
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError, nearest
from nemotron_kit.files import write_text
from nemotron_kit.runs.metrics import log_metrics
from nemotron_kit.training.bridge_config import check_recipe_arguments, container_values, is_recipe
from nemotron_kit.training.data import SPLITS, read_blend
from nemotron_kit.training.processes import Preempted, rank, seconds_left, signal_lead

# In the job's folder: the ConfigContainer that it ran with.
CONFIG_FILE = "megatron_bridge.json"
TRACKER = "latest_checkpointed_iteration.txt"
PRETRAIN_RECIPE = "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_pretrain_config"
SFT_RECIPE = "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_sft_config"


@dataclasses.dataclass(frozen=True)
class BridgeOutcome:
    """A finished run: the folder of its last checkpoint, and its iteration."""

    path: Path
    iteration: int
    tokens: int


def train(config: Any, default_recipe: str) -> BridgeOutcome:
    """Train as `config` says, by Megatron-Bridge, in each process that torchrun started.

    Raises UserError for a setting that Bridge does not have, Preempted where Bridge has stopped before its last step
    (it exits with 0 then).
    """
    cfg = build(config, default_recipe)
    saved = Path(config.checkpoint.save)
    if rank() == 0 and os.environ.get("NEMO_RUN_DIR"):
        write_text(Path(os.environ["NEMO_RUN_DIR"], CONFIG_FILE), describe(cfg) + "\n")
    _usr1_is_term()
    run: Any = import_module("megatron.bridge.training.pretrain").pretrain
    step: Any = import_module("megatron.bridge.training.gpt_step").forward_step
    if cfg.checkpoint.finetune or cfg.checkpoint.pretrained_checkpoint:
        run = import_module("megatron.bridge.training.finetune").finetune
    more = {}
    if "callbacks" in inspect.signature(run).parameters:
        more["callbacks"] = _metrics(config.logger.log_interval)
    try:
        run(config=cfg, forward_step_func=step, **more)
    except SystemExit as error:
        if error.code:  # 0: it was told to stop
            raise
    return outcome(saved, config)


def outcome(saved: Path, config: Any) -> BridgeOutcome:
    """What a run that has ended without an error has left in `saved`. Raises Preempted where steps are missing."""
    total = config.train.train_iters
    done = last_iteration(saved)
    if done is None:
        raise UserError(f"{saved}: Megatron-Bridge has ended and left no checkpoint there ({TRACKER} is missing).")
    if done < total:
        raise Preempted(f"Megatron-Bridge stopped after step {done} of {total}; saved in {saved}.")
    tokens = done * config.train.global_batch_size * config.seq_length
    return BridgeOutcome(saved / f"iter_{done:07d}", done, tokens)


def last_iteration(folder: Path) -> int | None:
    """The iteration of the newest checkpoint in a folder of Megatron's; None without one."""
    try:
        text = (folder / TRACKER).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def build(config: Any, default_recipe: str) -> Any:
    """Bridge's ConfigContainer for `config`: that of the recipe's function, with our settings, data and time limit."""
    target = str(config.recipe.get("_target_") or default_recipe)
    function = recipe_function(target)
    parameters = inspect.signature(function).parameters
    arguments = check_recipe_arguments(config.recipe, parameters, target)
    takes_blend = "per_split_data_args_path" in parameters
    if takes_blend:
        arguments["per_split_data_args_path"] = str(config.blend_path)
    cfg = function(**arguments)
    values = container_values(config)
    _data(cfg, config, values, takes_blend)
    # From the run's own checkpoints, if there are any.
    resumes = last_iteration(Path(config.checkpoint.save)) is not None
    values["checkpoint"]["load"] = config.checkpoint.save if resumes else config.checkpoint.load
    if resumes:
        values["checkpoint"]["finetune"] = False
    values["train"] |= stopping(time.time())
    for block, given in values.items():
        merge(cfg, {block: given})
    if config.mixed_precision is not None or config.train.precision == "bf16":
        precision = config.mixed_precision or "bf16_mixed"
        if isinstance(precision, Mapping):
            merge(cfg, {"mixed_precision": precision})
        else:
            cfg.mixed_precision = str(precision)
    merge(cfg, config.bridge, "bridge.")
    return cfg


def recipe_function(target: str) -> Callable[..., Any]:
    """The function of megatron.bridge.recipes that `target` names. UserError for any other, and where it is missing."""
    if not is_recipe(target):
        raise UserError(f"recipe._target_ is {target!r}, which is not below megatron.bridge.recipes.")
    module, _, name = target.rpartition(".")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        where = f"this Python ({sys.executable}) has no module {missing!r}"
        raise UserError(f"recipe._target_: {target}: {where}.", hint="Use an image with Megatron-Bridge.") from error
    function = getattr(found, name, None)
    if not inspect.isfunction(function):
        known = [each for each in dir(found) if each.endswith("_config") and not each.startswith("_")]
        raise UserError(f"recipe._target_: {module} has no function {name!r}; {nearest(name, known)}")
    return function


def stopping(now: float, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Bridge's settings by which it saves and ends at TERM, and before the job's time limit."""
    left = seconds_left(now, environ)
    if left is None:
        return {"exit_signal_handler": True}
    # The lead is what saving a last checkpoint may take.
    minutes = int((left - signal_lead(environ)) // 60)
    return {"exit_signal_handler": True, "exit_duration_in_mins": max(1, minutes)}


def _usr1_is_term() -> None:
    """USR1, by which Slurm says that the time limit is near, does what TERM does once Bridge has a handler for that."""

    def handle(_: int, __: Any) -> None:
        if callable(signal.getsignal(signal.SIGTERM)):
            signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGUSR1, handle)


def _metrics(log_interval: int) -> Any:
    """Bridge's losses, in the job's metrics: by the last rank, which has them on every layout."""
    manager = import_module("megatron.bridge.training.callbacks").CallbackManager()
    last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1

    def after(context: Any) -> None:
        step = int(context.state.train_state.step)
        if last and context.loss_dict and step % log_interval == 0:
            row = {name.replace("lm loss", "loss"): float(value) for name, value in context.loss_dict.items()}
            if context.grad_norm is not None:
                row["grad_norm"] = float(context.grad_norm)
            log_metrics(row, step=step)

    manager.register("on_train_step_end", after)
    return manager


# --- data, checkpoints, precision


def _data(cfg: Any, config: Any, values: dict[str, dict[str, Any]], takes_blend: bool) -> None:
    has_valid = True  # a recipe that reads the blend sees to it itself
    if hasattr(config, "split_folder"):
        folder = config.split_folder("train").parent
        has_valid = _packed_data(cfg, config)
    else:
        folder = config.blend_path.parent
        if not takes_blend:
            per_split = blend_per_split(config.blend_path)
            cfg.dataset.blend, cfg.dataset.blend_per_split, cfg.dataset.split = None, per_split, None
            has_valid = per_split[SPLITS.index("valid")] is not None
    if (folder / "tokenizer").is_dir():
        values["tokenizer"].setdefault("tokenizer_type", "HuggingFaceTokenizer")
        values["tokenizer"].setdefault("tokenizer_model", str(folder / "tokenizer"))
    if not has_valid:
        values["validation"]["eval_iters"] = 0


def blend_per_split(path: Path) -> list[tuple[list[str], list[float] | None] | None]:
    """Our blend.json as Megatron has it: (prefixes, weights) for train, valid and test; None for a split without."""
    blend = read_blend(path)
    if "train" not in blend:
        raise UserError(f"{path}: there is no train split.")
    found: list[tuple[list[str], list[float] | None] | None] = []
    for split in SPLITS:
        sources = blend.get(split)
        weights = [source.weight for source in sources or ()]
        given = None if None in weights else [float(weight or 0) for weight in weights]
        found.append(([source.prefix for source in sources], given) if sources else None)
    return found


def _packed_data(cfg: Any, config: Any) -> bool:
    """Set the folders of packed rows, in the class of dataset that the recipe has; returns whether there is a valid
    split."""
    kind = type(cfg.dataset)
    names = {f.name for f in dataclasses.fields(kind)}
    if not {"dataset_root", "offline_packing_specs"} <= names:
        raise UserError(
            f"{kind.__module__}.{kind.__name__} takes no folder of packed rows by the names of megatron-bridge 0.6.2.",
            hint="Its versions up to 0.3.1 call it otherwise, and are not supported: use a newer image.",
        )
    train, valid = config.split_folder("train"), config.split_folder("valid")
    if not train.exists():
        raise UserError(f"{train}: no such folder of packed rows.")
    has_valid = valid is not None and valid.exists()
    packing = import_module("megatron.bridge.data.packing").PackedSequenceSpecs
    specs = packing(
        packed_sequence_size=config.seq_length,
        packed_train_data_path=str(train),
        packed_val_data_path=str(valid) if has_valid else None,
    )
    given = config.dataset.get("packed_sequence_specs") or {}
    more = {
        name: given[name] for name in ("packed_metadata_path", "pad_cu_seqlens", "pad_seq_to_mult") if name in given
    }
    merge(specs, more, "dataset.packed_sequence_specs.")
    cfg.dataset = kind(
        seq_length=config.seq_length,
        dataset_root=str(train.parent),
        enable_offline_packing=True,
        offline_packing_specs=specs,
        do_validation=has_valid,
        do_test=False,
    )
    return has_valid


# --- one config into another


def merge(cfg: Any, values: Mapping[str, Any], where: str = "") -> None:
    """Set `values` in a dataclass object and in those that it holds. Raises UserError for a name that it does not have,
    with the nearest, and for a value of another kind. A name `a|b` is the first of them that it has."""
    try:
        hints = typing.get_type_hints(type(cfg))
    except (NameError, TypeError):  # of a package that is not there
        hints = {}
    known = [f.name for f in dataclasses.fields(cfg) if f.init and not f.name.startswith("_")]
    for key, value in values.items():
        names = str(key).split("|")
        name = next((each for each in names if each in known), None)
        if name is None:
            owner = f"{type(cfg).__module__}.{type(cfg).__name__}"
            raise UserError(f"{where}{names[0]}: {owner} has no such field; {nearest(names[0], known)}")
        before = getattr(cfg, name)
        path = f"{where}{name}"
        if isinstance(value, Mapping):
            if before is None and (kind := _class_in(hints.get(name))) is not None:
                try:
                    before = kind()
                except TypeError as error:  # it has fields without a default
                    what = "there is none in this recipe, and it can't be made of nothing"
                    raise UserError(f"{path}: {what}: {error}.") from error
                setattr(cfg, name, before)
            if dataclasses.is_dataclass(before):
                merge(before, value, f"{path}.")
                continue
            if not isinstance(before, Mapping | None):
                raise UserError(f"{path} is a block; there it is {before!r}.")
            setattr(cfg, name, {**(before or {}), **value})
        else:
            setattr(cfg, name, _fitting(value, before, path))


def _class_in(hint: Any) -> type | None:
    """The dataclass of an optional block; None where there are several, or none."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    found = [each for each in members if isinstance(each, type) and dataclasses.is_dataclass(each)]
    return found[0] if len(found) == 1 else None


def _fitting(value: Any, before: Any, path: str) -> Any:
    """`value` as the kind that `before` has."""
    if value is None or before is None:
        return value
    if type(before).__module__ == "torch" and type(before).__name__ == "dtype":
        found = getattr(import_module("torch"), str(value).removeprefix("torch."), None)
        if not isinstance(found, type(before)):
            raise UserError(f"{path} is {value!r}; it must be a type of torch's, such as bfloat16.")
        return found
    if isinstance(before, enum.Enum):
        members = type(before).__members__
        if value not in members:
            raise UserError(f"{path} is {value!r}; {nearest(str(value), members)}")
        return members[value]
    if callable(before):
        raise UserError(f"{path} is a function, which the recipe decides and no config can name.")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    for kind, fits, expected in (
        (bool, isinstance(value, bool), "true or false"),
        (int, number, "a whole number"),  # or a fraction: the recipe may happen to have 0 or 1
        (float, number, "a number"),
        (str, isinstance(value, str), "a text"),
    ):
        if isinstance(before, kind):
            if not fits:
                raise UserError(f"{path} is {value!r}; it must be {expected}.")
            break
    return value


def describe(cfg: Any) -> str:
    """What a run was started with, as JSON: plain values as they are, all else by its name."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name, None)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value if isinstance(value, bool | int | float | str | None) else str(value)

    return json.dumps(plain(cfg), indent=2, sort_keys=True)
