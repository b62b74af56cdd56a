"""The hf engine: reads Megatron shards, trains Nemotron-H with transformers' Trainer, saves and resumes exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemotron_kit.training.blocks import CheckpointConfig, LoggerConfig, SchedulerConfig, TrainConfig
    from nemotron_kit.training.config import PretrainConfig
    from nemotron_kit.training.engine import Outcome, pretrain
    from nemotron_kit.training.preempt import Preempted
    from nemotron_kit.training.samples import BlendSamples
    from nemotron_kit.training.shards import Shard

_HOMES = {
    "BlendSamples": "samples",
    "CheckpointConfig": "blocks",
    "LoggerConfig": "blocks",
    "Outcome": "engine",
    "Preempted": "preempt",
    "PretrainConfig": "config",
    "SchedulerConfig": "blocks",
    "Shard": "shards",
    "TrainConfig": "blocks",
    "pretrain": "engine",
}
__all__ = [
    "BlendSamples",
    "CheckpointConfig",
    "LoggerConfig",
    "Outcome",
    "Preempted",
    "PretrainConfig",
    "SchedulerConfig",
    "Shard",
    "TrainConfig",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
