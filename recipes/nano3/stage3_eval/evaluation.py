"""Evaluate a model (stage 3): held-out loss, exact match on questions, and tasks of lm-eval-harness.

    python evaluation.py --config config/tiny.yaml limit=100

Inputs: `run.model`, and, where they are given, `run.data` (pretraining shards or packed chat rows) and `run.tasks` (RL
data). Saves results.json as `EvalArtifact-<config_name>`, and prints a table. One process, on one device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemotron_kit.errors import UserError
from nemotron_kit.home import expand_user

if TYPE_CHECKING:
    from nemotron_kit.artifacts import EvalArtifact, Pin

DEFAULT_CONFIG = Path(__file__).parent / "config" / "default.yaml"
_LAUNCHER = "that is nemo-evaluator-launcher's, which serves the model and asks it over HTTP; this command loads it."
# What there is instead of the keys of another engine.
_ELSEWHERE = {
    "execution": "Where it runs is a profile's matter: --run or --batch PROFILE.",
    "evaluation": "Tasks are named by -t TASK or tasks=[…]; their settings are batch_size, limit and num_fewshot.",
    "export": "Results are an artifact, and go to W&B with --wandb.project or [wandb] in env.toml.",
    "deployment": "Of this block, checkpoint_path is read: the folder of the model.",
}


@dataclass
class EvalConfig:
    """The settings of an evaluation."""

    deployment: dict[str, Any] = field(
        default_factory=lambda: {"checkpoint_path": "${art:model,path}"},
        metadata={"help": "checkpoint_path: the model's folder, in place of run.model"},
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"short": "-t", "help": "A task of lm-eval-harness (may be given again)"}
    )
    task_path: Path | None = field(
        default=None, metadata={"help": "Folder of tasks of your own (YAML, in lm-eval's form)"}
    )
    num_fewshot: int | None = field(default=None, metadata={"help": "Examples before each question (null: the task's)"})
    split: Literal["valid", "test"] = field(default="valid", metadata={"help": "Split of run.data for the loss"})
    seq_length: int | None = field(
        default=None, metadata={"help": "Tokens a window of pretraining data (null: as the model was trained)"}
    )
    limit: int | None = field(
        default=None, metadata={"help": "Windows, rows, questions or documents of each measure (null: all)"}
    )
    batch_size: int = field(default=16, metadata={"help": "Windows, questions or documents at a time"})
    max_new_tokens: int = field(default=64, metadata={"help": "Longest answer to a question of run.tasks, in tokens"})
    enable_thinking: bool = field(default=False, metadata={"help": "Let the model reason before it answers"})
    verifiers: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Verifiers of your own for run.tasks: NAME._target_, as rl takes them"}
    )
    output_dir: Path = field(default=Path("output/nano3/stage3_eval"), metadata={"help": "Folder for results.json"})
    config_name: str | None = field(
        default=None, metadata={"help": "Ending of the artifact's name (default: the config file's name)"}
    )
    execution: dict[str, Any] = field(default_factory=dict, metadata={"help": "Refused: see --run and --batch"})
    evaluation: dict[str, Any] = field(default_factory=dict, metadata={"help": "Refused: see tasks"})
    export: dict[str, Any] = field(default_factory=dict, metadata={"help": "Refused: see --wandb.project"})


def main(cfg: EvalConfig | None = None) -> EvalArtifact:
    """Evaluate the model, save the results and return them; without `cfg`, the config comes from the command line."""
    from nemotron_kit.artifacts import print_step_complete
    from nemotron_kit.artifacts.lineage import job_inputs

    inputs = job_inputs()
    cfg = cfg if cfg is not None else _from_command_line(inputs)
    for problem in preflight(cfg, connect=False):
        raise UserError(problem)
    data, questions = inputs.get("data"), inputs.get("tasks")
    if data is None and questions is None and not cfg.tasks:
        raise UserError(
            "There is nothing to measure.",
            hint="Give --art.data (held-out loss), --art.tasks (RL data: exact match), or -t TASK (lm-eval).",
        )
    model = expand_user(str(cfg.deployment["checkpoint_path"]))
    found = _measured(cfg, model, data, questions)
    artifact = _saved(cfg, found, model)
    _show(found, artifact)
    print_step_complete(eval=artifact)
    return artifact


def preflight(cfg: EvalConfig, *, connect: bool, here: bool = True) -> list[str]:
    """The problems that would prevent this run: settings of another program, and on this machine (`here`) a missing
    package or folder."""
    from importlib.util import find_spec

    del connect
    problems = [
        f"{block}.{key}: {_LAUNCHER} {_ELSEWHERE[block]}"
        for block, values in (
            ("execution", cfg.execution),
            ("evaluation", cfg.evaluation),
            ("export", cfg.export),
            ("deployment", {key: value for key, value in cfg.deployment.items() if key != "checkpoint_path"}),
        )
        for key in values
    ]
    for name in ("limit", "batch_size", "max_new_tokens", "seq_length"):
        value = getattr(cfg, name)
        if value is not None and value < 1:
            problems.append(f"{name} is {value}; it must be 1 or more.")
    if cfg.num_fewshot is not None and cfg.num_fewshot < 0:
        problems.append(f"num_fewshot is {cfg.num_fewshot}; it must be 0 or more.")
    path = cfg.deployment.get("checkpoint_path")
    if not path:
        problems.append("deployment.checkpoint_path is not set: there is no model. It is ${art:model,path} by default.")
    elif here and "${" not in str(path) and not (expand_user(str(path)) / "config.json").is_file():
        problems.append(f"deployment.checkpoint_path: {path} holds no model in transformers' format (no config.json).")
    if here and cfg.task_path is not None and not expand_user(cfg.task_path).is_dir():
        problems.append(f"task_path: there is no folder {cfg.task_path}.")
    if here and (find_spec("torch") is None or find_spec("transformers") is None):
        problems.append("An evaluation needs torch and transformers: pip install 'nemotron-kit[train]'.")
    elif here and cfg.tasks and find_spec("lm_eval") is None:
        problems.append(f"-t {cfg.tasks[0]} needs lm-eval, which is not installed: pip install 'nemotron-kit[eval]'.")
    return problems


def _from_command_line(inputs: dict[str, Pin]) -> EvalConfig:
    """The config of the command line; `inputs` gets those that its `run` section names."""
    from nemotron.recipes.nano3.stage_script import raw_from_command_line
    from omegaconf import OmegaConf

    from nemotron_kit.artifacts import Reference, open_registry, record_input

    config, cfg = raw_from_command_line(DEFAULT_CONFIG, EvalConfig)
    for slot in ("data", "tasks"):
        named = OmegaConf.select(config, f"run.{slot}")
        if slot not in inputs and named:
            inputs[slot] = open_registry().resolve(Reference.parse(str(named)))
            record_input(inputs[slot])
    return cfg


def _measured(cfg: EvalConfig, model: Path, data: Pin | None, questions: Pin | None) -> dict[str, dict[str, Any]]:
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # no bars in a log; read where tqdm is imported
    from nemotron_kit.training import evaluate
    from nemotron_kit.training.generate import TextGenerator

    generator = TextGenerator(model)
    found: dict[str, dict[str, Any]] = {}
    if data is not None:
        found["held_out"] = evaluate.held_out(
            generator,
            Path(data.path),
            split=cfg.split,
            limit=cfg.limit,
            seq_length=cfg.seq_length,
            batch_size=cfg.batch_size,
        )
    if questions is not None:
        found |= evaluate.answers(
            generator,
            Path(questions.path),
            split="test",
            limit=cfg.limit,
            batch_size=cfg.batch_size,
            max_new_tokens=cfg.max_new_tokens,
            enable_thinking=cfg.enable_thinking,
            verifiers=cfg.verifiers,
        )
    if cfg.tasks:
        found |= evaluate.run_tasks(
            generator,
            cfg.tasks,
            task_path=expand_user(cfg.task_path) if cfg.task_path else None,
            limit=cfg.limit,
            batch_size=cfg.batch_size,
            num_fewshot=cfg.num_fewshot,
            enable_thinking=cfg.enable_thinking,
        )
    return found


def _saved(cfg: EvalConfig, found: dict[str, dict[str, Any]], folder_of_model: Path) -> EvalArtifact:
    """Write the results. They name the model by its version if it was read as an artifact, else by its folder."""
    from nemotron.recipes.nano3.stage_script import config_name

    from nemotron_kit.artifacts import EvalArtifact, inputs
    from nemotron_kit.files import write_json

    place = folder_of_model.resolve()
    pins = (pin for pin in inputs() if pin.version is not None and Path(pin.path).resolve() == place)
    model = next((pin.uri for pin in pins), str(place))
    folder = expand_user(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"model": model, "results": found}, mode=0o666)
    artifact = EvalArtifact(path=folder, results=found, tasks=list(found), model=model)
    artifact.save(name=f"EvalArtifact-{config_name(cfg.config_name)}")
    return artifact


def _show(found: Mapping[str, Mapping[str, Any]], artifact: EvalArtifact) -> None:
    """Print the results as a table, on standard error: standard output is reserved for the artifacts passed to the next
    step."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{artifact.model}"), title_justify="left")
    for name in ("task", "metric"):
        table.add_column(name)
    table.add_column("value", justify="right")
    for task, values in found.items():
        for metric, value in values.items():
            if metric.endswith("stderr") and metric != "stderr":
                continue
            spread = values.get("stderr" if metric == "accuracy" else f"{metric}_stderr")
            whole = value is not None and value > 1 and float(value).is_integer()  # no NaN, no infinity
            shown = "none" if value is None else f"{value:,.0f}" if whole else f"{value:.4f}"
            table.add_row(Text(task), metric, f"{shown} ± {spread:.4f}" if spread is not None else shown)
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
