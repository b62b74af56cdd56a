"""The artifact classes: construction, metadata.json, save and load."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from nemotron_kit.artifacts import (
    Artifact,
    DataBlendsArtifact,
    EvalArtifact,
    InputDatasetInfo,
    ModelArtifact,
    PretrainBlendsArtifact,
    PretrainDataArtifact,
    SFTDataArtifact,
    SplitJsonlDataArtifact,
    TrackingInfo,
    init,
    lineage,
    open_registry,
)
from nemotron_kit.artifacts.reference import ArtifactChangedError, ArtifactNotFoundError
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.files import WRITER, read_checksummed, sha256_of

from .conftest import Maker, made


class Dataset(Artifact):
    """A user's own class."""

    num_examples: Annotated[int, Field(gt=0)]
    quality: Annotated[float, Field(ge=0, le=1)] = 1.0


def test_the_documents_snippet(tmp_path: Path) -> None:
    artifact = PretrainBlendsArtifact(path=made(tmp_path / "out"), total_tokens=25, source_datasets=[])
    artifact.save(name="MyRecipe-data")
    assert (artifact.uri, artifact.art_path) == ("art://MyRecipe-data:v0", "art://MyRecipe-data:v0")
    loaded = PretrainBlendsArtifact.from_uri("art://MyRecipe-data:latest")
    assert (loaded.path, loaded.total_tokens, loaded.uri) == (artifact.path, 25, artifact.uri)


def test_metadata_json(tmp_path: Path) -> None:
    Dataset(path=made(tmp_path / "d"), num_examples=3, quality=0.5, metadata={"free": [1, "a"]}).save()
    document = json.loads((tmp_path / "d" / "metadata.json").read_text())
    assert document["type"] == "Dataset"
    assert document["producer"] == "local"
    assert document["path"] == str(tmp_path / "d")
    assert (document["num_examples"], document["quality"]) == (3, 0.5)
    assert document["metadata"] == {"free": [1, "a"], "num_examples": 3, "quality": 0.5}
    assert document["name"] is None
    assert document["tracking"] is None
    assert "T" in document["created_at"]


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    info = InputDatasetInfo(uri="hf://a/b", name="b", weight=0.5, split="train", num_rows=7)
    saved = PretrainBlendsArtifact(
        path=made(tmp_path / "d"),
        total_tokens=10,
        total_sequences=2,
        num_shards=4,
        source_datasets=[info, "s3://c/d"],
        tokenizer_uri="https://huggingface.co/x",
        train_path=str(tmp_path / "d" / "train"),
        metadata={"free": {"deep": [1, None]}},
    )
    saved.save()
    loaded = PretrainBlendsArtifact.load(tmp_path / "d")
    assert loaded.model_dump() == saved.model_dump()
    assert loaded.source_datasets == [info, "s3://c/d"]
    assert loaded.get_input_uris() == ["hf://a/b", "s3://c/d", "https://huggingface.co/x"]
    assert loaded.metadata["free"] == {"deep": [1, None]}
    assert PretrainBlendsArtifact.load(path=tmp_path / "d" / "metadata.json").total_tokens == 10


def test_nothing_but_the_path_is_required(tmp_path: Path) -> None:
    for cls in (
        Artifact,
        DataBlendsArtifact,
        PretrainBlendsArtifact,
        PretrainDataArtifact,
        SFTDataArtifact,
        SplitJsonlDataArtifact,
        ModelArtifact,
        EvalArtifact,
    ):
        artifact = cls(path=made(tmp_path / cls.__name__))
        artifact.save()
        assert cls.load(tmp_path / cls.__name__).type == cls.__name__
        assert Artifact.load(tmp_path / cls.__name__).type == cls.__name__


