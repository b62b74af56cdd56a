"""Many ranks' logs as one; and a stream that is no descriptor."""

from __future__ import annotations

import io
import threading
from pathlib import Path

from nemotron_kit.worker.distributed import merged
from nemotron_kit.worker.streams import Tee

from ...conftest import until


def test_every_line_once_with_its_rank_in_front_to_the_last_byte(tmp_path: Path) -> None:
    out: list[bytes] = []
    logs = {f"rank {n}": tmp_path / f"rank-{n}.log" for n in range(4)}

    def rank(path: Path) -> None:
        with path.open("ab", buffering=0) as file:
            for n in range(300):
                file.write(b"line ")
                file.write(b"%d\n" % n)
            file.write(b"no newline")

    with merged(logs, out.append):
        threads = [threading.Thread(target=rank, args=(path,)) for path in logs.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = b"".join(out).splitlines()
    for label in logs:
        own = [line for line in lines if line.startswith(f"[{label}] ".encode())]
        assert own == [f"[{label}] line {n}".encode() for n in range(300)] + [f"[{label}] no newline".encode()]
    assert len(lines) == 4 * 301


def test_lines_come_while_they_are_written_and_half_ones_wait(tmp_path: Path) -> None:
    out: list[bytes] = []
    path = tmp_path / "rank-0.log"
    with merged({"rank 0": path}, out.append):
        path.write_bytes(b"whole\nhal")
        until(lambda: out, 5, every=0.01)
        assert b"".join(out) == b"[rank 0] whole\n"
        with path.open("ab") as file:
            file.write(b"f\n")
    assert b"".join(out) == b"[rank 0] whole\n[rank 0] half\n"


def test_what_an_earlier_attempt_wrote_is_not_shown_again(tmp_path: Path) -> None:
    out: list[bytes] = []
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"before\n")
    with merged({"rank 0": path, "rank 1": tmp_path / "never"}, out.append), path.open("ab") as file:
        file.write(b"after\n")
    assert b"".join(out) == b"[rank 0] after\n"


def test_a_stream_that_is_no_descriptor_outlives_the_job_and_its_log(tmp_path: Path) -> None:
    path, shown = tmp_path / "job.log", io.StringIO()
    log = io.FileIO(path, "a")
    tee = Tee(shown, log)
    with tee.aside(1):
        log.close()
        print("the launch's", file=tee)
        thread = threading.Thread(target=lambda: print("the thread's", file=tee))
        thread.start()
        thread.join()
    print("of its logging", file=tee)
    assert path.read_text() == "the thread's\n"
    assert shown.getvalue() == "the launch's\nthe thread's\nof its logging\n"
