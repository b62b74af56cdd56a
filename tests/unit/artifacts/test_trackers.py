"""Trackers and back ends: what is logged to which, and that their failures don't stop a save."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.artifacts import (
    Artifact,
    FileTracker,
    InputDatasetInfo,
    LineageTracker,
    ModelArtifact,
    NoOpTracker,
    PretrainBlendsArtifact,
    WandbConfig,
    add_run_tags,
    finish_wandb,
    get_config,
    get_lineage_tracker,
    init,
    init_wandb_if_configured,
    is_initialized,
    lineage,
    open_registry,
    registry,
    set_lineage_tracker,
    to_wandb_uri,
    tokenizer_to_uri,
    wandb_config_from_env_file,
    wandb_config_from_environ,
)
from nemotron_kit.artifacts import wandb as wandb_room
from nemotron_kit.artifacts.wandb import _run_id, artifact_name, bounded, files_of
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import new_run_id

from .conftest import made


class Recorder:
    """A tracker of the user's own."""

    def __init__(self, error: Exception | None = None) -> None:
        self.logged: list[tuple[str, list[str]]] = []
        self.error = error

    def is_active(self) -> bool:
        return True

    def use_artifact(self, ref: str, artifact_type: str) -> Path:
        return Path(open_registry().resolve(ref.rpartition("/")[2]).path)

    def log_artifact(self, artifact: Artifact, name: str, used_refs: list[str]) -> dict[str, Any]:
        if self.error:
            raise self.error
        assert (artifact.path / "metadata.json").is_file()
        self.logged.append((name, list(used_refs)))
        return {"artifact_id": f"e/p/{name}:v0", "url": "https://w", "used_artifacts": list(used_refs), "extra": 1}

    def get_run_id(self) -> str:
        return "tracked-run"


def test_without_a_tracker_there_is_one_that_does_nothing(tmp_path: Path) -> None:
    tracker = get_lineage_tracker()
    assert isinstance(tracker, NoOpTracker)
    assert isinstance(tracker, LineageTracker)
    assert not tracker.is_active()
    assert tracker.get_run_id() is None
    assert tracker.log_artifact(Artifact(path=tmp_path), name="x", used_artifacts=[])["artifact_id"] is None
    with pytest.raises(UserError, match="tracking is off"):
        tracker.use_artifact("x", "y")
    with pytest.raises(UserError, match="no tracker is active"):
        Artifact.load(tracked_artifact="e/p/x:v0")


def test_a_tracker_hears_of_saves_and_serves_loads(tmp_path: Path) -> None:
    tracker = Recorder()
    set_lineage_tracker(tracker)
    model = ModelArtifact(path=made(tmp_path / "m"), step=1)
    model.save(name="M")
    assert tracker.logged == [("M", [])]
    assert model.producer == "tracked-run"
    assert model.tracking is not None
    assert model.tracking.artifact_id == "e/p/M:v0"
    assert Artifact.load(tmp_path / "m").tracking == model.tracking
    loaded = ModelArtifact.load(tracked_artifact="e/p/M")
    assert loaded.step == 1
    loaded.save(name="N")
    assert tracker.logged[-1] == ("N", ["e/p/M"])
    assert ModelArtifact.from_uri("art://team/proj/M:v0").step == 1
    set_lineage_tracker(None)
    assert isinstance(get_lineage_tracker(), NoOpTracker)


def test_a_tracker_that_fails_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    set_lineage_tracker(Recorder(RuntimeError("service down")))
    model = ModelArtifact(path=made(tmp_path / "m"), step=1)
    model.save(name="M")
    assert model.uri == "art://M:v0"
    assert model.tracking is None
    assert "M is saved, but the tracker failed to log it: service down" in caplog.text


