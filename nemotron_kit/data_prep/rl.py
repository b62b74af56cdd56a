"""RL prompts: the rows of a blend with all their fields, placeholders filled in, as one JSONL file for each split.

A row is in NeMo-Gym's format: `responses_create_params` (with its `input`), `agent_ref` (whose `name` names the
verifier), and any fields that the verifier reads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from nemotron_kit import artifacts
from nemotron_kit.artifacts.datasets import InputDatasetInfo
from nemotron_kit.data_prep import sources
from nemotron_kit.data_prep.config import FINISH, PLAN, SHARDS, DataBlend, RLPrepConfig, load_rl_blend
from nemotron_kit.data_prep.indexed import HashedFile, holds
from nemotron_kit.data_prep.placeholders import Restorer, identity_of, rows_of_file
from nemotron_kit.data_prep.prep_progress import print_line
from nemotron_kit.data_prep.prepare import check_packages
from nemotron_kit.data_prep.shard_plan import ALL
from nemotron_kit.data_prep.sources import FoundFile
from nemotron_kit.data_prep.stored import publish, store_of, working_folder
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import fsync_dir, write_json
from nemotron_kit.runs.metrics import log_metrics

MANIFEST = "manifest.json"
INPUTS = "inputs.json"
REPORT = "report.json"
SPLITS = ("train", "val", "test")
_VERSION = 1
_NAMED_VERSION = 2  # of blends that name the splits: version 1 cut these sources by the ratios, too


@dataclass(frozen=True)
class _Input:
    """A file of a dataset; `split` is the source's own name of its split ("" for none)."""

    dataset: str
    split: str
    file: FoundFile
    identity: str


@dataclass
class _Part:
    """The result of one input file: its rows are in `path`, a line each; `keys` are equal for rows with the same
    prompt."""

    path: Path
    rows: int = 0
    restored: int = 0
    agents: Counter[str] = field(default_factory=Counter)
    keys: array[int] = field(default_factory=lambda: array("Q"))


def prepare_rl(config: RLPrepConfig) -> artifacts.SplitJsonlDataArtifact:
    """Write train.jsonl, val.jsonl, test.jsonl and manifest.json to `config.output_dir`; return them as an artifact.

    Complete output of the same blend and settings is kept; a run that was stopped continues with the files that it had
    finished. `config.step` does a part of the work, as in `run_data_prep`: a task reads its files (with `sample`, which
    goes from file to file, the last step reads them); None is returned then. Raises UserError for bad input, naming
    file and row.
    """
    check_packages()
    config.check()
    began = monotonic()
    blend = load_rl_blend(Path(config.blend_path))
    output = working_folder(config.output_dir)
    frozen = config.step == SHARDS or (config.step == FINISH and not (output / MANIFEST).exists())
    inputs = _planned(output) if frozen else _inputs(blend, output / "sources")
    restorer = Restorer(blend, output / "sources")
    named = ALL not in blend.splits
    run_hash = _run_hash(config, inputs, restorer, named=named)
    if config.force and config.step in (None, PLAN):
        _clear(output)
    found = _finished(output, run_hash)
    if config.step == PLAN:
        if found is None:
            _require_free(output, run_hash)
            (output / MANIFEST).unlink(missing_ok=True)
        rows = [[one.dataset, one.split, one.identity, *vars(one.file).values()] for one in inputs]
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / INPUTS, {"files": rows}, mode=0o666)  # which files the steps after this one read
        print_line(f"data prep: {len(rows):,} files are to be read")
        return None  # type: ignore[return-value]
    if config.step == SHARDS:
        if found is None and config.sample is None:
            _read_some(range(len(inputs))[config.task :: config.tasks], inputs, restorer, output, run_hash)
        return None  # type: ignore[return-value]
    if found is None:
        if config.step is None:
            _require_free(output, run_hash)
        found = _make(config, inputs, restorer, output, run_hash, named=named)
    else:
        print_line("data prep: everything is there already")
    (output / INPUTS).unlink(missing_ok=True)  # no part of the data
    _print_summary(found)
    artifact = _artifact(blend, found, output, monotonic() - began)
    publish(output, artifact)
    artifact.save(name=config.artifact_name)
    return artifact


def _planned(output: Path) -> list[_Input]:
    path = output / INPUTS
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["files"]
        return [_Input(dataset, split, FoundFile(*file), identity) for dataset, split, identity, *file in rows]
    except FileNotFoundError:
        raise UserError(f"{output} holds no {INPUTS}.", hint="step=plan makes it, before the other steps.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged: {error}.", hint="step=plan makes it again.") from error


@contextmanager
def _parts_folder(output: Path, run_hash: str) -> Iterator[Path]:
    """The folder of the files' rows, until they are put together. An OSError in the block becomes a NemotronError."""
    folder = output / f".parts-{run_hash}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise NemotronError(
            f"{error.filename or output}: {error.strerror or error}.", hint="What is finished is kept: run it again."
        ) from error


