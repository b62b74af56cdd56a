"""Our recipes. In a wheel they lie here; in a checkout they lie in its recipes/ folder, which is added to the path."""

from pathlib import Path

_checkout = Path(__file__).parents[4] / "recipes"
if _checkout.is_dir() and str(_checkout) not in __path__:
    __path__.append(str(_checkout))
