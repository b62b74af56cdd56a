"""The hf engine: reads Megatron shards, trains Nemotron-H with transformers' Trainer, saves and resumes exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemotron_kit.lazy import load_names

if TYPE_CHECKING:
    from nemotron_kit.training.config_blocks import CheckpointConfig, LoggerConfig, SchedulerConfig
    from nemotron_kit.training.data import BlendSamples, TokenShard
    from nemotron_kit.training.engine import TrainingOutcome, pretrain
    from nemotron_kit.training.pretrain_config import PretrainConfig, TrainConfig
    from nemotron_kit.training.processes import Preempted

_HOMES = {
    "config_blocks": "CheckpointConfig LoggerConfig SchedulerConfig",
    "data": "BlendSamples TokenShard",
    "engine": "pretrain TrainingOutcome",
    "pretrain_config": "PretrainConfig TrainConfig",
    "processes": "Preempted",
}

__all__ = [
    "BlendSamples",
    "CheckpointConfig",
    "LoggerConfig",
    "Preempted",
    "PretrainConfig",
    "SchedulerConfig",
    "TokenShard",
    "TrainConfig",
    "TrainingOutcome",
    "pretrain",
]

__getattr__, __dir__ = load_names(__name__, __all__, _HOMES)
