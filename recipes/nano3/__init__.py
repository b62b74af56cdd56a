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
    targets=("nemotron_kit.training.pretrain",),
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
    resources="prep",
)

_STAGE1 = Path(__file__).parent / "stage1_sft"
_SFT = "nemotron.recipes.nano3.stage1_sft"
_prep.command(
    "sft",
    f"{_SFT}.data_prep:SFTDataPrepConfig",
    f"{_SFT}.data_prep:main",
    script_path=_STAGE1 / "data_prep.py",
    description="Turn a blend of conversations into packed rows",
    config_dir=_STAGE1 / "config" / "data_prep",
    produces=("SFTDataArtifact-{config}",),
    preflight=f"{_SFT}.data_prep:preflight",
    resources="prep",
)

_STAGE2 = Path(__file__).parent / "stage2_rl"
_RL = "nemotron.recipes.nano3.stage2_rl"
_prep.command(
    "rl",
    f"{_RL}.data_prep:RLDataPrepConfig",
    f"{_RL}.data_prep:main",
    script_path=_STAGE2 / "data_prep.py",
    description="Collect the prompts of reinforcement learning as JSONL by split",
    config_dir=_STAGE2 / "config" / "data_prep",
    produces=("SplitJsonlDataArtifact-rl",),
    preflight=f"{_RL}.data_prep:preflight",
    resources="prep",
    distributed=False,
)

app.command(
    "sft",
    f"{_SFT}.train:SFTConfig",
    f"{_SFT}.train:main",
    script_path=_STAGE1 / "train.py",
    description="Fine-tune a model to chat, on packed rows (stage 1)",
    artifacts={
        "data": ArtifactInput("SFTDataArtifact-default:latest", type="SFTDataArtifact"),
        "model": ArtifactInput("ModelArtifact-pretrain:latest", type="ModelArtifact"),
    },
    produces=("ModelArtifact-sft",),
    preflight=f"{_SFT}.train:preflight",
    targets=("nemotron_kit.training.sft",),
)

app.command(
    "rl",
    f"{_RL}.train:GRPOConfig",
    f"{_RL}.train:main",
    script_path=_STAGE2 / "train.py",
    description="Reinforcement learning with GRPO (stage 2)",
    artifacts={
        "model": ArtifactInput("ModelArtifact-sft:latest", type="ModelArtifact"),
        "data": ArtifactInput("SplitJsonlDataArtifact-rl:latest", type="SplitJsonlDataArtifact"),
    },
    produces=("ModelArtifact-rl",),
    preflight=f"{_RL}.train:preflight",
)

_IMPORTS = "nemotron.recipes.nano3.import_export"
_data_import = app.group("data").group("import", description="Register data that was made elsewhere")
_data_import.command(
    "pretrain",
    f"{_IMPORTS}:ImportData",
    f"{_IMPORTS}:import_pretrain_data",
    description="Register Megatron shards by their blend.json",
    preflight=f"{_IMPORTS}:preflight",
    distributed=False,
)
_data_import.command(
    "sft",
    f"{_IMPORTS}:ImportSFTData",
    f"{_IMPORTS}:import_sft_data",
    description="Register packed SFT data",
    preflight=f"{_IMPORTS}:preflight",
    distributed=False,
)
_data_import.command(
    "rl",
    f"{_IMPORTS}:ImportRLData",
    f"{_IMPORTS}:import_rl_data",
    description="Register RL splits by their manifest",
    preflight=f"{_IMPORTS}:preflight",
    distributed=False,
)
_model_import = app.group("model", description="Model commands").group(
    "import", description="Register a checkpoint that was made elsewhere"
)
for _stage, _config in (("pretrain", "ImportModel"), ("sft", "ImportSFTModel"), ("rl", "ImportRLModel")):
    _model_import.command(
        _stage,
        f"{_IMPORTS}:{_config}",
        f"{_IMPORTS}:import_model",
        description=f"Register a checkpoint of {_stage}",
        preflight=f"{_IMPORTS}:preflight",
        distributed=False,
    )

_EVAL = "nemotron.recipes.nano3.stage3_eval.evaluation"
for _group in (app, app.group("model")):
    _group.command(
        "eval",
        f"{_EVAL}:EvalConfig",
        f"{_EVAL}:main",
        script_path=Path(__file__).parent / "stage3_eval" / "evaluation.py",
        description="Evaluate a model: held-out loss, exact match, tasks of lm-eval-harness (stage 3)",
        artifacts={
            "model": ArtifactInput("ModelArtifact-rl:latest", type="ModelArtifact"),
            "data": ArtifactInput("PretrainBlendsArtifact-default:latest", optional=True),
            "tasks": ArtifactInput("SplitJsonlDataArtifact-rl:latest", optional=True),
        },
        produces=("EvalArtifact-{config}",),
        preflight=f"{_EVAL}:preflight",
        distributed=False,
    )

_GENERATION = "nemotron.recipes.nano3.generation"
for _name, _config, _text in (
    ("generate", "GenerateConfig", "Print what a model says to a prompt"),
    ("chat", "ChatConfig", "Talk with a model on this terminal"),
):
    app.command(
        _name,
        f"{_GENERATION}:{_config}",
        f"{_GENERATION}:{_name}",
        description=_text,
        artifacts={"model": ArtifactInput("ModelArtifact-rl:latest", type="ModelArtifact", optional=True)},
        interactive=True,
    )

app.group("model").command(
    "export",
    "nemotron.recipes.nano3.import_export:ExportModel",
    "nemotron.recipes.nano3.import_export:export_model",
    description="Copy a model's weights to a folder, or upload them to the Hugging Face hub",
    artifacts={"model": ArtifactInput("ModelArtifact-rl:latest", {"path": "path"}, type="ModelArtifact")},
    preflight="nemotron.recipes.nano3.import_export:export_problems",
    distributed=False,
)

app.pipeline(
    "pipeline",
    stages=["data prep pretrain", "pretrain", "data prep sft", "sft", "data prep rl", "rl", "eval"],
    description="From raw text to an evaluated chat model: all of the stages, each where something has changed",
)
