"""The configuration classes of data preparation."""

from nemotron_kit.data_prep.config import (
    BinIdxOutputConfig,
    ChatSftOutputConfig,
    DataPrepConfig,
    JsonlOutputConfig,
    OutputConfig,
    PackedOutputConfig,
    PerSplitConfig,
    PipelineConfig,
    TokenizerConfig,
)
from nemotron_kit.data_prep.record_transforms import Transform

__all__ = [
    "BinIdxOutputConfig",
    "ChatSftOutputConfig",
    "DataPrepConfig",
    "JsonlOutputConfig",
    "OutputConfig",
    "PackedOutputConfig",
    "PerSplitConfig",
    "PipelineConfig",
    "TokenizerConfig",
    "Transform",
]
