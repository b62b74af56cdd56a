"""Tokenize a blend of text sources to Megatron .bin/.idx shards for pretraining (stage 0).

    python data_prep.py --config config/data_prep/tiny.yaml num_shards=8

Saves the folder as `PretrainBlendsArtifact-<config_name>`. Started again, it keeps the shards that are whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.recipes.nano3.stage_script import (
    ShardedOutput,
    config_from_command_line,
    config_name,
    prepare_data,
    shards_preflight,
    tokenizer_path,
)

from nemotron_kit.data_prep.config import DataPrepConfig, PerSplitConfig, TokenizerConfig

if TYPE_CHECKING:
    from nemotron_kit.artifacts import PretrainBlendsArtifact

STAGE = Path(__file__).parent
DEFAULT_CONFIG = STAGE / "config" / "data_prep" / "default.yaml"


@dataclass
class PretrainDataPrepConfig(ShardedOutput):
    """Stage 0's data preparation: which text, which tokenizer, how many shards, where to."""

    output_dir: Path = field(
        default=Path("output/nano3/stage0_pretrain"),
        metadata={"help": "Folder for train/, valid/, test/ and blend.json"},
    )
    valid_shards: int = field(default=1, metadata={"help": "Validation shards, as large as train shards"})
    test_shards: int = field(default=1, metadata={"help": "Test shards, as large as train shards"})
    tokenizer: TokenizerConfig = field(
        default_factory=TokenizerConfig, metadata={"help": "The same as a block: model, add_bos, add_eos; it wins"}
    )
    add_bos: bool = field(default=False, metadata={"help": "Put a BOS token before each document"})
    add_eos: bool = field(default=True, metadata={"help": "Put an EOS token after each document"})
    text_field: str = field(default="text", metadata={"help": "Field with the text, where the blend names none"})
    min_doc_chars: int | None = field(default=None, metadata={"help": "Leave out documents shorter than this"})
    max_doc_tokens: int | None = field(
        default=None, metadata={"help": "Cut documents to this many tokens, BOS and EOS included"}
    )


def main(cfg: PretrainDataPrepConfig | None = None) -> PretrainBlendsArtifact:
    """Prepare the data and save it under its name; without `cfg`, the config comes from the command line."""
    from nemotron_kit.data_prep import run_data_prep

    cfg = cfg if cfg is not None else config_from_command_line(DEFAULT_CONFIG, PretrainDataPrepConfig, preflight)
    return prepare_data(run_data_prep, settings(cfg))


def preflight(cfg: PretrainDataPrepConfig, *, connect: bool, here: bool = True) -> list[str]:
    """What would stop this run; see `shards_preflight`."""
    return shards_preflight(cfg, settings, connect=connect, here=here)


def outlook(cfg: PretrainDataPrepConfig, tasks: int, cpus: int | None) -> list[str]:
    """What each task of an array would read, for a dry-run."""
    from nemotron_kit.data_prep.preflight import array_outlook

    return array_outlook(settings(cfg), tasks, cpus)


def settings(cfg: PretrainDataPrepConfig) -> DataPrepConfig:
    """The recipe's flat config as what `run_data_prep` takes; names of the recipe's own files become paths."""
    block = cfg.tokenizer
    model = block.model or cfg.tokenizer_model
    return cfg.as_input(
        DataPrepConfig,
        STAGE,
        per_split=PerSplitConfig(valid_shards=cfg.valid_shards, test_shards=cfg.test_shards),
        tokenizer_model=tokenizer_path(model),
        add_bos=cfg.add_bos if block.add_bos is None else block.add_bos,
        add_eos=cfg.add_eos if block.add_eos is None else block.add_eos,
        artifact_name=f"PretrainBlendsArtifact-{config_name(cfg.config_name)}",
    )


if __name__ == "__main__":
    main()
