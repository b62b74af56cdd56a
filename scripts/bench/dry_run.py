"""A whole `nemotron nano3 pretrain -c tiny --dry-run` against a bare @hydra.main app of ten config groups.

usage: python scripts/bench/dry_run.py [ROUNDS]      (run it with the Python that nemotron-kit is installed for)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from _pairs import interleaved, ratio

APP = """
import hydra

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    pass

main()
"""


def ten_groups(folder: Path) -> None:
    """A Hydra app with ten groups of three options, as plain as one can be."""
    (folder / "app.py").write_text(APP)
    names = [f"group{i}" for i in range(10)]
    for name in names:
        (folder / "conf" / name).mkdir(parents=True)
        for option in "abc":
            (folder / "conf" / name / f"{option}.yaml").write_text("x: 1\ny: text\nz:\n  w: [1, 2]\n")
    defaults = "defaults:\n" + "".join(f"  - {name}: a\n" for name in names) + "  - _self_\n"
    (folder / "conf" / "config.yaml").write_text(defaults + "top: 1\n")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ten_groups(folder)
        nemotron = str(Path(sys.executable).with_name("nemotron"))
        seconds = interleaved(
            {
                "hydra": [sys.executable, "app.py", "hydra.run.dir=out"],
                "dry-run": [nemotron, "nano3", "pretrain", "-c", "tiny", "--dry-run"],
                "pass": [sys.executable, "-c", "pass"],
            },
            rounds=rounds,
            cwd=folder,
            # An installed package is compiled: without this a checkout may be compiled anew in each round.
            env={"NEMOTRON_HOME": str(folder / "home"), "PYTHONDONTWRITEBYTECODE": ""},
        )
    for label, values in seconds.items():
        print(f"{label:8} median {statistics.median(values) * 1000:7.1f} ms")
    against = ratio(seconds, "dry-run", "hydra")
    print(f"dry-run / @hydra.main app of ten groups: {against:.2f}x  (goal 0.75x, stretch 0.54x)")
    print(f"dry-run / python -c pass: {ratio(seconds, 'dry-run', 'pass'):.1f}x")


if __name__ == "__main__":
    main()
