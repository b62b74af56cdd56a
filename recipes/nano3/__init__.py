"""Nemotron 3 Nano, as a recipe: the command tree, declared with the same public API that a user has."""

from pathlib import Path

from nemotron_kit.app import App, ArtifactInput

_STAGE0 = Path(__file__).parent / "stage0_pretrain"
_MODULE = "nemotron.recipes.nano3.stage0_pretrain"

app = App("nano3", description="Nemotron 3 Nano: data preparation and training")

app.command(
    "pretrain",
    f"{_MODULE}.train:PretrainConfig",
    f"{_MODULE}.train:main",
    script_path=_STAGE0 / "train.py",
    description="Pretrain on Megatron shards (stage 0)",
    artifacts={"data": ArtifactInput("PretrainBlendsArtifact-default:latest", type="PretrainBlendsArtifact")},
    aliases=("train",),
    produces=("ModelArtifact-pretrain",),
    preflight=f"{_MODULE}.train:preflight",
)

_prep = app.group("data", description="Data commands").group("prep", description="Prepare data for a stage")
_prep.command(
    "pretrain",
    f"{_MODULE}.data_prep:PretrainDataPrepConfig",
    f"{_MODULE}.data_prep:main",
    script_path=_STAGE0 / "data_prep.py",
    description="Tokenize a blend of text sources to Megatron .bin/.idx shards",
    config_dir=_STAGE0 / "config" / "data_prep",
    produces=("PretrainBlendsArtifact-{config}",),
    preflight=f"{_MODULE}.data_prep:preflight",
)
