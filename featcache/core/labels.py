"""How labels and names of splits are read, the same at every door, and what about them the user should be told.

Text is compared as people see it, so labels are in Unicode's form NFC. A label that is empty or not a number (NaN) is
none.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

SEPARATOR = "|"
"""Between several labels of one image."""

_SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

_MISSING_TYPES = ("NAType", "NaTType")
"""Of pandas, which is not imported here."""

_QUANTITY_CLASSES = 20
_QUANTITY_IMAGES = 10
"""Numbers as labels are taken for a quantity where there are so many different ones with fewer images each."""


def nfc(text: str) -> str:
    """A text in Unicode's form NFC: macOS writes ``ü`` as two characters, other systems as one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def split_word(word: str) -> str | None:
    """``train``, ``val`` or ``test`` where a word means one of them in any case, else None.

    Example:
        >>> split_word("Training"), split_word("dev"), split_word("cats")
        ('train', 'val', None)
    """
    return _SPLITS.get(word.strip().casefold())


def split_name(word: str | None) -> str | None:
    """The name of a split: ``train``, ``val`` or ``test`` for the words that mean them, others as they stand."""
    return (split_word(word) or nfc(word)) if word else None


@functools.lru_cache(maxsize=1 << 14)  # there may be a million images of ten classes
def settled(label: str | None, split: str | None, group: str | None) -> tuple[tuple[str, str | None], ...]:
    """Those of an image's label, split and group that are written otherwise, by name, as they are compared.

    Whoever lists images, and whoever reads what a store has listed before, builds on this.
    """
    written = {"label": label, "split": split, "group": group}
    compared = {"label": nfc(label or "") or None, "split": split_name(split), "group": nfc(group or "") or None}
    return tuple((name, text) for name, text in compared.items() if text != written[name])


def given_label(value: object) -> str | None:
    """The label that a cell of a table or an array holds; None for None, NaN, and a text that is empty or says NaN.

    Example:
        >>> given_label("cat"), given_label(float("nan")), given_label(" "), given_label(3)
        ('cat', None, None, '3')
    """
    if value is None or type(value).__name__ in _MISSING_TYPES:
        return None
    text = nfc((value.decode("utf-8") if isinstance(value, bytes) else str(value)).strip())
    # NumPy and pandas write a missing value so among texts.
    return None if text in ("", "nan", "NaN") else text


def merged(words: Iterable[str]) -> dict[str, list[str]]:
    """Names of splits that several of these words mean, with those words."""
    found: dict[str, list[str]] = {}
    for word in sorted(set(words)):
        found.setdefault(split_word(word) or word, []).append(word)
    return {name: several for name, several in found.items() if len(several) > 1}


def doubts(labels: Iterable[str | None]) -> list[str]:
    """What about labels should be told before the work, as sentences: names of splits, and numbers that measure.

    Args:
        labels: of all images, None for one without.
    """
    counts = Counter(label for label in labels if label is not None)
    return [note for note in (_splits_as_classes(counts), _quantity(counts)) if note]


def contradictions(labeled: Iterable[tuple[bytes, str, str]]) -> str | None:
    """A sentence about images that are equal byte for byte and have different labels, or None.

    Args:
        labeled: SHA-256, label and name of each image.
    """
    seen: dict[bytes, tuple[str, str]] = {}
    twice: dict[bytes, tuple[str, str, str, str]] = {}
    for sha256, label, name in labeled:
        first = seen.setdefault(sha256, (label, name))
        if first[0] != label and set(first[0].split(SEPARATOR)) != set(label.split(SEPARATOR)):
            twice.setdefault(sha256, (*first, label, name))
    if not twice:
        return None
    label, name, other, copy = min(twice.values(), key=lambda found: found[1])
    count = "1 image has" if len(twice) == 1 else f"{len(twice):,} images have"
    return (
        f"Warning: {count} two labels or more, in copies that are equal byte for byte: {name} is {label!r} and {copy} "
        f"is {other!r}. Remove the wrong copy, or correct its label."
    )


def _splits_as_classes(counts: Mapping[str, int]) -> str | None:
    words = sorted(label for label in counts if split_word(label))
    if not words or len({split_word(word) for word in words}) < 2:
        return None
    return (
        f"Warning: labels that look like names of splits: {', '.join(words)}. They are taken as classes. If they are "
        "splits, let the class folders lie below them and nothing beside them, or give the column split in a CSV file."
    )


def _quantity(counts: Mapping[str, int]) -> str | None:
    try:
        numbers = [float(label) for label in counts]
    except ValueError:
        return None
    images = sum(counts.values())
    whole = all(number.is_integer() for number in numbers)
    few = _QUANTITY_CLASSES if whole else _QUANTITY_CLASSES // 2
    if len(numbers) < few or (whole and images >= _QUANTITY_IMAGES * len(numbers)):
        return None
    return (
        f"Warning: the labels are {len(numbers):,} different numbers, from {min(numbers):g} to {max(numbers):g}, for "
        f"{images:,} images, and each number is a class of its own: {len(numbers):,} classes. If they measure "
        "something, such as an age, give ranges as labels (20-29, 30-39, …) with --labels FILE: a head predicts "
        "classes, no quantities."
    )
