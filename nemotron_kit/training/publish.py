"""Copies a model's folder to another place, or uploads it to the Hugging Face hub, with its lineage in the model
card."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.artifacts.manifest import METADATA, read_document, sha256_file, walk
from nemotron_kit.artifacts.reference import Pin, Reference
from nemotron_kit.artifacts.weights import check_weights
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.files import aside, fsync_dir, write_text
from nemotron_kit.home import expand_user
from nemotron_kit.masking import mask, note_used
from nemotron_kit.training.checkpoint import remove, sync_and_hash
from nemotron_kit.training.export import CARD, local_name

if TYPE_CHECKING:
    from nemotron_kit.artifacts.registry import Registry

HUB = "hf://"
# The token is looked up in the environment only, not in files.
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", re.ASCII)
_LINEAGE = "## Lineage"
# The card of a model that came without one.
_NO_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

# {title}
"""


@dataclass(frozen=True)
class Place:
    """The destination of a model: a `folder` of this machine, or a `repository` (USER/NAME) of the hub."""

    folder: Path | None = None
    repository: str | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parse a destination. Raises UserError for any other text."""
        if not text.startswith(HUB):
            if "://" in text:
                raise UserError(f"to is {text}: a model goes to a folder, or to {HUB}USER/NAME.")
            return cls(folder=expand_user(text).absolute())
        name = text.removeprefix(HUB).removeprefix("models/").rstrip("/")
        if not _REPOSITORY.match(name) or ".." in name or "--" in name or len(name.partition("/")[2]) > 96:
            raise UserError(f"to is {text}: that names no repository of the hub.", hint=f"As in {HUB}USER/NAME.")
        return cls(repository=name)

    def problems(self) -> list[str]:
        """The problems that would prevent writing there."""
        if self.repository is not None:
            from importlib.util import find_spec

            missing = [] if token() else [f"{TOKENS[0]} is not set: an upload needs a token that may write. export it."]
            if find_spec("huggingface_hub") is None:
                missing.append("An upload needs huggingface_hub: pip install 'nemotron-kit[train]'.")
            return missing
        assert self.folder is not None  # noqa: S101 - one of the two is given
        if self.folder.is_dir() and any(self.folder.iterdir()):
            return [f"to: {self.folder} is not empty: nothing is written into a folder that holds something."]
        if self.folder.exists() and not self.folder.is_dir():
            return [f"to: {self.folder} is a file; a model is a folder."]
        return []


def token() -> str | None:
    """The hub's token, from the environment only; it is masked as *** in all output."""
    for name in TOKENS:
        if os.environ.get(name):
            note_used(name)
            return os.environ[name]
    return None


def files_of(pin: Pin, registry: Registry) -> dict[str, str]:
    """{relative path: sha256} of a pinned model, without files that belong to the registry only.

    The hashes are those computed at registration, if each file was read then; others are computed now. Raises UserError
    if there is no model.
    """
    folder = Path(pin.path)
    if not (folder / "config.json").is_file():
        raise UserError(f"{pin.label}: {folder} holds no model in transformers' format (no config.json).")
    check_weights(folder)
    recorded: dict[str, str | None] = {}
    if pin.version is not None:
        recorded = {entry.path: entry.sha256 for entry in registry.record_of(pin).files}
    return {name: recorded.get(name) or sha256_file(folder / name) for name in walk(folder) if name != METADATA}


def copy_model(pin: Pin, registry: Registry, folder: Path) -> None:
    """Copy the model to `folder`, atomically; each copy is read again and must have the original's sha256."""
    source, files = Path(pin.path), files_of(pin, registry)
    text = card(pin, registry)
    building = aside(folder)
    try:
        building.mkdir(parents=True)
        for name in files:
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, building / name)
        found = sync_and_hash(building)
        for name, expected in files.items():
            if (is_hash := found[name]["sha256"]) != expected:
                raise NemotronError(
                    f"{source / name}: its copy has the sha256 {is_hash[:12]}…, and should have {expected[:12]}…: "
                    "it has changed since it was registered, or was copied wrong. Nothing was written."
                )
        write_text(building / CARD, text, mode=0o666)
        building.rename(folder)
        fsync_dir(folder.parent)
    except OSError as error:
        raise NemotronError(f"{folder}: the model can't be written: {error.strerror or error}.") from error
    finally:
        if building.exists():
            remove(building)


