"""The recipe of Nemotron 3 Nano: its command tree, declared with the public API."""

from nemotron_kit.app import App, ArtifactInput

app = App("nano3", description="Nemotron 3 Nano: data preparation and training", package=__name__)

app.command(
    "pretrain",
    "PretrainConfig",
    module=".stage0_pretrain.train",
    description="Pretrain on Megatron shards (stage 0)",
    artifacts={"data": ArtifactInput("PretrainBlendsArtifact-default:latest", type="PretrainBlendsArtifact")},
    aliases=("train",),
    produces=("ModelArtifact-pretrain",),
    objective="valid_loss",
    targets=("nemotron_kit.training.pretrain", "megatron.bridge.recipes."),
)

_prep = app.group("data", description="Data commands").group("prep", description="Prepare data for a stage")
_prep.command(
    "pretrain",
    "PretrainDataPrepConfig",
    module=".stage0_pretrain.data_prep",
    description="Tokenize a blend of text sources to Megatron .bin/.idx shards",
    config_dir="config/data_prep",
    produces=("PretrainBlendsArtifact-{config}",),
    resources="prep",
    array=True,
)
_prep.command(
    "sft",
    "SFTDataPrepConfig",
    module=".stage1_sft.data_prep",
    description="Turn a blend of conversations into packed rows",
    config_dir="config/data_prep",
    produces=("SFTDataArtifact-{config}",),
    resources="prep",
    array=True,
)
_prep.command(
    "rl",
    "RLDataPrepConfig",
    module=".stage2_rl.data_prep",
    description="Collect the prompts of reinforcement learning as JSONL by split",
    config_dir="config/data_prep",
    produces=("SplitJsonlDataArtifact-rl",),
    resources="prep",
    array=True,
    distributed=False,
)

app.command(
    "sft",
    "SFTConfig",
    module=".stage1_sft.train",
    description="Fine-tune a model to chat, on packed rows (stage 1)",
    artifacts={
        "data": ArtifactInput("SFTDataArtifact-default:latest", type="SFTDataArtifact"),
        "model": ArtifactInput("ModelArtifact-pretrain:latest", type="ModelArtifact"),
    },
    produces=("ModelArtifact-sft",),
    objective="valid_loss",
    targets=("nemotron_kit.training.sft", "megatron.bridge.recipes."),
)

app.command(
    "rl",
    "GRPOConfig",
    module=".stage2_rl.train",
    description="Reinforcement learning with GRPO (stage 2)",
    artifacts={
        "model": ArtifactInput("ModelArtifact-sft:latest", type="ModelArtifact"),
        "data": ArtifactInput("SplitJsonlDataArtifact-rl:latest", type="SplitJsonlDataArtifact"),
    },
    produces=("ModelArtifact-rl",),
    ray={"engine": "nemo_rl"},
    objective="val_reward",
)

_data_import = app.group("data").group("import", description="Register data that was made elsewhere")
for _stage, _config, _text in (
    ("pretrain", "ImportData", "Register Megatron shards by their blend.json"),
    ("sft", "ImportSFTData", "Register packed SFT data"),
    ("rl", "ImportRLData", "Register RL splits by their manifest"),
):
    _data_import.command(
        _stage, _config, f"import_{_stage}_data", module=".import_export", description=_text, distributed=False
    )
_model_import = app.group("model", description="Model commands").group(
    "import", description="Register a checkpoint that was made elsewhere"
)
for _stage, _config in (("pretrain", "ImportModel"), ("sft", "ImportSFTModel"), ("rl", "ImportRLModel")):
    _text = f"Register a checkpoint of {_stage}"
    _model_import.command(
        _stage, _config, "import_model", module=".import_export", description=_text, distributed=False
    )

for _group in (app, app.group("model")):
    _group.command(
        "eval",
        "EvalConfig",
        module=".stage3_eval.evaluation",
        description="Evaluate a model: held-out loss, exact match, tasks of lm-eval-harness (stage 3)",
        artifacts={
            "model": ArtifactInput("ModelArtifact-rl:latest", type="ModelArtifact"),
            "data": ArtifactInput("PretrainBlendsArtifact-default:latest", optional=True),
            "tasks": ArtifactInput("SplitJsonlDataArtifact-rl:latest", optional=True),
        },
        produces=("EvalArtifact-{config}",),
        distributed=False,
    )

for _name, _config, _text in (
    ("generate", "GenerateConfig", "Print a model's continuation of a prompt"),
    ("chat", "ChatConfig", "Talk with a model on this terminal"),
):
    app.command(
        _name,
        _config,
        _name,
        module=".generation",
        description=_text,
        artifacts={"model": ArtifactInput("ModelArtifact-rl:latest", type="ModelArtifact", optional=True)},
        interactive=True,
    )

app.group("model").command(
    "export",
    "ExportModel",
    "export_model",
    module=".import_export",
    description="Copy a model's weights to a folder, or upload them to the Hugging Face hub",
    artifacts={"model": ArtifactInput("ModelArtifact-rl:latest", {"path": "path"}, type="ModelArtifact")},
    preflight="export_problems",
    distributed=False,
)

app.pipeline(
    "pipeline",
    stages=["data prep pretrain", "pretrain", "data prep sft", "sft", "data prep rl", "rl", "eval"],
    description="From raw text to an evaluated chat model: all of the stages, each where something has changed",
)
