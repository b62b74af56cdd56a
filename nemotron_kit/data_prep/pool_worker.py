"""A worker process of `pool`: shard numbers come in on standard input, events go out on standard output."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from nemotron_kit.data_prep.plan import ShardPlan
from nemotron_kit.data_prep.pool import ShardEvent, make_numbered_shard
from nemotron_kit.errors import NemotronError, UserError


def main() -> int:
    # Ctrl-C reaches the whole group; the parent decides and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = _claim_stdout()
    folder = Path(sys.argv[1])
    plan = ShardPlan.load(folder)
    for line in sys.stdin:
        try:
            if plan is None:
                raise UserError(f"{folder}: the plan is gone.")
            make_numbered_shard(plan, int(line), folder, lambda event: _say(out, event))
        except BrokenPipeError:
            return 1  # the parent is gone, and with it whoever wanted this
        except NemotronError as error:
            message = {"error": error.message, "hint": error.hint, "user": isinstance(error, UserError)}
            print(json.dumps(message), file=out, flush=True)
    return 0


def _claim_stdout() -> TextIO:
    """The real standard output for events only; what a library prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _say(out: TextIO, event: ShardEvent) -> None:
    print(json.dumps(asdict(event)), file=out, flush=True)


if __name__ == "__main__":
    sys.exit(main())
