"""A command tree with every kind of field, and its index."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from nemotron_kit.app import App, ArtifactInput
from nemotron_kit.cli.indexing import LiveIndex


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Train:
    train_iters: int = field(default=10, metadata={"help": "Steps to train"})
    lr: float = 1e-3
    fsdp: bool = False


@dataclass
class PrepConfig:
    blend_path: Path
    output_dir: Path = Path("output")
    tokenizer_model: str = "nvidia/tokenizer"
    num_shards: int = field(default=128, metadata={"help": "Shards to write"})
    sample: int | None = None
    force: bool = False
    tags: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    speed: Literal["fast", "slow"] = "fast"
    colour: Colour = Colour.RED
    train: Train = field(default_factory=Train)
    model: dict[str, int] = field(default_factory=dict)
    recipe: dict[str, int] = field(default_factory=dict)


@dataclass
class ImportConfig:
    path: Path = field(metadata={"positional": True})
    step: int | None = field(default=None, metadata={"short": "-s"})
    project: str | None = field(default=None, metadata={"short": "-p"})
    verbose: bool = field(default=False, metadata={"short": "-v"})


def handler(cfg: object) -> int:
    """Does what it says.

    And more.
    """
    return 0


def sample_app(config_dir: Path | None = None) -> App:
    app = App("nano3", description="A recipe")
    data = {"data": ArtifactInput("Blend-default:latest", mappings={"path": "blend_path"})}
    app.command("pretrain", PrepConfig, handler, artifacts=data, aliases=("train",), config_dir=config_dir)
    app.group("data", "Data commands").group("prep").command("pretrain", PrepConfig, handler, description="Prepare")
    app.group("model").group("import").command("pretrain", ImportConfig, handler, produces=("Model-pretrain",))
    app.command("rl", "no_such_module:Config", handler, description="Reinforcement learning")
    return app


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> LiveIndex:
    folder = tmp_path_factory.mktemp("config")
    (folder / "size").mkdir()
    for name in ("default.yaml", "tiny.yaml", "other.toml", "notes.txt", "size/big.yaml", "size/small.yaml"):
        (folder / name).write_text("")
    return LiveIndex({"nano3": sample_app(folder)}, {"lost": "ImportError: no module named lost"})
