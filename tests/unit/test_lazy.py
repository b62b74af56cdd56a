"""What a frozen dataclass gets from `lazy.Value`: the same as from `@dataclass(frozen=True)`."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from nemotron_kit.lazy import Value


@dataclass(frozen=True)
class Plain:
    name: str
    sizes: tuple[int, ...] = ()
    more: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Shared(Value):
    name: str
    sizes: tuple[int, ...] = ()
    more: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Below(Shared):
    pass


def test_comparison_hash_and_text_are_a_frozen_dataclasss() -> None:
    one, same, other = Shared("a", (1, 2)), Shared("a", (1, 2)), Shared("a", (1,))
    assert (one == same, one != other, one == Plain("a", (1, 2)), one == Below("a", (1, 2))) == (
        True,
        True,
        False,
        False,
    )
    assert repr(one) == repr(Plain("a", (1, 2))).replace("Plain", "Shared")
    for each in (one, Plain("a")):
        with pytest.raises(TypeError, match="unhashable type: 'dict'"):
            hash(each)
    assert replace(one, sizes=(1,)) == other and pickle.loads(pickle.dumps(one)) == one  # noqa: S301
    with pytest.raises(FrozenInstanceError):
        one.name = "b"  # type: ignore[misc]
