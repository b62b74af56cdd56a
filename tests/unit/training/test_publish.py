"""`nemotron nano3 model export`: a copy that is whole, and an upload to a stand-in of the hub's HTTP API."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from nemotron.recipes.nano3.import_export import ExportModel, export_model

from nemotron_kit.artifacts import ModelArtifact, PretrainBlendsArtifact, open_registry, record_input
from nemotron_kit.artifacts.lineage import forget_inputs, given_inputs
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.training import publish

from ...project import files_with

TOKEN = "hf_aTokenThatMayWrite"  # noqa: S105 - nobody's


@pytest.fixture(autouse=True)
def model(chat_model: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`ModelArtifact-rl:v0`, made from `ModelArtifact-pretrain:v0`, which was made from data."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "data").mkdir()
    sources: Any = ["cpython://topics", f"file://{tmp_path}/secret/texts.jsonl"]
    PretrainBlendsArtifact(path=tmp_path / "data", source_datasets=sources).save(name="Data")
    before: Any = None
    for name in ("pretrain", "rl"):
        forget_inputs()
        record_input(before or open_registry().resolve(_reference("Data")))
        shutil.copytree(chat_model, tmp_path / name)
        (tmp_path / name / "README.md").write_text(f"---\nlibrary_name: transformers\n---\n\n# {name}\n")
        ModelArtifact(path=tmp_path / name, step=1).save(name=f"ModelArtifact-{name}")
        before = open_registry().resolve(_reference(f"ModelArtifact-{name}"))
    forget_inputs()
    return tmp_path / "rl"


def export(to: str, path: Path | None = None, *, private: bool = True) -> int:
    """What the command does with `ModelArtifact-rl:latest`, or with a folder."""
    pin = open_registry().resolve(_reference("ModelArtifact-rl"))
    with given_inputs({"model": pin}):
        return export_model(ExportModel(to=to, private=private, path=path or Path(pin.path)))


def _reference(name: str) -> Any:
    from nemotron_kit.artifacts import Reference

    return Reference.parse(name)


CARD = """---
library_name: transformers
---

# rl

## Lineage

- `ModelArtifact-rl:v0` (ModelArtifact)
  - `ModelArtifact-pretrain:v0` (ModelArtifact)
    - `Data:v0` (PretrainBlendsArtifact)
      - `cpython://topics`
      - `texts.jsonl` (a local path)
"""


def test_a_copy_is_whole_and_has_its_lineage(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("out/copy") == 0
    copy = tmp_path / "out/copy"
    assert capsys.readouterr().out == f"{copy}\n"
    assert (copy / "README.md").read_text() == CARD
    for file in model.iterdir():
        if file.name not in ("README.md", "metadata.json"):
            assert (copy / file.name).read_bytes() == file.read_bytes()
    assert not (copy / "metadata.json").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["copy"]
    # A copy that is exported again: its lineage is told once.
    assert export("again", Path("out/copy")) == 0
    assert (tmp_path / "again/README.md").read_text().count("## Lineage") == 1


def test_nothing_is_written_over_and_nothing_that_has_changed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for to, said in (
        ("full", "is not empty"),
        ("file", "is a file; a model is a folder"),
        ("s3://bucket/x", "a model goes to a folder, or to hf://USER/NAME"),
        ("hf://only-a-user", "that names no repository of the hub"),
        ("hf://u/n", "HF_TOKEN is not set"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            export(to)
    copyfile = shutil.copyfile

    def damaging(source: Path, target: Path) -> None:
        copyfile(source, target)
        if target.name == "model.safetensors":
            target.write_bytes(target.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(publish.shutil, "copyfile", damaging)
    with pytest.raises(NemotronError, match=r"model.safetensors: its copy has the sha256"):
        export("out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


class Hub(ThreadingHTTPServer):
    """A stand-in of the hub: repositories, files given in a commit or, if large, by LFS."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.created: list[dict[str, Any]] = []
        self.large: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.status = 200
        self.private = True
        self.tokens: set[str | None] = set()


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Not on the test's standard error."""

    def do_GET(self) -> None:
        there = self.path.partition("?")[0] == "/api/models/u/n"
        self._answer({"id": "u/n", "private": self.server.private}, self.server.status if there else 404)

    def do_POST(self) -> None:
        body, hub = self.rfile.read(int(self.headers["Content-Length"])), self.server
        hub.tokens.add(self.headers["Authorization"])
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._answer({"url": f"{hub.address}/u/n"}, hub.status)
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == "/api/models/u/n/preupload/main":
            files = [
                {"path": f["path"], "shouldIgnore": False, "uploadMode": "lfs" if f["size"] > 99_999 else "regular"}
                for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif path == "/u/n.git/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.address}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif path == "/api/models/u/n/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.large[value["oid"]]
            self._answer({"commitUrl": f"{hub.address}/u/n/commit/{'a' * 40}", "commitOid": "a" * 40})
        else:
            self._answer({"error": path}, 404)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        self._answer({})

    def _answer(self, document: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Large files as LFS has them: Xet's storage is a service of its own.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


def test_an_upload_is_one_commit_of_all_files(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("hf://u/n") == 0
    assert capsys.readouterr().out == f"{hub.address}/u/n/commit/{'a' * 40}\n"
    assert [(each["name"], each["organization"]) for each in hub.created] == [("n", "u")]
    assert hub.created[0].get("visibility", "private" if hub.created[0].get("private") else None) == "private"
    expected = {path.name: path.read_bytes() for path in model.iterdir() if path.name != "metadata.json"}
    assert hub.files == {**expected, "README.md": CARD.encode()}
    assert hub.tokens == {f"Bearer {TOKEN}"} and hub.large
    assert files_with(TOKEN, tmp_path) == []


def test_a_repository_that_is_public_gets_no_private_model(hub: Hub) -> None:
    hub.private = False
    with pytest.raises(UserError, match=r"hf://u/n is public: .* Nothing was uploaded") as refused:
        export("hf://u/n")
    assert not hub.files and not hub.large and "--no-private" in str(refused.value)
    assert export("hf://u/n", private=False) == 0 and hub.files


def test_a_hub_that_refuses_or_is_not_there(hub: Hub) -> None:
    hub.status = 403
    with pytest.raises(NemotronError, match=r"hf://u/n: .*403") as refused:
        export("hf://u/n")
    assert "May HF_TOKEN write to it?" in str(refused.value) and TOKEN not in str(refused.value)
    hub.shutdown()
    hub.server_close()
    with pytest.raises(Unreachable, match="the hub does not answer"):
        export("hf://u/n")
