"""What a finished data preparation leaves beside its shards: Megatron's blend.json, and the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.data_prep.plan import Plan, Source
from nemotron_kit.data_prep.tokenizer import HUB
from nemotron_kit.errors import UserError

if TYPE_CHECKING:
    from nemotron_kit.artifacts import PretrainBlendsArtifact
    from nemotron_kit.data_prep.shard import ShardRecord

BLEND_FILE = "blend.json"


def blend_lists(plan: Plan, records: dict[int, ShardRecord], output: Path) -> dict[str, list[str] | None]:
    """Megatron's form, per split: weight, prefix, weight, prefix, …; null for a split without documents.

    A source's weight is spread over its shards by their tokens, so that it is honoured however many they are. Shards
    without documents are left out: Megatron's reader fails on them.
    """
    blend: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    per_source: dict[tuple[str, int], int] = {}
    for number, shard in enumerate(plan.shards):
        key = (shard.split, shard.source)
        per_source[key] = per_source.get(key, 0) + records[number].tokens
    for number, shard in enumerate(plan.shards):
        tokens = records[number].tokens
        if tokens:
            weight = plan.sources[shard.source].weight * tokens / per_source[shard.split, shard.source]
            blend[shard.split] += [f"{weight:.12g}", str(output / shard.name)]
    if not blend["train"]:
        raise UserError(
            "No document is left for training: every row is empty, or shorter than min_doc_chars.",
            hint=f"Read were {', '.join(source.uri for source in plan.sources)}.",
        )
    return {split: pairs or None for split, pairs in blend.items()}


def make_artifact(plan: Plan, records: dict[int, ShardRecord], output: Path, elapsed: float) -> PretrainBlendsArtifact:
    """The output folder as an artifact, not saved yet. `metadata` also says what a trainer must know of the tokens."""
    from nemotron_kit.artifacts import PretrainBlendsArtifact

    tokens = {split: total(plan, records, "tokens", split=split) for split in ("train", "valid", "test")}
    paths = {split: str(output / split) for split, count in tokens.items() if count}
    return PretrainBlendsArtifact(
        path=output,
        total_tokens=sum(tokens.values()),
        total_sequences=total(plan, records, "documents"),
        source_datasets=[_source_info(plan, records, number) for number in range(len(plan.sources))],
        tokenizer_uri=_tokenizer_uri(plan, output),
        elapsed_sec=elapsed,
        train_tokens=tokens["train"],
        valid_tokens=tokens["valid"],
        test_tokens=tokens["test"],
        num_shards=sum(shard.split == "train" for shard in plan.shards),
        metadata={
            "vocab_size": plan.tokens.vocab_size,
            "dtype": plan.tokens.dtype,
            "eos_id": plan.tokens.eos,
            "bos_id": plan.tokens.bos,
            "tokenizer": plan.tokens.model,
            "tokenizer_path": "tokenizer",
            "plan": plan.digest,
        },
        blend_path=str(output / BLEND_FILE),
        train_path=paths.get("train"),
        valid_path=paths.get("valid"),
        test_path=paths.get("test"),
    )


def total(
    plan: Plan, records: dict[int, ShardRecord], what: str, *, split: str | None = None, source: int | None = None
) -> int:
    """The sum of one of the records' fields, over all shards or those of a split or source."""
    chosen = (
        number
        for number, shard in enumerate(plan.shards)
        if split in (None, shard.split) and source in (None, shard.source)
    )
    return sum(getattr(records[number], what) for number in chosen)


def _source_info(plan: Plan, records: dict[int, ShardRecord], number: int) -> Any:
    from nemotron_kit.artifacts import InputDatasetInfo

    source = plan.sources[number]
    return InputDatasetInfo(
        uri=_source_uri(source),
        name=source.name,
        weight=source.weight,
        split=source.from_split,
        subset=source.subset,
        text_field=source.text_field,
        num_rows=total(plan, records, "documents", source=number),
        size_bytes=sum(file.size for file in source.files),
    )


def _source_uri(source: Source) -> str:
    return source.uri if "://" in source.uri else str(Path(source.uri).expanduser().absolute())


def _tokenizer_uri(plan: Plan, output: Path) -> str:
    """A hub name by its page; any other tokenizer by the copy beside the shards."""
    from nemotron_kit.artifacts import tokenizer_to_uri

    name, _, revision = plan.tokens.model.removeprefix(HUB).partition("@")
    if Path(plan.tokens.model).expanduser().exists():
        return tokenizer_to_uri(str(output / "tokenizer"))
    return tokenizer_to_uri(name, revision or None)