def test_validation_on_construction_and_assignment(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Dataset(path=tmp_path, num_examples=0)
    with pytest.raises(ValidationError, match="totl_tokens"):
        PretrainBlendsArtifact(path=tmp_path, totl_tokens=1)  # type: ignore[call-arg]
    artifact = Dataset(path=tmp_path, num_examples=1)
    with pytest.raises(ValidationError):
        artifact.num_examples = -1
    artifact.num_examples = 5
    assert artifact.metadata["num_examples"] == 5


def test_an_ellipsis_is_refused_clearly(tmp_path: Path) -> None:
    for values in ({"total_tokens": ...}, {"source_datasets": [...]}, {"path": ...}):
        with pytest.raises(UserError, match=r"'\.\.\.' is a placeholder"):
            PretrainBlendsArtifact(**{"path": tmp_path, **values})  # type: ignore[arg-type]


def test_loss_and_final_loss_are_one_thing(tmp_path: Path) -> None:
    artifact = ModelArtifact(path=made(tmp_path / "a"), step=10, loss=2.5)
    other = ModelArtifact(path=made(tmp_path / "b"), step=10, final_loss=2.5)  # type: ignore[call-arg]
    assert (artifact.final_loss, other.loss) == (2.5, 2.5)
    assert artifact.metrics == other.metrics == {"step": 10.0, "loss": 2.5, "final_loss": 2.5}
    artifact.final_loss = 1.5
    assert (artifact.loss, artifact.metadata["loss"], artifact.metadata["final_loss"]) == (1.5, 1.5, 1.5)
    artifact.save()
    document = json.loads((tmp_path / "a" / "metadata.json").read_text())
    assert (document["loss"], document["final_loss"]) == (1.5, 1.5)
    assert ModelArtifact.load(tmp_path / "a").final_loss == 1.5
    artifact.loss = None
    assert "final_loss" not in artifact.metadata
    with pytest.raises(ValidationError, match="one field"):
        ModelArtifact(path=tmp_path, loss=1.0, final_loss=2.0)  # type: ignore[call-arg]


def test_val_path_and_valid_path_are_one_thing(tmp_path: Path) -> None:
    artifact = SplitJsonlDataArtifact(path=tmp_path, valid_path="v.jsonl")  # type: ignore[call-arg]
    assert (artifact.val_path, artifact.valid_path) == ("v.jsonl", "v.jsonl")


def test_metrics_are_the_numbers(tmp_path: Path) -> None:
    artifact = Artifact(path=tmp_path, metadata={"n": 3, "x": 0.5, "flag": True, "text": "a"})
    assert artifact.metrics == {"n": 3.0, "x": 0.5}
    given = ModelArtifact(path=tmp_path, step=1, metrics={"accuracy": 0.9})  # type: ignore[call-arg]
    assert given.metrics == {"step": 1.0, "accuracy": 0.9}


def test_json_has_no_nan_and_yet_it_is_read_back(tmp_path: Path) -> None:
    odd = {"a": math.nan, "deep": [{"b": -math.inf}], "text": "NaN", "n": 1.5}
    ModelArtifact(path=made(tmp_path / "m"), step=1, loss=math.inf, metadata=odd).save(name="M")
    registry = open_registry()
    for file in (tmp_path / "m" / "metadata.json", registry.root / "M" / "v0" / "version.json"):
        json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    for loaded in (ModelArtifact.from_uri("art://M"), ModelArtifact.load(tmp_path / "m")):
        found = loaded.metadata
        assert math.isnan(found["a"])
        assert (loaded.loss, found["deep"], found["text"], found["n"]) == (math.inf, [{"b": -math.inf}], "NaN", 1.5)
        assert "$nonfinite" not in found
    assert registry.verify(registry.resolve("M"), deep=True) is not None
    before = registry.find("M").digest
    ModelArtifact(path=tmp_path / "m", step=1, loss=math.inf, metadata=odd).save(name="M")
    assert (registry.find("M").digest, registry.versions("M")) == (before, [0])


def test_records_with_pythons_nan_are_still_read(tmp_path: Path) -> None:
    class Scored(Artifact):
        score: float

    Scored(path=made(tmp_path / "m"), score=math.nan).save(name="M")
    registry = open_registry()
    for file in (tmp_path / "m" / "metadata.json", registry.root / "M" / "v0" / "version.json"):
        body = read_checksummed(file, "record", strict=False)
        marked = {**body, **WRITER} if file.name == "metadata.json" else body
        file.write_text(json.dumps({**marked, "sha256": sha256_of(marked)}, indent=1))
        assert ": NaN" in file.read_text()
    again = Scored.from_uri("art://M:v0")
    assert math.isnan(again.score)
    registry.verify(registry.resolve("M"), deep=True)
    again.save(name="M")
    assert registry.versions("M") == [0]


def test_a_diverged_loss_survives(tmp_path: Path) -> None:
    ModelArtifact(path=made(tmp_path / "m"), step=1, loss=math.nan).save(name="M")
    loaded = ModelArtifact.from_uri("art://M")
    assert loaded.loss is not None
    assert math.isnan(loaded.loss)


def test_art_path_without_a_version(tmp_path: Path) -> None:
    assert Artifact(path=tmp_path, name="nano3/pretrain/data").art_path == "art://nano3/pretrain/data"
    assert Artifact(path=tmp_path).art_path == f"art://{tmp_path}"
    assert Artifact(path=tmp_path).uri is None


def test_a_semantic_name_is_stored_under_its_slug(tmp_path: Path) -> None:
    artifact = ModelArtifact(path=made(tmp_path / "m"), step=1, name="nano3/pretrain/model")
    artifact.save()
    assert artifact.uri == "art://nano3-pretrain-model:v0"
    assert ModelArtifact.from_uri("art://nano3/pretrain/model:v0").step == 1
    assert artifact.name == "nano3/pretrain/model"


def test_stage_names_stand_for_model_artifacts(tmp_path: Path) -> None:
    ModelArtifact(path=made(tmp_path / "m"), step=7).save(name="ModelArtifact-pretrain")
    assert ModelArtifact.from_uri("pretrain:latest").step == 7


def test_an_unnamed_save_registers_only_after_init(tmp_path: Path) -> None:
    Dataset(path=made(tmp_path / "a"), num_examples=1).save()
    assert open_registry().names() == []
    init(backend="fsspec", root=tmp_path / "registry")
    artifact = Dataset(path=made(tmp_path / "a"), num_examples=1)
    artifact.save()
    assert artifact.uri == "art://Dataset:v0"
    assert (tmp_path / "registry" / "Dataset" / "v0").is_dir()


def test_a_wrong_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for name in ("Data:v3", "../x", "a b"):
        with pytest.raises(UserError):
            Dataset(path=tmp_path / "d", num_examples=1).save(name=name)
    assert not (tmp_path / "d").exists()


def test_blend_json_as_the_path(make: Maker) -> None:
    folder = make.folder("out", shard="tokens")
    (folder / "blend.json").write_text("{}")
    as_file = DataBlendsArtifact(path=folder / "blend.json", total_tokens=1)
    as_file.save(name="Blend")
    assert (folder / "metadata.json").is_file()
    assert [name for _, name in as_file.get_wandb_files()] == ["metadata.json", "blend.json"]
    assert as_file.get_wandb_references() == [(f"file://{folder}", "output")]
    loaded = DataBlendsArtifact.from_uri("art://Blend")
    assert loaded.path == folder / "blend.json"
    (folder / "shard").write_text("TOKENS")
    with pytest.raises(ArtifactChangedError, match="shard has other content"):
        DataBlendsArtifact.from_uri("art://Blend")


def test_pretrain_blends_path_is_always_the_folder(make: Maker) -> None:
    folder = make.folder("out", shard="x")
    (folder / "blend.json").write_text("{}")
    artifact = PretrainBlendsArtifact(path=folder / "blend.json")
    assert artifact.path == folder
    assert [name for _, name in artifact.get_wandb_files()] == ["metadata.json", "blend.json"][1:]
    assert PretrainBlendsArtifact(path=folder / "later.json").path == folder
    artifact.save()
    assert PretrainBlendsArtifact.load(folder / "blend.json").path == folder


def test_one_file_does_not_take_in_a_whole_checkout(make: Maker) -> None:
    folder = make.folder("repo", model="x")
    (folder / ".git").mkdir()
    with pytest.raises(UserError, match="would belong to it"):
        Artifact(path=folder / "model").save(name="M")


def test_a_moved_artifact_is_loaded_with_its_new_paths(make: Maker, tmp_path: Path) -> None:
    folder = make.folder("old", a="x")
    blend = folder / "blend.json"
    blend.write_text("{}")
    PretrainBlendsArtifact(path=folder, blend_path=str(blend), source_datasets=["/raw/x"]).save()
    DataBlendsArtifact(path=blend, source_datasets=[str(folder / "a")])
    shutil.move(folder, tmp_path / "new")
    loaded = PretrainBlendsArtifact.load(tmp_path / "new")
    assert (loaded.path, loaded.blend_path) == (tmp_path / "new", str(tmp_path / "new" / "blend.json"))
    assert loaded.source_datasets == ["/raw/x"]


def test_the_identity_knows_no_time_run_metric_or_place(
    make: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def pin(folder: Path, **values: object) -> str | None:
        values = {"step": 1, **values}
        artifact = ModelArtifact(path=folder, metadata={"note": str(values)}, **values)  # type: ignore[arg-type]
        artifact.save(name="M")
        return artifact.uri

    first = pin(make.folder("one", w="weights"), loss=1.0)
    monkeypatch.setenv("NEMOTRON_RUN_ID", "another-run")
    assert pin(make.folder("two", w="weights"), loss=2.0) == first == "art://M:v0"
    assert pin(make.folder("two", w="weights"), loss=2.0, step=2) == "art://M:v1"
    data = [
        PretrainBlendsArtifact(
            path=make.folder(f, a="x"), blend_path=str(tmp_path / "made" / f / "b"), elapsed_sec=len(f)
        )
        for f in ("d1", "dd2")
    ]
    for artifact in data:
        artifact.save(name="D")
    assert data[0].uri == data[1].uri


def test_loading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match=r"no metadata\.json in"):
        Artifact.load(tmp_path)
    with pytest.raises(ArtifactNotFoundError, match="No artifact is called"):
        Artifact.from_uri("art://Nothing:v1")
    with pytest.raises(UserError, match="or is a folder on this machine"):
        Artifact.from_uri("s3://x/y")


def test_another_classs_artifact_is_refused(tmp_path: Path) -> None:
    ModelArtifact(path=made(tmp_path / "m"), step=1).save(name="M")
    PretrainBlendsArtifact(path=made(tmp_path / "d")).save()
    Artifact(path=made(tmp_path / "c"), type="custom").save()
    with pytest.raises(UserError, match="this is a ModelArtifact, not a PretrainBlendsArtifact"):
        PretrainBlendsArtifact.load(tmp_path / "m")
    with pytest.raises(UserError, match="this is a ModelArtifact"):
        SFTDataArtifact.from_uri("art://M")
    assert DataBlendsArtifact.load(tmp_path / "d").type == "PretrainBlendsArtifact"
    assert ModelArtifact.load(tmp_path / "c").type == "custom"


def test_metadata_json_from_the_reference_implementation(tmp_path: Path) -> None:
    document = {
        "path": "output/data",
        "type": "PretrainBlendsArtifact",
        "metadata": {"total_tokens": 5, "total_sequences": 1, "num_shards": 2},
        "created_at": "2025-12-01T00:00:00+00:00",
        "producer": "local",
        "tracking": None,
        "name": "nano3/pretrain/data",
        "total_tokens": 5,
        "total_sequences": 1,
        "num_shards": 2,
        "later_field": "kept",
    }
    (tmp_path / "metadata.json").write_text(json.dumps(document))
    loaded = PretrainBlendsArtifact.load(tmp_path)
    assert (loaded.path, loaded.num_shards, loaded.metadata["later_field"]) == (tmp_path, 2, "kept")


def test_every_cut_and_every_flipped_bit_of_metadata_json_is_refused(tmp_path: Path) -> None:
    Dataset(path=made(tmp_path / "d"), num_examples=123).save()
    file = tmp_path / "d" / "metadata.json"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(DamagedRecordError, match=r"metadata\.json"):
            Dataset.load(tmp_path / "d")
    for position in range(len(whole)):
        flipped = bytes([whole[position] ^ (1 << position % 8)])
        file.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        with pytest.raises(DamagedRecordError, match=r"metadata\.json"):
            Dataset.load(tmp_path / "d")
    file.write_bytes(whole)
    assert Dataset.load(tmp_path / "d").num_examples == 123


def test_a_wrong_value_in_anothers_metadata_json_is_named(tmp_path: Path) -> None:
    for text, words in [
        ('{"type": "Dataset", "num_examples": -3}', "num_examples"),
        ('{"type": 3}', "type is 3"),
        ("[]", "not a JSON object"),
        ('{"type": "A", "type": "B"}', "twice"),
        ("[" * 100_000, "not valid JSON"),
        ("\ufeff{}", "not valid JSON"),
    ]:
        (tmp_path / "metadata.json").write_text(text)
        with pytest.raises(DamagedRecordError, match=words):
            Dataset.load(tmp_path)


def test_a_tampered_metadata_json_of_a_registered_version_is_refused(tmp_path: Path) -> None:
    Dataset(path=made(tmp_path / "d"), num_examples=3).save(name="D")
    file = tmp_path / "d" / "metadata.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "num_examples": 4}))
    with pytest.raises(DamagedRecordError, match="sha256 does not match"):
        Dataset.from_uri("art://D")
    del document["sha256"], document["sealed_by"]
    file.write_text(json.dumps({**document, "num_examples": 4}))
    with pytest.raises(ArtifactChangedError, match=r"metadata\.json has num_examples 4, not 3"):
        Dataset.from_uri("art://D")
    file.unlink()
    with pytest.raises(ArtifactChangedError, match=r"metadata\.json is missing"):
        open_registry().resolve("D")


def test_lineage_of_what_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job"
    job.mkdir()
    given = open_registry(tmp_path / "elsewhere")
    data, raw = Dataset(path=made(tmp_path / "d"), num_examples=1), Artifact(path=made(tmp_path / "raw"))
    data.save(name="D")
    raw.save()
    pin = open_registry().resolve("D")
    (job / "artifacts.json").write_text(json.dumps({"inputs": {"data": pin.to_dict()}, "outputs": []}))
    monkeypatch.setenv("NEMO_RUN_DIR", str(job))
    monkeypatch.setenv("NEMOTRON_RUN_ID", "run-7")
    Dataset.from_uri("art://D")
    Artifact.load(tmp_path / "raw")
    model = ModelArtifact(path=made(tmp_path / "m"), step=1)
    model.save(name="M")
    record = open_registry().find("M@run:run-7")
    assert record.producer == "run-7"
    assert [p.label for p in record.inputs] == ["D:v0", str(tmp_path / "raw")]
    # The artifact, the one that is found by name or path, and the registry say the same.
    uris = [pin.uri for pin in record.inputs]
    assert uris == ["art://D:v0", f"art://{tmp_path / 'raw'}"]
    for same in (model, ModelArtifact.from_uri("art://M"), ModelArtifact.load(tmp_path / "m")):
        assert same.get_input_uris() == uris
        assert same.tracking is not None
        assert same.tracking.used_artifacts == uris
    assert Artifact.from_uri(uris[0]).path == data.path and Artifact.from_uri(uris[1]).path == raw.path
    document = json.loads((job / "artifacts.json").read_text())
    assert document["inputs"] == {"data": pin.to_dict()}
    assert [output["name"] for output in document["outputs"]] == ["M"]
    assert document["outputs"][0]["version"] == 0
    assert given.names() == []


def test_each_job_in_a_process_has_its_own_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Dataset(path=made(tmp_path / "d"), num_examples=1).save(name="D")
    for job in ("1", "2"):
        (tmp_path / job).mkdir()
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path / "1"))
    Dataset.from_uri("art://D")
    assert [pin.label for pin in lineage.inputs()] == ["D:v0"]
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path / "2"))
    assert lineage.inputs() == ()


