"""How each snippet of the document becomes something that runs: what is put before and after it, what `...` stands for.

Only what a reader would have to add too. Names are never injected: the completed text goes into a file or a shell.
"""

from __future__ import annotations

from dataclasses import dataclass

from .extract import Snippet


@dataclass(frozen=True)
class Completion:
    """`replace` are (old, new), each old exactly once in what the document says: where it changes, this must too."""

    before: str = ""
    replace: tuple[tuple[str, str], ...] = ()
    after: str = ""


def complete(snippet: Snippet) -> str:
    """A snippet's text, completed. `uv run nemotron …` is `nemotron …` here: test_uv_run has the literal words."""
    completion = COMPLETIONS.get(snippet.id, Completion())
    text = snippet.text.removeprefix("uv run ") if snippet.language == "bash" else snippet.text
    for old, new in completion.replace:
        if text.count(old) != 1:
            raise ValueError(f"{snippet.id}: {old!r} stands there {text.count(old)} times, not once.")
        text = text.replace(old, new)
    return completion.before + text + completion.after


_TRAIN_APP = """\
from dataclasses import dataclass
from nemotron.kit import App
from nemotron.kit.train_script import load_omegaconf_yaml, omegaconf_to_dataclass, parse_config_and_overrides

@dataclass
class TrainConfig:
    lr: float = 1e-3

def train_main(cfg: TrainConfig | None = None) -> None:
    how = "with a config" if cfg else "as a script"
    if cfg is None:
        path, _ = parse_config_and_overrides("config.yaml")
        cfg = omegaconf_to_dataclass(load_omegaconf_yaml(path), TrainConfig)
    print(f"called {how}: lr={cfg.lr}")

app = App("myrecipe")

"""

_THREE_COMMANDS = """\
from dataclasses import dataclass
from nemotron.kit import App

@dataclass
class PretrainConfig:
    size: int = 1

@dataclass
class SFTConfig:
    size: int = 2

@dataclass
class RLConfig:
    size: int = 3

def pretrain_main(cfg: PretrainConfig) -> None:
    print(f"pretrain: {cfg.size}")

def sft_main(cfg: SFTConfig) -> None:
    print(f"sft: {cfg.size}")

def rl_main(cfg: RLConfig) -> None:
    print(f"rl: {cfg.size}")

"""

_TWO_INPUTS = """\
import json
from dataclasses import dataclass
from pathlib import Path
from nemotron.kit import App

@dataclass
class TrainConfig:
    data_path: Path
    checkpoint_path: Path

def train_main(cfg: TrainConfig) -> None:
    print(json.dumps({"data": str(cfg.data_path), "model": str(cfg.checkpoint_path)}))

app = App("myrecipe")

"""

_PREPARE = """\
cfg.output_dir.mkdir(parents=True, exist_ok=True)
    (cfg.output_dir / "made.json").write_text(cfg.blend_path.read_text())"""

_LOAD_TRAIN_CONFIG = """\
        config_path, overrides = parse_config_and_overrides(DEFAULT_CONFIG)
        cfg = omegaconf_to_dataclass(load_omegaconf_yaml(config_path), TrainConfig)
"""

_TRAIN_CONFIG = """\
from dataclasses import dataclass
from pathlib import Path
from nemotron.kit.train_script import load_omegaconf_yaml, omegaconf_to_dataclass

DEFAULT_CONFIG = Path(__file__).parent / "config/train.yaml"

@dataclass
class TrainConfig:
    data_path: Path
    checkpoint_dir: Path = Path("checkpoint")
    steps: int = 3

"""

_TRAIN = """\
cfg.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    tokens = (cfg.data_path / "made.json").read_text()
    final_step, final_loss = cfg.steps, 1.5
    (cfg.checkpoint_dir / "weights.txt").write_text(tokens)"""

_MAIN = '\nif __name__ == "__main__":\n    main()\n'
# A few steps of the tiny model instead of a half minute's training: test_readme has the whole.
_BRIEFLY = " train.train_iters=3 train.eval_iters=1"

COMPLETIONS = {
    "Basic Structure/1": Completion(before="from pathlib import Path\n"),
    "Basic Structure/2:1": Completion(
        replace=(("--blend-path ...", "--blend-path blend.json"), ("--output-dir ...", "--output-dir out"))
    ),
    "Command Registration/1": Completion(before=_TRAIN_APP, after='\nif __name__ == "__main__":\n    train_main()\n'),
    "Nested Groups/1": Completion(before=_THREE_COMMANDS, after='\nif __name__ == "__main__":\n    app.run()\n'),
    "ArtifactInput/1": Completion(before=_TWO_INPUTS),
    "Examples/1:1": Completion(after=_BRIEFLY),
    "Examples/1:5": Completion(after=" -c tiny" + _BRIEFLY),
    "Examples/1:6": Completion(after=" --dry-run --json"),
    "Direct Torchrun/1:1": Completion(replace=(("--nproc_per_node=8", "--nproc_per_node=2"),), after=_BRIEFLY),
    "Step 2: Create Data Prep Script/1": Completion(
        before="from pathlib import Path\nfrom myrecipe.config import DataPrepConfig\n",
        replace=(
            ("# Process data...", _PREPARE),
            ("total_tokens=...", "total_tokens=12"),
            ("[...]", '["file:///data"]'),
        ),
    ),
    "Step 3: Create Training Script/1": Completion(
        before=_TRAIN_CONFIG,
        replace=(
            ("        # Load config from CLI\n        ...\n", _LOAD_TRAIN_CONFIG),
            ("# Run training...", _TRAIN),
        ),
        after=_MAIN,
    ),
}