class Odd:
    """A tracker whose parts answer as they are told: with a value, or by raising it."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {"is_active": True, "log_artifact": {}, "get_run_id": "r", **answers}

    def __getattr__(self, name: str) -> Any:
        answer = self.answers[name]

        def call(*given: Any) -> Any:
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


@pytest.mark.parametrize(
    "answers",
    [
        {"log_artifact": SystemExit(3)},
        {"log_artifact": OSError(28, "No space left on device")},
        {"log_artifact": None},
        {"log_artifact": [1]},
        {"log_artifact": {"artifact_id": object(), "run_id": 7, "url": ["x"], "used_artifacts": object()}},
        {"is_active": RuntimeError("gone")},
        {"get_run_id": RuntimeError("gone")},
        {"get_run_id": object()},
        {"get_run_id": SystemExit(1), "log_artifact": {"used_artifacts": [1]}},
    ],
)
def test_whatever_a_tracker_does_the_save_stands(tmp_path: Path, answers: dict[str, Any]) -> None:
    set_lineage_tracker(Odd(**answers))
    model = ModelArtifact(path=made(tmp_path / "m"), step=1)
    model.save(name="M")
    loaded = ModelArtifact.load(tmp_path / "m")
    assert (model.uri, loaded.step, loaded.producer) == ("art://M:v0", 1, model.producer)
    assert open_registry().resolve("M").path == str(tmp_path / "m")


def test_a_wandb_run_that_is_disabled_or_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Placeholder:
        disabled = True

        def __getattr__(self, name: str) -> Any:
            return Placeholder()

        def __call__(self, *given: Any, **named: Any) -> Any:
            return Placeholder()

    def no_start(**given: Any) -> None:
        raise SystemExit("W&B says no")

    wandb = SimpleNamespace(run=Placeholder(), Artifact=Placeholder(), Settings=SimpleNamespace, init=no_start)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    init(backend="wandb", wandb_project="p")
    model = ModelArtifact(path=made(tmp_path / "m"), step=1)
    model.save(name="M")
    assert (model.uri, model.tracking, model.producer) == ("art://M:v0", None, "local")
    wandb.run = None
    init_wandb_if_configured(WandbConfig(project="p"))
    assert "W&B can't be used (W&B says no): nothing is tracked in it." in caplog.text
    model.save(name="M")


def test_file_tracker(tmp_path: Path) -> None:
    tracker = FileTracker()
    set_lineage_tracker(tracker)
    model = ModelArtifact(path=made(tmp_path / "m"), step=1)
    model.save(name="M")
    assert open_registry().versions("M") == [0]
    assert model.tracking is not None
    assert model.tracking.artifact_id == "M:v0"
    assert tracker.use_artifact("M:latest", "model") == tmp_path / "m"
    assert [pin.label for pin in lineage.inputs()] == ["M:v0"]
    model = ModelArtifact(path=made(tmp_path / "m"), step=2)
    model.save()
    assert tracker.log_artifact(model, name="M", used_artifacts=["a"])["artifact_id"] == "M:v1"


def test_init_and_get_config(tmp_path: Path) -> None:
    assert not is_initialized()
    assert get_config() is None
    init(backend="fsspec", registry_path=str(tmp_path / "r"))
    config = get_config()
    assert config is not None
    assert (config.backend, config.root) == ("fsspec", tmp_path / "r")
    assert open_registry().root == tmp_path / "r"
    init()
    assert is_initialized()
    assert open_registry().root != tmp_path / "r"
    registry.reset()
    assert not is_initialized()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backend": "fspec"}, "'fspec' is no artifact backend"),
        ({"root": "s3://bucket/x"}, "it must be a folder"),
        ({"root": "/a", "registry_path": "/b"}, "one thing"),
    ],
)
def test_init_refuses(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        init(**arguments)  # type: ignore[arg-type]
    assert not is_initialized()


def test_wandb_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for start in (lambda: init(backend="wandb"), lambda: init_wandb_if_configured(WandbConfig(project="p"))):
        with pytest.raises(UserError, match="wandb is not installed") as error:
            start()
        assert "nemotron-kit[wandb]" in (error.value.hint or "")
    assert not is_initialized()
    add_run_tags(["x"])
    finish_wandb()
    init_wandb_if_configured(None)
    init_wandb_if_configured(WandbConfig())


def test_wandb_config(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not WandbConfig().enabled
    assert WandbConfig(project="p").enabled
    assert not WandbConfig(project="p", enabled=False).enabled
    assert wandb_config_from_environ() is None
    assert wandb_config_from_env_file() is None
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setenv("WANDB_TAGS", "a, b,")
    assert wandb_config_from_environ() == WandbConfig(project="p", tags=("a", "b"))
    Path("env.toml").write_text('[wandb]\nproject = "p"\nname = "n"\ntags = ["x"]\n')
    assert wandb_config_from_env_file() == WandbConfig(project="p", run_name="n", tags=("x",))
    Path("env.toml").write_text('[wandb]\nproject = "p"\nenabled = false\n')
    assert wandb_config_from_env_file() is None
    for text, words in [
        ('projct = "p"', r"env.toml:2: \[wandb\] projct: no such key"),
        ('entity = "e"', r"env.toml:1: \[wandb\]: it names no project"),
        ('project = "p"\ntags = "a"', "tags: expected a list of texts, got 'a'"),
        ("project = 3", "project: expected text, got 3"),
    ]:
        Path("env.toml").write_text(f"[wandb]\n{text}\n")
        with pytest.raises(UserError, match=words):
            wandb_config_from_env_file()


def test_wandb_config_is_an_omegaconf_schema() -> None:
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(OmegaConf.structured(WandbConfig), {"project": "p", "tags": ["a"]})
    assert OmegaConf.to_object(merged) == WandbConfig(project="p", tags=["a"])


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert to_wandb_uri("hf://nvidia/CC") == "https://huggingface.co/datasets/nvidia/CC"
    assert to_wandb_uri("hf://datasets/a/b") == "https://huggingface.co/datasets/a/b"
    assert to_wandb_uri("hf://models/a/b") == "https://huggingface.co/a/b"
    for same in ("s3://b/k", "gs://b/k", "https://x/y", "file:///x"):
        assert to_wandb_uri(same) == same
    assert to_wandb_uri("x y") == f"file://{Path.cwd() / 'x y'}"
    assert tokenizer_to_uri("meta-llama/Llama-3.2-1B") == "https://huggingface.co/meta-llama/Llama-3.2-1B"
    assert tokenizer_to_uri("a/b", "abc123") == "https://huggingface.co/a/b/tree/abc123"
    assert tokenizer_to_uri("gpt2") == "https://huggingface.co/gpt2"
    assert tokenizer_to_uri(str(tmp_path)) == f"file://{tmp_path}"
    (tmp_path / "work" / "tok").mkdir()
    assert tokenizer_to_uri("tok") == f"file://{tmp_path / 'work' / 'tok'}"
    assert artifact_name("hf://nvidia/Nemotron-CC", "sub set") == "nvidia-Nemotron-CC-sub-set"


def test_a_service_that_hangs_is_left_behind() -> None:
    import threading

    release = threading.Event()
    with pytest.raises(NemotronError, match="W&B did not answer within 0 s"):
        bounded(lambda: release.wait(30), "W&B did not answer", seconds=0.05)
    release.set()
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, "x")
    assert bounded(lambda: 7, "x") == 7


def test_reachable_and_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert wandb_room._reachable()
        monkeypatch.setenv("http_proxy", "127.0.0.1:9")
        assert not wandb_room._reachable()
        monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert not wandb_room._reachable()
    assert not wandb_room._has_key()
    (tmp_path / "netrc").write_text("machine 127.0.0.1\n  login user\n  password key\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_room._has_key()


class FakeArtifact:
    """As much of wandb.Artifact as an online run takes."""

    def __init__(self, **given: Any) -> None:
        self.given, self.added, self.waited = given, [], None
        self.qualified_name, self.url = f"e/p/{given['name']}:v0", "https://w/x"

    def add_file(self, path: str, name: str) -> None:
        self.added.append(name)

    def add_reference(self, uri: str, name: str, checksum: bool) -> None:
        self.added.append(uri)

    def wait(self, timeout: int) -> None:
        self.waited = timeout


class FakeRun:
    """An online run that notes what it is told."""

    id, offline = "abc", False

    def __init__(self, failing: bool) -> None:
        self.summary: dict[str, Any] = {}
        self.used: list[Any] = []
        self.logged: list[FakeArtifact] = []
        self.failing = failing

    def use_artifact(self, artifact: Any) -> None:
        self.used.append(artifact)

    def log_artifact(self, artifact: FakeArtifact, aliases: list[str]) -> FakeArtifact:
        if self.failing:
            raise ConnectionError("gone")
        self.logged.append(artifact)
        return artifact


def test_an_input_that_wandb_refuses_costs_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun(failing=False)
    monkeypatch.setattr(run, "use_artifact", Odd(use=ConnectionError("refused")).use)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run, Artifact=FakeArtifact))
    init(backend="wandb", wandb_project="p")
    model = ModelArtifact(path=made(tmp_path / "m"), step=1)
    model._used_artifacts.append("e/p/Data:v0")
    model.save(name="M")
    assert [each.given["name"] for each in run.logged] == ["M"]
    assert "W&B does not take e/p/Data:v0 as an input of this run: refused" in caplog.text


@pytest.mark.parametrize(("backend", "logged"), [(None, ["M"]), ("wandb", ["M"]), ("file", [])])
def test_env_toml_says_whether_wandb_gets_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str | None, logged: list[str]
) -> None:
    run = FakeRun(failing=False)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run, Artifact=FakeArtifact))
    (tmp_path / "env.toml").write_text(f'[artifacts]\nbackend = "{backend}"\n' if backend else "")
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    init_wandb_if_configured(WandbConfig(project="p"))
    ModelArtifact(path=made(tmp_path / "m"), step=1).save(name="M")
    assert [each.given["name"] for each in run.logged] == logged


def test_each_job_of_a_sweep_has_its_own_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the names of recipe and stage leave no room for the job's number."""
    for run in (new_run_id("r" * 30, "s" * 30), "short"):
        monkeypatch.setenv("NEMOTRON_RUN_ID", run)
        ids = {_run_id(tmp_path / str(number)) for number in (0, 1, 12, 123)}
        assert len(ids) == 4 and all(found is not None and len(found) <= 64 for found in ids)
        assert all(found and found[:5] == run[:5] for found in ids)


