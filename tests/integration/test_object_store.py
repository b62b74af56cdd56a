"""Data prep to s3://, against a real server of its protocol (moto's): shards, blend.json, lineage, reading them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.artifacts import PretrainBlendsArtifact
from nemotron_kit.data_prep import DataPrepConfig, run_data_prep
from nemotron_kit.data_prep.preflight import preflight
from nemotron_kit.errors import NemotronError
from nemotron_kit.objects import ObjectFolder, object_url
from nemotron_kit.training.data import read_blend

TOKENIZER = Path(__file__).parents[2] / "recipes" / "nano3" / "tokenizers" / "tiny"
NAME = "PretrainBlendsArtifact-stored"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `data` on a server of its own, which the environment leads to."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    import boto3
    import s3fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def objects(client: Any) -> dict[str, bytes]:
    found = client.list_objects_v2(Bucket="data").get("Contents", [])
    return {each["Key"]: client.get_object(Bucket="data", Key=each["Key"])["Body"].read() for each in found}


def config_for(folder: Path, output: str | Path) -> DataPrepConfig:
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": f"{n} is {n * n}."}) + "\n" for n in range(400)))
    (folder / "blend.json").write_text(json.dumps({"datasets": [{"name": "docs", "path": str(folder / "docs.jsonl")}]}))
    return DataPrepConfig(
        folder / "blend.json", Path(output), num_shards=3, tokenizer_model=str(TOKENIZER), num_workers=1
    )


def test_shards_in_a_bucket(bucket: Any, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_data_prep(config_for(tmp_path, tmp_path / "whole"))
    whole = {str(p.relative_to(tmp_path / "whole")): p.read_bytes() for p in (tmp_path / "whole").glob("*/shard_*.???")}
    config = replace(config_for(tmp_path, "s3://data/prep/one"), artifact_name=NAME)
    assert preflight(config, connect=True) == []
    run_data_prep(replace(config, step="plan"))
    for task in (1, 0):
        run_data_prep(replace(config, step="shards", task=task, tasks=2))
    artifact = run_data_prep(replace(config, step="finish"))
    there = objects(bucket)
    assert {
        name.removeprefix("prep/one/"): data for name, data in there.items() if name[-4:] in (".bin", ".idx")
    } == whole
    assert not list(artifact.path.glob("*/*.bin"))
    blend = json.loads(there["prep/one/blend.json"])
    assert blend == json.loads((artifact.path / "blend.json").read_text())
    assert blend["valid"] == ["1", "s3://data/prep/one/valid/shard_000000"]
    assert (artifact.train_path, artifact.metadata["uri"]) == ("s3://data/prep/one/train", "s3://data/prep/one")
    again = PretrainBlendsArtifact.from_uri(f"art://{NAME}:v0")
    assert again.train_path == "s3://data/prep/one/train" and again.total_tokens == artifact.total_tokens
    # What trains reads copies, which are made once and are the very bytes.
    for _ in range(2):
        (valid,) = read_blend(artifact.path / "blend.json", only="valid")["valid"]
        assert Path(f"{valid.prefix}.bin").read_bytes() == whole["valid/shard_000000.bin"]
        assert Path(f"{valid.prefix}.json").is_file()
    # Started again it keeps what is there, and makes what is not, with workers too.
    bucket.delete_object(Bucket="data", Key="prep/one/train/shard_000001.bin")
    with pytest.raises(NemotronError, match=r"s3://data/prep/one/train/shard_000001\.bin: not there whole"):
        run_data_prep(replace(config, step="finish"))
    capsys.readouterr()
    second = run_data_prep(replace(config, num_workers=4))
    assert "(4 of them were there already)" in capsys.readouterr().err
    assert second.uri == artifact.uri and objects(bucket) == there
    run_data_prep(replace(config, force=True))
    assert "were there already" not in capsys.readouterr().err
    assert objects(bucket).keys() == there.keys()
    assert ObjectFolder("s3://data/prep/one").names("none") == []


def test_a_bucket_that_is_not_there_is_named(bucket: Any, home: Path, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"s3://nowhere/x/.*shard_00000\d\.bin: can't be written"):
        run_data_prep(config_for(tmp_path, "s3://nowhere/x"))


def test_urls_are_known_from_paths() -> None:
    known = {"s3://b/x/": "s3://b/x", Path("s3://b/x"): "s3://b/x", "/s3:/b": None, "file:///x": None, "c:/x": None}
    assert {path: object_url(path) for path in known} == known
    assert ObjectFolder("memory://b/x").at("y") == "memory://b/x/y"