def test_a_loaded_artifact_saved_again_is_the_new_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Dataset(path=made(tmp_path / "d"), num_examples=1).save(name="D")
    monkeypatch.setenv("NEMOTRON_RUN_ID", "run-8")
    loaded = Dataset.from_uri("art://D")
    assert loaded.producer == "local"
    loaded.save(name="E")
    assert open_registry().find("E").producer == "run-8"
    explicit = Dataset(path=made(tmp_path / "e"), num_examples=1, producer="me")
    explicit.save(name="F")
    assert open_registry().find("F").producer == "me"


def test_a_path_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "typo", tmp_path / "file" / "d", tmp_path / "typo" / "blend.json"):
        with pytest.raises(UserError, match="There is no file or folder"):
            Dataset(path=path, num_examples=1).save(name="D")
    assert not (tmp_path / "typo").exists()
    (made(tmp_path / "d") / "metadata.json").mkdir()
    with pytest.raises(NemotronError, match=r"metadata\.json: can't be read: Is a directory"):
        Dataset(path=tmp_path / "d", num_examples=1).save(name="D")
    assert open_registry().names() == []


@pytest.mark.parametrize("text", ['{"mine": 1}', "[1, 2]", "mine", ""])
def test_a_users_own_metadata_json_stays(tmp_path: Path, text: str) -> None:
    file = made(tmp_path / "d") / "metadata.json"
    file.write_text(text)
    with pytest.raises(UserError, match="is not an artifact's"):
        Dataset(path=tmp_path / "d", num_examples=1).save(name="D")
    assert file.read_text() == text
    assert open_registry().names() == []
    file.unlink()
    Dataset(path=tmp_path / "d", num_examples=1).save(name="D")
    Dataset(path=tmp_path / "d", num_examples=2).save(name="D")  # ours is written anew
    file.write_text(file.read_text()[:-20])
    Dataset(path=tmp_path / "d", num_examples=2).save(name="D")  # also where a kill or a disk has damaged it


def test_tracking_info_is_kept(tmp_path: Path) -> None:
    artifact = Artifact(path=made(tmp_path / "a"), tracking=TrackingInfo(artifact_id="e/p/A:v3", url="https://w"))
    artifact.save()
    assert Artifact.load(tmp_path / "a").tracking == artifact.tracking