@pytest.mark.parametrize("failing", [False, True])
def test_an_online_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: bool
) -> None:
    run = FakeRun(failing)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run, Artifact=FakeArtifact))
    init(backend="wandb", wandb_project="p")
    sources = [InputDatasetInfo(uri="hf://a/b", subset="s"), "s3://c/d"]
    data = PretrainBlendsArtifact(
        path=made(tmp_path / "d"), source_datasets=sources, tokenizer_uri="https://huggingface.co/t"
    )
    data.save(name="D")
    assert data.uri == "art://D:v0"
    assert [(a.given["type"], a.given["name"], a.added) for a in run.used] == [
        ("dataset", "a-b-s", ["https://huggingface.co/datasets/a/b"]),
        ("dataset", "c-d", ["s3://c/d"]),
        ("tokenizer", "huggingface.co-t", ["https://huggingface.co/t"]),
    ]
    if failing:
        assert "is saved, but the tracker failed to log it: gone" in caplog.text
        return
    assert data.tracking is not None
    assert (data.tracking.artifact_id, data.tracking.run_id, data.tracking.url) == ("e/p/D:v0", "abc", "https://w/x")
    logged = run.logged[0]
    assert logged.added == ["metadata.json", f"file://{tmp_path / 'd'}"]
    assert (logged.given["metadata"]["local_version"], logged.waited) == ("D:v0", 60)
    assert run.summary == {"elapsed_sec": 0.0}


