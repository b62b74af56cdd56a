"""Logs: every byte once, in bounded memory, and harmless to a terminal."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nemotron_kit.errors import printable
from nemotron_kit.runs.job import tail
from nemotron_kit.runs.logs import CHUNK, TerminalSanitizer, follow, last_lines


def test_what_a_terminal_would_obey_is_made_visible() -> None:
    assert printable("\x1b]0;title\x07") == "^[]0;title^G"
    assert printable("\x1b[2J\x1b[1;31mred\x1b[0m\x9b5n") == "^[[2Jred\\x9b5n"
    assert printable("a\tb\r\nc\x7f\u202ed\x00") == "a\tb\r\nc^?\\u202ed^@"
    assert printable("héllo 漢字 😀") == "héllo 漢字 😀"


@given(
    st.binary(max_size=300) | st.text("\x1b[]0;1m\x07é漢a\n\x9b\u202e").map(str.encode), st.lists(st.integers(0, 300))
)
def test_pieces_give_what_the_whole_gives(data: bytes, cuts: list[int]) -> None:
    whole = TerminalSanitizer().feed(data, final=True)
    reader, text, start = TerminalSanitizer(), "", 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        text += reader.feed(data[start:cut])
        start = cut
    assert text + reader.feed(b"", final=True) == whole
    assert not any((ord(char) < 0x20 and char not in "\n\r\t") or 0x7F <= ord(char) < 0xA0 for char in whole)


def test_follows_a_growing_log_to_its_last_byte(tmp_path: Path) -> None:
    """A part of it is written before each look: nothing at first, half a line each time, the last before the end."""
    path = tmp_path / "job.log"
    lines = [f"line {n}\n".encode() for n in range(200)]
    parts = [part for line in lines for part in (line[:3], line[3:])]
    coming = iter(parts)

    def over() -> bool:
        if (part := next(coming, None)) is None:
            return True
        with path.open("ab", buffering=0) as file:
            file.write(part)
        return part is parts[-1]

    assert b"".join(follow(path, over, poll=0.0001)) == b"".join(lines)


def test_from_an_offset_and_after_a_truncation(tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    path.write_bytes(b"0123456789")
    assert b"".join(follow(path, lambda: True, offset=4)) == b"456789"
    answers = iter([False, True])
    pieces = follow(path, lambda: next(answers), poll=0.001)
    assert next(pieces) == b"0123456789"
    path.write_bytes(b"new")
    assert b"".join(pieces) == b"new"
    assert list(follow(tmp_path / "none", lambda: True)) == []


def test_pieces_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    path.write_bytes(b"x" * (5 * CHUNK + 1))
    assert [len(piece) for piece in follow(path, lambda: True)] == [CHUNK] * 5 + [1]


def test_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path, 3) == []
    path.write_bytes(b"".join(b"%d\n" % n for n in range(1000)))
    assert tail(path, 2) == [b"998\n", b"999\n"] and len(tail(path, 5000)) == 1000
    assert tail(path, 0) == []
    assert tail(path, 100, limit=10) == [b"998\n", b"999\n"]
    path.write_bytes(b"x" * 100)
    assert tail(path, 1, limit=10) == []


@given(st.text("ab\n", max_size=60), st.integers(0, 8))
def test_where_the_last_lines_begin(text: str, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_text(text)
        lines = text.splitlines(keepends=True)
        assert text[last_lines(path, count) :] == "".join(lines[-count:] if count else [])


def test_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (3 * CHUNK) + b"\n" + b"y" * (2 * CHUNK) + b"\nlast\n")
    assert last_lines(path, 1) == 5 * CHUNK + 2 and last_lines(path, 2) == 3 * CHUNK + 1
    assert last_lines(path, 3) == 0 == last_lines(tmp_path / "none", 3)
