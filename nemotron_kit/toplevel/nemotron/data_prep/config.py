"""The configuration classes of data preparation."""

from nemotron_kit.data_prep.config import DataPrepConfig, PerSplitConfig, TokenizerConfig
from nemotron_kit.data_prep.record_transforms import Transform

__all__ = ["DataPrepConfig", "PerSplitConfig", "TokenizerConfig", "Transform"]