def test_without_a_wandb_run_a_save_is_local_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    init(backend="wandb", wandb_project="p")
    model = ModelArtifact(path=made(tmp_path / "m"))
    model.save()
    assert model.uri is None
    model.save(name="M")
    assert model.uri == "art://M:v0"
    assert "No W&B run is active: M is not logged to W&B." in caplog.text
    with pytest.raises(UserError, match="No W&B run is active"):
        get_lineage_tracker().use_artifact("e/p/M:v0", "model")


def test_what_is_sent_lies_in_the_artifacts_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A metadata.json from elsewhere names a file of this user's; so can a link."""
    private, folder = tmp_path / "private.json", tmp_path / "data"
    private.write_text('{"secret": 1}')
    folder.mkdir()
    artifact = PretrainBlendsArtifact(path=folder, blend_path=str(private))
    artifact.save()
    loaded = PretrainBlendsArtifact.load(folder)
    assert loaded.blend_path == str(private)
    assert [stored for _, stored in files_of(loaded)] == ["metadata.json"]
    assert f"{private} is no file in the artifact's folder" in caplog.text
    (folder / "blend.json").symlink_to(private)
    assert [stored for _, stored in files_of(PretrainBlendsArtifact(path=folder))] == ["metadata.json"]
    (folder / "blend.json").unlink()
    (folder / "blend.json").write_text("{}")
    assert files_of(PretrainBlendsArtifact(path=folder))[1] == (str(folder / "blend.json"), "blend.json")
