"""Hydra finds `hydra/launcher=nemo_run` here; its engine is nemotron_kit.sweep.launcher."""
