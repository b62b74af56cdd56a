"""Output in an object store: a folder of this cluster with the plan and the records, and the store's URL."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.manifest import METADATA
from nemotron_kit.files import read_regular, write_json
from nemotron_kit.home import expand_user, nemotron_home
from nemotron_kit.objects import ObjectFolder, object_url

STORE_FILE = "store.json"
# The files of the folder that `publish` copies to the store, without those of _KEPT_HERE. Shards are in it already.
_KEPT_HERE = (STORE_FILE, METADATA, "inputs.json")
_PUBLISHED = ("*.json", "*.jsonl", "tokenizer/*", "splits/**/*")


def working_folder(output: str | os.PathLike[str]) -> Path:
    """The folder where an output is made: itself, or for a URL one below NEMOTRON_HOME (of a job: of the folder that
    all jobs of its cluster see), which says which URL it is for."""
    url = object_url(output)
    if url is None:
        return expand_user(output).absolute()
    job = os.environ.get("NEMO_RUN_DIR")
    root = Path(job).absolute().parents[3] if job and len(Path(job).absolute().parents) > 3 else nemotron_home()
    name = url.rpartition("/")[2] or "output"
    folder = root / "data-prep" / f"{name}-{hashlib.sha256(url.encode('utf-8')).hexdigest()[:12]}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(folder / STORE_FILE, {"url": url}, mode=0o666)
    return folder


@lru_cache
def store_of(folder: Path) -> ObjectFolder | None:
    """The store whose working folder this is; None for a folder that is the output itself."""
    try:
        return ObjectFolder(str(json.loads(read_regular(folder / STORE_FILE))["url"]))
    except FileNotFoundError:
        return None


def place(folder: Path, name: str) -> str:
    """The URL of a file of the output in the store, or its path in the folder."""
    store = store_of(folder)
    return store.at(name) if store else str(folder / name)


def publish(folder: Path, artifact: Any) -> None:
    """Copy what the folder has besides shards to the store, and put the store's URL into the artifact's metadata."""
    store = store_of(folder)
    if store is None:
        return
    artifact.metadata["uri"] = store.url
    found = {path for pattern in _PUBLISHED for path in folder.glob(pattern) if path.is_file()}
    # blend.json and manifest.json last: whoever finds one takes the files that it names for complete.
    for path in sorted(found, key=lambda path: (path.parent == folder and path.suffix == ".json", path)):
        name = str(path.relative_to(folder))
        if name in _KEPT_HERE:
            continue
        if path.suffix == ".json" and len(Path(name).parts) == 1:
            text = path.read_text(encoding="utf-8")
            store.put_text(text.replace(json.dumps(str(folder))[1:-1], store.url), name)
        else:
            store.put(path, name)
