"""The steps of an array: a plan, the shards of each task, the end. Together they make what one run makes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from nemotron_kit.artifacts import manifest
from nemotron_kit.data_prep import DataPrepConfig, planning, run_data_prep, shard_plan
from nemotron_kit.data_prep.planning import assign_shards
from nemotron_kit.data_prep.pool import ensure_shard
from nemotron_kit.data_prep.shard_plan import LINES_FILE, PLAN_FILE, PlanIndex, ShardPlan, SourceFile
from nemotron_kit.errors import NemotronError, UserError

WORDS = [f"The {n}th document says {n * n}." for n in range(120)]
Config = Callable[..., DataPrepConfig]
Writer = Callable[..., Path]
GB = 1 << 30


def made(folder: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("*/shard_*")}


def test_steps_make_the_bytes_of_one_run_and_hash_no_shard_again(
    write_jsonl: Writer, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [(write_jsonl("a.jsonl", WORDS), 1.0), (write_jsonl("b.jsonl", WORDS[::-1]), 2.0)]
    whole = run_data_prep(make_config(sources, num_shards=5, output_dir=tmp_path / "whole"))
    config = make_config(sources, num_shards=5, artifact_name="PretrainBlendsArtifact-steps")
    assert run_data_prep(replace(config, step="plan")) is None
    monkeypatch.setattr(ShardPlan, "load", lambda _: pytest.fail("a task reads the lines of its own shards"))
    with pytest.raises(NemotronError, match=r"train/shard_000000.json: the plan has no complete"):
        monkeypatch.setattr("nemotron_kit.data_prep.pool._VISIBLE", 0.1)
        run_data_prep(replace(config, step="finish"))
    for task in (2, 0, 1):
        assert run_data_prep(replace(config, step="shards", task=task, tasks=3)) is None
    hashed: list[str] = []
    before = manifest.sha256_file
    monkeypatch.setattr(manifest, "sha256_file", lambda path: (hashed.append(path.suffix), before(path))[1])
    artifact = run_data_prep(replace(config, step="finish"))
    assert not {".bin", ".idx"} & set(hashed)
    assert made(config.output_dir) == made(tmp_path / "whole")
    reports = [json.loads((folder / "report.json").read_text()) for folder in (config.output_dir, tmp_path / "whole")]
    assert reports[0] == reports[1]
    assert (artifact.total_tokens, artifact.uri) == (whole.total_tokens, "art://PretrainBlendsArtifact-steps:v0")


def test_what_the_plan_has_decided_about_bad_rows_is_told(
    write_jsonl: Writer, make_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)], num_shards=1)
    run_data_prep(replace(config, step="plan"))
    run_data_prep(replace(config, step="shards", task=0, tasks=1, on_bad_row="skip"))
    assert "data prep: on_bad_row=error, as the plan has it: step=plan with another" in capsys.readouterr().err
    run_data_prep(replace(config, step="finish"))
    assert "as the plan has it" not in capsys.readouterr().err


def test_a_shard_that_is_cut_off_is_seen_at_the_end(write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)])
    run_data_prep(config)
    with (config.output_dir / "train" / "shard_000000.bin").open("ab") as file:
        file.truncate(5)
    with pytest.raises(NemotronError, match=r"train/shard_000000.bin: not there whole"):
        run_data_prep(replace(config, step="finish"))


def test_a_store_is_another_plans_until_force_clears_it(
    write_jsonl: Writer, make_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fsspec.filesystem("memory")
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)], num_shards=3, output_dir=Path("memory://steps/a"))
    run_data_prep(config)
    run_data_prep(replace(config, force=True))
    assert "were there already" not in capsys.readouterr().err
    # From a folder that knows nothing of it: another cluster's.
    monkeypatch.setenv("NEMOTRON_HOME", f"{os.environ['NEMOTRON_HOME']}-other")
    run_data_prep(config)
    assert "(5 of them were there already)" in capsys.readouterr().err
    before = {path: store.cat_file(path) for path in store.find("/steps/a")}
    fewer = replace(config, num_shards=1, force=False)
    for unfinished in ((), ("plan.json", "plan-index.json")):
        for name in unfinished:
            store.rm_file(f"/steps/a/{name}")
            del before[f"/steps/a/{name}"]
        monkeypatch.setenv("NEMOTRON_HOME", f"{os.environ['NEMOTRON_HOME']}-{len(unfinished)}")
        with pytest.raises(UserError, match="memory://steps/a holds another plan's shards"):
            run_data_prep(fewer)
        assert {path: store.cat_file(path) for path in store.find("/steps/a")} == before
    run_data_prep(replace(fewer, force=True))
    assert [path.rpartition("/")[2] for path in store.find("/steps/a/train")] == [
        f"shard_000000.{ending}" for ending in ("bin", "idx", "json")
    ]


BAD = [
    ({"step": "shard"}, "Did you mean shards"),
    ({"step": "shards"}, "needs task=N of tasks=M"),
    ({"step": "shards", "task": 3, "tasks": 3}, "N from 0 to M-1"),
    ({"task": 1, "tasks": 2}, "belongs to step=shards"),
    ({"tasks": 0}, "at least 1"),
    ({"num_shards": 2_000_000}, "num_shards=2000000: 2,000,000 shards are too many"),
    ({"step": "finish"}, "holds no plan.json"),
]


@pytest.mark.parametrize(("change", "says"), BAD)
def test_steps_that_can_not_be_done(
    write_jsonl: Writer, make_config: Config, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        run_data_prep(make_config([(write_jsonl("a.jsonl", WORDS), 1.0)], **change))


def test_a_source_that_grew_and_a_plan_without_its_lines_are_refused(write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)])
    run_data_prep(replace(config, step="plan"))
    write_jsonl("a.jsonl", [*WORDS, "One more."])
    task = replace(config, step="shards", task=0, tasks=1)
    with pytest.raises(UserError, match=r"a\.jsonl: it has [\d,]+ bytes, and had [\d,]+ when the plan was made"):
        run_data_prep(task)
    (config.output_dir / LINES_FILE).unlink()
    with pytest.raises(UserError, match=f"{LINES_FILE}: no such file"):
        run_data_prep(task)


def test_a_part_of_the_plan_makes_the_same_shard(write_jsonl: Writer, make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0), (write_jsonl("b.jsonl", WORDS), 1.0)], num_shards=4)
    run_data_prep(config)
    plan, index = ShardPlan.load(config.output_dir), PlanIndex.load(config.output_dir)
    assert plan is not None and index is not None
    assert (index.head.digest, len(index.head.shards)) == (plan.digest, len(plan.shards))
    assert [s.file_count for s in index.head.sources] == [1, 1] and index.head.sources[0].files == ()
    for number in range(len(plan.shards)):
        assert ensure_shard(index.part([number]), number, config.output_dir)[1] == "kept"
    lines = (config.output_dir / LINES_FILE).read_text()
    (config.output_dir / LINES_FILE).write_text(lines.replace('"pieces":[[0', '"pieces":[[1', 1))
    with pytest.raises(UserError, match="does not match the index"):
        index.part([0])


def test_a_folder_begun_by_an_earlier_version_goes_on_by_its_rule(
    write_jsonl: Writer, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "DEFAULT_SHARDS", 3)
    config = make_config([(write_jsonl("a.jsonl", WORDS), 1.0)], num_shards=None)
    run_data_prep(config)
    plan = json.loads((config.output_dir / PLAN_FILE).read_text())
    assert plan.pop("deal") == shard_plan.LINEAR_DEAL
    (config.output_dir / PLAN_FILE).write_text(json.dumps(plan, indent=2))
    before = made(config.output_dir)
    monkeypatch.setattr(planning, "DEFAULT_SHARD_SIZE", 10)  # a new plan would have more shards, of other rows
    monkeypatch.setattr(planning, "_LARGE_CELLS", 1)
    run_data_prep(config)
    assert made(config.output_dir) == before
    with pytest.raises(UserError, match="the number of shards"):
        (config.output_dir / PLAN_FILE).write_text(json.dumps({**plan, "deal": 2}))
        run_data_prep(config)


@pytest.mark.parametrize(
    ("ending", "count", "size", "shards"),
    [(".jsonl.zst", 3000, GB // 4, 400), (".parquet", 3000, GB // 4, 400), (".jsonl.gz", 50, 9 * GB, 400)],
)
def test_no_file_of_a_large_source_is_read_more_than_twice(ending: str, count: int, size: int, shards: int) -> None:
    files = [SourceFile(f"/d/{n}{ending}", size + (n * 7919) % 1000 * (size // 2000), f"id{n}") for n in range(count)]
    most = planning.most_shards(files, 2) or shards
    train = min(shards, most)
    shares = [0.98 / train] * train + [0.01, 0.01]
    dealt = assign_shards(files, shares, held_out=2)
    readers: dict[int, list[int]] = {}
    parts: dict[int, set[tuple[int, int]]] = {}
    for shard, pieces in enumerate(dealt):
        for piece in pieces:
            readers.setdefault(piece.file, []).append(shard)
            found = parts.setdefault(piece.file, set())
            assert not found & {(part, piece.of) for part in piece.parts}
            found |= {(part, piece.of) for part in piece.parts}
    assert max(map(len, readers.values())) <= 2
    assert all({p for p, _ in found} == set(range(next(iter(found))[1])) for found in parts.values())
    assert len(readers) == count
    sizes = [sum(files[p.file].size * len(p.parts) / p.of for p in pieces) for pieces in dealt]
    wanted = [share * sum(file.size for file in files) for share in shares]
    assert all(pieces for pieces in dealt)
    assert sizes[-1] == pytest.approx(wanted[-1], rel=0.1) and len(dealt[-1]) >= 4
    if count > 50:
        assert all(abs(a / b - 1) < 0.15 for a, b in zip(sizes, wanted, strict=True))


def test_planning_is_linear_in_files_and_shards() -> None:
    import time

    def seconds(count: int) -> float:
        files = [SourceFile(f"/d/{n}.parquet", 50_000_000 + n, f"id{n}") for n in range(count)]
        began = time.process_time()
        assign_shards(files, [1 / (count // 10)] * (count // 10), held_out=1)
        return time.process_time() - began

    seconds(1000)
    # The rule before took four times as long for twice the files: 30 s for 4,000.
    assert seconds(20_000) < 8 * max(seconds(5_000), 0.02)
