"""What a save costs: with 10 versions of its name and with many; and with 20 writers of one name at once.

python scripts/bench/registry.py [--many 10000] [--rounds 30] [--writers 20] [--saves 50]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _pairs import load

from nemotron_kit.artifacts.registry import LocalRegistry
from nemotron_kit.artifacts.store import RECORD, Draft
from nemotron_kit.files import read_checksummed, render_checksummed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("many", 10_000), ("rounds", 30), ("writers", 20), ("saves", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--write", metavar="FOLDER NUMBER", nargs=2, help="be one of the writers")
    options = parser.parse_args()
    if options.write:
        folder, number = Path(options.write[0]), int(options.write[1])
        while not (folder / "go").exists():
            time.sleep(0.005)
        for each in range(options.saves):
            print(saved(LocalRegistry(folder / "registry"), folder, f"{number}-{each}"))
        return
    with tempfile.TemporaryDirectory() as text:
        growth(Path(text) / "growth", options.many, options.rounds)
        writers(Path(text) / "writers", options.writers, options.saves)


def saved(registry: LocalRegistry, folder: Path, content: str) -> float:
    """Seconds of one save of new content."""
    root = folder / "files" / content
    root.mkdir(parents=True)
    (root / "data").write_text(content)
    time.sleep(0.03)  # a younger file is waited for, whatever the registry holds
    started = time.perf_counter()
    registry.commit(Draft("Data", "T", root, root, {}, {}, "2026"))
    return time.perf_counter() - started


def growth(folder: Path, many: int, rounds: int) -> None:
    """Saves with 10 versions and with many, in turns."""
    registries = {count: LocalRegistry(folder / str(count) / "registry") for count in (10, many)}
    for count, registry in registries.items():
        saved(registry, registry.root.parent, "first")
        fill(registry, count)
        started = time.perf_counter()
        saved(registry, registry.root.parent, "second")
        print(f"{count} versions, no index yet: {time.perf_counter() - started:.2f} s")
    seconds: dict[int, list[float]] = {count: [] for count in registries}
    again: dict[int, list[float]] = {count: [] for count in registries}
    for number in range(rounds):
        for count, registry in registries.items():
            seconds[count].append(saved(registry, registry.root.parent, f"new-{number}"))
            root = registry.root.parent / "files" / f"new-{number}"
            started = time.perf_counter()
            registry.commit(Draft("Data", "T", root, root, {}, {}, "2026"))
            again[count].append(time.perf_counter() - started)
    for what, times in (("new content", seconds), ("equal content", again)):
        few, more = (statistics.median(times[count]) for count in registries)
        print(f"{what}: {few * 1e3:.1f} ms with 10 versions, {more * 1e3:.1f} ms with {many}: {more / few:.2f}×")
    print(load())


def fill(registry: LocalRegistry, count: int) -> None:
    """More versions, as copies of the first under their own numbers."""
    record = read_checksummed(registry.folder("Data") / "v0" / RECORD, "record")
    for version in range(1, count):
        folder = registry.folder("Data") / f"v{version}"
        folder.mkdir()
        mark = f"{version:064x}"
        (folder / RECORD).write_text(render_checksummed({**record, "version": version, "digest": mark, "commit": mark}))
    for file in (registry.folder("Data") / "index").glob("[cn]*e*t*"):
        if file.is_file():
            file.unlink()


def writers(folder: Path, count: int, saves: int) -> None:
    """Processes that save under one name at once; every save must be there afterwards."""
    folder.mkdir()
    line = [sys.executable, __file__, "--saves", str(saves), "--write", str(folder)]
    running = [subprocess.Popen([*line, str(n)], stdout=subprocess.PIPE, text=True) for n in range(count)]
    time.sleep(3)
    (folder / "go").touch()
    seconds = sorted(float(text) for process in running for text in process.communicate()[0].split())
    found = LocalRegistry(folder / "registry").versions("Data")
    if found != list(range(count * saves)):
        raise SystemExit(f"{len(found)} versions of {count * saves} saves")
    p50, p99 = (seconds[int(len(seconds) * share)] for share in (0.5, 0.99))
    print(f"{count} writers × {saves}: median {p50 * 1e3:.0f} ms, p99 {p99:.2f} s, longest {seconds[-1]:.2f} s")
    print(load())


if __name__ == "__main__":
    main()
