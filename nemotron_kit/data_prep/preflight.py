"""What can be said before a data preparation, without reading data or writing anything: problems (settings, missing
files, network, disk space), and what the tasks of an array will read, and for how long, which a dry-run prints."""

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
    PackedTextConfig,
    RLPrepConfig,
    SftPrepConfig,
    load_rl_blend,
    parse_size,
    show_size,
)
from nemotron_kit.data_prep.local_files import Omissions, local_files_below, matching
from nemotron_kit.data_prep.planning import cut_shards, is_stream, text_size
from nemotron_kit.data_prep.prep_progress import DEFAULT_RATE, measured_rate
from nemotron_kit.data_prep.prepare import check_packages
from nemotron_kit.data_prep.shard_plan import LINEAR_DEAL, PlannedSource, SourceFile
from nemotron_kit.data_prep.sources import find_local, generated, is_remote, kind_of, list_files
from nemotron_kit.data_prep.tokenizer import HUB, local_tokenizer
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import kind_of_file
from nemotron_kit.home import expand_user
from nemotron_kit.objects import ObjectFolder, object_url

PATIENCE = 3.0  # seconds for all connections together
_HUB = "https://huggingface.co"
_BYTES_PER_TOKEN = 4  # of a shard with a large vocabulary; also about what a token is as text
_SHOWN = 16  # tasks with a line of their own
_LATER = "what each task reads is known once the plan"


def preflight(config: DataPrepConfig, *, connect: bool, smaller: str = "a smaller blend") -> list[str]:
    """Each problem as a sentence with its remedy; empty if the run may start.

    `connect` permits asking the hub, for at most `PATIENCE` seconds, whether it answers. `smaller` is what to try
    instead.
    """
    try:
        check_packages()
        if wrong := setting_problems(config):
            return wrong
        blend = DataBlend.load(config.blend_path)
    except UserError as error:
        return [str(error).replace("\n", " ")]
    problems = list(_missing(blend))
    if isinstance(config, SftPrepConfig) and not isinstance(config, PackedTextConfig):
        try:
            load_template(config.chat_template)
        except UserError as error:
            problems.append(str(error).replace("\n", " "))
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
        config.check()
        if config.shard_size is not None:
            parse_size(config.shard_size)
    except UserError as error:
        return [str(error).replace("\n", " ")]
    return []


def source_problems(blend: DataBlend, *, connect: bool, smaller: str) -> list[str]:
    """Problems of a blend's sources only: missing files, a hub that does not answer."""
    return [*_missing(blend), *_unreachable(blend, connect, smaller, None)]


def _missing(blend: DataBlend) -> Iterator[str]:
    for _, dataset in blend.used:
        if not is_remote(dataset.path):
            path = Path(find_local(dataset.path, blend.folder))
            mode = path.stat().st_mode if path.exists() else None
            if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                yield f"Dataset {dataset.name!r}: {path} is {kind_of_file(mode)}, not a regular file."
            elif mode is None and not matching(path):
                yield f"Dataset {dataset.name!r}: there is no {dataset.path}; correct its path in the blend file."


def _unreachable(blend: DataBlend, connect: bool, smaller: str, tokenizer: str | None) -> list[str]:
    """`tokenizer`: the one that the hub has."""
    needed = [dataset.path for _, dataset in blend.used if dataset.path.startswith("hf://")]
    if not needed:
        if tokenizer is None:
            return []
        # Only the folder in the hub's cache on this machine is checked: importing the hub's library takes long.
        home = Path(os.path.expanduser(os.environ.get("HF_HOME") or "~/.cache/huggingface"))  # noqa: PTH111
        cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
        name = tokenizer.removeprefix(HUB).partition("@")[0].replace("/", "--")
        if any((cache / f"models--{name}").glob("snapshots/*/tokenizer.json")):
            return []
    number = "the dataset" if len(needed) == 1 else f"{len(needed)} datasets such as"
    what = f"{number} {needed[0]}" if needed else f"the tokenizer {tokenizer}"
    estimate = f" (about {blend.tokens / 1e12:.1f} T tokens)" if needed and blend.tokens else ""
    why = _hub_refusal(connect)
    return [f"Can't fetch {what}{estimate}: {why}; try {smaller}, which needs no download."] if why else []


