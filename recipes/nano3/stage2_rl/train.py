"""Reinforcement learning with Nemotron 3 Nano (stage 2): GRPO on prompts whose answers can be judged.

    python train.py --config config/tiny.yaml grpo.num_iterations=5
    torchrun --nproc_per_node=2 -m nemotron.recipes.nano3.stage2_rl.train --config config/tiny.yaml

Saves the model as `ModelArtifact-rl`. Started again, it goes on from the last checkpoint in
checkpointing.checkpoint_dir; stopped by TERM or USR1, it saves one and exits with code 75.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.training.grpo_config import GRPOConfig

if TYPE_CHECKING:
    from nemotron_kit.artifacts import ModelArtifact
    from nemotron_kit.training.grpo import RLOutcome

__all__ = ["GRPOConfig", "main", "preflight"]

DEFAULT_CONFIG = Path(__file__).parent / "config" / "default.yaml"


def main(cfg: GRPOConfig | None = None) -> ModelArtifact:
    """Train and return the model; without `cfg`, the config comes from the command line. Only rank 0 saves and
    prints."""
    from nemotron_kit.training.grpo import grpo
    from nemotron_kit.training.processes import rank

    cfg = cfg if cfg is not None else _config_from_command_line()
    cfg.check()
    if rank() == 0:
        _start_tracking(cfg)
    outcome = grpo(cfg)
    artifact = _artifact(outcome)
    if rank() == 0:
        _publish(artifact)
    return artifact


def preflight(cfg: GRPOConfig, *, connect: bool, here: bool = True) -> list[str]:
    """What would stop this run: settings of other engines, wrong ones, and on this machine (`here`) a verifier that is
    missing, or too little memory. Loads nothing heavy."""
    from nemotron_kit.training.grpo_config import preflight as check

    return check(cfg, connect=connect, here=here)


def _config_from_command_line() -> GRPOConfig:
    from nemotron_kit.train_script import (
        apply_hydra_overrides,
        load_omegaconf_yaml,
        omegaconf_to_dataclass,
        parse_config_and_overrides,
    )

    path, overrides = parse_config_and_overrides(DEFAULT_CONFIG)
    config = apply_hydra_overrides(load_omegaconf_yaml(path), overrides)
    return omegaconf_to_dataclass(config, GRPOConfig)


def _start_tracking(cfg: GRPOConfig) -> None:
    """Open a W&B run if the launcher, the environment or the logger block asks for one."""
    from nemotron_kit.train_script import init_wandb_from_env

    block = (cfg.logger.wandb or {}) if cfg.logger.wandb_enabled else {}
    for name, value in (("WANDB_PROJECT", block.get("project")), ("WANDB_ENTITY", block.get("entity"))):
        if value:
            os.environ.setdefault(name, str(value))
    init_wandb_from_env()


def _artifact(outcome: RLOutcome) -> ModelArtifact:
    """The model as an artifact, with its held-out rewards."""
    from nemotron_kit.artifacts import ModelArtifact

    metadata: dict[str, Any] = {"tokens": outcome.tokens, **outcome.after}
    metadata |= {f"{name}_before": value for name, value in outcome.before.items()}
    if outcome.changes:
        metadata["changes"] = list(outcome.changes)
    return ModelArtifact(path=outcome.path, step=outcome.step, loss=outcome.loss, metadata=metadata)


def _publish(artifact: ModelArtifact) -> None:
    from nemotron_kit.artifacts import print_step_complete

    artifact.save(name="ModelArtifact-rl")
    print_step_complete(model=artifact)


if __name__ == "__main__":
    main()
