"""`python -m nemotron_kit`: Hydra's own words."""

import sys

from nemotron_kit.cli.main import hydra

if __name__ == "__main__":
    sys.exit(hydra())
