"""What an array's tasks will read, and for how long: printed by a dry-run, from names and sizes of files alone."""

from __future__ import annotations

from pathlib import Path

from nemotron_kit.data_prep.config import DataBlend, DataPrepConfig, RLPrepConfig, load_rl_blend, show_size
from nemotron_kit.data_prep.local_files import Omissions
from nemotron_kit.data_prep.planning import cut_shards, is_stream, text_size
from nemotron_kit.data_prep.prep_progress import DEFAULT_RATE, measured_rate
from nemotron_kit.data_prep.shard_plan import LINEAR_DEAL, PlannedSource, SourceFile
from nemotron_kit.data_prep.sources import generated, is_remote, list_files
from nemotron_kit.errors import NemotronError

_SHOWN = 16  # tasks with a line of their own


def array_outlook(config: DataPrepConfig, tasks: int, cpus: int | None) -> list[str]:
    """A line for each task: its shards, the bytes of files that it reads, and hours on `cpus` CPUs (None: one)."""
    try:
        blend = DataBlend.load(config.blend_path)
        sources = _listed(blend, config.text_field)
    except (NemotronError, OSError) as error:
        return [f"what each task reads is known once the plan is made; on this machine, {str(error).splitlines()[0]}"]
    if config.sample is not None:
        return [f"with sample={config.sample} only the first rows of each source are read"]
    if sources is None:
        return _of_tokens(blend, config, tasks, cpus)
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
    rate, whence = _rate(config.tokenizer_model, cpus or config.num_workers)
    for task in range(min(tasks, _SHOWN)):
        count = len(range(task, len(shards), tasks))
        lines.append(f"task {task}: {count:,} shards, reads {show_size(read[task])}, {_hours(text[task] / rate)}")
    if tasks > _SHOWN:
        lines.append(f"… and {tasks - _SHOWN} more; the most that one reads: {show_size(max(read))}")
    return [*lines, f"in all {show_size(sum(read))} read; the slowest task: {_hours(max(text) / rate)} {whence}"]


def rl_outlook(config: RLPrepConfig, tasks: int) -> list[str]:
    """The same for prompts, of which a task reads whole files."""
    try:
        sources = _listed(load_rl_blend(Path(config.blend_path)), "")
    except (NemotronError, OSError) as error:
        return [f"what each task reads is known once the plan is made; on this machine, {str(error).splitlines()[0]}"]
    if sources is None:
        return ["what each task reads is known once the plan has listed the sources, which are remote"]
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
    for split, datasets in blend.splits.items():
        for dataset in datasets:
            if dataset.weight and (is_remote(dataset.path) or generated(dataset.path)):
                return None
            if dataset.weight:
                listed = list_files(dataset, folder=blend.folder, corpora=Path(), left=Omissions())
                files = tuple(SourceFile(file.path, file.size, "") for file in listed)
                found.append(PlannedSource(dataset.name, dataset.path, split, dataset.weight, text_field, files))
    return found


def _of_tokens(blend: DataBlend, config: DataPrepConfig, tasks: int, cpus: int | None) -> list[str]:
    if blend.tokens is None:
        return [
            "what each task reads is known once the plan has listed the sources, which are not files of this machine"
        ]
    text = blend.tokens * 4.0 / tasks  # about what a token is as text
    rate, whence = _rate(config.tokenizer_model, cpus or config.num_workers)
    return [
        f"the blend has {blend.tokens / 1e12:.1f} T tokens: about {show_size(text)} of text for each of {tasks} tasks, "
        f"{_hours(text / rate)} {whence}"
    ]


def _rate(model: str, cpus: int | None) -> tuple[float, str]:
    """Characters a second of a task, and where that is from."""
    known = measured_rate(model)
    rate, count = known or DEFAULT_RATE, cpus or 1
    source = "measured here with this tokenizer" if known else "of the benchmark: none was measured here yet"
    return rate * count, f"({show_size(rate)}/s of text a CPU, {source}; {count} CPU{'s' if count > 1 else ''} a task)"


def _hours(seconds: float) -> str:
    return f"about {seconds / 3600:.1f} h" if seconds >= 360 else f"about {seconds / 60:.1f} min"
