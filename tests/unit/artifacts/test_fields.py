"""`${art:slot,field}`: what each field gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_kit.artifacts import Artifact, ModelArtifact, Pin, PretrainBlendsArtifact, artifact_field, open_registry
from nemotron_kit.errors import UserError
from nemotron_kit.remote.agent.operations import resolve

from .conftest import made


@pytest.fixture
def pin(tmp_path: Path) -> Pin:
    artifact = PretrainBlendsArtifact(
        path=made(tmp_path / "d"), total_tokens=4096, metadata={"vocab_size": 32000, "deep": {"er": [1, 2]}}
    )
    artifact.save(name="Data")
    return open_registry().resolve("Data")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 0),
        ("name", "Data"),
        ("type", "PretrainBlendsArtifact"),
        ("qualified_name", "Data:v0"),
        ("total_tokens", 4096),
        ("elapsed_sec", 0.0),
        ("train_tokens", None),
        ("producer", "local"),
        ("vocab_size", 32000),
        ("metadata.vocab_size", 32000),
        ("metadata.deep.er", [1, 2]),
        ("deep.er", [1, 2]),
    ],
)
def test_fields_keep_their_types(pin: Pin, field: str, value: object) -> None:
    found = artifact_field(pin, field)
    assert (found, type(found)) == (value, type(value))


def test_the_path_is_the_default(pin: Pin, tmp_path: Path) -> None:
    assert artifact_field(pin) == artifact_field(pin, "") == artifact_field(pin, "path") == str(tmp_path / "d")


def test_iteration_is_the_step(tmp_path: Path) -> None:
    ModelArtifact(path=made(tmp_path / "a"), step=500).save(name="A")
    ModelArtifact(path=made(tmp_path / "b"), step=500, iteration=7).save(name="B")
    assert artifact_field(open_registry().resolve("A"), "iteration") == 500
    assert artifact_field(open_registry().resolve("B"), "iteration") == 7


@pytest.mark.parametrize(
    ("field", "hint"),
    [("total_tokns", "total_tokens"), ("metadata.vocab_sise", "metadata.vocab_size"), ("iteration", "There is")],
)
def test_an_unknown_field_names_the_nearest(pin: Pin, field: str, hint: str) -> None:
    with pytest.raises(UserError, match=rf"Data:v0 \(PretrainBlendsArtifact\) has no field '{field}'") as error:
        artifact_field(pin, field)
    assert hint in (error.value.hint or "")


def test_a_paths_fields(tmp_path: Path) -> None:
    ModelArtifact(path=made(tmp_path / "m"), step=3, name="nano3/x/model").save()
    (tmp_path / "raw").mkdir()
    named, raw = (open_registry().resolve(str(tmp_path / name)) for name in ("m", "raw"))
    assert artifact_field(named, "step") == 3
    assert artifact_field(named, "type") == "ModelArtifact"
    assert artifact_field(raw, "path") == str(tmp_path / "raw")
    with pytest.raises(UserError, match="has no version: it was given as a path"):
        artifact_field(raw, "version")
    with pytest.raises(UserError, match=r"\(untyped\) has no field 'step'"):
        artifact_field(raw, "step")


def test_a_pin_of_another_registry_is_refused(pin: Pin, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was pinned in registry"):
        artifact_field(pin, "total_tokens", registry=open_registry(tmp_path / "other"))


def test_a_machine_that_is_asked_answers_the_asked_fields_alone(pin: Pin) -> None:
    root = str(open_registry().root)
    asked = {"data": ("Data", None), "none": ("Nothing:v3", None)}
    found = resolve(root, asked, fields={"data": ["total_tokens", "tokens"], "none": ["x"]})
    assert Pin.from_dict(found["data"]["pin"]) == pin
    assert (
        found["data"]["fields"].pop("tokens")["error"]["message"].startswith("Data:v0 (PretrainBlendsArtifact) has no")
    )
    assert found["data"].keys() == {"pin", "fields"} and found["data"]["fields"] == {"total_tokens": {"value": 4096}}
    assert found["none"].keys() == {"error"}
    assert resolve(root, {"data": ("Data", None)})["data"]["fields"] == {}


def test_metadata_that_contains_itself_is_one_error(tmp_path: Path) -> None:
    metadata: dict[str, object] = {}
    metadata["again"] = metadata
    with pytest.raises(UserError, match="nested too deeply, or contains itself"):
        Artifact(path=tmp_path, metadata=metadata)
