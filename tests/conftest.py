"""What holds for every test, however the tests were started; and how tests wait."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """A shell that starts tests in the background has SIGINT ignored, and so would every process that they start.

    Unit tests write thousands of small files: in memory, where there is room."""
    memory = Path("/dev/shm")
    unit = all(Path(path.partition("::")[0]).is_relative_to("tests/unit") for path in config.args)
    if unit and config.args and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= 4 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.set_threshold(50_000, 20, 20)  # collecting as often as a small program does takes a twentieth of all the time


_frozen = 0


def _freeze() -> None:
    """What is loaded stays: the garbage collector need not look through all of it time and again. With torch that is a
    second, and each training collects when it ends."""
    global _frozen
    if len(sys.modules) > _frozen + 400:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


def _forget() -> None:
    """Undo what a launch or a job in this process sets for the process's life: the next test's is another one."""
    gc.enable()
    if module := sys.modules.get("hydra.core.hydra_config"):
        module.HydraConfig.instance().cfg = None
    if module := sys.modules.get("nemotron_kit.discovery"):
        module._in_use.clear()
    if module := sys.modules.get("nemotron_kit.artifacts.registry"):
        module.reset()
    if module := sys.modules.get("nemotron_kit.artifacts.lineage"):
        module.forget_inputs()


def pytest_collection_finish() -> None:
    _freeze()


def pytest_runtest_logfinish() -> None:
    _freeze()
    _forget()


def examples(count: int) -> int:
    """So many examples of a property. They are others in each run: more of them at once with NEMOTRON_EXAMPLES=10."""
    return count * int(os.environ.get("NEMOTRON_EXAMPLES", "1"))


def until(
    check: Callable[[], Any], timeout: float = 60, why: Callable[[], str] = lambda: "", *, every: float = 0.1
) -> Any:
    """Poll until `check()` gives something true, and give that. A check that starts a process is asked less often."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(every)
    raise AssertionError(f"not within {timeout:.0f} s {why()}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own $NEMOTRON_HOME; the folder is not there yet."""
    folder = tmp_path / "home"
    monkeypatch.setenv("NEMOTRON_HOME", str(folder))
    return folder


@pytest.fixture
def project(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder, with a home in it, as the working folder; its env.toml names one profile, `here`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    (tmp_path / "env.toml").write_text('[here]\nexecutor = "local"\n')
    return tmp_path


@pytest.fixture(autouse=True)
def absl_closes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of this process configures logging, whereupon absl's handler (NeMo-Run brings it) closes the stream that
    was sys.stderr when it was imported: pytest's own, here."""
    if absl := sys.modules.get("absl.logging"):
        monkeypatch.setattr(absl.PythonHandler, "close", lambda handler: handler.flush())
