"""Pretrain Nemotron 3 Nano (stage 0) on prepared data, with transformers' Trainer.

    python train.py --config config/tiny.yaml train.train_iters=5
    torchrun --nproc_per_node=2 -m nemotron.recipes.nano3.stage0_pretrain.train --config config/tiny.yaml

Saves the model as `ModelArtifact-pretrain`. Started again, it goes on from the last checkpoint in checkpoint.save;
stopped by TERM or USR1, it saves one and exits with code 75.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.training.config import PretrainConfig

if TYPE_CHECKING:
    from nemotron_kit.artifacts import ModelArtifact
    from nemotron_kit.training import TrainingOutcome

__all__ = ["PretrainConfig", "main", "preflight"]

DEFAULT_CONFIG = Path(__file__).parent / "config" / "default.yaml"


def main(cfg: PretrainConfig | None = None) -> ModelArtifact:
    """Train and return the model; without `cfg`, the config comes from the command line. Only rank 0 saves and
    prints."""
    from nemotron_kit.training import pretrain
    from nemotron_kit.training.processes import rank

    cfg = cfg if cfg is not None else _config_from_command_line()
    _refuse_what_cant_fit(cfg)
    if rank() == 0:
        _start_tracking(cfg)
    outcome = pretrain(cfg)
    artifact = _artifact(cfg, outcome)
    if rank() == 0:
        _publish(artifact)
    return artifact


def preflight(cfg: PretrainConfig, *, connect: bool, here: bool = True) -> list[str]:
    """What would stop this run: wrong settings, and on this machine (`here`) too little memory. Loads nothing heavy."""
    from nemotron_kit.training.config import preflight as check

    return check(cfg, connect=connect, here=here)


def _config_from_command_line() -> PretrainConfig:
    from nemotron_kit.train_script import (
        apply_hydra_overrides,
        load_omegaconf_yaml,
        omegaconf_to_dataclass,
        parse_config_and_overrides,
    )

    path, overrides = parse_config_and_overrides(DEFAULT_CONFIG)
    config = apply_hydra_overrides(load_omegaconf_yaml(path), overrides)
    return omegaconf_to_dataclass(config, PretrainConfig)


def _refuse_what_cant_fit(cfg: PretrainConfig) -> None:
    """UserError with the estimate, instead of a machine that is driven out of memory."""
    from nemotron_kit.errors import UserError
    from nemotron_kit.training.config import memory_problems

    cfg.check()
    for problem in memory_problems(cfg):
        raise UserError(problem)


def _start_tracking(cfg: PretrainConfig) -> None:
    """Open a W&B run if the launcher, the environment or the logger block asks for one."""
    from nemotron_kit.train_script import init_wandb_from_env

    for name, value in (("WANDB_PROJECT", cfg.logger.wandb_project), ("WANDB_ENTITY", cfg.logger.wandb_entity)):
        if value:
            os.environ.setdefault(name, value)
    init_wandb_from_env()


def _artifact(cfg: PretrainConfig, outcome: TrainingOutcome) -> ModelArtifact:
    """The model as an artifact; its loss is the held-out one where there is a valid split."""
    from nemotron_kit.artifacts import ModelArtifact

    loss = outcome.loss if outcome.valid_loss is None else outcome.valid_loss
    metadata: dict[str, Any] = {"train_loss": outcome.loss, "tokens": outcome.tokens, "seq_length": cfg.seq_length}
    if outcome.changes:
        metadata["changes"] = list(outcome.changes)
    return ModelArtifact(path=outcome.path, step=outcome.step, loss=loss, metadata=metadata)


def _publish(artifact: ModelArtifact) -> None:
    from nemotron_kit.artifacts import print_step_complete

    artifact.save(name="ModelArtifact-pretrain")
    print_step_complete(model=artifact)


if __name__ == "__main__":
    main()
