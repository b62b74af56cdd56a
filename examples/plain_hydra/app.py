"""A Hydra program that knows nothing of nemotron_kit: only its command line chooses the launcher."""

import logging

import hydra
from omegaconf import DictConfig

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> float:
    """Ten steps of gradient descent on x²; returns how far from the minimum it ended."""
    x = float(cfg.start)
    for _ in range(cfg.steps):
        x -= cfg.lr * 2 * x
    log.info("lr=%s ends at %.4f", cfg.lr, x)
    return abs(x)


if __name__ == "__main__":
    main()
