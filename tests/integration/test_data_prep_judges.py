"""Others judge what we write: megatron-core reads the shards and blend.json, transformers tokenizes the same text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nemotron_kit.data_prep import DataPrepConfig, run_data_prep

TOKENIZER = Path(__file__).parents[2] / "recipes" / "nano3" / "tokenizers" / "tiny"
TEXTS = [f"Document {n}: " + "naïve “quotes” and\n\ttabs, 日本語 " * (n % 7) for n in range(300)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("judged")
    entries = []
    for name, texts, weight in (("a", TEXTS[:200], 0.75), ("b", TEXTS[200:], 0.25)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        entries.append({"name": name, "path": f"{name}.jsonl", "weight": weight})
    (folder / "blend.json").write_text(json.dumps({"datasets": entries}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMOTRON_HOME", str(folder / "home"))
        run_data_prep(
            DataPrepConfig(
                blend_path=folder / "blend.json",
                output_dir=folder / "out",
                num_shards=4,
                num_workers=1,
                tokenizer_model=str(TOKENIZER),
            )
        )
    yield folder / "out"


@pytest.mark.filterwarnings("ignore")
def test_megatron_core_reads_the_documents_that_transformers_would_make(prepared: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    wanted = sorted([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in TEXTS)
    found = []
    for idx in sorted(prepared.glob("*/*.idx")):
        dataset = indexed.IndexedDataset(str(idx.with_suffix("")))
        assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
        assert dataset.index.dtype == np.uint16
        found += [dataset[number].tolist() for number in range(len(dataset))]
    assert sorted(found) == wanted


@pytest.mark.filterwarnings("ignore")
def test_megatron_core_reads_blend_json(prepared: Path) -> None:
    utils = pytest.importorskip("megatron.core.datasets.utils")
    blend = json.loads((prepared / "blend.json").read_text())
    for split in ("train", "valid", "test"):
        prefixes, weights = utils.get_blend_from_list(blend[split])
        assert all(Path(f"{prefix}.bin").stat().st_size for prefix in prefixes)
        assert sum(weights) == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore")
def test_large_vocabularies_are_written_as_int32(tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    from nemotron_kit.data_prep.indexed import ShardWriter

    with ShardWriter(tmp_path / "train" / "shard_000000", "int32") as writer:
        writer.add([70_000, 1, 2, 131_071], [3, 1])
        writer.add([], [])
        writer.publish()
    dataset = indexed.IndexedDataset(str(tmp_path / "train" / "shard_000000"))
    assert [document.tolist() for document in dataset] == [[70_000, 1, 2], [131_071]]
    assert not list((tmp_path / "train").glob(".*"))
