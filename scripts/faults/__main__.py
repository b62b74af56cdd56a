"""Faults, injected: what is acknowledged stays, nothing is torn, no text runs, every mistake is one error.

    python scripts/faults                     all of them, short: three to four minutes on two cores
    python scripts/faults kills texts         some of them
    python scripts/faults --scale 10          ten times as many cases
    python scripts/faults --seed 7            other random choices

Each prints how many cases it tried and what did not hold; the exit code is 1 if anything did not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

HARNESSES = {
    "kills": "kill -9 at random moments of saving, launching and data prep",
    "calls": "death and errors at every call that changes files",
    "tidy": "death at the calls of runs rm, artifacts rm, gc and relocate, which are given again",
    "records": "damaged records, read by every command that lists or shows them",
    "texts": "hostile texts as values, names and environment variables",
    "files": "hostile configs, sources and records: bombs, pipes, torn and endless files",
}


def main() -> int:
    """Run what was asked for; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(f"{n}: {t}" for n, t in HARNESSES.items()))
    parser.add_argument("--scale", type=float, default=1.0, help="how many times as many cases")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    unknown = set(asked.names) - set(HARNESSES)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(HARNESSES)}")
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tests")]
    broken = 0
    for name in asked.names or HARNESSES:
        with tempfile.TemporaryDirectory(prefix=f"faults-{name}-") as folder:
            os.environ["NEMOTRON_HOME"] = f"{folder}/home"
            os.chdir(folder)
            began = time.monotonic()
            cases, failures = import_module(name).run(Path(folder), asked.scale, asked.seed)
            os.chdir("/")
        print(f"{name:8} {cases:6} cases  {len(failures):4} failed  {time.monotonic() - began:6.1f} s", flush=True)
        for line in failures[:20]:
            print(f"         {line}", flush=True)
        broken += bool(failures) or not cases
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