def _hub_refusal(connect: bool) -> str | None:
    """Why the hub can't be asked; None if it can be (or must not be tried). The attempt is made in a thread, since a
    name look-up has no time limit."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return "HF_HUB_OFFLINE is set"
    if not connect:
        return None
    url = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or os.environ.get("HF_ENDPOINT") or _HUB
    parts = urlsplit(url if "://" in url else f"http://{url}")
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
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
    size = 0
    for _, dataset in blend.used:
        if not is_remote(dataset.path):
            path = Path(find_local(dataset.path, blend.folder))
            files = local_files_below(path, Omissions()).values() if path.is_dir() else matching(path)
            size += sum(file.stat().st_size for file in files if kind_of(file.name))
    return float(size)


def array_outlook(config: DataPrepConfig, tasks: int, cpus: int | None) -> list[str]:
    """A line for each task: its shards, the bytes of files that it reads, and hours on `cpus` CPUs (None: one). No line
    for invalid settings: `preflight` has a sentence for each."""
    if setting_problems(config):
        return []
    try:
        blend = DataBlend.load(config.blend_path)
        sources = _listed(blend, config.text_field)
    except (NemotronError, OSError) as error:
        return [f"{_LATER} is made; on this machine, {str(error).splitlines()[0]}"]
    if config.sample is not None:
        return [f"with sample={config.sample} only the first rows of each source are read"]
    known, count = measured_rate(config.tokenizer_model), cpus or config.num_workers or 1
    rate = (known or DEFAULT_RATE) * count  # characters a second of a task
    whence = "measured here with this tokenizer" if known else "of the benchmark: none was measured here yet"
    whence = f"({show_size(rate / count)}/s of text a CPU, {whence}; {count} CPU{'s' if count > 1 else ''} a task)"
    if sources is None:
        if blend.tokens is None:
            return [f"{_LATER} has listed the sources, which are not files of this machine"]
        each = float(blend.tokens * _BYTES_PER_TOKEN) / tasks
        return [
            f"the blend has {blend.tokens / 1e12:.1f} T tokens: about {show_size(each)} of text for each of {tasks} "
            f"tasks, {_hours(each / rate)} {whence}"
        ]
    shards = cut_shards(sources, config, LINEAR_DEAL)
    read, text = [0.0] * tasks, [0.0] * tasks
    for number, shard in enumerate(shards):
        files = sources[shard.source].files
        for piece in shard.pieces:
            file, part = files[piece.file], len(piece.parts) / piece.of
            read[number % tasks] += file.size if is_stream(file.path) else file.size * part
            text[number % tasks] += text_size(file) * part
    files_in_all = sum(source.file_count for source in sources)
    size = show_size(sum(source.size for source in sources))
    lines = [f"{len(shards):,} shards of {files_in_all:,} files ({size}), as they lie here now"]
    for task in range(min(tasks, _SHOWN)):
        mine = len(range(task, len(shards), tasks))
        lines.append(f"task {task}: {mine:,} shards, reads {show_size(read[task])}, {_hours(text[task] / rate)}")
    if tasks > _SHOWN:
        lines.append(f"… and {tasks - _SHOWN} more; the most that one reads: {show_size(max(read))}")
    return [*lines, f"in all {show_size(sum(read))} read; the slowest task: {_hours(max(text) / rate)} {whence}"]


def rl_outlook(config: RLPrepConfig, tasks: int) -> list[str]:
    """The same for prompts, of which a task reads whole files."""
    try:
        sources = _listed(load_rl_blend(Path(config.blend_path)), "")
    except (NemotronError, OSError) as error:
        return [f"{_LATER} is made; on this machine, {str(error).splitlines()[0]}"]
    if sources is None:
        return [f"{_LATER} has listed the sources, which are remote"]
    files = [file for source in sources for file in source.files]
    if config.sample is not None:
        return [f"with sample={config.sample} the last step reads the first rows of {len(files):,} files"]
    return [
        f"task {task}: {len(files[task::tasks]):,} files, {show_size(sum(file.size for file in files[task::tasks]))}"
        for task in range(min(tasks, _SHOWN))
    ]


def _listed(blend: DataBlend, text_field: str) -> list[PlannedSource] | None:
    """The sources with their files; None where one is remote, or made when it is read: a dry-run asks nobody."""
    found = []
    for split, dataset in blend.used:
        if is_remote(dataset.path) or generated(dataset.path):
            return None
        listed = list_files(dataset, folder=blend.folder, corpora=Path(), left=Omissions())
        files = tuple(SourceFile(file.path, file.size, "") for file in listed)
        found.append(PlannedSource(dataset.name, dataset.path, split, dataset.weight, text_field, files))
    return found


def _hours(seconds: float) -> str:
    return f"about {seconds / 3600:.1f} h" if seconds >= 360 else f"about {seconds / 60:.1f} min"
