"""The local registry through its public doors."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_kit.artifacts import Artifact, Pin, Reference, lineage, manifest, open_registry
from nemotron_kit.artifacts.reference import (
    ArtifactChangedError,
    ArtifactNotFoundError,
    DamagedRecordError,
)
from nemotron_kit.artifacts.registry import LocalRegistry
from nemotron_kit.artifacts.store import MODES, touch
from nemotron_kit.errors import NemotronError, UserError

from .conftest import Maker


def test_reading_a_registry_that_is_not_there_makes_nothing(registry: LocalRegistry, home: Path) -> None:
    assert (registry.names(), registry.versions("X"), registry.aliases("X"), registry.uuid) == ([], [], {}, "")
    with pytest.raises(ArtifactNotFoundError, match="No artifact is called 'X'") as error:
        registry.resolve("X")
    assert error.value.hint == "Nothing has been saved in it yet."
    assert registry.gc() == []
    assert not home.exists()


def test_versions_count_from_v0_and_latest_is_the_highest(registry: LocalRegistry, make: Maker) -> None:
    pins = [registry.commit(make.draft("Data", text)) for text in "abc"]
    assert [pin.label for pin in pins] == ["Data:v0", "Data:v1", "Data:v2"]
    assert registry.resolve("Data") == registry.resolve("art://Data:latest") == registry.resolve("Data:v2") == pins[2]
    assert registry.resolve(f"Data@{pins[0].digest[:8]}") == pins[0]  # type: ignore[index]
    assert registry.versions("Data") == [0, 1, 2]
    assert registry.names() == ["Data"]
    assert {pin.registry for pin in pins} == {registry.uuid} == {LocalRegistry(registry.root).uuid}


def test_identical_content_gives_the_existing_version(registry: LocalRegistry, make: Maker, caplog: object) -> None:
    first = registry.commit(make.draft("Data", "a"))
    registry.commit(make.draft("Data", "b"))
    assert registry.commit(make.draft("Data", "a", created_at="2030", producer="later")) == first
    assert "latest stays v1" in caplog.text  # type: ignore[attr-defined]
    assert registry.versions("Data") == [0, 1]


def test_what_belongs_to_the_identity(registry: LocalRegistry, make: Maker) -> None:
    same = registry.commit(make.draft("Data", "a", fields={"n": 1}, document={"metadata": {"loss": 1.0}}))
    again = registry.commit(make.draft("Data", "a", fields={"n": 1}, document={"metadata": {"loss": 2.0}}))
    assert again == same
    assert registry.commit(make.draft("Data", "a", fields={"n": 2})).version == 1
    assert registry.commit(make.draft("Data", "a", fields={"n": 1}, type="U")).version == 2
    folder = make.folder("Data-a", data="a", more="b")
    assert registry.commit(make.draft("Data", "a", fields={"n": 1}, root=folder)).version == 3
    (folder / "more").rename(folder / "other")
    assert registry.commit(make.draft("Data", "a", fields={"n": 1}, root=folder)).version == 4


def test_a_copy_elsewhere_is_the_existing_version_while_that_can_be_loaded(
    registry: LocalRegistry, make: Maker
) -> None:
    first, copy = make.folder("one", data="a"), make.folder("two", data="a")
    pin = registry.commit(make.draft("Data", "x", root=first, path=first))
    assert registry.commit(make.draft("Data", "x", root=copy, path=copy)) == pin
    (first / "data").write_text("changed")
    moved = registry.commit(make.draft("Data", "x", root=copy, path=copy))
    assert (moved.version, moved.digest, moved.path) == (1, pin.digest, str(copy))
    assert registry.resolve(f"Data@{pin.digest}") == moved


def test_overwritten_files_are_noticed_and_named(registry: LocalRegistry, make: Maker) -> None:
    folder = make.folder("out", a="aaaa", sub__b="bbbb", c="cccc")
    draft = make.draft("Data", "x", root=folder, path=folder, producer="run-1")
    pin = registry.commit(draft)
    (folder / "sub" / "b").write_text("BBBB")
    with pytest.raises(ArtifactChangedError, match=r"Data:v0's files were changed .*: sub/b has other content"):
        registry.resolve("Data:v0")
    assert registry.resolve("Data:v0", check=False) == pin
    assert registry.commit(make.draft("Data", "x", root=folder, path=folder, producer="run-2")).version == 1
    with pytest.raises(ArtifactChangedError, match=r"Data:v0's files were overwritten by run run-2 \(as v1\)") as error:
        registry.verify(pin)
    assert error.value.hint == "Use Data:v1, or save again."


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "b").write_text("bbbbb"), r"b has 5 bytes, not 4"),
        (lambda f: (f / "b").unlink(), r"b is missing"),
        (lambda f: (f / "d").write_text("new"), r"d was added"),
        (lambda f: shutil.rmtree(f), r"is gone"),
        (lambda f: ((f / "b").unlink(), (f / "b").symlink_to("nowhere")), r"b is a link to another target"),
    ],
)
def test_every_kind_of_change(registry: LocalRegistry, make: Maker, harm: object, words: str) -> None:
    folder = make.folder("out", a="aaaa", b="bbbb")
    registry.commit(make.draft("Data", "x", root=folder, path=folder))
    harm(folder)  # type: ignore[operator]
    with pytest.raises(ArtifactChangedError, match=words):
        registry.resolve("Data")


def test_what_is_no_change(registry: LocalRegistry, make: Maker) -> None:
    folder = make.folder("out", a="aaaa")
    pin = registry.commit(make.draft("Data", "x", root=folder, path=folder))
    os.utime(folder / "a")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "index").write_text("a reader's own")
    (folder / ".a.123.0123abcd.tmp").write_text("a killed writer's")
    assert registry.resolve("Data") == pin
    registry.verify(pin, deep=True)


def test_a_change_that_keeps_size_and_mtime_is_noticed(registry: LocalRegistry, make: Maker) -> None:
    folder = make.folder("out", a="aaaa")
    registry.commit(make.draft("Data", "x", root=folder, path=folder))
    before = (folder / "a").stat()
    (folder / "a").write_text("AAAA")
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactChangedError, match="a has other content"):
        registry.resolve("Data")


def test_equal_content_written_again_is_not_hashed_at_every_load(
    registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make.folder("out", a="aaaa")
    registry.commit(make.draft("Data", "x", root=folder, path=folder))
    make.folder("out", a="aaaa")
    assert registry.commit(make.draft("Data", "x", root=folder, path=folder)).version == 0
    monkeypatch.setattr("nemotron_kit.artifacts.manifest.sha256_file", lambda path: pytest.fail(f"{path} was read"))
    registry.resolve("Data")


def test_hash_limit(home: Path, make: Maker) -> None:
    registry = LocalRegistry(home / "artifacts", hash_limit=4)
    folder = make.folder("out", small="aaaa", large="bbbbb")
    pin = registry.commit(make.draft("Data", "x", root=folder, path=folder))
    record = registry.record_of(pin)
    assert record.identified_by == "size+mtime"
    assert {entry.path: entry.sha256 is None for entry in record.files} == {"large": True, "small": False}
    assert registry.resolve("Data") == pin
    os.utime(folder / "large", ns=(0, 0))
    with pytest.raises(ArtifactChangedError, match="large has another modification time"):
        registry.resolve("Data")


def test_links_are_followed_but_not_in_circles(registry: LocalRegistry, make: Maker) -> None:
    outside = make.folder("outside", real="content")
    folder = make.folder("out", a="aaaa")
    (folder / "linked").symlink_to(outside / "real")
    (folder / "tree").symlink_to(outside)
    (folder / "circle").symlink_to(folder)
    pin = registry.commit(make.draft("Data", "x", root=folder, path=folder))
    assert [entry.path for entry in registry.record_of(pin).files] == ["a", "circle", "linked", "tree/real"]
    (outside / "real").write_text("CONTENT")
    with pytest.raises(ArtifactChangedError, match="linked has other content"):
        registry.resolve("Data")


def test_aliases_move(registry: LocalRegistry, make: Maker) -> None:
    pins = [registry.commit(make.draft("Data", text)) for text in "ab"]
    registry.set_alias("Data", "prod", 0)
    assert registry.resolve("Data:prod") == pins[0]
    registry.set_alias("Data", "prod", 1)
    assert registry.resolve("Data:prod") == pins[1]
    assert registry.aliases("Data") == {"prod": 1}
    for alias, version, words in [
        ("latest", 0, "always the newest"),
        ("LATEST", 0, "always the newest"),
        ("v7", 0, "reads as a version"),
        ("../x", 0, "is no alias"),
        ("x", 9, "Data has no v9"),
    ]:
        with pytest.raises(UserError, match=words):
            registry.set_alias("Data", alias, version)


def test_a_missing_name_or_version_says_what_there_is(registry: LocalRegistry, make: Maker) -> None:
    for text in "abcd":
        registry.commit(make.draft("PretrainBlendsArtifact-tiny", text))
    registry.set_alias("PretrainBlendsArtifact-tiny", "prod", 2)
    cases = {
        "PretrainBlendArtifact-tiny": "Did you mean PretrainBlendsArtifact-tiny?",
        "PretrainBlendsArtifact-tiny:v9": "It has v0 to v3; aliases: prod (v2).",
        "PretrainBlendsArtifact-tiny:prdo": "Did you mean prod? It has v0 to v3; aliases: prod (v2).",
        "PretrainBlendsArtifact-tiny@ffff": "It has v0 to v3; aliases: prod (v2).",
        "PretrainBlendsArtifact-tiny@run:none": "It has v0 to v3; aliases: prod (v2).",
    }
    for text, hint in cases.items():
        with pytest.raises(ArtifactNotFoundError) as error:
            registry.resolve(text)
        assert error.value.hint == hint
    with pytest.raises(ArtifactNotFoundError, match="as W&B's entity/project/Name, needs W&B"):
        registry.resolve("team/proj/PretrainBlendsArtifact-tiny")


def test_what_a_run_saved(registry: LocalRegistry, make: Maker) -> None:
    by_one = registry.commit(make.draft("Data", "a", producer="run-1"))
    by_two = registry.commit(make.draft("Data", "b", producer="run-2"))
    assert registry.resolve("Data@run:run-1") == by_one
    assert registry.resolve("Data@run:run-2") == by_two
    registry.commit(make.draft("Data", "a", producer="run-2"))
    assert registry.resolve("Data@run:run-2") == by_one
    with pytest.raises(ArtifactNotFoundError, match=r"^The run run-3 has saved no Data\.\nIt has v0"):
        registry.resolve("Data@run:run-3")
    for run in ("run-4", "local", "../v9", ""):  # noted, or no run ids: ignored
        registry.note_run(by_one, run)
    assert registry.resolve("Data@run:run-4") == by_one
    assert sorted(each.name for each in (registry.root / "Data" / "runs").iterdir()) == ["run-1", "run-2", "run-4"]
    assert not (registry.root / "Data" / "v9").exists()
    shutil.rmtree(registry.root / "Data" / "runs")
    assert registry.resolve("Data@run:run-2") == by_two


def test_a_digest_shared_by_two_contents_is_ambiguous(registry: LocalRegistry, make: Maker) -> None:
    firsts: set[str] = set()
    for number in range(40):
        digest = registry.commit(make.draft("Data", str(number))).digest or ""
        if digest[:1] in firsts:
            break
        firsts.add(digest[:1])
    with pytest.raises(UserError, match="ambiguous") as error:
        registry.find(Reference("Data", digest=digest[:1]))
    assert error.value.hint == "Give more digits."


def test_another_registrys_pin_is_refused(registry: LocalRegistry, make: Maker, tmp_path: Path) -> None:
    pin = registry.commit(make.draft("Data", "a"))
    other = LocalRegistry(tmp_path / "other")
    with pytest.raises(UserError, match=r"was pinned in registry .* is still empty"):
        other.verify(pin)
    other.commit(make.draft("Data", "b"))
    with pytest.raises(UserError, match=other.uuid):
        other.verify(pin)
    with pytest.raises(ArtifactChangedError, match="was pinned as"):
        registry.verify(Pin.from_dict({**pin.to_dict(), "digest": "0" * 64}))
    shutil.copytree(registry.root / "Data" / "v0", other.root / "Data" / "v1")
    with pytest.raises(DamagedRecordError, match="copied or moved"):
        other.resolve("Data:v1")


def test_paths_are_pinned_without_a_version(registry: LocalRegistry, make: Maker, tmp_path: Path) -> None:
    folder = make.folder("raw", data="x")
    pin = registry.resolve(str(folder))
    assert (pin.version, pin.digest, pin.path, pin.label) == (None, None, str(folder), str(folder))
    assert registry.verify(pin) is None
    assert registry.resolve(f"art://{folder}").path == str(folder)
    assert registry.resolve("../made/raw").path == str(folder)
    for text in (str(tmp_path / "nowhere"), "/" + "x" * 5000, "~no-such-user/x"):
        with pytest.raises(UserError):
            registry.resolve(text)
    shutil.rmtree(folder)
    with pytest.raises(ArtifactNotFoundError, match="no file or folder"):
        registry.verify(pin)


def test_it_is_private_unless_it_is_a_groups(home: Path, make: Maker) -> None:
    before = os.umask(0o022)
    try:
        for mode, folder_mode, file_mode in [("private", 0o700, 0o600), ("group", 0o2770, 0o660)]:
            registry = LocalRegistry(home / mode, mode=mode)
            registry.commit(make.draft("Data", "a", producer="run-1"))
            registry.set_alias("Data", "prod", 0)
            for path in [registry.root, *registry.root.rglob("*")]:
                expected = folder_mode if path.is_dir() else file_mode
                assert stat.S_IMODE(path.stat().st_mode) == expected, path
    finally:
        os.umask(before)
    with pytest.raises(UserError, match="no registry mode"):
        LocalRegistry(home, mode="public")


def test_names_that_differ_in_case_only_are_refused(registry: LocalRegistry, make: Maker) -> None:
    registry.commit(make.draft("Data", "a"))
    with pytest.raises(UserError, match="in case only"):
        registry.commit(make.draft("data", "b"))


def test_a_name_can_not_leave_the_registry(registry: LocalRegistry, make: Maker) -> None:
    draft = make.draft("Data", "a")
    for name in ("../x", ".registry", "a/b", ""):
        with pytest.raises(UserError, match="is no artifact name"):
            registry.commit(dataclasses.replace(draft, name=name))
    assert not registry.root.exists()


def test_a_folder_that_is_not_there_and_one_that_changes_meanwhile(
    registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make.folder("out", a="aaaa")
    with pytest.raises(ArtifactNotFoundError, match="There is no folder"):
        registry.commit(make.draft("Data", "x", root=folder / "none"))
    from nemotron_kit.artifacts import manifest

    real = manifest.sha256_files

    def slow(paths: list[Path], total: int) -> list[str]:
        digests = real(paths, total)
        (folder / "a").write_text("bbbbb")
        return digests

    monkeypatch.setattr(manifest, "sha256_files", slow)
    monkeypatch.setattr(manifest, "_PAUSES", (0.01,) * len(manifest._PAUSES))
    with pytest.raises(ArtifactChangedError, match="changed while the artifact was being saved"):
        registry.commit(make.draft("Data", "x", root=folder))
    assert registry.names() == []


def test_a_file_that_another_rank_writes_as_well_is_read_again(
    registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make.folder("out", a="aaaa", b="bbbb")
    from nemotron_kit.artifacts import manifest

    real, asked = manifest.sha256_files, list[list[str]]()

    def meanwhile(paths: list[Path], total: int) -> list[str]:
        asked.append([path.name for path in paths])
        digests = real(paths, total)
        if len(asked) == 1:
            (folder / "a").write_text("aaa")  # cut, and not yet whole
        return digests

    monkeypatch.setattr(manifest, "sha256_files", meanwhile)
    saved = registry.commit(make.draft("Data", "x", root=folder))
    assert asked == [["a", "b"], ["a"]], "and only that one"
    assert {entry.path: entry.size for entry in registry.record("Data", saved.version or 0).files} == {"a": 3, "b": 4}


def test_a_registry_that_cannot_be_written(home: Path, make: Maker) -> None:
    home.mkdir()
    (home / "artifacts").write_text("a file in its place")
    with pytest.raises(NemotronError, match=r"registry .* can't be written") as error:
        LocalRegistry(home / "artifacts").commit(make.draft("Data", "a"))
    assert "[artifacts] root" in (error.value.hint or "")


@pytest.mark.parametrize("failing", range(1, 13))
def test_a_sync_that_fails_names_its_path(
    registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """A full disk may say so only at an fsync, of a file or of a folder: a descriptor has no name by itself."""
    real, done = os.fsync, []

    def fsync(descriptor: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        if len(done) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(NemotronError, match="No space left on device") as raised:
        registry.commit(make.draft("Data", "a", producer="run-1"))
    named = re.search(r"\((/.*)\)", raised.value.message)
    assert named is not None
    assert Path(named[1]).parent in {registry.root.parent, registry.root, *Path(done[-1]).parents}
    assert Path(named[1]) == Path(done[-1]) or Path(done[-1]).name.endswith(".tmp")


def test_debris_is_invisible_and_goes_after_its_lease(registry: LocalRegistry, make: Maker) -> None:
    registry.commit(make.draft("Data", "a"))
    debris = [
        registry.root / ".tmp-1",
        registry.root / "Data" / ".tmp-2",
        registry.root / "Data" / "aliases" / ".tmp-3",
    ]
    for folder in debris:
        folder.mkdir(parents=True)
        (folder / "version.json").write_text("{")
    assert (registry.names(), registry.versions("Data"), registry.aliases("Data")) == (["Data"], [0], {})
    assert registry.gc(lease_s=3600) == []
    assert sorted(registry.gc(lease_s=0)) == sorted(debris)
    assert registry.gc(lease_s=0) == []
    assert registry.resolve("Data").version == 0


def test_the_record_holds_all_that_is_known(
    registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = registry.commit(make.draft("Source", "s"))
    draft = make.draft("Data", "a", fields={"n": 1}, document={"metadata": {"k": 1}}, producer="r1", inputs=(source,))
    pin = registry.commit(draft)
    data = json.loads((registry.root / "Data" / "v0" / "version.json").read_text())
    assert data["inputs"] == [source.to_dict()]
    assert (data["producer"], data["fields"], data["registry"]) == ("r1", {"n": 1}, registry.uuid)
    assert Pin.from_dict(pin.to_dict()) == pin
    assert registry.record_of(pin).metadata == {"k": 1}
    assert lineage.inputs() == ()


def test_where_the_registry_stands(home: Path, tmp_path: Path) -> None:
    assert open_registry().root == home / "artifacts"
    work = Path.cwd()
    (work / "env.toml").write_text('[artifacts]\nroot = "team/artifacts"\nmode = "group"\nhash_limit = "2GiB"\n')
    registry = open_registry()
    assert (registry.root, registry.hash_limit, registry.modes.exact) == (work / "team" / "artifacts", 2 << 30, True)
    assert open_registry(tmp_path / "x").root == tmp_path / "x"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('root = "s3://bucket/x"', "it must be a folder"),
        ("root = 3", r"env.toml:2: \[artifacts\] root: expected text, got 3"),
        ('root = ""', r"env.toml:2: \[artifacts\] root: it is '', not a folder's path"),
        ('roots = "x"', r"env.toml:2: \[artifacts\] roots: no such key"),
        ('mode = "public"', "mode: 'public' is none of private, group"),
        ('backend = "mlflow"', "backend: 'mlflow' is none of file, wandb"),
        ('hash_limit = "many"', "hash_limit: it is 'many'"),
        ("hash_limit = -1", "hash_limit: it is -1"),
    ],
)
def test_wrong_settings(line: str, words: str) -> None:
    Path("env.toml").write_text(f"[artifacts]\n{line}\n")
    with pytest.raises(UserError, match=words):
        open_registry()


def test_a_remote_root_is_refused_honestly() -> None:
    for root in ("s3://bucket/artifacts", Path("s3://bucket/artifacts"), "gs://x", "hf://datasets/x"):
        with pytest.raises(UserError, match="it must be a folder"):
            open_registry(root)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from nemotron_kit.artifacts import Artifact
from nemotron_kit.errors import NemotronError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
Path("d").mkdir(); Path("d/a").write_text("x")
artifact = Artifact(path=Path("d"), metadata={"long": "x" * int(sys.argv[2])})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    artifact.save(name="Data")
except NemotronError as error:
    print(error.message)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("limit", "what"), [(300, "metadata.json can't be written"), (900, "can't be written")])
def test_a_full_disk_is_one_sentence(registry: LocalRegistry, make: Maker, limit: int, what: str) -> None:
    pin = registry.commit(make.draft("Data", "a"))
    command = [sys.executable, "-c", LIMITED, str(limit), "400"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert what in done.stdout
    assert "File too large" in done.stdout
    assert registry.resolve("Data") == pin
    assert not list(registry.root.rglob(".tmp-*"))
    assert not list(Path("d").glob(".*"))


def test_only_the_owner_sets_a_files_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members of a group may note the same content at once: the file is the first one's."""
    touch(tmp_path / "v0", MODES["private"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        touch(tmp_path / "v0", MODES["group"])
        assert (tmp_path / "v0").stat().st_mode & 0o777 == 0o600
    touch(tmp_path / "v0", MODES["group"])
    assert (tmp_path / "v0").stat().st_mode & 0o777 == 0o660


def test_a_version_whose_files_cannot_be_read_stops_no_list_and_no_save(
    registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.commit(make.draft("Data", "a"))
    (make.base / "Data-a" / "data").touch()  # its time is another, so it is read
    unreadable = make.base / "Data-a"
    read = manifest.sha256_file

    def refuse(path: Path) -> str:
        if path.is_relative_to(unreadable):
            raise ArtifactChangedError(f"{path} can't be read: Permission denied.")
        return read(path)

    monkeypatch.setattr(manifest, "sha256_file", refuse)
    assert registry.files_status(registry.find("Data")) == "changed"
    copy = make.folder("copy", data="a")
    assert registry.commit(make.draft("Data", "a", root=copy, path=copy)).version == 1
    with pytest.raises(ArtifactChangedError, match="data can't be read: Permission denied"):
        registry.resolve("Data:v0")


def test_a_file_in_a_folder_of_its_name(make: Maker) -> None:
    folder = make.folder("tok", tok="x")
    Artifact(path=folder / "tok").save(name="Tok")
    assert Artifact.load(folder).path == Artifact.from_uri("art://Tok").path == folder / "tok"
