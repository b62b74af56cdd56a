"""The package that is sent to targets: nemotron_kit, nemotron with its recipes, and the Hydra plugins, in one folder.

`python <folder>` is the worker, so a job runs the same version of nemotron_kit as its launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

MAIN = b"""import gc, sys

if sys.version_info < (3, 11):
    sys.exit(f"error: {sys.executable} is Python {sys.version.split()[0]}; the job needs 3.11 or newer")

gc.disable()
from nemotron_kit.worker.__main__ import main

sys.exit(main())
"""
_SKIP = frozenset({"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
_EPOCH = (1980, 1, 1, 0, 0, 0)


def package_roots() -> list[tuple[Path, str]]:
    """Pairs (folder on this machine, its path in the package); of two that hold a path, the longer one counts."""
    package = Path(__file__).resolve().parents[1]
    checkout, toplevel = package.parent, package / "toplevel"
    if toplevel.is_dir():  # an editable checkout
        return [
            (package, "nemotron_kit"),
            (toplevel / "nemotron", "nemotron"),
            (toplevel / "hydra_plugins", "hydra_plugins"),
            (checkout / "recipes", "nemotron/recipes"),
        ]
    plugins = checkout / "hydra_plugins" / "nemotron_kit_launcher"
    return [
        (package, "nemotron_kit"),
        (checkout / "nemotron", "nemotron"),
        (plugins, "hydra_plugins/nemotron_kit_launcher"),
    ]


@cache
def package_hash() -> str:
    """The hash of the package's content, 32 hex digits: it changes with every edit."""
    import hashlib

    digest = hashlib.sha256()
    for name, data in sorted(_files()):
        digest.update(b"%d %s %d " % (len(name), name.encode(), len(data)) + data)
    return digest.hexdigest()[:32]


def package_zip() -> bytes:
    """The package as a zip; equal content gives equal bytes."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(_files()):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def _files() -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", MAIN
    for root, name in package_roots():
        inner = {other for other, _ in package_roots() if other != root} | {root / "toplevel"}
        for path in _walk(root, inner):
            yield f"{name}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _walk(folder: Path, leave_out: set[Path]) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path in leave_out or path.name in _SKIP or path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, leave_out)
        elif path.is_file() and path.suffix != ".pyc":
            yield path
