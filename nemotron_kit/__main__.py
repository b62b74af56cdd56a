"""`python -m nemotron_kit`: the command line in Hydra's syntax."""

import os
import sys

if __name__ == "__main__":
    # `python -m` looks for modules in the working folder first: a json.py there is not what hydra means by json.
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        sys.path.append(sys.path.pop(0))
    from nemotron_kit.cli.main import hydra, leave

    leave(hydra)
