"""The hf engine: reads Megatron shards, trains Nemotron-H with transformers' Trainer, saves and resumes exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    "BlendSamples": "data",
    "CheckpointConfig": "config",
    "LoggerConfig": "config",
    "TrainingOutcome": "engine",
    "Preempted": "processes",
    "PretrainConfig": "config",
    "SchedulerConfig": "config",
    "TokenShard": "data",
    "TrainConfig": "config",
    "pretrain": "engine",
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


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
