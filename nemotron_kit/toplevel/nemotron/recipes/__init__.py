"""Our recipes: in a wheel they are in this package, in a checkout in the folder recipes/, which is added to the
path."""

from pathlib import Path

_checkout = Path(__file__).parents[4] / "recipes"
if _checkout.is_dir() and str(_checkout) not in __path__:
    __path__.append(str(_checkout))
