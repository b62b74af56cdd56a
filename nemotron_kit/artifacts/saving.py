"""What `Artifact.save()` does: metadata.json, then the registry, then the tracker; and what identifies an artifact."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.backend import get_config
from nemotron_kit.artifacts.metadata import absolute, is_ours, write_document
from nemotron_kit.artifacts.pin import Pin
from nemotron_kit.artifacts.pipes import say_step
from nemotron_kit.artifacts.records import Draft
from nemotron_kit.artifacts.reference import registry_name
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.artifacts.trackers import get_lineage_tracker
from nemotron_kit.artifacts.walk import METADATA
from nemotron_kit.errors import UserError
from nemotron_kit.files import plain

if TYPE_CHECKING:
    from nemotron_kit.artifacts.models import Artifact

logger = logging.getLogger(__name__)


def save(artifact: Artifact, name: str | None) -> None:
    """See `Artifact.save`."""
    say_step()  # what a script saves it is about to print, and saving may take long
    lineage.require_job_folder()
    stored = _stored_name(artifact, name)
    registry = open_registry() if stored is not None else None
    if registry is not None:
        _ = registry.uuid  # known from the start: one that is moved away meanwhile is not begun anew
    folder = absolute(artifact._get_output_dir())
    require_own(artifact, folder)
    if stored is not None:
        _refuse_shared_folder(artifact, folder)
        artifact._check_files()
        artifact.name = artifact.name or name or stored
    if artifact.producer is None or artifact._loaded:
        artifact.producer = _current_run()
        artifact._loaded = False
    used = _used(artifact)
    if used:
        known = artifact.tracking.model_dump() if artifact.tracking is not None else {}
        artifact.tracking = {**known, "used_artifacts": used}  # type: ignore[assignment]
    write_document(folder, document_of(artifact))
    artifact._pin = Pin(artifact.name or "", None, None, artifact.type, str(absolute(artifact.path)))
    if registry is not None and stored is not None:
        artifact._pin = registry.commit(draft_of(artifact, stored))
        artifact._name, artifact._version = artifact._pin.name, artifact._pin.version
    lineage.record_output(artifact._pin)
    _track(artifact, stored or artifact.type, folder, used)


def _used(artifact: Artifact) -> list[str]:
    """The addresses of what the job has read. What came through a tracker goes by the tracker's name for it."""
    own = str(absolute(artifact.path)) if artifact._used_artifacts else None
    pins = [pin.uri for pin in lineage.inputs() if pin.version is not None or pin.path != own]
    return list(dict.fromkeys([*pins, *artifact._used_artifacts]))


def require_own(artifact: Artifact, folder: Path) -> None:
    """UserError where there is nothing at the artifact's path, or a metadata.json in its folder that is not ours."""
    path = absolute(artifact.path)
    if not path.exists():
        raise UserError(
            f"There is no file or folder {path}: an artifact is what lies at its path.",
            hint="Write it first, then save the artifact.",
        )
    if not is_ours(folder):
        raise UserError(
            f"{folder / METADATA} is not an artifact's: it would be replaced by the one that save() writes.",
            hint="Rename it, or put the artifact's files into a folder of their own.",
        )


def set_fields(artifact: Artifact) -> dict[str, Any]:
    """The typed fields that have a value, under each of their names."""
    names = {**{name: name for name in type(artifact).typed_fields()}, **artifact.field_aliases}
    values = {key: getattr(artifact, field) for key, field in names.items()}
    return {key: value for key, value in values.items() if value is not None}


def document_of(artifact: Artifact) -> dict[str, Any]:
    """The content of metadata.json: the artifact's own fields at the top, typed ones beside them and in `metadata`."""
    artifact.metadata.update(set_fields(artifact))
    # What a caller has put in since is as much the caller's as what was given at first.
    for key, value in artifact.metadata.items():
        artifact.metadata[key] = plain(value)
        _check_json(key, artifact.metadata[key])
    return {**artifact.model_dump(mode="json"), "path": str(absolute(artifact.path))}


def _check_json(key: str, value: Any) -> None:
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise UserError(
            f"metadata.{key}: {value!r:.80} ({type(value).__name__}) can't be saved: {error}.",
            hint="metadata.json takes numbers, texts, lists and dicts.",
        ) from error


