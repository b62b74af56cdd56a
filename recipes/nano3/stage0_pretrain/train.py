"""Pretrain Nemotron 3 Nano (stage 0) on prepared data, with transformers' Trainer.

    python train.py --config config/tiny.yaml train.train_iters=5
    torchrun --nproc_per_node=2 -m nemotron.recipes.nano3.stage0_pretrain.train --config config/tiny.yaml

Saves the model as `ModelArtifact-pretrain`. Started again, it goes on from the last checkpoint in checkpoint.save;
stopped by TERM or USR1, it saves one and exits with code 75.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_kit.training.cost import preflight
from nemotron_kit.training.pretrain_config import PretrainConfig

if TYPE_CHECKING:
    from nemotron_kit.artifacts import ModelArtifact

__all__ = ["PretrainConfig", "main", "preflight"]

DEFAULT_CONFIG = Path(__file__).parent / "config" / "default.yaml"


def main(cfg: PretrainConfig | None = None) -> ModelArtifact:
    """Train and return the model; without `cfg`, the config comes from the command line. Only rank 0 saves and
    prints."""
    from nemotron.recipes.nano3.stage_script import bridge_stage, config_from_command_line, train_stage

    cfg = cfg if cfg is not None else config_from_command_line(DEFAULT_CONFIG, PretrainConfig)
    if cfg.on_bridge:
        return bridge_stage(cfg, "PRETRAIN_RECIPE", "ModelArtifact-pretrain")
    from nemotron_kit.training import pretrain

    return train_stage(cfg, pretrain, "ModelArtifact-pretrain")


if __name__ == "__main__":
    main()
