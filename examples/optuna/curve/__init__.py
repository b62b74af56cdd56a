"""A command whose handler returns what a sweeper minimizes: the error of a line through four points."""

from dataclasses import dataclass

from nemotron_kit import App

POINTS = ((0.0, 1.0), (1.0, 3.1), (2.0, 4.9), (3.0, 7.0))


@dataclass
class FitConfig:
    slope: float = 0.0
    offset: float = 0.0


def fit(cfg: FitConfig) -> float:
    error = sum((cfg.slope * x + cfg.offset - y) ** 2 for x, y in POINTS) / len(POINTS)
    print(f"slope={cfg.slope:.3f} offset={cfg.offset:.3f} error={error:.4f}")
    return error


app = App("curve", description="Fits a line")
app.command("fit", FitConfig, fit, description="The mean squared error of a line")
