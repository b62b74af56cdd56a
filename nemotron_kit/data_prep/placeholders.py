"""Rows of JSON objects, including those whose question and answer are only a reference to a row of another data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemotron_kit.data_prep import line_streams, parquet, sources
from nemotron_kit.data_prep.config import DEFAULT_MAX_DOC_SIZE, DataBlend, Dataset, show_size
from nemotron_kit.data_prep.sources import FoundFile, compression_of, content_identity, is_remote, kind_of
from nemotron_kit.errors import UserError, nearest

# Up to this many bytes a file's content is identified by its sha256.
_WHOLE = 1 << 28


def identity_of(file: FoundFile) -> str:
    """What identifies a file's content, as in the plan's `identity`."""
    if is_remote(file.path):
        return file.identity or f"unknown:{file.size}"
    if file.size <= _WHOLE:
        return content_identity(file.path, file.size, samples=None)
    return content_identity(file.path, file.size)


def rows_of_file(path: str) -> Iterator[tuple[str, bytes | None, dict[str, Any]]]:
    """(location, line, row) of each row of a file; the line is None for a format without lines."""
    kind = kind_of(path) or ""
    if kind == "parquet":
        for number, row in enumerate(parquet.parquet_rows(path), 1):
            yield f"row {number}", None, row
        return
    if kind.startswith(("csv", "text")):
        raise UserError(f"{path}: rows with objects in them are needed: JSON lines or Parquet.")
    for number, line in enumerate(line_streams.all_lines(path, compression_of(kind), DEFAULT_MAX_DOC_SIZE), 1):
        where = f"line {number}"
        if isinstance(line, line_streams.TooLong):
            raise UserError(f"{path}, {where}: more than {show_size(DEFAULT_MAX_DOC_SIZE)}.")
        text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        if not text:
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            hint = "The file is a JSON array; one object a line is needed." if text.startswith(b"[") else None
            raise UserError(f"{path}, {where}: malformed JSON: {error}.", hint=hint) from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, {where}: expected a JSON object, got a {type(row).__name__}.")
        yield where, text, row


# The two sources that rows of NVIDIA's blend refer to; a blend's own `placeholders` come first.
PLACEHOLDERS = {
    "nano_v3_sft_profiled_dapo17k": Dataset("dapo", "hf://BytedTsinghua-SIA/DAPO-Math-17k", split="train"),
    "nano_v3_sft_profiled_skywork_no_omni": Dataset("skywork", "hf://Skywork/Skywork-OR1-RL-Data", split="math"),
}
_DAPO_BEFORE, _DAPO_AFTER = "Solve the following math problem", "Remember to put your answer"


class Restorer:
    """Fills in question and answer of rows that only refer to another data set."""

    def __init__(self, blend: DataBlend, corpora: Path) -> None:
        self._sources = {**PLACEHOLDERS, **blend.placeholders}
        self._folder, self._corpora = blend.folder, corpora
        self._loaded: dict[str, list[tuple[Any, Any]]] = {}
        # What a hub's data set holds is known only where it is read, which may never be.
        self.identity = {
            name: [asdict(source), [identity_of(file) for file in self._files(source)]]
            for name, source in blend.placeholders.items()
        }

    def restored(self, row: dict[str, Any], at: str) -> dict[str, Any]:
        """The row with its question, expected answer and prompt; other fields are unchanged. Raises UserError for an
        unknown reference."""
        name, given = row.get("dataset"), row["_hf_placeholder"]
        if name not in self._sources:
            raise UserError(
                f"{at}: it refers to the data set {name!r}, which is not known: {nearest(str(name), self._sources)}",
                hint='A blend file says where it is: "placeholders": {"<name>": {"path": "…", "split": "…"}}.',
            )
        number = given.get("row") if isinstance(given, dict) else None
        if name not in self._loaded:
            self._loaded[name] = self._load(self._sources[name])
        pairs = self._loaded[name]
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(pairs):
            raise UserError(f"{at}: it refers to row {number!r} of {self._sources[name].path}, which has {len(pairs)}.")
        question, answer = pairs[number]
        if not isinstance(question, str) or answer is None:
            raise UserError(f"{at}: row {number} of {self._sources[name].path} has no question, or no answer.")
        template = given.get("question_template")
        params = row.get("responses_create_params")
        params = params if isinstance(params, dict) else {}  # such as its tools and temperature
        asked = filled(question, template)
        return {
            **{key: value for key, value in row.items() if key != "_hf_placeholder"},
            "question": question if isinstance(template, str) else asked,
            "expected_answer": answer_of(answer),
            "responses_create_params": {**params, "input": [{"role": "user", "content": asked}]},
        }

    def _files(self, source: Dataset) -> list[FoundFile]:
        return sources.list_files(source, folder=self._folder, corpora=self._corpora)

    def _load(self, source: Dataset) -> list[tuple[Any, Any]]:
        """(question, answer) of every row, in the order of the files."""
        pairs = []
        for file in self._files(source):
            if kind_of(file.path) == "parquet":
                rows: Iterable[dict[str, Any]] = parquet.parquet_rows(file.path, ["prompt", "reward_model"])
            else:
                rows = (row for _, _, row in rows_of_file(file.path))
            pairs += [(_at(row, "prompt", 0, "content"), _at(row, "reward_model", "ground_truth")) for row in rows]
        return pairs


def _at(value: Any, *keys: str | int) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def filled(question: str, template: Any) -> str:
    """The question in its template: a text with `{question}` in it (Skywork's), or a `prefix` and a `suffix` (DAPO's),
    which replace the wrapper that the question has in its data set."""
    if isinstance(template, str):
        return template.replace("{question}", question) if "{question}" in template else question
    if not isinstance(template, dict):
        return question
    before, _, rest = question.partition("\n\n")
    inner, _, after = rest.rpartition("\n\n")
    if before.startswith(_DAPO_BEFORE) and after.startswith(_DAPO_AFTER):
        question = inner
    return f"{template.get('prefix') or ''}{question}{template.get('suffix') or ''}".rstrip("\n")


def answer_of(given: Any) -> Any:
    """An answer, which may be JSON: then the first element of a list or an object, as text, since verifiers compare
    texts."""
    try:
        decoded = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return given
    if isinstance(decoded, dict):
        decoded = list(decoded.values())
    if isinstance(decoded, list):
        if not decoded:
            return given
        return decoded[0] if isinstance(decoded[0], str) else json.dumps(decoded[0])
    return decoded if isinstance(decoded, str) else given
