"""What the training stages have in common: their config from a command line, tracking, the model as an artifact."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from nemotron_kit.artifacts import ModelArtifact
    from nemotron_kit.training import LoggerConfig, TrainingOutcome

Config = TypeVar("Config", bound="DataclassInstance")


def config_from_command_line(default: Path, kind: type[Config]) -> Config:
    """The config of a stage's script: `--config FILE` (else `default`) with the overrides that follow."""
    from nemotron_kit.config.schema import contradictions
    from nemotron_kit.errors import UserError
    from nemotron_kit.train_script import (
        apply_hydra_overrides,
        load_omegaconf_yaml,
        omegaconf_to_dataclass,
        parse_config_and_overrides,
    )

    path, overrides = parse_config_and_overrides(default)
    config = omegaconf_to_dataclass(apply_hydra_overrides(load_omegaconf_yaml(path), overrides), kind)
    for problem in contradictions(overrides, asdict(config), kind):
        raise UserError(problem)
    return config


def start_tracking(logger: LoggerConfig) -> None:
    """Open a W&B run if the launcher, the environment or the logger block asks for one."""
    from nemotron_kit.train_script import init_wandb_from_env

    for name, value in (("WANDB_PROJECT", logger.wandb_project), ("WANDB_ENTITY", logger.wandb_entity)):
        if value:
            os.environ.setdefault(name, value)
    init_wandb_from_env()


def model_artifact(outcome: TrainingOutcome, seq_length: int) -> ModelArtifact:
    """The model as an artifact; its loss is the held-out one where there is a valid split."""
    from nemotron_kit.artifacts import ModelArtifact

    loss = outcome.loss if outcome.valid_loss is None else outcome.valid_loss
    metadata: dict[str, Any] = {"train_loss": outcome.loss, "tokens": outcome.tokens, "seq_length": seq_length}
    if outcome.changes:
        metadata["changes"] = list(outcome.changes)
    return ModelArtifact(path=outcome.path, step=outcome.step, loss=loss, metadata=metadata)


def publish(artifact: ModelArtifact, name: str) -> None:
    """Register the model, and tell the next step where it is."""
    from nemotron_kit.artifacts import print_step_complete

    artifact.save(name=name)
    print_step_complete(model=artifact)