def identity_fields(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """The typed fields that make up the identity: those that differ from their defaults, without the volatile ones, and
    with paths relative to the folder (so that a copy elsewhere is the same artifact)."""
    cls = type(artifact)
    volatile = {name for base in cls.__mro__ for name in getattr(base, "volatile", ())}
    names = [
        name
        for name in sorted(cls.typed_fields())
        if name not in volatile
        and getattr(artifact, name) != cls.model_fields[name].get_default(call_default_factory=True)
    ]
    dumped = artifact.model_dump(mode="json", include=set(names))
    given = artifact._get_output_dir()
    roots = {str(folder), str(folder.resolve()), *([str(given)] if str(given) != "." else [])}
    return {name: relative_to(dumped[name], dict.fromkeys(roots, ".")) for name in names}


def relative_to(value: Any, roots: dict[str, str]) -> Any:
    """`value` with every text that is one of the folders `roots`, or lies in one, moved to what it maps to."""
    if isinstance(value, dict):
        return {key: relative_to(item, roots) for key, item in value.items()}
    if isinstance(value, list):
        return [relative_to(item, roots) for item in value]
    if isinstance(value, str):
        for root in sorted(roots, key=len, reverse=True):
            if value == root or value.startswith(root + "/"):
                return roots[root] + value[len(root) :]
    return value


def to_json(artifact: Artifact) -> str:
    """See `Artifact.to_json`: path, type, name, and for a registered one version, digest and registry."""
    pin = artifact._pin
    found: dict[str, Any] = {"path": str(absolute(artifact.path)), "type": artifact.type}
    if pin is not None and pin.version is not None:
        found |= {"name": pin.name, "version": pin.version, "digest": pin.digest, "registry": pin.registry}
    elif artifact.name:
        found["name"] = artifact.name
    return json.dumps(found)


def _stored_name(artifact: Artifact, name: str | None) -> str | None:
    config = get_config()
    by_type = config is not None and config.backend != "wandb"
    chosen = name or artifact.name or (artifact.type if by_type else None)
    return None if chosen is None else registry_name(chosen)


def _current_run() -> str:
    tracker, found = get_lineage_tracker(), lineage.run_id()
    try:
        found = found or (tracker.get_run_id() if tracker.is_active() else None)
    except (Exception, SystemExit) as error:  # noqa: BLE001 — as in _track
        logger.warning("The tracker does not say which run this is: %s", error)
    return found if isinstance(found, str) and found else "local"


def draft_of(artifact: Artifact, name: str) -> Draft:
    """The version that `artifact` would become under `name`."""
    folder = absolute(artifact._get_output_dir())
    return Draft(
        name=name,
        type=artifact.type,
        path=absolute(artifact.path),
        root=folder,
        fields=identity_fields(artifact, folder),
        document=document_of(artifact),
        created_at=artifact.created_at,
        producer=artifact.producer or "local",
        inputs=lineage.inputs(),
    )


def _refuse_shared_folder(artifact: Artifact, folder: Path) -> None:
    """A registered artifact owns its folder. One that is a file would take in all that lies around it."""
    shared = {Path("/"), Path.home(), Path(tempfile.gettempdir())}
    if artifact.path.is_file() and (folder in shared or (folder / ".git").exists()):
        raise UserError(
            f"{artifact.path} can't be registered where it lies: all of {folder} would belong to it.",
            hint="Put the file into a folder of its own.",
        )


def _track(artifact: Artifact, name: str, folder: Path, used: list[str]) -> None:
    """Tell the tracker. Whatever it does (not answer, answer nonsense, exit), the artifact is saved and the job goes
    on."""
    try:
        tracker = get_lineage_tracker()
        if not tracker.is_active():
            config = get_config()
            if config is not None and config.backend == "wandb":
                logger.warning("No W&B run is active: %s is not logged to W&B.", name)
            return
        info = tracker.log_artifact(artifact, name, used)
        known = {key: value for key, value in info.items() if key in _TRACKED and isinstance(value, str)}
        said = info.get("used_artifacts")
        all_texts = isinstance(said, list) and all(isinstance(ref, str) for ref in said)
        artifact.tracking = {**known, "used_artifacts": said if all_texts else used}  # type: ignore[assignment]
        write_document(folder, document_of(artifact))
    # SystemExit is how some clients end what they can't do.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        logger.warning("The tracker did not take %s, which is saved all the same: %s", name, error)


_TRACKED = frozenset({"artifact_id", "artifact_type", "run_id", "url"})
