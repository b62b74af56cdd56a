"""Prepare the prompts of reinforcement learning (stage 2): one JSONL file a split, with a manifest.

    python data_prep.py --config config/data_prep/tiny.yaml sample=100

Saves the manifest as `SplitJsonlDataArtifact-<config_name>`. Started again, it keeps what is whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.recipes.nano3.stage_script import BlendInput, config_from_command_line, no_effect, prepare_data

from nemotron_kit.data_prep.config import RLPrepConfig
from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    from nemotron_kit.artifacts import SplitJsonlDataArtifact

STAGE = Path(__file__).parent
DEFAULT_CONFIG = STAGE / "config" / "data_prep" / "default.yaml"


@dataclass
class RLDataPrepConfig(BlendInput):
    """Stage 2's data preparation: which prompts, how they are split, where to."""

    output_dir: Path = field(
        default=Path("output/nano3/stage2_rl"),
        metadata={"help": "Folder for train.jsonl, val.jsonl, test.jsonl and manifest.json"},
    )
    train_ratio: float = field(
        default=0.98, metadata={"help": "Share of the rows to train on, where a source has no splits of its own"}
    )
    valid_ratio: float = field(default=0.01, metadata={"help": "Share of the rows for validation, likewise"})
    test_ratio: float = field(default=0.01, metadata={"help": "Share of the rows for the test, likewise"})
    seed: int = field(default=42, metadata={"help": "Seed of that split"})
    val_ratio: float | None = field(
        default=None, metadata={"help": "Another name of valid_ratio; it wins", "same_as": "valid_ratio"}
    )
    shard_size: str | None = field(default=None, metadata=no_effect("Each split is one file"))
    split_output: str | None = field(default=None, metadata=no_effect("There are always train, val and test"))
    num_actors: int | None = field(default=None, metadata=no_effect("The reference's Ray workers; one process reads"))
    config_name: str = field(default="rl", metadata={"help": "Ending of the artifact's name"})


def main(cfg: RLDataPrepConfig | None = None) -> SplitJsonlDataArtifact:
    """Prepare the data and save it under its name; without `cfg`, the config comes from the command line."""
    from nemotron_kit.data_prep.rl import prepare_rl

    cfg = cfg if cfg is not None else config_from_command_line(DEFAULT_CONFIG, RLDataPrepConfig, preflight)
    return prepare_data(prepare_rl, settings(cfg))


def preflight(cfg: RLDataPrepConfig, *, connect: bool, here: bool = True) -> list[str]:
    """What would stop this run: wrong settings, and on this machine (`here`) a missing file or no network."""
    from nemotron_kit.data_prep.config import load_rl_blend
    from nemotron_kit.data_prep.preflight import source_problems
    from nemotron_kit.data_prep.prepare import check_packages

    config = settings(cfg)
    try:
        config.check()
        if not here:
            return list(cfg.unused())
        check_packages()
        found = source_problems(load_rl_blend(config.blend_path), connect=connect, smaller="-c tiny")
        return [*found, *cfg.unused()]
    except UserError as error:
        return [str(error).replace("\n", " ")]


def outlook(cfg: RLDataPrepConfig, tasks: int, cpus: int | None) -> list[str]:
    """What each task of an array would read, for a dry-run."""
    from nemotron_kit.data_prep.preflight import rl_outlook

    del cpus
    return rl_outlook(settings(cfg), tasks)


def settings(cfg: RLDataPrepConfig) -> RLPrepConfig:
    """The recipe's config as what `prepare_rl` takes."""
    return cfg.as_input(
        RLPrepConfig,
        STAGE,
        valid_ratio=cfg.valid_ratio if cfg.val_ratio is None else cfg.val_ratio,
        artifact_name=f"SplitJsonlDataArtifact-{cfg.config_name}",
    )


if __name__ == "__main__":
    main()
