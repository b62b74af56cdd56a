"""The requests of the cloud executors: what NeMo-Run really sends, with secrets by name; and that nothing is sent."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_kit.app import load_object
from nemotron_kit.cli.main import run_app
from nemotron_kit.errors import NemotronError
from nemotron_kit.executors import cloud
from nemotron_kit.executors.nemo_run import MissingExtra, build_executor
from nemotron_kit.spec.runconfig import RunConfig

from ..programs import WORK

pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")

RUN = "20260102-030405-work-speak-abc123"
DGX = RunConfig(
    executor="dgxcloud",
    base_url="https://example.invalid/api",
    app_id="an-id",
    app_secret="${secret:DGX_SECRET}",  # noqa: S106
    project_name="project",
    container_image="nemo:25.11",
    nemo_run_dir="/data/nemo_run",
    pvcs=["claim:/data"],
    gpus_per_node=8,
    env_vars=["PLAIN=it's $HOME"],
    extra={"kube_apiserver_url": "https://kube.invalid"},
)
LEPTON = RunConfig(
    executor="lepton",
    container_image="nemo:25.11",
    nemo_run_dir="/data/nemo_run",
    mounts=["/data:/data:node-nfs:shared"],
    node_group="group",
    resource_shape="gpu.8xh100",
    nodes=2,
    env_vars=["PLAIN=one"],
    extra={"can_preempt": True, "node_reservation": "r1", "secret_vars": {"TOKEN": "stored"}},
)
KUBE = RunConfig(executor="kubeflow", container_image="nemo:25.11", nodes=2, gpus_per_node=8, secrets=["MY_TOKEN"])
SKY = RunConfig(executor="skypilot", cloud="aws", gpus="A100:8", nodes=2, secrets=["MY_TOKEN"])


@pytest.fixture
def received() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """(address, what was posted to it)."""
    found: list[tuple[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.append((self.path, json.loads(body)))
            self.send_response(202)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", found
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("nodes", [1, 2])
def test_dgx_clouds_request_is_the_one_that_nemo_run_sends(
    received: tuple[str, list[tuple[str, Any]]], monkeypatch: pytest.MonkeyPatch, nodes: int
) -> None:
    address, posted = received
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DGX_SECRET", "value-of-the-secret")
    config = replace(DGX, base_url=address, nodes=nodes)
    shown = cloud.request_of(config, RUN, 3)
    executor = build_executor(config)
    from nemo_run.config import get_nemorun_home

    name = shown["body"]["name"]
    executor.assign(RUN, f"{get_nemorun_home()}/experiments/{RUN}", name, "3")
    executor.create_training_job("token", cloud.PROJECT, cloud.CLUSTER, name)
    ((path, body),) = posted
    assert shown == {"to": f"POST {address}{path}", "body": body}
    assert "value-of-the-secret" not in json.dumps(shown)


def test_leptons_request_is_the_one_that_nemo_run_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_run.config import get_nemorun_home
    from nemo_run.core.execution import lepton

    shown = cloud.request_of(LEPTON, RUN, 3)["body"]
    sent: list[Any] = []

    class Service:
        """Lepton's, as far as NeMo-Run asks it."""

        def __init__(self) -> None:
            self.nodegroup = self.job = self

        def list_all(self) -> list[Any]:
            return [lepton.DedicatedNodeGroup.model_construct(metadata=_named("group", cloud.NODE_GROUP))]

        def list_nodes(self, _: object) -> list[Any]:
            return [lepton.DedicatedNodeGroup.model_construct(metadata=_named("node", cloud.NODES))]

        def create(self, job: Any) -> Any:
            sent.append(job.model_dump(mode="json", by_alias=True, exclude_none=True))
            return job

    def _named(name: str, id_: str) -> Any:
        return lepton.Metadata.model_construct(name=name, id_=id_)

    monkeypatch.setattr(lepton, "APIClient", Service)
    executor = build_executor(LEPTON)
    name = shown["metadata"]["id"]
    executor.assign(RUN, f"{get_nemorun_home()}/experiments/{RUN}", name, "3")
    executor.create_lepton_job(name)
    assert sent == [shown]
    assert shown["spec"]["mounts"] == [{"path": "/data", "from": "node-nfs:shared", "mount_path": "/data"}]


