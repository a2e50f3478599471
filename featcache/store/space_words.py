"""What tells the spaces of one backbone apart, in words: the fields of their recipes that differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from featcache.store.spaces import Space

_DIGITS = 12
"""Of a digest, as many as the store shows of fingerprints."""


def distinctions(spaces: Sequence[Space]) -> list[str]:
    """For each space how its recipe differs from those of the other spaces of its backbone.

    Args:
        spaces: all among which one is to be chosen.

    Returns:
        As many texts, such as ``scaled dct/1`` and ``without scaled``; empty where a backbone has one space alone.
    """
    return [_words(space, [s for s in spaces if s.recipe.backbone == space.recipe.backbone]) for space in spaces]


def named(spaces: Sequence[Space]) -> str:
    """The spaces as a list in a sentence, each by its fingerprint's beginning, its backbone and its distinction."""
    abouts = zip(spaces, distinctions(spaces), strict=True)
    return "; ".join(
        f"{space.fingerprint[:_DIGITS]} ({', '.join(filter(None, [space.recipe.backbone, about]))})"
        for space, about in abouts
    )


def _words(space: Space, alike: Iterable[Space]) -> str:
    mine = {name: value for other in alike for name, value, _ in space.recipe.differences(other.recipe)}
    present = [f"{_short(name)} {_value(value)}" for name, value in sorted(mine.items()) if value is not None]
    return ", ".join(present or [f"without {_short(name)}" for name in sorted(mine)])


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _value(value: object) -> str:
    if isinstance(value, list):
        return " × ".join(map(str, value))
    text = str(value)
    return text[:_DIGITS] if len(text) == 64 else text
