"""Hydra's config tree of `python -m nemotron_kit`, for programs that put it on their search path
(`hydra.searchpath=[pkg://nemotron_kit.conf]`, `initialize_config_module("nemotron_kit.conf")`)."""
