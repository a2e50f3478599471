"""The pairs that are scored: drawn at random, or those of a list; and that a head was trained on nobody in them.

Drawing follows LFW's second view (Huang et al. 2007): folds share no person, people are drawn evenly, and then images
of each. All people, and all couples of people, of a fold serve equally often, as far as they have enough images, so no
person with many images dominates a score.

Whether a head knows somebody is decided by name and by content, since the same images may be in a store twice: in two
sources that name people differently or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featcache.core.errors import UsageError
from featcache.faces.pairs_file import Pairs, read_pairs
from featcache.metrics.verification import of_triangle

if TYPE_CHECKING:
    from featcache.store.spaces import Item
    from featcache.training.bundle import Bundle

FOLDS, EACH = 10, 300
"""Folds, and pairs of each kind per fold, as in LFW's second view."""


def draw_pairs(
    labels: Sequence[str | None],
    *,
    folds: int = FOLDS,
    each: int = EACH,
    seed: int = 0,
    sha256: Sequence[bytes] | None = None,
) -> Pairs:
    """Draw genuine pairs (of one person) and impostor pairs (of two), equally many of both in each fold.

    No pair is drawn twice, no image is paired with itself, and all pairs of a person are in one fold. The same labels
    in the same order and the same seed give the same pairs.

    Args:
        labels: the people on the m images; images without a label are left out.
        folds: number of folds.
        each: pairs of each kind per fold.
        seed: of the draw.
        sha256: of the m contents. Of images with the same content only the first is used, and none if their labels
            differ. Without it, copies of an image can be paired.

    Raises:
        UsageError: there are fewer folds or pairs than one, or not enough people or images.

    Example:
        >>> pairs = draw_pairs(["ann", "ann", "bob", "bob"], folds=1, each=2)
        >>> pairs.same.tolist()
        [True, True, False, False]
    """
    if folds < 1 or each < 1:
        raise UsageError(f"Draw one fold or more of one pair or more, not {folds} folds of {each}.")
    members = _images_by_person(labels, sha256)
    if len(members) < 2 * folds:
        advice = f"Draw {len(members) // 2} folds or less, or add people." if len(members) > 1 else "Add people."
        raise UsageError(
            f"Pairs in {folds} folds need {2 * folds} people, two each; there are images of {len(members)}. {advice}"
        )
    rng = np.random.default_rng(seed)
    images = []
    for fold, own in enumerate(_dealt(members, folds, rng)):
        genuine, impostor = _genuine(own, each, rng), _impostor(own, each, rng)
        for kind, drawn in (("one person", genuine), ("two people", impostor)):
            if len(drawn) < each:
                raise UsageError(
                    f"The {len(own)} people of fold {fold} have only {len(drawn)} different pairs of {kind}, and "
                    f"{each} are to be drawn. Draw at most {len(drawn)} pairs per fold or fewer folds, or add images."
                )
        images += [genuine, impostor]
    index = np.arange(2 * folds * each)
    return Pairs(np.concatenate(images), index % (2 * each) < each, index // (2 * each))


def largest_draw(
    labels: Sequence[str | None],
    *,
    folds: int = FOLDS,
    each: int = EACH,
    seed: int = 0,
    sha256: Sequence[bytes] | None = None,
) -> tuple[int, int]:
    """The folds, and pairs of each kind per fold, that `draw_pairs` can draw: at most as many as asked for.

    Folds have priority: each needs two people, one of them with two images.

    Args:
        labels, folds, each, seed, sha256: as for `draw_pairs`.

    Raises:
        UsageError: not even two folds of one pair of each kind can be drawn.
    """
    members = _images_by_person(labels, sha256)
    several = sum(len(images) > 1 for images in members)
    folds = min(folds, len(members) // 2, several)
    if folds < 2:
        raise UsageError(
            "Pairs are drawn in two folds or more, each of two or more people, one of them with two or more images; "
            f"there are {len(members)} people whose images can be paired, {several} of them with two or more. "
            "Add people, or images of the people there are."
        )
    for own in _dealt(members, folds, np.random.default_rng(seed)):
        sizes = np.array([len(images) for images in own])
        genuine = int((sizes * (sizes - 1) // 2).sum())
        impostor = int(sizes.sum() ** 2 - (sizes**2).sum()) // 2
        each = min(each, genuine, impostor)
    return folds, each


def _dealt(members: Sequence[np.ndarray], folds: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """The images of the people of each fold."""
    fold_of = _fold_of_each(np.array([len(images) for images in members]), folds, rng)
    return [[members[person] for person in np.flatnonzero(fold_of == fold).tolist()] for fold in range(folds)]


def _images_by_person(labels: Sequence[str | None], sha256: Sequence[bytes] | None) -> list[np.ndarray]:
    """The indices of each person's images, people in the order of their names."""
    owners: dict[bytes, set[str]] = {}
    for label, content in zip(labels, sha256 or (), strict=sha256 is not None):
        if label is not None:
            owners.setdefault(content, set()).add(label)
    people: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        # A content with several owners is nobody's, and one that was taken has no owner left.
        if label is not None and (sha256 is None or len(owners[sha256[index]]) == 1):
            people.setdefault(label, []).append(index)
            if sha256 is not None:
                owners[sha256[index]] = set()
    return [np.array(people[label], dtype=np.int64) for label in sorted(people)]


def _fold_of_each(sizes: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """The fold of each person: equally many people in each, and about equally many images.

    The people with most images are dealt first, the first round to folds 0, 1, 2 …, the second in reverse.
    """
    shuffled = rng.permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    turn = np.arange(len(sizes)) % (2 * folds)
    fold_of = np.empty(len(sizes), dtype=np.int64)
    fold_of[order] = np.where(turn < folds, turn, 2 * folds - 1 - turn)
    return fold_of


def _genuine(members: Sequence[np.ndarray], each: int, rng: np.random.Generator) -> np.ndarray:
    """(≤ each, 2) indices of images of one person."""
    several = [images for images in members if len(images) > 1]
    pairs = []
    for person, count in _shares(len(several), lambda i: math.comb(len(several[i]), 2), each, rng):
        images = several[person]
        first, second = of_triangle(rng.choice(math.comb(len(images), 2), count, replace=False))
        pairs.append(np.stack([images[first], images[second]], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)


def _impostor(members: Sequence[np.ndarray], each: int, rng: np.random.Generator) -> np.ndarray:
    """(≤ each, 2) indices of images of two people."""

    def couple(number: int) -> tuple[np.ndarray, np.ndarray]:
        first, second = of_triangle(np.array([number]))
        return members[int(first[0])], members[int(second[0])]

    def capacity(number: int) -> int:
        first, second = couple(number)
        return len(first) * len(second)

    pairs = []
    for number, count in _shares(math.comb(len(members), 2), capacity, each, rng):
        first, second = couple(number)
        drawn = rng.choice(len(first) * len(second), count, replace=False)
        pairs.append(np.stack([first[drawn // len(second)], second[drawn % len(second)]], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)


def _shares(
    groups: int, capacity: Callable[[int], int], wanted: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Divide a number over groups as evenly as their capacities allow.

    Args:
        groups: number of groups.
        capacity: the most that a group can contribute, at least 1.
        wanted: the total; less if the capacities do not suffice.
        rng: chooses which groups contribute one more than others.

    Returns:
        Groups, and the share of each, at least 1.
    """
    if groups >= wanted:
        return [(group, 1) for group in rng.choice(groups, wanted, replace=False).tolist()]
    order = sorted(rng.permutation(groups).tolist(), key=capacity)
    shares = []
    for done, group in enumerate(order):
        # The smallest contribute all they have if that is less than an equal share of the rest; of the larger ones the
        # last contribute one more.
        share = min(capacity(group), wanted // (groups - done))
        shares.append((group, share))
        wanted -= share
    return [(group, share) for group, share in shares if share]


def pairs_of_list(path: str | Path, items: Sequence[Item], head: Bundle | None) -> tuple[Pairs, str]:
    """The pairs of a list as indices into *items*, and their protocol in words.

    Raises:
        SourceError: the list cannot be read, or does not match the images or their labels.
        UsageError: the head was trained on people or images of these pairs.
    """
    pairs = read_pairs(
        path,
        [item.uri for item in items],
        labels=[item.label for item in items],
        sha256=[item.sha256 for item in items],
    )
    if head is not None:
        _check_unknown(head, items, np.unique(pairs.images))
    return pairs, f"the pairs of {path}"


def drawn_pairs(items: Sequence[Item], usable: Collection[bytes], head: Bundle | None, seed: int) -> tuple[Pairs, str]:
    """Draw pairs from the *items* that have vectors, as indices into *items*, and say how in words.

    People on whom the head was trained, by name or by an image, are left out.

    Args:
        items: of one source.
        usable: SHA-256s of those that have vectors.
        head: the head to evaluate, if any.
        seed: of the draw.

    Raises:
        UsageError: there are too few people or images.
    """
    known = set() if head is None else _known_people(head, items)
    trained = set() if head is None else {item.sha256 for item in items if head.overlap([item.sha256])}
    labels = [
        item.label if item.sha256 in usable and item.label not in known and item.sha256 not in trained else None
        for item in items
    ]
    contents = [item.sha256 for item in items]
    try:
        folds, each = largest_draw(labels, folds=FOLDS, each=EACH, seed=seed, sha256=contents)
    except UsageError as error:
        if not known:
            raise
        raise UsageError(f"{error} {len(known)} more are left out, as the head was trained on them.") from None
    drawn = draw_pairs(labels, folds=folds, each=each, seed=seed, sha256=contents)
    return drawn, f"{folds} folds of {each} + {each} pairs that share no person, drawn with seed {seed}"


def people_of(pairs: Pairs, items: Sequence[Item]) -> np.ndarray:
    """(n, 2) ids of the people on the pairs; images without a label show the same person if a pair says so."""
    labels = sorted({item.label for item in items if item.label is not None})
    node = {label: len(items) + i for i, label in enumerate(labels)}
    named = [(i, node[item.label]) for i, item in enumerate(items) if item.label is not None]
    links = np.concatenate([np.array(named, dtype=np.int64).reshape(-1, 2), pairs.images[pairs.same]])
    size = len(items) + len(labels)
    _, person = connected_components(coo_array((np.ones(len(links)), tuple(links.T)), shape=(size, size)), False)
    return np.asarray(person[pairs.images], dtype=np.int64)


def _known_people(head: Bundle, items: Sequence[Item]) -> set[str]:
    """The labels of the people on whom the head was trained, by name or by an image."""
    names = set(head.classes)
    return {
        item.label for item in items if item.label is not None and (item.label in names or head.overlap([item.sha256]))
    }


def _check_unknown(head: Bundle, items: Sequence[Item], images: np.ndarray) -> None:
    """Check that the head was trained on none of these images, and on nobody on them."""
    people = {label for i in images if (label := items[i].label) is not None}
    advice = "so its scores would be too good. Train on others (a split, another source), or omit --head."
    trained = sorted(items[i].uri for i in images if head.overlap([items[i].sha256]))
    if trained:
        raise UsageError(
            f"The head was trained on {len(trained)} of the {len(images)} images in these pairs (first: "
            f"{trained[0]!r}), {advice}"
        )
    known = sorted(people & _known_people(head, items))
    if known:
        raise UsageError(
            f"The head was trained on {len(known)} of the {len(people)} people in these pairs (first: {known[0]!r}), "
            f"{advice}"
        )