def upload_model(pin: Pin, registry: Registry, repository: str, *, private: bool) -> str:
    """Upload the model as one commit; returns the commit's address. A missing repository is created. Raises UserError
    for a public one if `private` is asked for."""
    import logging
    from importlib import import_module

    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined,unused-ignore]

    # Which HTTP library it uses depends on its version.
    library = type(get_session()).__module__.partition(".")[0]
    no_answer = getattr(import_module(library), "TransportError", OSError)
    logging.getLogger(library).setLevel(logging.WARNING)
    api: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token() or False)
    source, files = Path(pin.path), files_of(pin, registry)
    additions = [CommitOperationAdd(name, str(source / name)) for name in files if name != CARD]
    additions.append(CommitOperationAdd(CARD, card(pin, registry).encode()))
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        # `private` says what a new one becomes; one that is there stays as it is.
        if private and not api.model_info(repository).private:
            raise UserError(
                f"{HUB}{repository} is public: the model would be, too. Nothing was uploaded.",
                hint="--no-private uploads it all the same. Or make the repository private in its settings on the hub.",
            )
        made = api.create_commit(repository, additions, commit_message=f"Upload {pin.label}")
    except HfHubHTTPError as error:
        code = getattr(getattr(error, "response", None), "status_code", None)
        refused = f"May {TOKENS[0]} write to it? Is it yours?" if code in (401, 403, 404) else None
        raise NemotronError(f"{HUB}{repository}: {_one_line(error)}", hint=refused) from None
    except (no_answer, OSError) as error:
        raise Unreachable(f"{HUB}{repository}: the hub does not answer: {_one_line(error)}") from None
    return str(made.commit_url)


def _one_line(error: Exception) -> str:
    return mask(" ".join(str(error).split()))


def card(pin: Pin, registry: Registry) -> str:
    """The model's card with its lineage: its inputs, and theirs in turn. Paths of this machine are reduced to their
    last component."""
    file = Path(pin.path) / CARD
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = _NO_CARD.format(title=pin.name or Path(pin.path).name)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: the model's card can't be read: {error}.") from error
    before = text.partition(f"\n{_LINEAGE}\n")[0].rstrip()
    lines = [f"{'  ' * depth}- {shown}" for depth, shown in _ancestors(pin, registry, 0, set())]
    return "\n".join([before, "", _LINEAGE, "", *lines, ""])


def _ancestors(pin: Pin, registry: Registry, depth: int, seen: set[str]) -> Iterator[tuple[int, str]]:
    """(depth, description) of the artifact and of all its ancestors, each described in full once."""
    again = pin.uri in seen
    seen.add(pin.uri)
    label = f"`{pin.label}`" if pin.version is not None else _public(pin.path)
    yield depth, f"{label}{f' ({pin.type})' if pin.type else ''}{', as above' if again else ''}"
    if again:
        return
    inputs, document = _made_from(pin, registry)
    for source in document.get("source_datasets") or []:
        yield depth + 1, _public(source if isinstance(source, str) else str(source.get("uri")))
    if document.get("tokenizer_uri"):
        yield depth + 1, f"tokenizer {_public(str(document['tokenizer_uri']))}"
    for each in inputs:
        yield from _ancestors(each, registry, depth + 1, seen)


def _made_from(pin: Pin, registry: Registry) -> tuple[list[Pin], dict[str, Any]]:
    try:
        if pin.version is not None:
            record = registry.record_of(pin)
            return list(record.inputs), record.document
        document = read_document(Path(pin.path) if Path(pin.path).is_dir() else Path(pin.path).parent) or {}
    except NemotronError:  # another registry's, or damaged: only its name is known
        return [], {}
    used = (document.get("tracking") or {}).get("used_artifacts") or []
    found = []
    for uri in used:
        try:
            found.append(registry.resolve(Reference.parse(str(uri))))
        except NemotronError:
            found.append(Pin(str(uri).removeprefix("art://"), None, None, "", str(uri)))
    return found, document


def _public(uri: str) -> str:
    name = local_name(uri)
    return f"`{uri}`" if name is None else f"`{name}` (a local path)"
