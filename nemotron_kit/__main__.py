"""`python -m nemotron_kit`: Hydra's own words."""

from nemotron_kit.cli.main import hydra, leave

if __name__ == "__main__":
    leave(hydra())
