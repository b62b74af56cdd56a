"""Turn a blend of conversations into packed rows for supervised fine-tuning (stage 1).

    python data_prep.py --config config/data_prep/tiny.yaml pack_size=1024

Saves the folder `splits` of the output as `SFTDataArtifact-<config_name>`. Started again, it keeps the shards that are
whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.recipes.nano3.stage_script import (
    ShardedOutput,
    beside,
    config_from_command_line,
    config_name,
    prepare_data,
    shards_preflight,
    tokenizer_path,
)

from nemotron_kit.data_prep.config import SftPrepConfig, TokenizerConfig
from nemotron_kit.errors import Note

if TYPE_CHECKING:
    from nemotron_kit.artifacts import SFTDataArtifact

STAGE = Path(__file__).parent
DEFAULT_CONFIG = STAGE / "config" / "data_prep" / "default.yaml"


@dataclass
class SFTDataPrepConfig(ShardedOutput):
    """Stage 1's data preparation: which conversations, which template and tokenizer, how they are packed, where to."""

    output_dir: Path = field(
        default=Path("output/nano3/stage1_sft"),
        metadata={"help": "Folder for splits/, report.json and blend.json; with sample, its folder sample-N"},
    )
    num_shards: int | None = field(
        default=None,
        metadata={"help": "Shards in all, each of one source (default: 128, or more of 4 GiB of text each)"},
    )
    tokenizer: TokenizerConfig = field(
        default_factory=TokenizerConfig,
        metadata={"help": "The same as a block: model; add_bos, add_eos have no effect: the template has its own ends"},
    )
    chat_template: str = field(
        default="nano3", metadata={"help": "nano3, the path of a .jinja file, or a template's text"}
    )
    messages_field: str = field(default="messages", metadata={"help": "Field with the messages, unless the blend says"})
    tools_field: str = field(default="tools", metadata={"help": "Field with the tools"})
    used_in_filter: str | None = field(
        default=None, metadata={"help": "Take the records whose used_in_field has this word (or one of these: a,b)"}
    )
    used_in_field: str = field(default="used_in", metadata={"help": "Field with words: with commas, or a list"})
    pack_size: int = field(default=4096, metadata={"help": "Tokens a row, at most; a longer sequence is cut"})
    algorithm: str = field(
        default="first_fit_shuffle", metadata={"help": "first_fit_shuffle, first_fit_decreasing or concatenative"}
    )
    seed: int | None = field(default=None, metadata={"help": "For splits and packing (default: sample_seed)"})
    sample_seed: int = field(default=42, metadata={"help": "Stands for seed where that is null"})
    train_ratio: float = field(default=0.98, metadata={"help": "Part of the records for training"})
    valid_ratio: float = field(default=0.01, metadata={"help": "Part of the records for validation"})
    test_ratio: float = field(default=0.01, metadata={"help": "Part of the records for the test; together 1"})
    max_doc_tokens: int | None = field(default=None, metadata={"help": "Cut sequences to this many tokens"})
    parquet_row_group_size: int = field(default=1000, metadata={"help": "Rows in a row group"})
    parquet_compression: str = field(default="zstd", metadata={"help": "zstd, snappy, gzip or none"})

    def unused(self) -> list[Note]:
        ends = self.tokenizer.add_bos or self.tokenizer.add_eos  # as in the reference, where it is the same
        text = "tokenizer.add_bos and add_eos have no effect: a conversation has the template's own ends."
        return [*super().unused(), *([Note(text)] if ends else [])]


def main(cfg: SFTDataPrepConfig | None = None) -> SFTDataArtifact:
    """Prepare the data and save it under its name; without `cfg`, the config comes from the command line."""
    from nemotron_kit.data_prep.sft_prep import run_sft_data_prep

    cfg = cfg if cfg is not None else config_from_command_line(DEFAULT_CONFIG, SFTDataPrepConfig, preflight)
    return prepare_data(run_sft_data_prep, settings(cfg))


def preflight(cfg: SFTDataPrepConfig, *, connect: bool, here: bool = True) -> list[str]:
    """What would stop this run; see `shards_preflight`."""
    return shards_preflight(cfg, settings, connect=connect, here=here)


def outlook(cfg: SFTDataPrepConfig, tasks: int, cpus: int | None) -> list[str]:
    """What each task of an array would read, for a dry-run."""
    from nemotron_kit.data_prep.preflight import array_outlook

    return array_outlook(settings(cfg), tasks, cpus)


def settings(cfg: SFTDataPrepConfig) -> SftPrepConfig:
    """The recipe's flat config as what `run_sft_data_prep` takes; names of the recipe's own files become paths."""
    model, template = cfg.tokenizer.model or cfg.tokenizer_model, cfg.chat_template
    return cfg.as_input(
        SftPrepConfig,
        STAGE,
        tokenizer_model=tokenizer_path(model),
        chat_template=str(beside(STAGE, Path(template))) if template.endswith(".jinja") else template,
        text_field=cfg.messages_field,
        seed=cfg.sample_seed if cfg.seed is None else cfg.seed,
        artifact_name=f"SFTDataArtifact-{config_name(cfg.config_name)}",
    )


if __name__ == "__main__":
    main()
