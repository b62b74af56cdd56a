"""The configuration classes of data preparation."""

from nemotron_kit.data_prep.config import DataPrepConfig, PerSplitConfig, TokenizerConfig
from nemotron_kit.data_prep.transforms import Transform

__all__ = ["DataPrepConfig", "PerSplitConfig", "TokenizerConfig", "Transform"]