def _read_some(mine: range, inputs: list[_Input], restorer: Restorer, output: Path, run_hash: str) -> None:
    """Read the files of one task, whose rows the last step puts together."""
    rows = 0
    with _parts_folder(output, run_hash) as folder:
        for done, number in enumerate(mine, 1):
            rows += _read(inputs[number], folder / f"{number:05d}.jsonl", None, restorer).rows
            log_metrics({"shards": done, "of": len(mine), "rows": rows})
    print_line(f"data prep: {rows:,} rows of {len(mine)} of {len(inputs)} files")


def _make(
    config: RLPrepConfig, inputs: list[_Input], restorer: Restorer, output: Path, run_hash: str, *, named: bool
) -> dict[str, Any]:
    """Read every file, then write the splits, the report and finally the manifest; returns the report."""
    with _parts_folder(output, run_hash) as folder:
        left: dict[tuple[str, str], int | None] = {(one.dataset, one.split): config.sample for one in inputs}
        parts = []
        for number, one in enumerate(inputs):
            limit = left[one.dataset, one.split]
            part = _read(one, folder / f"{number:05d}.jsonl", limit, restorer)
            left[one.dataset, one.split] = None if limit is None else limit - part.rows
            parts.append(part)
        places = _assigned(config, inputs, parts, named=named)
        report = _written(config, inputs, parts, places, output, run_hash)
        for each in output.glob(".parts-*"):  # of runs with other settings, too, that were stopped
            shutil.rmtree(each)
    return report


def _inputs(blend: DataBlend, corpora: Path) -> list[_Input]:
    found = []
    for given, dataset in blend.used:
        splits = sources.list_splits(dataset, folder=blend.folder, corpora=corpora)
        if given != ALL and len(splits) > 1:
            # Of a dataset with splits of its own the one for which the blend names it.
            known = ", ".join(repr(name) for name in splits if name)
            splits = {name: files for name, files in splits.items() if _OWN.get(name) == _OWN[given]}
            if not splits:
                raise UserError(
                    f"dataset {dataset.name!r}: the blend has it under {given!r}, and its own splits are {known}.",
                    hint='Name the one to read in the blend file, as "split": "…".',
                )
        for split, files in splits.items():
            own = split if given == ALL else given
            found += [_Input(dataset.name, own, file, identity_of(file)) for file in files]
    return found


