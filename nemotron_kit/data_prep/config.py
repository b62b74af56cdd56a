"""What a caller says about a data preparation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nemotron_kit.data_prep.rows import DEFAULT_MAX_BAD_ROWS, DEFAULT_MAX_DOC_SIZE, ERROR, SKIP
from nemotron_kit.data_prep.sizes import parse_size
from nemotron_kit.errors import UserError, nearest

DEFAULT_TOKENIZER = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
DEFAULT_SHARDS = 128


@dataclass
class TokenizerConfig:
    """A tokenizer: `model` is a folder, a tokenizer.json or a Hugging Face name. None is the caller's choice."""

    model: str | None = field(default=None, metadata={"help": "Folder, tokenizer.json or Hugging Face name"})
    add_bos: bool | None = field(default=None, metadata={"help": "Put a BOS token before each document"})
    add_eos: bool | None = field(default=None, metadata={"help": "Put an EOS token after each document"})


@dataclass(frozen=True)
class PerSplitConfig:
    """How much of the blend is held out: `valid_shards` and `test_shards` beside the train shards, of the same size."""

    enabled: bool = True
    valid_shards: int = 1
    test_shards: int = 1


@dataclass
class DataPrepConfig:
    """Input of `run_data_prep`.

    `num_shards` (train shards in all, 128 when neither is given) and `shard_size` ("256MB" of text a shard) exclude
    each other. A shard holds one source, so that its weight can be honoured: each gets at least one in each split.
    `sample` takes the first rows of each dataset. `max_doc_tokens` counts a document's BOS and EOS too. `num_workers`
    is in CPUs, all of this process's by default; it never changes a byte of the output.
    """

    blend_path: Path = Path("data_blend.json")
    output_dir: Path = Path("output")
    num_shards: int | None = None
    shard_size: str | int | None = None
    per_split: PerSplitConfig | None = field(default_factory=PerSplitConfig)
    tokenizer_model: str = DEFAULT_TOKENIZER
    add_bos: bool = False
    add_eos: bool = True
    text_field: str = "text"
    min_doc_chars: int | None = None
    max_doc_tokens: int | None = None
    max_doc_size: str | int = DEFAULT_MAX_DOC_SIZE
    on_bad_row: str = ERROR
    max_bad_rows: int | None = DEFAULT_MAX_BAD_ROWS
    sample: int | None = None
    num_workers: int | None = None
    force: bool = False
    artifact_name: str | None = None

    @property
    def held_out(self) -> tuple[int, int]:
        """(valid shards, test shards); (0, 0) without per-split output."""
        split = self.per_split
        return (split.valid_shards, split.test_shards) if split and split.enabled else (0, 0)

    def check(self) -> None:
        """Raise UserError for values that make no sense, naming the field."""
        if self.num_shards is not None and self.shard_size is not None:
            raise UserError(
                f"num_shards={self.num_shards} and shard_size={self.shard_size} exclude each other.",
                hint="Set one of them to null.",
            )
        parse_size(self.max_doc_size, field="max_doc_size")
        if self.on_bad_row not in (ERROR, SKIP):
            hint = f"{ERROR} stops at the first one, {SKIP} leaves them out and counts them."
            raise UserError(f"on_bad_row={self.on_bad_row!r}: {nearest(self.on_bad_row, (ERROR, SKIP))}.", hint=hint)
        least = {"num_shards": 1, "min_doc_chars": 0, "max_doc_tokens": 1, "sample": 1, "num_workers": 1}
        least["max_bad_rows"] = 0
        for name, value in {name: getattr(self, name) for name in least}.items():
            if value is not None and value < least[name]:
                raise UserError(f"{name}={value}: must be at least {least[name]}.")
        if min(self.held_out) < 0:
            raise UserError(f"valid_shards and test_shards can't be negative, got {self.held_out}.")
