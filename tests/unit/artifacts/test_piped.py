"""One step's output as the next one's input."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from nemotron_kit.artifacts import (
    Artifact,
    ModelArtifact,
    PretrainBlendsArtifact,
    apply_scale,
    open_registry,
    parse_piped,
    pick,
    pipe,
    piped_pin,
    print_step_complete,
)
from nemotron_kit.artifacts.pipe import is_step_output
from nemotron_kit.artifacts.reference import ArtifactChangedError
from nemotron_kit.errors import UserError

from .conftest import made


@pytest.fixture
def saved(tmp_path: Path) -> tuple[PretrainBlendsArtifact, ModelArtifact]:
    data = PretrainBlendsArtifact(path=made(tmp_path / "d"), total_tokens=5)
    model = ModelArtifact(path=made(tmp_path / "m"), step=3, loss=0.25)
    (tmp_path / "d" / "a").write_text("x")
    data.save(name="D")
    model.save()
    return data, model


def test_what_is_printed(saved: tuple[Artifact, Artifact], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    print_step_complete(title="Prepared [bold]", data=saved[0], model=saved[1])
    out, err = capsys.readouterr()
    pin = open_registry().resolve("D")
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "data": {
            "path": str(tmp_path / "d"),
            "type": "PretrainBlendsArtifact",
            "name": "D",
            "version": 0,
            "digest": pin.digest,
            "registry": pin.registry,
        },
        "model": {"path": str(tmp_path / "m"), "type": "ModelArtifact"},
    }
    assert "Prepared [bold]" in err
    assert "art://D:v0" in err
    assert "step=3, loss=0.25" in err


def test_a_dict_is_taken_too_and_other_ranks_are_silent(
    saved: tuple[Artifact, Artifact], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_step_complete({"data": saved[0]})
    out = capsys.readouterr().out
    assert list(json.loads(out)) == ["data"]
    assert is_step_output(out)  # which an attached terminal does not show
    print_step_complete(model=saved[1])  # which has no name
    assert is_step_output(capsys.readouterr().out)
    monkeypatch.setenv("RANK", "1")
    print_step_complete(data=saved[0])
    assert capsys.readouterr() == ("", "")


def test_artifacts_that_follow_much_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "MAX_BYTES", 200)
    line = '{"data": {"path": "/x", "type": "T"}}'
    (tmp_path / "out").write_text("loss 1.2345\n" * 9999 + line + "\n")
    stdin = os.dup(0)
    try:
        with (tmp_path / "out").open("rb") as file:
            os.dup2(file.fileno(), 0)
            assert parse_piped(pipe.read_all()) == json.loads(line)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)


def test_load_from_standard_input(
    saved: tuple[Artifact, Artifact],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    print_step_complete(data=saved[0], model=saved[1])
    out = "some progress\n" + capsys.readouterr().out

    def pipe(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    pipe(out)
    assert PretrainBlendsArtifact.load().uri == "art://D:v0"
    pipe(out)
    assert ModelArtifact.load().step == 3
    pipe(saved[1].to_json())
    assert Artifact.load().type == "ModelArtifact"
    pipe(out)
    with pytest.raises(UserError, match="holds more than one artifact; it holds data: PretrainBlendsArtifact, model"):
        Artifact.load()
    (tmp_path / "d" / "a").write_text("y")
    pipe(out)
    with pytest.raises(ArtifactChangedError):
        PretrainBlendsArtifact.load()


def test_load_with_nothing_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="nothing to read"):
        Artifact.load()
    for text, words in [
        ("", "it is empty"),
        ("not json", "not JSON"),
        ("[1]", "not JSON"),
        ('{"a": 1}', "no artifacts"),
        ("{}", "no artifacts"),
        ('{"a": {"path": 3}}', "Not a pin"),
        ('{"path": "/x", "version": "three"}', "Not a pin"),
    ]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        with pytest.raises(UserError, match=words):
            Artifact.load()


def test_pick_by_slot_then_by_type() -> None:
    piped = parse_piped('{"a": {"path": "/a", "type": "T"}, "b": {"path": "/b", "type": "U"}}')
    assert pick(piped, slot="b")["path"] == "/b"
    assert pick(piped, slot="other", types={"T"})["path"] == "/a"
    assert piped_pin(piped["a"]).label == "/a"
    with pytest.raises(UserError, match="holds no X"):
        pick(piped, slot="other", types={"X"})


def test_apply_scale() -> None:
    assert [apply_scale(100_000, scale) for scale in ("tiny", "small", "medium", "full")] == [
        1_000,
        10_000,
        30_000,
        100_000,
    ]
    assert (apply_scale(2_000_000, "tiny"), apply_scale(10, "tiny"), apply_scale(0, "full")) == (10_000, 1, 1)
    with pytest.raises(ValueError, match="is no scale"):
        apply_scale(1, "huge")
