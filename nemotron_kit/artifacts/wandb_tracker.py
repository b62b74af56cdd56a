"""Artifacts logged to the active W&B run, online or offline."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.datasets import InputDatasetInfo, to_wandb_uri
from nemotron_kit.artifacts.metadata import folder_of, read_document
from nemotron_kit.artifacts.pin import Pin
from nemotron_kit.errors import NemotronError, UserError

if TYPE_CHECKING:
    from nemotron_kit.artifacts.models import Artifact

logger = logging.getLogger(__name__)
# The longest that a service which does not answer may hold up a job.
PATIENCE_S = 60.0


def require_wandb() -> Any:
    """The wandb module; UserError that names the extra where it isn't installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "W&B tracking is asked for, but wandb is not installed.",
            hint="pip install 'nemotron-kit[wandb]', or turn tracking off ([wandb] in env.toml, run.wandb, --wandb.…).",
        ) from error
    return wandb


class WandbTracker:
    """Logs every saved artifact to the W&B run that is active then; an offline run takes them for `wandb sync`."""

    def __init__(self) -> None:
        self.wandb = require_wandb()

    def is_active(self) -> bool:
        """Whether a W&B run is open in this process."""
        run = self.wandb.run
        return run is not None and not getattr(run, "disabled", False)

    def get_run_id(self) -> str | None:
        """The W&B run's id."""
        return self.wandb.run.id if self.is_active() else None

    def use_artifact(self, ref: str, artifact_type: str) -> Path:
        """Note `ref` as an input of the run; returns its folder on this machine, downloaded if it isn't there.

        UserError without a run or in an offline one, where W&B can't be asked.
        """
        run = self._run()
        if run.offline:
            raise UserError(
                f"{ref} can't be fetched: this W&B run is offline.", hint="Name a local artifact or a path."
            )
        used = bounded(lambda: run.use_artifact(ref), f"W&B did not answer for {ref}")
        here = Path(str(used.metadata.get("path", "")))
        if (here / "metadata.json").is_file():
            return here
        return Path(bounded(used.download, f"W&B did not send {ref}", seconds=None))

    def log_artifact(
        self, artifact: Artifact, name: str, used_refs: Sequence[str] = (), *, used_artifacts: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Log metadata.json and the small files, and refer to the folder; returns the ids. Takes PATIENCE_S at most."""
        run = self._run()
        used = list(used_refs or used_artifacts)
        info: dict[str, Any] = bounded(lambda: self._log(run, artifact, name, used), f"W&B did not answer for {name}")
        return info

    def _run(self) -> Any:
        if not self.is_active():
            raise UserError("No W&B run is active.", hint="Call init_wandb_if_configured() or wandb.init(…) first.")
        return self.wandb.run

    def _log(self, run: Any, artifact: Artifact, name: str, used: list[str]) -> dict[str, Any]:
        from nemotron_kit.artifacts.saving import document_of
        from nemotron_kit.artifacts.trackers import tracked

        document = document_of(artifact)
        pin = artifact._pin
        local = (
            {"local_version": pin.label, "sha256": pin.digest} if pin is not None and pin.version is not None else {}
        )
        known = {"created_at": artifact.created_at, "path": document["path"], **local}
        about = {**known, **({"inputs": used} if used else {}), **document["metadata"]}
        logged = self.wandb.Artifact(name=name, type=artifact.type, metadata=about)
        for path, stored in files_of(artifact):
            logged.add_file(path, name=stored)
        for uri, stored in artifact.get_wandb_references():
            logged.add_reference(uri, name=stored, checksum=False)
        run.summary.update(artifact.metrics)
        self._note_inputs(run, artifact, used)
        logged = run.log_artifact(logged, aliases=["latest"])
        if run.offline:
            return tracked(artifact, used, run_id=run.id)
        logged.wait(timeout=int(PATIENCE_S))
        return tracked(artifact, used, artifact_id=logged.qualified_name, run_id=run.id, url=logged.url)

    def _note_inputs(self, run: Any, artifact: Artifact, used: list[str]) -> None:
        """Lineage arrows into the run. One that W&B does not take is named and left out."""
        for pin in lineage.inputs():
            with _warned(pin.label):
                self._note_pin(run, pin)
        for ref in used:
            if not ref.startswith("art://") and not run.offline:
                run.use_artifact(ref)
        for source in getattr(artifact, "source_datasets", []):
            info = InputDatasetInfo(source) if isinstance(source, str) else source
            with _warned(info.uri):
                self._note_source(run, "dataset", info.uri, info.subset, vars(info))
        tokenizer = getattr(artifact, "tokenizer_uri", None)
        if tokenizer:
            with _warned(tokenizer):
                self._note_source(run, "tokenizer", tokenizer, None, {"uri": tokenizer})

    def _note_source(self, run: Any, kind: str, uri: str, subset: str | None, about: dict[str, Any]) -> None:
        address = to_wandb_uri(uri)
        source = self.wandb.Artifact(
            name=artifact_name(uri, subset), type=kind, description=f"Source: {address}", metadata=about
        )
        source.add_reference(address, name="data", checksum=False)
        _use(run, source)

    def _note_pin(self, run: Any, pin: Pin) -> None:
        """An input from the registry or the file system: by W&B's own name for it, if it was logged there."""
        logged = ((read_document(folder_of(Path(pin.path))) or {}).get("tracking") or {}).get("artifact_id")
        if isinstance(logged, str) and not run.offline:
            run.use_artifact(logged)
            return
        local = {"local_version": pin.label, "sha256": pin.digest} if pin.version is not None else {}
        source = self.wandb.Artifact(
            name=pin.name or artifact_name(pin.path), type=pin.type or "artifact", metadata={"path": pin.path, **local}
        )
        source.add_reference(to_wandb_uri(pin.path), name="output", checksum=False)
        _use(run, source)


def _use(run: Any, source: Any) -> None:
    """Note a source as an input of the run. An offline run takes what `wandb sync` is to note; W&B's public
    `use_artifact` refuses there, though what it does with a source that is not logged yet needs no connection."""
    if run.offline:
        run._log_artifact(source, is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(source)


def files_of(artifact: Artifact) -> list[tuple[str, str]]:
    """(path, name) of the files that leave this machine: those of `get_wandb_files` that lie in the artifact's folder.
    A field of a metadata.json from elsewhere, or a link, could name any file of this user's."""
    folder = artifact._get_output_dir().resolve()
    inside = []
    for path, stored in artifact.get_wandb_files():
        real = Path(path).resolve()
        if real.is_relative_to(folder) and real.is_file():
            inside.append((str(real), stored))
        else:
            logger.warning("W&B is not sent %s: %s is no file in the artifact's folder, %s.", stored, real, folder)
    return inside


@contextlib.contextmanager
def _warned(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 — one arrow that is missing must not cost the artifact
        logger.warning("W&B does not take %s as an input of this run: %s", what, error)


def artifact_name(uri: str, subset: str | None = None) -> str:
    """A W&B name for a source: its address without the scheme, other characters as dashes, 128 at most."""
    bare = uri.split("://", 1)[-1] + (f"-{subset}" if subset else "")
    return re.sub(r"[^A-Za-z0-9._]+", "-", bare).strip("-._")[:128] or "dataset"


def bounded(work: Callable[[], Any], complaint: str, *, seconds: float | None = PATIENCE_S) -> Any:
    """`work()` in a thread of its own; NemotronError with `complaint` if it isn't done in time (it is left behind)."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        # Carried over to the caller's thread, and raised there.
        except BaseException as error:  # noqa: BLE001
            failure.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise NemotronError(f"{complaint} within {seconds:.0f} s.", hint="`wandb sync` sends it later.")
    return outcome[0]
