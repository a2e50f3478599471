"""Reserved names: views, in their order, and the sources that are never scanned.

View ``0`` is the evaluation transform. Any other is called ``<digest>-<seed>-<index>``: the first 16 hexadecimal
digits of the SHA-256 of the augmentation policy's canonical JSON, a seed, and a number from 1 on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from featcache.core.errors import UnknownNameError, UsageError

VIEW_0 = "0"


def view_name(digest: str, seed: int, index: int) -> str:
    """The name of an augmented view; *digest* is that of the policy, in hexadecimal."""
    return f"{digest[:16]}-{seed}-{index}"


def in_order(views: Iterable[str]) -> list[str]:
    """Views in the order in which their rows stand: view 0, then by policy, seed and index, each once."""
    return sorted(set(views), key=_place)


def seeds(views: Iterable[str]) -> list[int]:
    """The seeds of some views, each once and in order; view 0 has none."""
    return sorted({key[1] for key in (_place(view)[1] for view in views) if key[0]})


def augmented(view: str) -> tuple[str, int, int] | None:
    """Digest of the policy, seed and index of a view; None for view 0."""
    key = _place(view)[1]
    return key if key[0] else None


def choose(views: bool | Sequence[str] | None, stored: Iterable[str]) -> list[str]:
    """Which views are meant.

    Args:
        views: names; True for view 0 and all others that are stored; None or False for view 0.
        stored: the views there are.

    Returns:
        The chosen ones as `in_order` has them.

    Raises:
        UnknownNameError: no such view is stored.
        UsageError: a list of none.
    """
    if views is None or views is False:
        return [VIEW_0]
    there = in_order([VIEW_0, *stored])
    if views is True:
        return there
    wanted = [views] if isinstance(views, str) else list(views)
    if not wanted:
        raise UsageError("No view was chosen. Give names of views, True for all, or leave views away for view 0.")
    for view in wanted:
        if view not in there:
            raise UnknownNameError.among("stored view", view, there, "`featcache extract --views K` adds views.")
    return in_order(wanted)


def _place(view: str) -> tuple[bool, tuple[str, int, int], str]:
    digest, *numbers = view.rsplit("-", 2)
    known = len(numbers) == 2 and all(number.isascii() and number.isdigit() for number in numbers)
    key = (digest, int(numbers[0]), int(numbers[1])) if known else ("", 0, 0)
    return view != VIEW_0, key, view


MEMORY = "memory"
"""The source of images that were given in memory; it has no root, and its URIs are the hashes in hexadecimal."""


PATHS = "paths"
"""The source of files that were given one by one; its root is that of the file system."""


GIVEN = (MEMORY, PATHS)
"""Sources that nobody scans: none of their images is ever judged to be gone, and `gc` empties them only by name."""


IN_PYTHON = "python:"
"""How the root of a source begins whose images only a Python program can give again: there is no such path."""