def test_lepton_says_what_its_mounts_lack() -> None:
    with pytest.raises(NemotronError, match="PATH:MOUNT_PATH:STORAGE"):
        cloud.request_of(replace(LEPTON, mounts=["/data:/data"]), RUN)


def test_kubeflow_is_a_train_job_or_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("kubernetes") is None:
        with pytest.raises(MissingExtra, match="kubernetes"):
            cloud.request_of(KUBE, RUN)
        return
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(NemotronError, match="kube"):
        cloud.request_of(KUBE, RUN)
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    known = {"current-context": "c", "clusters": [cluster], "contexts": [context]}
    config = {"apiVersion": "v1", "kind": "Config", **known, "users": [{"name": "u", "user": {"token": "t"}}]}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    # The package reads $KUBECONFIG once, as it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    monkeypatch.setenv("MY_TOKEN", "value-of-the-secret")
    request = cloud.request_of(KUBE, RUN)
    trainer = request["body"]["spec"]["trainer"]
    assert request["body"]["kind"] == "TrainJob" and trainer["numNodes"] == 2
    assert trainer["command"] == list(cloud.COMMAND)
    assert trainer["env"] == [{"name": "MY_TOKEN", "value": "${secret:MY_TOKEN}"}]


def test_skypilot_is_a_task_or_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_TOKEN", "value-of-the-secret")
    if find_spec("sky") is None:
        with pytest.raises(MissingExtra, match=r"nemo_run\[skypilot\]"):
            cloud.request_of(SKY, RUN)
        return
    request = cloud.request_of(SKY, RUN)
    assert request["body"]["num_nodes"] == 2
    assert " ".join(cloud.COMMAND) in request["body"]["run"]
    assert "value-of-the-secret" not in json.dumps(request)


def test_names_are_short_and_differ() -> None:
    runs = [RUN, f"20260102-030405-{'long-' * 12}x-abc123", "20260102-030405-Work_A.b-abc124"]
    names = {cloud._name(run, job) for run in runs for job in (0, 1, 9999)}
    assert len(names) >= 6
    assert all(len(name) <= 34 and name == name.lower() and "_" not in name for name in names)
    assert cloud._name(RUN, 0) != cloud._name(RUN, 1)


PROFILE = """
[dgx]
executor = "dgxcloud"
base_url = "https://example.invalid/api"
app_id = "id"
app_secret = "${secret:DGX_SECRET}"
project_name = "project"
container_image = "nemo:25.11"
nemo_run_dir = "/data/nemo_run"
pvcs = ["claim:/data"]
secrets = ["MY_TOKEN"]
extra = { kube_apiserver_url = "https://kube.invalid" }
"""


def test_dry_run_shows_the_request_and_a_launch_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MY_TOKEN": "value-of-token", "DGX_SECRET": "value-of-secret"}.items():
        monkeypatch.setenv(name, value)
    (project / "work.py").write_text(WORK)
    (project / "env.toml").write_text(PROFILE)
    app = load_object("work.py:app")

    def speak(*words: str, code: int = 0) -> tuple[str, str]:
        """(standard output, standard error), in this process, which has loaded NeMo-Run and the clouds' packages."""
        assert run_app(app, ["speak", *words]) == code
        return capfd.readouterr()

    shown, _ = speak("--run", "dgx", "--dry-run")
    assert "to: POST https://example.invalid/api/workloads/trainings" in shown
    assert "value: ${secret:MY_TOKEN}" in shown
    assert "has not been tested in this version" in shown
    as_json, _ = speak("--batch", "dgx", "--dry-run", "--json")
    assert json.loads(as_json)["request"]["body"]["spec"]["image"] == "nemo:25.11"
    _, refused = speak("--batch", "dgx", code=2)
    assert "submitting to dgxcloud has not been tested in this version" in refused
    assert not (project / "home").exists()
    for text in (shown, refused, as_json):
        assert "value-of-" not in text
