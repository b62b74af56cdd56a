"""The hf engine: reads Megatron shards, trains Nemotron-H with transformers' Trainer, saves and resumes exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemotron_kit.lazy import load_names

if TYPE_CHECKING:
    from nemotron_kit.training.config import (
        CheckpointConfig,
        LoggerConfig,
        PretrainConfig,
        SchedulerConfig,
        TrainConfig,
    )
    from nemotron_kit.training.data import BlendSamples, TokenShard
    from nemotron_kit.training.engine import TrainingOutcome, pretrain
    from nemotron_kit.training.processes import Preempted

_HOMES = {
    "config": "CheckpointConfig LoggerConfig PretrainConfig SchedulerConfig TrainConfig",
    "data": "BlendSamples TokenShard",
    "engine": "pretrain TrainingOutcome",
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
