"""What the tests of logs have a job say, by every means that there is, and what its log must then hold."""

from __future__ import annotations

import re

# A module that recipes, scripts and apps of tests import.
SAYS = """
import atexit, logging, os, subprocess, sys, threading, time

log = logging.getLogger(__name__)


def say():
    try:
        from hydra.core.hydra_config import HydraConfig
    except ModuleNotFoundError:  # a container's Python has OmegaConf alone
        known = "no Hydra"
    else:
        hydra = HydraConfig.get()
        known = f"{hydra.mode.name} {hydra.job.name}"
    mark = f"<{os.environ.get('RANK', '0')}>"
    print(mark, "1 print", known)
    log.info("%s 2 record", mark)
    print(mark, "3 print to stderr", file=sys.stderr)
    os.write(1, f"{mark} 4 descriptor\\n".encode())
    subprocess.run(["sh", "-c", 'echo "$0 5 child"; echo "$0 6 child to stderr" >&2', mark], check=True)
    log.debug("%s 7 debug", mark)
    sys.stdout.buffer.write(f"{mark} 8 bytes {os.environ.get('SAID_TOKEN')}\\n".encode()); sys.stdout.buffer.flush()
    os.write(2, f"{mark} 9 descriptor {os.environ.get('SAID_TOKEN')}\\n".encode())
    threading.Thread(target=later, args=(mark, "10 thread")).start()
    atexit.register(print, mark, "11 exit function")


def later(*words):
    time.sleep(0.1)
    print(*words)


def say_it(config):
    say()
"""
TOKEN = {"SAID_TOKEN": "hf_canary0123456789"}
# Hydra's settings that must take effect.
WORDS = ("hydra.verbose=true", "hydra.job_logging.formatters.simple.format='LOG %(name)s %(message)s'")


def check(log: str, *, known: str, ranks: int = 1) -> None:
    """Each process's lines stand once, and in order, in a job's log; `known` is what HydraConfig told it."""
    for rank in range(ranks):
        lines = [line.strip().partition(f"<{rank}> ") for line in re.split(r"[\r\n]+", log) if f"<{rank}> " in line]
        assert [said for _, _, said in lines] == [
            f"1 print {known}", "2 record", "3 print to stderr", "4 descriptor", "5 child", "6 child to stderr",
            "7 debug", "8 bytes ***", "9 descriptor ***", "10 thread", "11 exit function",
        ], log  # fmt: skip
        assert all(before.endswith("LOG says ") for before, _, said in lines if said in ("2 record", "7 debug")), log
