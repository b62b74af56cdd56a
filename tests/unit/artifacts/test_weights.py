"""Weights that are cut off or damaged never become a version."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest

from nemotron_kit.artifacts import Artifact, ModelArtifact
from nemotron_kit.artifacts.weights import check_weights
from nemotron_kit.errors import UserError


def write(path: Path, **changes: object) -> bytes:
    """A safetensors file, byte by byte: two tensors, 12 and 4 bytes."""
    tensors = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [3, 1], "data_offsets": [0, 12]},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [12, 16], **changes},
    }
    header = json.dumps(tensors).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(16)
    path.write_bytes(data)
    return data


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "model.safetensors")
    check_weights(tmp_path)
    for length in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"model\.safetensors: "):
            check_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole + b"x")
    with pytest.raises(UserError, match="truncated or damaged"):
        check_weights(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"shape": [3]}, {"data_offsets": [14, 12]}, {"data_offsets": "no"}, {"shape": ["x"]}, {"dtype": "F32"}]
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict) -> None:
    write(tmp_path / "model.safetensors", **changes)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        check_weights(tmp_path)


def test_types_that_are_new_are_none_of_its_business(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", dtype="NEW")
    check_weights(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt"])
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(9)}, tmp_path / name)
    check_weights(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for length in range(4, len(whole), 97):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"{name}: not a whole archive of weights"):
            check_weights(tmp_path)
    (tmp_path / name).write_bytes(b"an older format")
    check_weights(tmp_path)


@pytest.mark.parametrize(("at", "byte"), [(6, 200), (9, 8)])
def test_an_archive_whose_directory_is_damaged_is_refused(tmp_path: Path, at: int, byte: int) -> None:
    """It names a version of zip that does not exist, or says that a name is UTF-8 which is not."""
    file = tmp_path / "weights.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("\u00e9".encode("cp437").decode("cp437"), "1")
    data = bytearray(file.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + at], data[entry + 46] = byte, 0xFF
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.pt: not a whole archive"):
        check_weights(tmp_path)


def test_an_index_names_files_that_are_there(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    with pytest.raises(UserError, match=r"part-1\.safetensors, which it names, does not exist"):
        check_weights(tmp_path)
    write(tmp_path / "part-1.safetensors")
    check_weights(tmp_path)
    index.write_text("[]")
    with pytest.raises(UserError, match="not an index of weights"):
        check_weights(tmp_path)


def test_a_damaged_model_is_not_registered(home: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    whole = write(tmp_path / "m/model.safetensors")
    (tmp_path / "m/model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="truncated or damaged"):
        ModelArtifact(path=tmp_path / "m", step=1).save(name="M")
    assert not home.exists() and not (tmp_path / "m/metadata.json").exists()
    Artifact(path=tmp_path / "m").save(name="Anything")  # an artifact that says nothing of weights
    (tmp_path / "m/model.safetensors").write_bytes(whole)
    model = ModelArtifact(path=tmp_path / "m", step=1)
    model.save(name="M")
    assert model.uri == "art://M:v0"
