"""Hydra finds `hydra/launcher=nemo_run` here; its engine is nemotron_kit.execution.hydra_launcher."""
