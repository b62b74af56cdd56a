"""Two commands: `collect` saves a typed artifact, `count` reads it and saves what it found, which descends from it.
`all` runs both, and each only where something has changed."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from nemotron_kit import App, Artifact, ArtifactInput


class Corpus(Artifact):
    """A folder of texts. `lines` is checked when it is made, and part of what makes two versions differ."""

    lines: Annotated[int, Field(gt=0)]


class Counts(Artifact):
    """counts.json: word → how often it stands in the corpus."""

    distinct: int


@dataclass
class CollectConfig:
    text: str = "to be or not to be"
    output_dir: Path = Path("corpus")


@dataclass
class CountConfig:
    corpus: Path  # filled from the artifact: see `mappings` below
    output_dir: Path = Path("counts")
    at_least: int = 1


def collect(cfg: CollectConfig) -> None:
    cfg.output_dir.mkdir(exist_ok=True)
    (cfg.output_dir / "text.txt").write_text(cfg.text + "\n")
    Corpus(path=cfg.output_dir, lines=len(cfg.text.splitlines())).save(name="Words-corpus")


def count(cfg: CountConfig) -> None:
    found = Counter((cfg.corpus / "text.txt").read_text().split())
    kept = {word: number for word, number in found.most_common() if number >= cfg.at_least}
    print(json.dumps(kept))
    cfg.output_dir.mkdir(exist_ok=True)
    (cfg.output_dir / "counts.json").write_text(json.dumps(kept))
    Counts(path=cfg.output_dir, distinct=len(kept)).save(name="Words-counts")


app = App("words", description="Collects a text and counts its words")
app.command("collect", CollectConfig, collect, description="Save a text", produces=["Words-corpus"])
app.command(
    "count",
    CountConfig,
    count,
    description="Count its words",
    artifacts={"corpus": ArtifactInput(default_name="Words-corpus:latest", mappings={"path": "corpus"})},
    produces=["Words-counts"],
)
app.pipeline("all", stages=["collect", "count"], description="Collect a text and count its words")
