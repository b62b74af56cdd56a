"""Checks before a data preparation: settings, missing files, network, disk space. Reads no data and writes nothing."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from nemotron_kit.data_prep.chat import load_template
from nemotron_kit.data_prep.config import (
    DataBlend,
    DataPrepConfig,
    Dataset,
    PackedTextConfig,
    SftPrepConfig,
    parse_size,
    show_size,
)
from nemotron_kit.data_prep.local_files import Omissions, local_files_below, matching
from nemotron_kit.data_prep.prepare import check_packages
from nemotron_kit.data_prep.sources import find_local, is_remote, kind_of
from nemotron_kit.data_prep.tokenizer import HUB, local_tokenizer
from nemotron_kit.errors import UserError
from nemotron_kit.files import kind_of_file
from nemotron_kit.home import expand_user
from nemotron_kit.objects import ObjectFolder, object_url

PATIENCE = 3.0  # seconds for all connections together
_HUB = "https://huggingface.co"
_BYTES_PER_TOKEN = 4  # of a shard with a large vocabulary; also about what a token is as text


def preflight(config: DataPrepConfig, *, connect: bool, smaller: str = "a smaller blend") -> list[str]:
    """Each problem as a sentence with its remedy; empty if the run may start.

    `connect` permits asking the hub, for at most `PATIENCE` seconds, whether it answers. `smaller` is what to try
    instead.
    """
    try:
        check_packages()
        _check_settings(config)
        blend = DataBlend.load(config.blend_path)
    except UserError as error:
        return [str(error).replace("\n", " ")]
    problems = [*_missing(blend), *_template_problems(config)]
    tokenizer = None
    try:
        if local_tokenizer(config.tokenizer_model) is None:
            tokenizer = config.tokenizer_model
    except UserError as error:
        problems.append(str(error))
    problems += _unreachable(blend, connect, smaller, tokenizer)
    problems += _full(config, blend, smaller)
    return problems


def setting_problems(config: DataPrepConfig) -> list[str]:
    """Problems on any machine: invalid settings."""
    try:
        _check_settings(config)
    except UserError as error:
        return [str(error).replace("\n", " ")]
    return []


def source_problems(blend: DataBlend, *, connect: bool, smaller: str) -> list[str]:
    """Problems of a blend's sources only: missing files, a hub that does not answer."""
    return [*_missing(blend), *_unreachable(blend, connect, smaller, None)]


def _check_settings(config: DataPrepConfig) -> None:
    config.check()
    if config.shard_size is not None:
        parse_size(config.shard_size)


def _template_problems(config: DataPrepConfig) -> Iterator[str]:
    if isinstance(config, SftPrepConfig) and not isinstance(config, PackedTextConfig):
        try:
            load_template(config.chat_template)
        except UserError as error:
            yield str(error).replace("\n", " ")


def _missing(blend: DataBlend) -> Iterator[str]:
    for dataset in blend.datasets:
        if dataset.weight and not is_remote(dataset.path):
            path = Path(find_local(dataset.path, blend.folder))
            mode = path.stat().st_mode if path.exists() else None
            if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                yield f"Dataset {dataset.name!r}: {path} is {kind_of_file(mode)}, not a regular file."
            elif mode is None and not matching(path):
                yield f"Dataset {dataset.name!r}: there is no {dataset.path}; correct its path in the blend file."


def _unreachable(blend: DataBlend, connect: bool, smaller: str, tokenizer: str | None) -> list[str]:
    """`tokenizer`: the one that the hub has."""
    needed = [dataset.path for dataset in blend.datasets if dataset.path.startswith("hf://") and dataset.weight]
    if not needed and (tokenizer is None or _is_cached(tokenizer.removeprefix(HUB))):
        return []
    number = "the dataset" if len(needed) == 1 else f"{len(needed)} datasets such as"
    what = f"{number} {needed[0]}" if needed else f"the tokenizer {tokenizer}"
    estimate = f" (about {blend.tokens / 1e12:.1f} T tokens)" if needed and blend.tokens else ""
    why = _hub_refusal(connect)
    return [f"Can't fetch {what}{estimate}: {why}; try {smaller}, which needs no download."] if why else []


def _hub_refusal(connect: bool) -> str | None:
    """Why the hub can't be asked; None if it can be (or must not be tried)."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return "HF_HUB_OFFLINE is set"
    if not connect:
        return None
    url = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or os.environ.get("HF_ENDPOINT") or _HUB
    parts = urlsplit(url if "://" in url else f"http://{url}")
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return _connection_error(host, port)


def _connection_error(host: str, port: int) -> str | None:
    """The error of a connection attempt, made in a thread since a name look-up has no time limit."""
    outcome: list[str | None] = []

    def attempt() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(f"{host} can't be reached ({error.strerror or error})")

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return outcome[0] if outcome else f"{host} did not answer within {PATIENCE:.0f} s"


def _full(config: DataPrepConfig, blend: DataBlend, smaller: str) -> Iterator[str]:
    """Problems of the output folder: not writable, or too small for the estimate."""
    if (url := object_url(config.output_dir)) is not None:
        try:
            ObjectFolder(url)
        except UserError as error:
            yield f"output_dir: {error}".replace("\n", " ")
        return
    folder = expand_user(config.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield f"output_dir: {folder} is no folder that can be written to; choose another."
        return
    needed, free = _estimate(config, blend), shutil.disk_usage(folder).free
    if needed > free:
        yield f"The shards need about {show_size(needed)} in {folder}, which has {show_size(free)} free; try {smaller}."


def _estimate(config: DataPrepConfig, blend: DataBlend) -> float:
    """Bytes of output, estimated from published tokens or the size of local files; 0 if neither is known."""
    if config.sample is not None:
        return 0.0
    if blend.tokens is not None:
        return float(blend.tokens * _BYTES_PER_TOKEN)
    local = [d for d in blend.datasets if not is_remote(d.path) and d.weight]
    return float(sum(_local_size(dataset, blend.folder) for dataset in local))


def _local_size(dataset: Dataset, folder: Path) -> int:
    path = Path(find_local(dataset.path, folder))
    files = (
        local_files_below(path, Omissions()).values() if path.is_dir() else [path] if path.is_file() else matching(path)
    )
    return sum(file.stat().st_size for file in files if kind_of(file.name))


def _is_cached(model: str) -> bool:
    """Whether the hub's cache on this machine has the tokenizer. Only its folder is checked: importing the hub's
    library takes long."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = cache / f"models--{model.partition('@')[0].replace('/', '--')}"
    return any(folder.glob("snapshots/*/tokenizer.json"))
