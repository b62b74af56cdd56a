"""What `profiles check` finds out of a Python and of an image."""

from __future__ import annotations

import sys
from http.client import InvalidURL
from pathlib import Path

import pytest

from nemotron_kit.remote.agent import inspect
from nemotron_kit.spec.runconfig import RunConfig


def test_the_python_that_is_named_is_looked_at(tmp_path: Path) -> None:
    facts = inspect.python_facts(sys.executable)
    assert facts["executable"] == sys.executable and not facts["broken"]
    assert {"omegaconf", "yaml"} <= set(facts["modules"])
    assert inspect.python_facts("/no/such") == {"error": "/no/such: No such file or directory"}
    assert inspect.python_facts("/bin/true") == {"error": "/bin/true: no Python: exit code 0"}


def test_a_module_that_is_there_and_can_not_be_imported_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemotron_kit.executors.checks import _judged

    (tmp_path / "usercustomize.py").touch()
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    program.chmod(0o755)
    (tmp_path / "omegaconf.py").write_text("raise OSError('libx.so is missing')\n")
    facts = inspect.python_facts(str(program))
    assert facts["broken"]["omegaconf"] == "OSError: libx.so is missing"
    found = {finding.what: finding for finding in _judged("python", facts, RunConfig())}
    assert found["omegaconf"].state == found["yaml"].state == "wrong"
    assert "libx.so is missing" in found["omegaconf"].detail and "pip install pyyaml" in found["yaml"].detail
    (old,) = list(
        _judged("python", {**facts, "version": "3.9.2", "modules": {"omegaconf": "2", "yaml": "6"}}, RunConfig())
    )
    assert old.state == "wrong" and old.detail.endswith("3.11 or newer is needed")


def test_the_engines_of_a_python_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is a package inside a namespace, which may be there without it."""
    from nemotron_kit.executors.checks import engines

    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "megatron" / "core").mkdir(parents=True)
    (tmp_path / "nemo_rl").mkdir()
    (tmp_path / "nemo_rl" / "__init__.py").touch()
    facts = inspect.python_facts(str(program))
    assert not facts["broken"]
    found = engines(facts)
    assert found.state == "ok" and "no megatron_bridge (megatron.bridge), nemo_rl there" in found.detail
    assert found.detail.startswith("hf 5.")
    assert engines({"modules": {}, "broken": {}}).state == "warning"


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("nvcr.io#nvidia/nemo:25.11", ("nvcr.io", "nvidia/nemo", "25.11")),
        ("me@nvcr.io#nvidia/nemo", ("nvcr.io", "nvidia/nemo", "latest")),
        ("docker://nvcr.io/nvidia/nemo:25.11", ("nvcr.io", "nvidia/nemo", "25.11")),
        ("docker://localhost:5000/x@sha256:ab", ("localhost:5000", "x", "sha256:ab")),
        ("ubuntu:24.04", ("registry-1.docker.io", "library/ubuntu", "24.04")),
        ("me/mine", ("registry-1.docker.io", "me/mine", "latest")),
    ],
)
def test_where_an_image_is(image: str, parts: tuple[str, str, str]) -> None:
    assert inspect.image_parts(image) == parts


def test_what_the_images_registry_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def answered(*codes: int | Exception) -> str:
        left = list(codes)

        def manifest(url: str, token: str | None) -> tuple[int, str]:
            asked.append((url, token))
            code = left.pop(0)
            if isinstance(code, Exception):
                raise code
            return code, 'Bearer realm="https://auth.io/token",service="s",scope="repository:a:pull"'

        monkeypatch.setattr(inspect, "_manifest", manifest)
        monkeypatch.setattr(inspect, "_token", lambda challenge: "anonymous" if "auth.io" in challenge else None)
        found = inspect.image_in_registry("docker://r.io/a/b:1")
        return found["state"] + ": " + found["message"]

    assert answered(401, 200) == "found: r.io has it; pulled when the job starts"
    assert asked == [("https://r.io/v2/a/b/manifests/1", None), ("https://r.io/v2/a/b/manifests/1", "anonymous")]
    assert answered(404) == "missing: r.io has no such image"
    assert answered(401, 401) == "unknown: pulled when the job starts; r.io shows it to logins only (401)"
    assert "does not answer from here (no route)" in answered(OSError("no route"))
    assert inspect.image_in_registry("oras://r.io/x")["state"] == "unknown"
    monkeypatch.setattr(inspect, "_manifest", lambda url, _: (200 if url == "http://r:5/v2/a/manifests/1" else 404, ""))
    assert inspect.image_in_registry("docker://r:5/a:1", plain=True)["state"] == "found"
    assert "(no address)" in answered(InvalidURL("no address"))
