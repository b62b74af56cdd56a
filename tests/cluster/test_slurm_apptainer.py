"""Jobs in a container of the real Apptainer, on the real Slurm: see scripts/apptainer."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.runs.folder import RunFolder

from ..project import files_with
from .docker_world import tool
from .slurm_world import World, log, made_world, until

TOKEN = "of-the-launch"  # noqa: S105 — of no service
ACCOUNT = {"APPTAINER_DOCKER_USERNAME": "lab", "APPTAINER_DOCKER_PASSWORD": "Kw7-of-the-registry"}
# What the image of the tests has not: programs, and this environment's Python.
HERE = ("/usr", sys.prefix, os.path.realpath(sys.base_prefix), str(Path(__file__).resolve().parents[2]))


@pytest.fixture(scope="module")
def world(slurm: Any, apptainer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Profiles whose jobs run in `image.sif`, which says IMAGE_SAYS=image and WORK_TOKEN=image."""
    place = tmp_path_factory.mktemp("apptainer")
    root = place / "root"
    for name in ("usr", "etc", "proc", "sys", "dev", "tmp", "var/tmp", "root", "home", ".singularity.d/env"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    variables = root / ".singularity.d" / "env" / "90-environment.sh"
    variables.write_text("#!/bin/sh\nexport IMAGE_SAYS=image WORK_TOKEN=image\n")
    variables.chmod(0o755)
    image = place / "image.sif"
    build = [str(apptainer), "build", "--force", str(image), str(root)]
    subprocess.run(build, check=True, capture_output=True, timeout=60)
    with made_world(slurm, place) as made:
        made.env["PATH"] = f"{apptainer.parent}:{os.environ['PATH']}"
        mounts = json.dumps([*HERE, f"{place}/root:/seen:ro"])
        with (made.folder / "env.toml").open("a") as file:
            file.write(
                f'\n[A]\nextends = "C"\ncontainer_runtime = "apptainer"\ncontainer_image = "{image}"\n'
                f'python = "{sys.executable}"\nmounts = {mounts}\nsecrets = ["WORK_TOKEN"]\n'
                f'env_vars = ["MINE=m y"]\n\n[A2]\nextends = "A"\nnodes = 2\nnproc_per_node = 2\n'
                f'\n[gone]\nextends = "A"\ncontainer_image = "{place}/gone.sif"\n'
            )
        yield made


def test_jobs_in_the_container(world: World) -> None:
    """What a job sees, its exit code, a signal, two nodes; and an image that is not there."""
    looks, fails, steps, gone = (
        world.batch(*words, profile=profile, WORK_TOKEN=TOKEN, PYTHONPATH="/nowhere")
        for words, profile in (
            (("look", "text=abc"), "A"),
            (("speak", "code=42", "lines=1"), "A"),
            (("step", "steps=900"), "A"),
            (("speak",), "gone"),
        )
    )
    until(lambda: "from step" in log(steps), 60)
    line = ("sh", "-c", "echo $APPTAINER_CONTAINER $(pwd)")
    inside = tool(world, "runs", "shell", steps.run_id, "--", *line).stdout.split()
    assert inside[0].endswith("/image.sif") and inside[1] == str(steps.path)
    checked = tool(world, "profiles", "check", "A", "--node", "--json", WORK_TOKEN=TOKEN)
    found = {finding["what"]: finding for finding in json.loads(checked.stdout)}
    assert checked.returncode == 0 and "omegaconf" in found["python of image"]["detail"], checked.stdout
    world.slurm.run("scancel", "--signal=USR1", *world.slurm_ids(RunFolder(steps.path.parent.parent)))

    assert world.wait(looks) == "succeeded"
    seen = json.loads((looks.path / "seen-0.json").read_text())
    env = seen["environment"]
    assert env["APPTAINER_CONTAINER"].endswith("/image.sif") and env["IMAGE_SAYS"] == "image"
    assert (env["WORK_TOKEN"], env["MINE"]) == (TOKEN, "m y"), "the launch's, not the image's"
    assert env.get("PYTHONPATH") != "/nowhere"
    assert (env["TMPDIR"], env["PYTHONNOUSERSITE"]) == ("/tmp", "1")
    assert (seen["text"], seen["cwd"]) == ("abc", str(looks.path / "code"))
    assert TOKEN not in "".join(path.read_text() for path in (looks.path.parents[1] / "slurm").glob("*.*"))

    assert world.wait(fails) == "failed"
    assert json.loads((fails.path / "exit.json").read_text())["code"] == 42
    until(lambda: "told ['SIGUSR1']" in log(steps), 60)
    until(lambda: any(entry["state"] == "preempted" for entry in steps.history()), 30)
    said = until(lambda: text if "gone.sif" in (text := tool(world, "runs", "show", gone.run_id).stdout) else "", 60)
    assert "before the job began" in said and "failed" in said


def test_two_nodes_compute_together_in_containers(world: World) -> None:
    done = world.run("allreduce", "--run", "A2", WORK_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "of 4: sum 6" in log(world.job(done.stderr))


@contextmanager
def registry(root: Path) -> Iterator[tuple[str, list[str]]]:
    """A registry of images (OCI's protocol, read only, with a password) that has `root` as lab/kit:1: its address, and
    each request that it has answered."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=".")

    def digest(content: bytes) -> str:
        return "sha256:" + hashlib.sha256(content).hexdigest()

    def part(kind: str, content: bytes) -> dict[str, Any]:
        blobs[digest(content)] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(content), "size": len(content)}

    blobs: dict[str, bytes] = {}
    layer = part("layer.v1.tar+gzip", gzip.compress(buffer.getvalue()))
    layers = {"type": "layers", "diff_ids": [digest(buffer.getvalue())]}
    inner = {"architecture": "amd64", "os": "linux", "config": {"Env": ["IMAGE_SAYS=pulled"]}, "rootfs": layers}
    config = part("config.v1+json", json.dumps(inner).encode())
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}).encode()
    allowed = "Basic " + base64.b64encode(":".join(ACCOUNT.values()).encode()).decode()
    answered: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked, name = self.path, self.path.rpartition("/")[2]
            found = {"/v2/": b"{}", "/v2/lab/kit/manifests/1": manifest, f"/v2/lab/kit/blobs/{name}": blobs.get(name)}
            body, code = found.get(asked), 200
            if self.headers["Authorization"] != allowed:
                body, code = b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}', 401
            elif body is None:
                body, code = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}', 404
            answered.append(f"{self.command} {code} {asked}")
            self.send_response(code)
            self.send_header("Content-Type", kind if body is manifest else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", digest(body))
            self.send_header("WWW-Authenticate", 'Basic realm="lab"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"docker://127.0.0.1:{server.server_address[1]}/lab/kit", answered
        finally:
            server.shutdown()
            thread.join()


def test_two_nodes_pull_an_image_once_and_the_registrys_words_are_shown(world: World) -> None:
    place = world.folder.parent
    own = f'{{APPTAINER_CACHEDIR = "{place}/cache", APPTAINER_NOHTTPS = "1"}}'
    with registry(place / "root") as (address, answered):
        with (world.folder / "env.toml").open("a") as file:
            file.write(
                f'\n[P]\nextends = "A"\nnodes = 2\ncontainer_image = "{address}:1"\nenv_vars = {own}\n'
                f'secrets = {json.dumps(list(ACCOUNT))}\n[P1]\nextends = "P"\nnodes = 1\n'
                f'[notag]\nextends = "P"\ncontainer_image = "{address}:no"\n'
            )
        seen = world.batch("look", profile="P", **ACCOUNT)
        wrong = world.batch("look", profile="notag", **ACCOUNT)
        refused = world.batch("look", profile="P1", **{**ACCOUNT, "APPTAINER_DOCKER_PASSWORD": "Kw8-wrong"})
        assert world.wait(seen) == "succeeded", log(seen)
        for job, words in ((wrong, "manifest unknown"), (refused, "unauthorized")):
            until(lambda job=job, words=words: words in tool(world, "runs", "show", job.run_id).stdout, 60)
    assert sum("GET 200 /v2/lab/kit/blobs/" in line for line in answered) == 2, answered  # its layer and its config
    environment = json.loads((seen.path / "seen-0.json").read_text())["environment"]
    assert environment["IMAGE_SAYS"] == "pulled" and environment["APPTAINER_CONTAINER"].startswith(f"{place}/cache/")
    assert not [name for name in ACCOUNT if name in environment]
    runs = [job.path.parents[1] for job in (seen, refused)]
    assert files_with("Kw7-", *runs) == files_with("Kw8-", *runs) == []
