"""Data preparation: text to Megatron shards, conversations to packed rows. A blend of weighted sources is frozen into a
plan, and the plan's shards have the same bytes on any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemotron_kit.lazy import load_names

if TYPE_CHECKING:
    from nemotron_kit.data_prep.config import (
        BinIdxOutputConfig,
        ChatSftOutputConfig,
        DataBlend,
        DataPrepConfig,
        Dataset,
        JsonlOutputConfig,
        OutputConfig,
        PackedOutputConfig,
        PerSplitConfig,
        PipelineConfig,
        SftPrepConfig,
        TokenizerConfig,
    )
    from nemotron_kit.data_prep.last_mile import PipelineResult, SplitResult, last_mile_process, tokenize
    from nemotron_kit.data_prep.planning import freeze_plan
    from nemotron_kit.data_prep.prepare import run_data_prep
    from nemotron_kit.data_prep.record_transforms import (
        Message,
        OpenAIChatRecord,
        SftRecord,
        ShareGPTRecord,
        Transform,
        nemotron_rl,
        openai_chat,
        passthrough,
        rename,
        select,
        sft,
        sharegpt,
    )
    from nemotron_kit.data_prep.sft_prep import run_sft_data_prep
    from nemotron_kit.data_prep.shard import make_shard
    from nemotron_kit.data_prep.shard_plan import ShardPlan
    from nemotron_kit.data_prep.shard_plan import ShardPlan as Plan

_HOMES = {
    "config": (
        "BinIdxOutputConfig ChatSftOutputConfig DataBlend DataPrepConfig Dataset JsonlOutputConfig OutputConfig "
        "PackedOutputConfig PerSplitConfig PipelineConfig SftPrepConfig TokenizerConfig"
    ),
    "last_mile": "last_mile_process PipelineResult SplitResult tokenize",
    "shard_plan": "Plan ShardPlan",
    "planning": "freeze_plan",
    "prepare": "run_data_prep",
    "sft_prep": "run_sft_data_prep",
    "shard": "make_shard",
    "record_transforms": (
        "Message nemotron_rl openai_chat OpenAIChatRecord passthrough rename select sft SftRecord sharegpt "
        "ShareGPTRecord Transform"
    ),
}

__all__ = [
    "BinIdxOutputConfig",
    "ChatSftOutputConfig",
    "DataBlend",
    "DataPrepConfig",
    "Dataset",
    "JsonlOutputConfig",
    "Message",
    "OpenAIChatRecord",
    "OutputConfig",
    "PackedOutputConfig",
    "PerSplitConfig",
    "PipelineConfig",
    "PipelineResult",
    "Plan",
    "SftPrepConfig",
    "SftRecord",
    "ShardPlan",
    "ShareGPTRecord",
    "SplitResult",
    "TokenizerConfig",
    "Transform",
    "freeze_plan",
    "last_mile_process",
    "make_shard",
    "nemotron_rl",
    "openai_chat",
    "passthrough",
    "rename",
    "run_data_prep",
    "run_sft_data_prep",
    "select",
    "sft",
    "sharegpt",
    "tokenize",
]

__getattr__, __dir__ = load_names(__name__, __all__, _HOMES)
