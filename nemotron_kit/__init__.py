"""nemotron_kit: a Hydra-native launcher for LLM training recipes."""

__version__ = "0.1.0"
