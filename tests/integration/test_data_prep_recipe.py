"""nano3's own data preparation, started as people start it: the script, from a folder of their own."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from ..project import environment, run

STAGE = Path(__file__).parents[2] / "recipes" / "nano3" / "stage0_pretrain"


def prepare(folder: Path, *words: str, stage: Path = STAGE, **env: str) -> subprocess.CompletedProcess[str]:
    variables = environment(folder / "home", **env)
    return run("python", str(stage / "data_prep.py"), *words, cwd=folder, env=variables, code=None)


def test_tiny_needs_nothing_but_python(tmp_path: Path) -> None:
    done = prepare(tmp_path, "--config", "tiny")
    assert done.returncode == 0, done.stderr
    output = tmp_path / "output" / "nano3" / "stage0_pretrain" / "tiny"
    piped = json.loads(done.stdout)["data"]
    assert (piped["type"], piped["path"]) == ("PretrainBlendsArtifact", str(output))
    metadata = json.loads((output / "metadata.json").read_text())
    assert metadata["name"] == "PretrainBlendsArtifact-tiny"
    assert 1_000_000 < metadata["total_tokens"] < 3_000_000
    assert metadata["metadata"]["vocab_size"] == 4096
    blend = json.loads((output / "blend.json").read_text())
    assert {split: sum(map(float, blend[split][::2])) for split in blend} == pytest.approx(
        {"train": 8, "valid": 8, "test": 8}
    )
    assert (output / "train" / "shard_000000.bin").stat().st_size > 0
    steps = ("listing the files of 3 sources", "looking into 3 files", "12 shards")
    found = [done.stderr.index(f"data prep: {step}") for step in steps]
    assert found == sorted(found)

    again = prepare(tmp_path, "--config", "tiny")
    assert "(12 of them were there already)" in again.stderr
    assert json.loads(again.stdout)["data"].get("version") == piped.get("version")


def test_overrides_and_a_config_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"body": f"text {n}"}) + "\n" for n in range(200)))
    (tmp_path / "blend.json").write_text('{"datasets": [{"name": "docs", "path": "docs.jsonl"}]}')
    (tmp_path / "mine.yaml").write_text(
        "blend_path: blend.json\noutput_dir: ${oc.env:PWD}/out\ntext_field: body\n"
        "tokenizer: {model: nano3-tiny, add_bos: true}\n"
    )
    done = prepare(tmp_path, "--config", "mine.yaml", "num_shards=3", "--sample", "100")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "train").glob("*.bin"))) == 3
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert (metadata["name"], metadata["total_sequences"]) == ("PretrainBlendsArtifact-mine", 100)
    assert metadata["metadata"]["bos_id"] == 1

    refused = prepare(tmp_path, "--config", "mine.yaml", "num_shards=2")
    assert refused.returncode == 2
    assert "holds another plan's shards" in refused.stderr
    assert "Traceback" not in refused.stderr
    forced = prepare(tmp_path, "--config", "mine.yaml", "num_shards=2", "--force")
    assert forced.returncode == 0, forced.stderr


BAD = [
    (["num_shard=3"], "num_shards"),
    (["num_shards=many"], "num_shards"),
    (["shard_size=1MB"], "exclude each other"),
    (["blend_path=gone.json"], "there is no file gone.json"),
    (["tokenizer_model=nobody"], "nobody"),
]


@pytest.mark.parametrize(("words", "says"), BAD)
def test_mistakes_are_one_error_and_nothing_is_written(tmp_path: Path, words: list[str], says: str) -> None:
    done = prepare(tmp_path, "--config", "tiny", *words, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.bin"))


def test_default_without_a_network_stops_at_once_with_the_way_out(tmp_path: Path) -> None:
    began = time.monotonic()
    done = prepare(
        tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hf"), HTTPS_PROXY="", https_proxy=""
    )
    assert time.monotonic() - began < 30
    assert done.returncode == 2
    assert "-c tiny" in done.stderr
    assert "36.8 TB" in done.stderr
    assert not list(tmp_path.rglob("*.bin"))
