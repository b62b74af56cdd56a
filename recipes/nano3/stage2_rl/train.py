"""Reinforcement learning with Nemotron 3 Nano (stage 2): GRPO on prompts whose answers can be judged.

    python train.py --config config/tiny.yaml grpo.num_iterations=5
    torchrun --nproc_per_node=2 -m nemotron.recipes.nano3.stage2_rl.train --config config/tiny.yaml

Saves the model as `ModelArtifact-rl`. Started again, it goes on from the last checkpoint in
checkpointing.checkpoint_dir; stopped by TERM or USR1, it saves one and exits with code 75.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.training.grpo_config import GRPOConfig, preflight

if TYPE_CHECKING:
    from nemotron_kit.artifacts import ModelArtifact

__all__ = ["GRPOConfig", "main", "preflight"]

DEFAULT_CONFIG = Path(__file__).parent / "config" / "default.yaml"


def main(cfg: GRPOConfig | None = None) -> ModelArtifact:
    """Train and return the model with its held-out rewards; without `cfg`, the config comes from the command line. Only
    rank 0 saves and prints."""
    from nemotron.recipes.nano3.stage_script import config_from_command_line, publish, start_tracking

    cfg = cfg if cfg is not None else config_from_command_line(DEFAULT_CONFIG, GRPOConfig)
    cfg.check()
    if cfg.on_nemo_rl:
        return _by_nemo_rl(cfg)
    from nemotron_kit.artifacts import ModelArtifact
    from nemotron_kit.training.grpo import grpo

    block = (cfg.logger.wandb or {}) if cfg.logger.wandb_enabled else {}
    start_tracking(block.get("project"), block.get("entity"), block.get("name"))
    outcome = grpo(cfg)
    metadata: dict[str, Any] = {"tokens": outcome.tokens, **outcome.after}
    metadata |= {f"{name}_before": value for name, value in outcome.before.items()}
    if outcome.changes:
        metadata["changes"] = list(outcome.changes)
    artifact = ModelArtifact(path=outcome.path, step=outcome.step, loss=outcome.loss, metadata=metadata)
    return publish(artifact, "ModelArtifact-rl")


def _by_nemo_rl(cfg: GRPOConfig) -> ModelArtifact:
    """Train on the job's Ray cluster; the model is the folder of NeMo-RL's last checkpoint."""
    from nemotron.recipes.nano3.stage_script import publish

    from nemotron_kit.artifacts import ModelArtifact
    from nemotron_kit.training import nemo_rl

    outcome = nemo_rl.train(cfg)
    metadata: dict[str, Any] = {"engine": cfg.engine}
    if outcome.reward is not None:
        metadata["val_reward"] = outcome.reward
    return publish(ModelArtifact(path=outcome.path, step=outcome.step, metadata=metadata), "ModelArtifact-rl")


if __name__ == "__main__":
    main()
