"""Preflight: what would stop a run, told in seconds and with what to do."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron_kit.data_prep import DataPrepConfig
from nemotron_kit.data_prep import preflight as preflight_room
from nemotron_kit.data_prep.preflight import array_outlook, preflight

Config = Callable[..., DataPrepConfig]


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def hub_blend(config: DataPrepConfig, tokens: int | None = None) -> DataPrepConfig:
    entries = {"datasets": [{"name": "a", "path": "hf://owner/a"}], **({"tokens": tokens} if tokens else {})}
    config.blend_path.write_text(json.dumps(entries))
    return config


def test_all_well(write_jsonl: Callable[..., Path], make_config: Config) -> None:
    config = make_config([(write_jsonl("a.jsonl", ["a"]), 1.0)])
    assert preflight(config, connect=True) == []
    assert not config.output_dir.exists()


def test_the_outlook_of_an_array_has_a_line_for_each_task_and_none_for_invalid_settings(
    write_jsonl: Callable[..., Path], make_config: Config
) -> None:
    config = make_config([(write_jsonl("a.jsonl", ["a" * 90] * 20), 1.0)])
    first, *tasks, last = array_outlook(config, 3, None)
    assert first == "4 shards of 1 files (2.1 kB), as they lie here now"
    assert [line.partition(",")[0] for line in tasks] == ["task 0: 2 shards", "task 1: 1 shards", "task 2: 1 shards"]
    assert last.startswith("in all 2.1 kB read; the slowest task: about 0.0 min (2.5 MB/s of text a CPU")
    assert array_outlook(replace(config, num_shards=0), 3, None) == []


def test_an_unreachable_hub_is_told_with_the_estimate_and_the_way_out(make_config: Config) -> None:
    config = hub_blend(make_config([]), tokens=9_200_000_000_000)
    began = time.monotonic()
    problems = preflight(config, connect=True, smaller="-c tiny")
    assert time.monotonic() - began < 10
    assert "hf://owner/a (about 9.2 T tokens): 127.0.0.1 can't be reached" in problems[0]
    assert "-c tiny" in problems[0]
    assert "The shards need about 36.8 TB" in problems[1]


def test_a_hub_that_never_answers_takes_no_longer_than_its_patience(
    make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        # Fill the queue, so that further connections hang.
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(deaf.getsockname())
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        assert preflight_room.PATIENCE == 3.0
        monkeypatch.setattr(preflight_room, "PATIENCE", 0.4)
        began = time.monotonic()
        problems = preflight(hub_blend(make_config([])), connect=True)
        assert 0.3 < time.monotonic() - began < 12
        for client in waiting:
            client.close()
    assert "127.0.0.1" in problems[0]


def test_without_leave_to_connect_none_is_tried(make_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert preflight(hub_blend(make_config([])), connect=False) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in preflight(hub_blend(make_config([])), connect=False)[0]


def test_a_tokenizer_in_the_hubs_cache_needs_no_network(
    tmp_path: Path, write_jsonl: Callable[..., Path], make_config: Config
) -> None:
    config = make_config([(write_jsonl("a.jsonl", ["a"]), 1.0)], tokenizer_model="owner/name@main")
    assert "the tokenizer owner/name@main" in preflight(config, connect=True)[0]
    snapshot = tmp_path / "hf" / "hub" / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    assert preflight(config, connect=True) == []


def test_a_dataset_of_weight_0_is_not_read(write_jsonl: Callable[..., Path], make_config: Config) -> None:
    assert preflight(make_config([(write_jsonl("a.jsonl", ["a"]), 1.0), ("gone.jsonl", 0.0)]), connect=False) == []


def test_missing_inputs_and_bad_settings(make_config: Config, tmp_path: Path) -> None:
    assert "there is no gone.jsonl" in preflight(make_config([("gone.jsonl", 1.0)]), connect=False)[0]
    assert "exclude each other" in preflight(make_config([("a", 1.0)], shard_size="1MB"), connect=False)[0]
    bad_size = preflight(make_config([("a", 1.0)], num_shards=None, shard_size="big"), connect=False)
    assert "shard_size='big' is not a size" in bad_size[0]
    missing = DataPrepConfig(blend_path=tmp_path / "no.json")
    assert "there is no file" in preflight(missing, connect=False)[0]


def test_an_output_folder_that_is_a_file(write_jsonl: Callable[..., Path], make_config: Config, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    config = make_config([(write_jsonl("a.jsonl", ["a"]), 1.0)], output_dir=tmp_path / "taken" / "out")
    assert "no folder that can be written to" in preflight(config, connect=False)[0]
