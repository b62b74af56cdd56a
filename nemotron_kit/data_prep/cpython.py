"""Text that every CPython installation includes, as JSON lines: a real corpus without a download.

`cpython://topics` is the language reference, `cpython://docstrings` the standard library's documentation, one module a
document, `cpython://source` its code without those docstrings. Repeated paragraphs are left out, since the reference
repeats whole sections and held-out text must not occur in the training text. `cpython://docstrings-qa` has
conversations instead: a question about an object, and the beginning of its docstring.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import json
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError, near
from nemotron_kit.files import write_changed

SCHEME = "cpython://"
_SHORT = 40  # characters: headings and signatures may repeat
_SHORT_ANSWER, _LONG_ANSWER = 12, 600
_NOT_TEXT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def write_corpus(url: str, folder: Path) -> Path:
    """Write the corpus that `url` (cpython://NAME) names to `folder` and return its file.

    The bytes depend on the running Python only; an identical file is left unchanged.
    """
    name = url.removeprefix(SCHEME)
    if name not in _CORPORA:
        raise UserError(f"{url}: no such corpus. {near(name, _CORPORA)}")
    lines = [json.dumps(record, ensure_ascii=False) for record in _CORPORA[name]()]
    if not lines:
        raise UserError(f"{url}: this Python ({sys.executable}) comes without that text.", hint="Use another source.")
    path = folder / f"cpython-{name}.jsonl"
    write_changed(path, ("\n".join(lines) + "\n").encode("utf-8"), mode=0o666)
    return path


def _topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    yield from sorted(topics.items())


def _docstrings() -> Iterator[tuple[str, str]]:
    for module, _, tree in _modules():
        parts = []
        for name, node in _definitions(tree, module):
            text = ast.get_docstring(node)
            if text:
                parts.append(f"{name}{_arguments(node)}\n\n{text}")
        yield module, "\n\n\n".join(parts)


def _sources() -> Iterator[tuple[str, str]]:
    for module, source, tree in _modules(in_packages=False):  # the single-file modules are text enough
        lines = source.splitlines()
        for _, node in _definitions(tree, module):
            if ast.get_docstring(node, clean=False) is not None:
                first = node.body[0]
                lines[first.lineno - 1 : first.end_lineno] = [""] * ((first.end_lineno or 0) - first.lineno + 1)
        yield module, re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _texts(corpus: Callable[[], Iterator[tuple[str, str]]]) -> Iterator[dict[str, Any]]:
    """A corpus's documents, without the paragraphs that have occurred before."""
    seen: set[bytes] = set()
    for key, document in corpus():
        kept = []
        for paragraph in document.split("\n\n"):
            digest = hashlib.blake2b(" ".join(paragraph.split()).encode("utf-8"), digest_size=16).digest()
            if digest not in seen or len(paragraph) < _SHORT:
                kept.append(paragraph)
            seen.add(digest)
        text = "\n\n".join(kept).strip("\n")
        if text.strip():
            yield {"id": key, "text": text}


def _questions() -> Iterator[dict[str, Any]]:
    """Questions about objects with a docstring, except those whose first paragraph has occurred before."""
    seen: set[str] = set()
    for module, _, tree in _modules():
        for name, node in _definitions(tree, module):
            answer = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if not _SHORT_ANSWER <= len(answer) <= _LONG_ANSWER or answer in seen:
                continue
            seen.add(answer)
            what = "module " if isinstance(node, ast.Module) else "class " if isinstance(node, ast.ClassDef) else ""
            question = f"What is the {what}{name} for?" if what else f"What does {name}{_arguments(node)} do?"
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            yield {"id": name, "messages": messages}


_CORPORA: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "topics": partial(_texts, _topics),
    "docstrings": partial(_texts, _docstrings),
    "source": partial(_texts, _sources),
    "docstrings-qa": _questions,
}


def _modules(*, in_packages: bool = True) -> Iterator[tuple[str, str, ast.Module]]:
    """(dotted name, source, syntax tree) of each module of the standard library that is installed as source text."""
    library = Path(sysconfig.get_path("stdlib"))
    paths: list[Path] = []
    for place, folders, files in os.walk(library):
        top = place == str(library)
        # No folder of what is not asked for: a library's site-packages can have many times as many files.
        folders[:] = [
            name
            for name in folders
            if in_packages and name not in _NOT_TEXT and (not top or name in sys.stdlib_module_names)
        ]
        paths += [Path(place, name) for name in files if name.endswith(".py")]
    for path in sorted(paths):
        parts = path.relative_to(library).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names and not _NOT_TEXT.intersection(parts):
            source = path.read_text(encoding="utf-8", errors="replace")
            tree = _parsed(source)
            if tree is not None:
                yield ".".join(parts).removesuffix(".__init__"), source, tree


def _parsed(source: str) -> ast.Module | None:
    """The syntax tree; None for files in other dialects of Python (lib2to3's test data)."""
    # A tree is many objects that stay: looking through them for garbage, time and again, takes a third of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError:
        return None
    finally:
        if collects:
            gc.enable()


def _definitions(node: _Definition, name: str) -> Iterator[tuple[str, _Definition]]:
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(child, f"{name}.{child.name}")


def _arguments(node: _Definition) -> str:
    return f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""
