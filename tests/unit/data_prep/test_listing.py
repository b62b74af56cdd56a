"""From a dataset to its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from nemotron_kit.data_prep import DataBlend, Dataset, sources
from nemotron_kit.data_prep.local_files import Omissions
from nemotron_kit.data_prep.sources import FoundFile, files_below, hub_files, kind_of, list_files, open_binary
from nemotron_kit.errors import UserError
from nemotron_kit.masking import mask


def names(tmp_path: Path, path: str, **values: str) -> list[str]:
    dataset = Dataset("d", path, **values)
    files = list_files(dataset, folder=tmp_path, corpora=tmp_path / "sources")
    return [file.path.rsplit("/", 1)[-1] for file in files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl.gz", "deep/c.parquet", ".hidden.jsonl", "README", "deep/.git/x.jsonl"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path / "data"


def test_kinds() -> None:
    endings = {"a.jsonl": "jsonl", "A.JSONL.GZ": "gz", "a.jsonl.zst": "zst", "a.parquet": "parquet", "a.md": "text"}
    assert {name: kind_of(name) for name in endings} == endings
    assert kind_of("a.bin") is None


def test_a_folder_gives_its_readable_files_in_order(tmp_path: Path, folder: Path) -> None:
    assert names(tmp_path, str(folder)) == ["a.jsonl.gz", "b.jsonl", "c.parquet"]
    assert names(tmp_path, str(folder), subset="deep") == ["c.parquet"]


def test_of_a_folder_rows_come_first_then_json_then_text(tmp_path: Path) -> None:
    for name in ("README.md", "info.json", "a.jsonl"):
        (tmp_path / name).write_text("{}")
    assert names(tmp_path, str(tmp_path)) == ["a.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    assert names(tmp_path, f"file://{tmp_path}") == ["info.json"]
    (tmp_path / "info.json").unlink()
    assert names(tmp_path, str(tmp_path)) == ["README.md"]


def test_globs_and_relative_paths(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(tmp_path, f"{folder}/*.jsonl*") == ["a.jsonl.gz", "b.jsonl"]
    assert names(tmp_path, f"{folder}/**/*.parquet") == ["c.parquet"]
    assert names(tmp_path, "data/b.jsonl") == ["b.jsonl"]  # beside the blend file
    monkeypatch.chdir(folder)
    assert names(tmp_path / "elsewhere", "b.jsonl") == ["b.jsonl"]  # in the working folder


def test_the_part_of_a_url_that_exists_is_no_pattern(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in ("a.jsonl", "b.csv", ".h.jsonl", "sub/c.jsonl"):
        store.pipe_file(f"/lr=[1,2]/{name}", b'{"text": "x"}')
    try:
        assert names(tmp_path, "memory://lr=[1,2]/*.jsonl") == ["a.jsonl"]
        assert names(tmp_path, "memory://lr=[1,2]/**/*.jsonl") == ["a.jsonl", "c.jsonl"]
        assert names(tmp_path, "memory://lr=[1,2]") == ["a.jsonl", "b.csv", "c.jsonl"]
    finally:
        for name in store.find("/"):
            store.rm_file(name)


def test_urls(tmp_path: Path, folder: Path) -> None:
    assert names(tmp_path, f"file://{folder}") == ["a.jsonl.gz", "b.jsonl", "c.parquet"]
    assert names(tmp_path, f"file://{folder}/*.jsonl") == ["b.jsonl"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nothing/*.jsonl", "no file matches"),
        ("data/README", "no known ending"),
        ("file:///nowhere/at/all", "no file matches"),
        ("nosuchstore://x/y", "nosuchstore"),
        ("hf://justaname", "not hf://owner/name"),
        ("cpython://topic", "Did you mean topics"),
    ],
)
def test_nothing_to_read_is_said_with_the_dataset(tmp_path: Path, folder: Path, path: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        names(tmp_path, path)


def test_splits_are_told_by_the_words_in_names(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "validation-0.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "plain").mkdir()
    for name in ("x.jsonl", "y.jsonl"):
        (tmp_path / "plain" / name).write_text("{}")
    assert names(tmp_path, str(tmp_path), split="valid") == ["validation-0.jsonl"]
    assert names(tmp_path, str(tmp_path / "plain"), split="train") == ["x.jsonl", "y.jsonl"]
    with pytest.raises(UserError, match=r"no split 'test'\. There is: train, valid"):
        names(tmp_path, str(tmp_path), split="test")


def test_split_and_subset_select_from_every_kind_of_path(tmp_path: Path) -> None:
    stores = {"memory://listing": fsspec.filesystem("memory"), str(tmp_path / "listing"): None}
    for root, store in stores.items():
        for name in ("one/train.jsonl", "one/test.jsonl", "two/train.jsonl"):
            if store:
                store.pipe_file(f"/listing/{name}", b"{}\n")
            else:
                (tmp_path / "listing" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "listing" / name).write_text("{}\n")
        assert names(tmp_path, f"{root}/one/*.jsonl", split="test") == ["test.jsonl"]
        assert names(tmp_path, f"{root}/tw*/*.jsonl", split="mine") == ["train.jsonl"]
        assert names(tmp_path, root, subset="one", split="test") == ["test.jsonl"]
        assert names(tmp_path, f"{root}/two/train.jsonl", split="test") == ["train.jsonl"]  # a file that is named
        for path, more, says in (
            (f"{root}/one/*.jsonl", {"split": "valid"}, r"no split 'valid'\. There is: test, train"),
            (f"{root}/two", {"split": "test"}, r"no split 'test'\. (Did you mean|There is:) train"),
            (root, {"subset": "three"}, "no folder .*listing/three.* for the subset 'three'"),
            (f"{root}/two/*.jsonl", {"subset": "two"}, "subset 'two'"),
        ):
            with pytest.raises(UserError, match=says):
                names(tmp_path, path, **more)


REPOSITORY = {
    name: FoundFile(f"hf://datasets/o/n/{name}", 1)
    for name in ("README.md", "High/part-1.parquet", "High/part-0.parquet", "Low/part-0.parquet", "High/test.parquet")
}
CARD = {"high": [("train", "High/part-*.parquet"), ("test", "High/test.parquet")], "low": [("train", "Low/*")]}


def hub(subset: str | None, split: str | None, card: dict[str, list[tuple[str, str]]]) -> list[str]:
    dataset = Dataset("d", "hf://o/n", subset=subset, split=split)
    return [
        file.path.removeprefix("hf://datasets/o/n/")
        for file in hub_files(REPOSITORY, card, dataset, "dataset 'd'", Omissions())
    ]


def test_a_hub_repository_is_read_as_its_card_says() -> None:
    assert hub("high", None, CARD) == ["High/part-0.parquet", "High/part-1.parquet"]
    assert hub("high", "test", CARD) == ["High/test.parquet"]
    assert hub("low", "train", CARD) == ["Low/part-0.parquet"]
    assert hub("Low", None, {}) == ["Low/part-0.parquet"]  # without a card a subset is a folder


def test_patterns_of_a_card_are_the_hubs() -> None:
    def found(pattern: str) -> list[str]:
        return hub("s", None, {"s": [("train", pattern)]})

    with pytest.raises(UserError, match="nothing to read"):
        found("*.parquet")  # none at the top
    assert found("*/test.parquet") == found("**/test.parquet") == ["High/test.parquet"]
    assert found("Low/**") == found("./**/Low/part*") == ["Low/part-0.parquet"]
    card = "---\r\nconfigs:\r\n- config_name: s\r\n  data_dir: Low\r\n---\r\n"
    with pytest.raises(UserError, match=r"lists no files for the subset 's'\.\nName its folder"):
        hub("s", None, sources._card_configs(card))


def test_the_splits_of_a_hub_repository_are_its_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_hub_listing", lambda *_: (REPOSITORY, CARD))

    def splits(**given: str) -> dict[str, list[str]]:
        found = sources.list_splits(Dataset("d", "hf://o/n", **given), folder=tmp_path, corpora=tmp_path)
        return {split: [file.path.rpartition("/n/")[2] for file in files] for split, files in found.items()}

    parts = ["High/part-0.parquet", "High/part-1.parquet"]
    assert splits(subset="high") == {"train": parts, "test": ["High/test.parquet"]}
    assert splits(subset="high", split="train") == {"": parts}  # the blend names one
    monkeypatch.setattr(sources, "_hub_listing", lambda *_: (REPOSITORY, {}))
    assert splits() == {"": [*parts, "Low/part-0.parquet"], "test": ["High/test.parquet"]}


def test_unknown_subset_or_split_of_a_hub_repository() -> None:
    with pytest.raises(UserError, match=r"no subset 'hihg'\. Did you mean high"):
        hub("hihg", None, CARD)
    with pytest.raises(UserError, match="no split 'valid'"):
        hub("high", "valid", CARD)
    with pytest.raises(UserError, match=r"no subset None\. There is: high, low"):
        hub(None, None, CARD)


def test_a_secret_in_a_url_is_read_and_stays_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://me:${secret:STORE_WORD}@store/x.jsonl"
    dataset = Dataset("d", url)
    with pytest.raises(UserError, match="STORE_WORD is not in the environment"):
        list_files(dataset, folder=tmp_path, corpora=tmp_path)
    monkeypatch.setenv("STORE_WORD", "hunter2")
    fsspec.filesystem("memory").pipe("/me:hunter2@store/x.jsonl", b"{}\n")
    (file,) = list_files(dataset, folder=tmp_path, corpora=tmp_path)
    assert file.path.endswith("me:${secret:STORE_WORD}@store/x.jsonl") and open_binary(file.path).read() == b"{}\n"
    assert mask("hunter2") == "***"
    blend = tmp_path / "blend.json"
    blend.write_text('{"datasets": [{"name": "d", "path": "https://me:hunter3@host/x"}]}')
    with pytest.raises(UserError, match=r"https://me:\*\*\*@host/x(.|\n)*https://me:\$\{secret:\w+\}@host/x") as caught:
        DataBlend.load(blend)
    assert "hunter3" not in str(caught.value)


@pytest.mark.parametrize("facts", [{}, {"type": "file", "size": None}])
def test_a_listing_of_names_alone(monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]) -> None:
    """As fsspec's over http: of a file without type and size, of a folder without sizes."""
    store = fsspec.filesystem("memory")
    store.pipe("/names/x.jsonl", b"{}\n")
    page = {"/names/?C=N": facts}  # a page's link, which is not asked for its size
    monkeypatch.setattr(store, "find", lambda path, detail: {"/names/x.jsonl": facts, **page})
    assert [file.size for file in files_below(store, "/names", Omissions()).values()] == [3]
    monkeypatch.setattr(store, "info", lambda path: {"type": "file", "size": None})
    with pytest.raises(ValueError, match=r"does not tell the size of x\.jsonl"):
        files_below(store, "/names", Omissions())