def _run_hash(config: RLPrepConfig, inputs: list[_Input], restorer: Restorer, *, named: bool) -> str:
    """A digest of everything that determines the output; `named` is whether the blend names the splits."""
    settings = {name: getattr(config, name) for name in ("train_ratio", "valid_ratio", "test_ratio", "seed", "sample")}
    read = [[one.dataset, one.split, one.identity] for one in inputs]
    text = json.dumps([_NAMED_VERSION if named else _VERSION, settings, read, restorer.identity], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _finished(output: Path, run_hash: str) -> dict[str, Any] | None:
    """The report of an earlier run with this hash whose files are complete, else None."""
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        report: dict[str, Any] = json.loads((output / REPORT).read_text(encoding="utf-8"))
        if not manifest["run_hash"] == report["run_hash"] == run_hash:
            return None
        if not all(holds(output / f"{split}.jsonl", (size, sha)) for split, (size, sha) in report["files"].items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return report


def _clear(output: Path) -> None:
    """Remove what an earlier run has finished, so that every file is read again."""
    if store := store_of(output):
        store.remove([MANIFEST, *(f"{split}.jsonl" for split in SPLITS)])
    (output / MANIFEST).unlink(missing_ok=True)
    for parts in output.glob(".parts-*"):
        shutil.rmtree(parts, ignore_errors=True)


def _require_free(output: Path, run_hash: str) -> None:
    """Raise UserError if the folder, or the store that it is for, holds another run's data."""
    store = store_of(output)
    manifests = {str(output): (output / MANIFEST).read_bytes() if (output / MANIFEST).exists() else None}
    if store is not None:
        manifests[store.url] = store.read(MANIFEST)
    for where, manifest in manifests.items():
        try:
            known = run_hash if manifest is None else json.loads(manifest)["run_hash"]
        except (ValueError, KeyError, TypeError):
            known = None
        if known != run_hash:
            raise UserError(
                f"output_dir: {where} holds data of another blend, or of other settings.",
                hint="Use --force to replace it, or another output_dir.",
            )


def _read(one: _Input, path: Path, limit: int | None, restorer: Restorer) -> _Part:
    """The rows of a file, written to `path`; kept if an earlier run has finished it."""
    record = path.with_suffix(".json")
    with suppress(OSError, ValueError, KeyError, TypeError):  # no record that can be read: the file is read again
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["limit"] == limit and path.stat().st_size == known["size"]:
            return _Part(path, known["rows"], known["restored"], Counter(known["agents"]), array("Q", known["keys"]))
    if identity_of(one.file) != one.identity:
        raise UserError(f"{one.file.path}: it has changed since the plan was made.", hint="step=plan makes it again.")
    part = _Part(path)
    with HashedFile(path) as out:
        for where, line, row in rows_of_file(one.file.path):
            if limit is not None and part.rows >= limit:
                break
            at = f"{one.file.path}, {where}"
            if row.get("_hf_placeholder") is not None:
                row, line = restorer.restored(row, at), None
                part.restored += 1
            part.agents[_checked(row, at)] += 1
            prompt = json.dumps(row["responses_create_params"]["input"], sort_keys=True).encode("utf-8")
            part.keys.append(int.from_bytes(hashlib.blake2b(prompt, digest_size=8).digest(), "big"))
            out.write((line if line is not None else as_json(row, at)) + b"\n")
            part.rows += 1
        out.publish()
    counts = {"rows": part.rows, "restored": part.restored, "agents": dict(part.agents), "limit": limit}
    write_json(record, {**counts, "size": out.size, "keys": list(part.keys)}, mode=0o666)
    return part


def as_json(row: Mapping[str, Any], at: str) -> bytes:
    """A row as a line. Raises UserError, with the location `at`, for one that JSON can't represent."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError) as error:  # Parquet holds times and bytes, too
        raise UserError(f"{at}: it can't be represented in JSON: {error}.") from error


def _checked(row: Mapping[str, Any], at: str) -> str:
    """The name of the row's agent. Raises UserError if the row lacks a required field."""
    params = row.get("responses_create_params")
    given = params.get("input") if isinstance(params, dict) else None
    if not given or not isinstance(given, str | list):
        what = "responses_create_params" if not isinstance(params, dict) else "responses_create_params.input"
        raise UserError(
            f"{at}: there is no {what}: the row has no prompt; it has {_fields(row)}.",
            hint='A row has "responses_create_params": {"input": [{"role": "user", "content": "…"}]}.',
        )
    agent = row.get("agent_ref")
    name = agent.get("name") if isinstance(agent, dict) else None
    if not name or not isinstance(name, str):
        what = "agent_ref" if not isinstance(agent, dict) else "agent_ref.name"
        raise UserError(
            f"{at}: there is no {what}: no verifier is named for its answers; it has {_fields(row)}.",
            hint='A row has "agent_ref": {"type": "responses_api_agents", "name": "…"}.',
        )
    return name


def _fields(row: Mapping[str, Any]) -> str:
    return ", ".join(sorted(row)[:8]) or "nothing"


# A file without a split, beside files with one, counts as train.
_OWN = {"": "train", "train": "train", "valid": "val", "validation": "val", "val": "val", "dev": "val", "test": "test"}


def _assigned(config: RLPrepConfig, inputs: list[_Input], parts: list[_Part], *, named: bool) -> list[list[str] | str]:
    """For each file the split of its rows: one for all, or one for each row.

    A dataset that has splits of its own, or whose split the blend names (`named`), keeps them; any other is cut by the
    ratios, with all rows of a prompt in one split, also where another dataset has that prompt.
    """
    places: list[list[str] | str] = ["train"] * len(parts)
    known: dict[int, str] = {}
    to_cut = []
    for dataset in dict.fromkeys(one.dataset for one in inputs):
        mine = [number for number, one in enumerate(inputs) if one.dataset == dataset]
        if not named and len({inputs[number].split for number in mine}) == 1:
            to_cut.append(mine)
            continue
        for number in mine:
            given = inputs[number].split
            if given not in _OWN:
                raise UserError(
                    f"dataset {dataset!r}: its split {given!r} is none of {', '.join(_OWN)}.",
                    hint=f'Name the one to read in the blend file, as "split": "{given}".',
                )
            places[number] = split = _OWN[given]
            known |= {key: split for key in parts[number].keys if known.get(key, "train") == "train"}
    for mine in to_cut:
        split_of = _cut(config, [key for number in mine for key in parts[number].keys], known)
        known |= split_of
        for number in mine:
            places[number] = [split_of[key] for key in parts[number].keys]
    return places


def _cut(config: RLPrepConfig, keys: list[int], known: Mapping[int, str]) -> dict[int, str]:
    """The split of each key: that of `known`, others in an order that depends on the seed only; val and test get a row
    each if there are three."""
    count = Counter(keys)
    split_of = {key: known.get(key, "train") for key in count}
    salt = str(config.seed).encode("ascii")
    order = sorted(
        count.keys() - known.keys(),
        key=lambda key: hashlib.blake2b(key.to_bytes(8, "big"), key=salt, digest_size=16).digest(),
    )
    for split in ("test", "val"):
        wanted = round(len(keys) * config.ratios[split])
        wanted = max(wanted, 1) if config.ratios[split] and len(count) >= len(SPLITS) else wanted
        wanted -= sum(count[key] for key in count.keys() & known.keys() if known[key] == split)
        while wanted > 0 and len(order) > 1:
            key = order.pop()
            split_of[key] = split
            wanted -= count[key]
    return split_of


def _written(
    config: RLPrepConfig,
    inputs: list[_Input],
    parts: list[_Part],
    places: list[list[str] | str],
    output: Path,
    run_hash: str,
) -> dict[str, Any]:
    """Write the splits, then the report, then the manifest that marks them as complete; returns the report."""
    rows: Counter[str] = Counter()
    seen: dict[str, set[int]] = {split: set() for split in SPLITS}
    made: dict[str, tuple[int, str]] = {}
    with ExitStack() as stack:
        files = {split: stack.enter_context(HashedFile(output / f"{split}.jsonl")) for split in SPLITS}
        for part, place in zip(parts, places, strict=True):
            with part.path.open("rb") as lines:
                for number, line in enumerate(lines):
                    split = place if isinstance(place, str) else place[number]
                    files[split].write(line)
                    rows[split] += 1
                    seen[split].add(part.keys[number])
        if not rows["train"]:
            read = ", ".join(one.file.path for one in inputs[:5])
            raise UserError("No row is left for training.", hint=f"Read were {read}.")
        # The manifest marks the files beside it as complete: it is removed before they are replaced.
        (output / MANIFEST).unlink(missing_ok=True)
        for split, file in files.items():
            written = file.finish()
            if rows[split]:
                written.temporary.replace(written.final)
                made[split] = written.size, written.sha256
            else:
                written.final.unlink(missing_ok=True)
    fsync_dir(output)
    report = {
        "run_hash": run_hash,
        "rows": {split: rows[split] for split in SPLITS},
        "held_out_in_train": len((seen["val"] | seen["test"]) & seen["train"]),
        "files": made,
        "datasets": _counts(inputs, parts),
    }
    write_json(output / REPORT, report, mode=0o666)
    manifest = {
        **{split: str(output / f"{split}.jsonl") if rows[split] else None for split in SPLITS},
        "mode": "resolve",
        "source_splits": sorted({one.split for one in inputs if one.split}),
        "run_hash": run_hash,
    }
    write_json(output / MANIFEST, manifest, mode=0o666)
    return report


def _counts(inputs: list[_Input], parts: list[_Part]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one, part in zip(inputs, parts, strict=True):
        entry = found.setdefault(one.dataset, {"name": one.dataset, "files": 0, "rows": 0, "restored": 0, "agents": {}})
        entry["files"] += 1
        entry["rows"] += part.rows
        entry["restored"] += part.restored
        for agent, count in part.agents.items():
            entry["agents"][agent] = entry["agents"].get(agent, 0) + count
    return list(found.values())


def _print_summary(report: Mapping[str, Any]) -> None:
    for dataset in report["datasets"]:
        agents = ", ".join(f"{name} {count:,}" for name, count in sorted(dataset["agents"].items()))
        restored = f", {dataset['restored']:,} of them restored" if dataset["restored"] else ""
        print_line(f"data prep: {dataset['name']}: {dataset['rows']:,} rows{restored} ({agents})")
    print_line("data prep: " + ", ".join(f"{split} {report['rows'][split]:,}" for split in SPLITS) + " rows")
    if report["held_out_in_train"]:
        count = report["held_out_in_train"]
        print_line(f"data prep: {count:,} prompts of the source's val or test are in its train too.")


def _artifact(
    blend: DataBlend, report: Mapping[str, Any], output: Path, elapsed: float
) -> artifacts.SplitJsonlDataArtifact:
    rows = {entry["name"]: entry["rows"] for entry in report["datasets"]}
    agents: Counter[str] = sum((Counter(entry["agents"]) for entry in report["datasets"]), Counter())
    used: list[InputDatasetInfo | str] = [
        InputDatasetInfo(
            uri=sources.uri_of(dataset, blend.folder),
            name=dataset.name,
            split=dataset.split,
            subset=dataset.subset,
            num_rows=rows.get(dataset.name),
        )
        for _, dataset in blend.used
    ]
    paths = {split: str(output / f"{split}.jsonl") if report["rows"][split] else None for split in SPLITS}
    return artifacts.SplitJsonlDataArtifact(
        path=output / MANIFEST,
        train_path=paths["train"],
        val_path=paths["val"],
        test_path=paths["test"],
        total_sequences=sum(report["rows"].values()),
        source_datasets=used,
        elapsed_sec=elapsed,
        metadata={"rows": dict(report["rows"]), "agents": dict(agents), "run_hash": report["run_hash"]},
    )
