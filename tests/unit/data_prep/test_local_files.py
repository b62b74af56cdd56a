"""Everything in a source folder is read, or named with the reason; a path is a pattern only where it does not exist."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron_kit.data_prep import DataPrepConfig, Dataset, run_data_prep
from nemotron_kit.data_prep.local_files import Omissions, matching
from nemotron_kit.data_prep.sources import kind_of, list_files
from nemotron_kit.errors import UserError

ROW = '{"text": "a text"}\n'


def write(path: Path, text: str = ROW) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def listed(tmp_path: Path, path: str | Path) -> tuple[list[str], dict[str, list[str]]]:
    """(files below tmp_path, reason → names left out)."""
    left = Omissions()
    files = list_files(Dataset("d", str(path)), folder=tmp_path, corpora=tmp_path / "c", left=left)
    return [str(Path(file.path).relative_to(tmp_path)) for file in files], left.names


def test_links_are_followed_and_no_folder_is_read_twice(tmp_path: Path) -> None:
    root = tmp_path / "src"
    for name in ("src/a/1.jsonl", "other/deep/2.jsonl", "single.jsonl"):
        write(tmp_path / name)
    links = {"b": "../other", "c": "../other/deep", "self": ".", "up": "..", "same": "a", "f.jsonl": "../single.jsonl"}
    links |= {"gone.jsonl": "nowhere", "round.jsonl": "round.jsonl"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (tmp_path / "other" / "back").symlink_to("../src/a")
    found, left = listed(tmp_path, root)
    assert found == ["src/a/1.jsonl", "src/b/deep/2.jsonl", "src/f.jsonl"]
    named = {name for names in left.values() for name in names}
    assert {"self", "up", "same", "b/back", "c"} <= named
    assert left["a link that leads nowhere"] == ["gone.jsonl"]
    assert left["a link that leads in a circle"] == ["round.jsonl"]
    # A pattern finds the same files, circles or not, and none of them twice.
    assert [str(path) for path in matching(root / "**" / "*.jsonl")] == [str(tmp_path / name) for name in found]


def test_a_folder_that_a_pattern_matches_is_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl/part-0.jsonl"):
        write(tmp_path / "src" / name)
    why = "a folder, of which a pattern takes nothing: end it with /**"
    found, left = listed(tmp_path, tmp_path / "src" / "*.jsonl")
    assert (found, left) == (["src/a.jsonl"], {why: [str(tmp_path / "src" / "b.jsonl")]})
    assert listed(tmp_path, tmp_path / "src" / "**") == (["src/a.jsonl", "src/b.jsonl/part-0.jsonl"], {})


def test_what_is_not_read_is_named_with_the_reason(tmp_path: Path) -> None:
    root = tmp_path / "src"
    for name in (
        "a.JSONL",
        "b.csv",
        "c.jsonl.bz2",
        "d.tsv.xz",
        ".h.jsonl",
        ".git/x.jsonl",
        "README.md",
        "x.json",
        "y.bin",
    ):
        write(root / name)
    os.mkfifo(root / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(os.path.relpath(root / "door.jsonl"))
    found, left = listed(tmp_path, root)
    assert found == ["src/a.JSONL", "src/b.csv", "src/c.jsonl.bz2", "src/d.tsv.xz"]
    assert left == {
        "hidden": [".git", ".h.jsonl"],
        "a FIFO, not a regular file": ["pipe.jsonl"],
        "a socket, not a regular file": ["door.jsonl"],
        "no known ending": ["y.bin"],
        ".json files beside files with rows": ["x.json"],
        "plain text beside files with rows": ["README.md"],
    }


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("lr=[1,2]/*.jsonl", ["lr=[1,2]/a.jsonl"]),  # the folder exists: its brackets are no pattern
        ("lr=[1,2]/**/*.jsonl", ["lr=[1,2]/a.jsonl", "lr=[1,2]/x/b.jsonl"]),
        ("lr=[1,2]/x/b.jsonl", ["lr=[1,2]/x/b.jsonl"]),
        ("[kl]r=*/a.jsonl", ["lr=[1,2]/a.jsonl"]),  # no such folder: a pattern
        ("*/x/[b].jsonl", ["lr=[1,2]/x/b.jsonl"]),
        ("data[1].jsonl", ["data[1].jsonl"]),
        ("*/[[]c].jsonl", []),
        ("**", ["data[1].jsonl", "lr=[1,2]/a.jsonl", "lr=[1,2]/x/b.jsonl"]),
    ],
)
def test_the_part_of_a_path_that_exists_is_no_pattern(tmp_path: Path, path: str, names: list[str]) -> None:
    for name in ("lr=[1,2]/a.jsonl", "lr=[1,2]/x/b.jsonl", "data[1].jsonl", ".h/a.jsonl", "lr=[1,2]/.h.jsonl"):
        write(tmp_path / name)
    assert [str(found.relative_to(tmp_path)) for found in matching(tmp_path / path)] == names
    if names and path != "**":
        assert listed(tmp_path, path)[0] == names  # beside the blend file
        assert listed(tmp_path, f"file://{tmp_path}/{path}")[0] == names


def test_kinds_under_compressions() -> None:
    kinds = {"a.ndjson.zstd": "zst", "a.jsonl.xz": "xz", "A.CSV": "csv", "a.tsv.gz": "csv+gz", "a.csv.zst": "csv+zst"}
    assert {name: kind_of(name) for name in kinds} == kinds
    assert kind_of("a.txt.gz") == "text+gz"
    assert kind_of("a.parquet.gz") is None


def test_a_name_that_is_no_text_is_read_and_recorded(
    tmp_path: Path, make_config: Callable[..., DataPrepConfig]
) -> None:
    folder = write(tmp_path / "src" / "a.jsonl", ROW * 9).parent
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jsonl")).write_text(ROW * 9)
    except OSError:
        pytest.skip("this file system has text names only")
    assert run_data_prep(make_config([(folder, 1.0)])).total_sequences == 18
    assert run_data_prep(make_config([(folder, 1.0)])).total_sequences == 18


@pytest.mark.parametrize("what", ["source", "blend", "tokenizer"])
def test_a_fifo_is_refused_and_not_waited_for(
    tmp_path: Path, make_config: Callable[..., DataPrepConfig], what: str
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    config = make_config([(tmp_path / "pipe.jsonl" if what == "source" else write(tmp_path / "a.jsonl"), 1.0)])
    if what == "blend":
        config.blend_path = tmp_path / "pipe.jsonl"
    if what == "tokenizer":
        config.tokenizer_model = str(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match=r"pipe\.jsonl:? is a FIFO, not a regular file"):
        run_data_prep(config)


@pytest.mark.parametrize(
    "url", ["reference://x.json", "zip://x.zip", "sftp://nowhere/x", "dir://x", "zip://a::x.zip", "local:///x"]
)
def test_a_protocol_that_needs_more_than_a_url_is_one_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match=f"{url.split(':')[0]}://"):
        list_files(Dataset("d", url), folder=tmp_path, corpora=tmp_path)


def test_a_name_can_not_speak_to_the_terminal(
    tmp_path: Path, make_config: Callable[..., DataPrepConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "src" / "\x1b]0;gone\x07é.bin")
    run_data_prep(make_config([(write(tmp_path / "src" / "a.jsonl", ROW * 9).parent, 1.0)]))
    told = capsys.readouterr().err
    assert r"\x1b]0;gone\x07é.bin (no known ending)" in told
    assert "\x1b" not in told