class _Hosts(MemoryFileSystem):
    """Paths without their host, as of ftp, sftp and hdfs."""

    protocol = "hosts"
    store: ClassVar[dict[str, Any]] = {}
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2].partition("/")[2] if "://" in path else path.rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": path.partition("://")[2].partition("/")[0]}

    def __init__(self, host: str, **options: Any) -> None:
        assert host == "me:hunter2@there:22"
        super().__init__(**options)

    def find(self, path: str, **options: Any) -> Any:
        found = super().find(path, **options)
        # ftp's finds a file in a folder of its own name
        return {f"{path}/{path.rpartition('/')[2]}": found[path]} if path in found else found


def test_a_listed_file_keeps_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("hosts", _Hosts, clobber=True)
    monkeypatch.setenv("STORE_WORD", "hunter2")
    store = _Hosts("me:hunter2@there:22")
    for name in ("train", "validation"):
        store.pipe(f"/dev/{name}.jsonl", b"{}\n")
    root = "hosts://me:${secret:STORE_WORD}@there:22/dev"
    for path, expected in ((root, 2), (f"{root}/*.jsonl", 2), (f"{root}/train.jsonl", 1)):
        files = list_files(Dataset("d", path), folder=tmp_path, corpora=tmp_path)
        assert [file.path for file in files] == [f"{root}/train.jsonl", f"{root}/validation.jsonl"][:expected]
        assert open_binary(files[0].path).read() == b"{}\n"


def test_a_remote_files_split_is_not_told_by_what_the_whole_source_is_called(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in ("train", "validation"):
        store.pipe(f"/test-bucket/dev/{name}.jsonl", b"{}\n")
    splits = sources.list_splits(Dataset("d", "memory://test-bucket/dev"), folder=tmp_path, corpora=tmp_path)
    assert {split: len(files) for split, files in splits.items()} == {"train": 1, "valid": 1}
