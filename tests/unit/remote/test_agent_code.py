"""The archive of a launch's code, unpacked on the target."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from nemotron_kit import files
from nemotron_kit.cli.runs.show import written_by
from nemotron_kit.errors import NemotronError
from nemotron_kit.home import new_run_id
from nemotron_kit.remote.agent.code import registered_folders, unpack, unpack_code, written_since
from nemotron_kit.remote.agent.operations import CODE
from nemotron_kit.remote.snapshot import provide_code
from nemotron_kit.remote.ssh import LocalTransport
from nemotron_kit.runs.folder import create_run
from nemotron_kit.spec.paths import RemotePaths
from nemotron_kit.spec.runconfig import RunConfig


def packed(*members: tuple[str, bytes, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            data = content.encode() if isinstance(content, str) and kind == tarfile.REGTYPE else content
            if isinstance(data, bytes):
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            else:
                info.linkname = data
                archive.addfile(info)
    return buffer.getvalue()


FILE, LINK, HARD, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../out", FILE, b"x")],
        [("/tmp/out", FILE, b"x")],
        [("a/../../out", FILE, b"x")],
        [("door", LINK, ".."), ("door/out", FILE, b"x")],
        [("d/l", LINK, ".."), ("d/l/l2", LINK, ".."), ("d/l/l2/out", FILE, b"x")],
        [("door", LINK, "/tmp"), ("door/out", FILE, b"x")],
        [("a", FILE, b"x"), ("a", FILE, b"y")],
        [("a", LINK, "b"), ("a", FILE, b"y")],
        [("a", HARD, "/etc/passwd")],
        [("a", DEVICE, "")],
    ],
)
def test_nothing_is_written_outside_and_nothing_half_is_left(
    tmp_path: Path, members: list[tuple[str, bytes, bytes | str]]
) -> None:
    folder = tmp_path / "job" / "code"
    folder.parent.mkdir()
    with pytest.raises((NemotronError, OSError)):
        unpack(packed(*members), folder)
    assert [p.name for p in tmp_path.rglob("*")] == ["job"]


def test_an_archive_that_was_cut_leaves_nothing(tmp_path: Path) -> None:
    whole = packed(("a", FILE, b"x" * 100_000))
    with pytest.raises((NemotronError, OSError, EOFError, tarfile.TarError)):
        unpack(whole[: len(whole) // 2], tmp_path / "code")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_was_changed_is_refused(tmp_path: Path) -> None:
    data = packed(("a", FILE, b"x"))
    digest = hashlib.sha256(data).hexdigest()
    here, root = LocalTransport(), str(tmp_path)
    here.call("put_code", data, root=root, digest=digest)
    assert here.call("has_code", root=root, digest=digest) == (True, b"")
    (tmp_path / "code" / f"{digest}.tar.gz").write_bytes(packed(("a", FILE, b"y")))
    with pytest.raises(NemotronError, match="was changed"):
        unpack_code(root, digest, tmp_path / "out")


@pytest.mark.parametrize("digest", ["../x", "x" * 64, ""])
def test_a_digest_is_no_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(NemotronError, match="no digest"):
        LocalTransport().call("has_code", root=str(tmp_path), digest=digest)


def test_a_run_keeps_the_code_that_it_was_launched_with(home: Path, tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "root" / "runs" / "r"
    for folder in (source, run):
        folder.mkdir(parents=True)
    (source / "a.py").write_text("one")
    tree = {"root": str(source), "packager": "worktree", "git": False, "inside": "."}
    place = RemotePaths.from_dict({"root": str(tmp_path / "root"), "run": str(run), "tree": tree}, str(run), 0)

    def there() -> dict[str, str]:
        return provide_code(LocalTransport(), place, RunConfig())

    (run / CODE).write_text(there()[CODE])
    (archive,) = (tmp_path / "root" / "code").iterdir()
    (source / "a.py").write_text("two")
    assert there() == {}, "the launch's is there"
    archive.unlink()
    with pytest.raises(NemotronError, match="is not on the target any more"):
        there()
    (source / "a.py").write_text("one")
    there()
    assert archive.exists(), "sent again"


def test_what_a_job_wrote_into_its_copy(tmp_path: Path) -> None:
    code = tmp_path / "code"
    unpack(packed(("pkg/train.py", tarfile.REGTYPE, "1"), ("log.txt", tarfile.REGTYPE, "1")), code)
    assert written_since(code) == {} == written_since(tmp_path / "none")
    (code / "pkg" / "__pycache__").mkdir()
    (code / "pkg" / "__pycache__" / "train.pyc").write_text("x")
    assert written_since(code) == {}
    with (code / "log.txt").open("a") as file:
        file.write("more\n")
    (code / "out").mkdir()
    (code / "out" / "model.bin").write_text("x")
    assert written_since(code) == {"folder": str(code), "files": ["log.txt", "out/model.bin"], "more": 0}
    for number in range(200):
        (code / "out" / f"{number}").write_text("x")
    found = written_since(code)
    assert (len(found["files"]), found["more"]) == (100, 102)


def test_what_a_job_has_registered_does_not_count_as_written(home: Path) -> None:
    """150 files of a version, of which a record names 100 at most, in a record of now and in an older one."""
    run = create_run(new_run_id("r", "go"), {"recipe": "r", "stage": "go"}, [{"config.yaml": "a: 1\n"}])
    (job,) = run.jobs()
    code = job.path / "code"
    unpack(packed(("pkg/train.py", tarfile.REGTYPE, "1")), code)
    model = code / "out" / "model"
    model.mkdir(parents=True)
    for number in range(150):
        (model / str(number)).write_text("x")
    as_before = written_since(code)
    assert as_before["more"] == 50
    files.write_json(job.path / "artifacts.json", {"outputs": [{"name": "M", "version": 0, "path": str(model)}]})
    assert registered_folders(job) == {model}
    assert written_since(code, registered_folders(job)) == {}
    job.transition("running")
    job.finish(0, written=as_before)
    assert written_by(job) == {}
    (code / "own.txt").write_text("x")
    assert written_by(job)["files"] == ["own.txt"]
    files.write_json(job.path / "artifacts.json", {"outputs": [{"name": "", "version": None, "path": str(model)}]})
    assert written_by(job)["more"] == 51, "nothing keeps what is not registered"
