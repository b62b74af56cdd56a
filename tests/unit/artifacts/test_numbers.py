"""NumPy's and torch's numbers are numbers: in metadata, in typed fields, in records, as a dataclass's defaults."""

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemotron_kit.app import App
from nemotron_kit.artifacts import Artifact, ModelArtifact, open_registry
from nemotron_kit.config.schema import schema_node
from nemotron_kit.errors import UserError
from nemotron_kit.files import plain, write_json

VALUES: list[tuple[Any, Any]] = [
    (np.float32(0.5), 0.5), (np.float64(0.25), 0.25), (np.int64(3), 3), (np.bool_(True), True), (np.str_("x"), "x"),
    (np.array(2.0), 2.0), (np.array([1, 2]), [1, 2]), ({np.int64(3): [np.float16(1.5)]}, {"3": [1.5]}),
    (np.float32("nan"), "nan"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w").write_text("1")
    return tmp_path / "m"


@pytest.mark.parametrize(("given", "expected"), VALUES, ids=lambda value: type(value).__name__)
def test_metadata(folder: Path, given: Any, expected: Any) -> None:
    artifact = Artifact(path=folder, metadata={"v": given})
    artifact.metadata["later"] = given
    artifact.save(name="M")
    back = Artifact.from_uri("art://M").metadata
    for key in ("v", "later"):
        assert back[key] != back[key] if expected == "nan" else back[key] == expected
    json.loads((folder / "metadata.json").read_text(), parse_constant=pytest.fail)


@dataclass
class Holder:
    text: str


def test_a_secret_is_masked_in_every_container_and_nothing_else_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    value = "hf_Ab1Ab1Ab1Ab1"
    monkeypatch.setenv("HF_TOKEN", value)
    holders = [{value}, (value,), deque([value]), Holder(value), value.encode(), Path(value), iter([value])]
    metadata: dict[str, Any] = {f"held{n}": holder for n, holder in enumerate(holders)}
    metadata |= {"pair": (1, 2), "once": iter([1, 2]), "nothing": [float("nan")]}
    pin = Artifact(path=folder, metadata=metadata).save(name="M") or Artifact.from_uri("art://M")
    assert value not in (folder / "metadata.json").read_text()
    assert not [file for file in open_registry().root.rglob("*.json") if value in file.read_text()]
    assert caplog.text.count("the value of HF_TOKEN: it is saved as ***") == len(holders)
    assert caplog.text.count("saved as ***") == len(holders)
    assert (pin.metadata["pair"], pin.metadata["once"]) == ([1, 2], [1, 2])
    for name in (f"M-{value}", f"{value}"):
        with pytest.raises(UserError, match="This artifact name holds the value of HF_TOKEN"):
            Artifact(path=folder).save(name=name)
    with pytest.raises(UserError, match="This alias holds the value of HF_TOKEN"):
        open_registry().set_alias("M", value, 0)


def test_a_literal_under_a_secrets_name_is_masked_at_every_depth(folder: Path) -> None:
    given = {"api_key": "canary1", "a": {"b": [{"password": "canary2", "total_tokens": 5}]}, "from": "s3://k:canary3@b"}
    ModelArtifact(path=folder, metadata=given, metrics={"loss": 1.5}).save(name="M")
    records = [folder / "metadata.json", *open_registry().root.rglob("*.json")]
    assert not [file for file in records if "canary" in file.read_text()]
    found = Artifact.from_uri("art://M").metadata
    assert (found["api_key"], found["from"]) == ("***", "s3://k:***@b")
    assert found["a"] == {"b": [{"password": "***", "total_tokens": 5}]}


def test_typed_fields_and_metrics(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    model = ModelArtifact(path=folder, loss=torch.tensor(0.5, requires_grad=True), step=np.int32(7))  # type: ignore[arg-type]
    assert (model.loss, model.step, type(model.loss), type(model.step)) == (0.5, 7, float, int)
    model.loss = torch.tensor(1.5, dtype=torch.bfloat16)
    model.metadata["all"] = torch.ones(2)
    model.save(name="Model")
    assert model.metrics["loss"] == 1.5 and open_registry().resolve("Model").version == 0
    assert ModelArtifact.from_uri("art://Model").metadata["all"] == [1.0, 1.0]


def test_what_no_json_takes_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"metadata\.thing: <object object at .* \(object\) can't be saved"):
        Artifact(path=folder, metadata={"thing": object()}).save(name="M")
    assert not open_registry().names()


def test_records_and_defaults(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": [np.int8(1)], "c": (np.float64("inf"),)})
    assert json.loads((tmp_path / "x.json").read_text())["c"] == ["Infinity"]
    assert plain({"a"}) == {"a"}

    @dataclass
    class Config:
        rate: float = np.float32(0.5)  # type: ignore[assignment]
        sizes: tuple[int, ...] = (np.int64(3),)  # type: ignore[assignment]

    app = App("demo")
    app.command("go", Config, print)
    node = schema_node(next(iter(app.commands())), {})
    assert (node.rate, list(node.sizes)) == (0.5, [3])
