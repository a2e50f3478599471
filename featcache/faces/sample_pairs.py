"""Random pairs in folds that share no person, after the making of LFW's second view (Huang et al. 2007).

LFW draws people evenly, and then images of each. Here too all people, and all couples of people, of a fold serve
equally often, as far as they have images enough; so no person with many images decides a score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from featcache.core.errors import UsageError
from featcache.evaluation.identity_pairs import of_triangle
from featcache.faces.pairs import Pairs


def draw_pairs(
    labels: Sequence[str | None],
    *,
    folds: int = 10,
    each: int = 300,
    seed: int = 0,
    sha256: Sequence[bytes] | None = None,
) -> Pairs:
    """Draw pairs of one person and of two, equally many of each kind in each fold.

    No pair is drawn twice, no image is paired with itself, and all pairs of a person lie in one fold. The same
    labels in the same order and the same seed give the same pairs.

    Args:
        labels: the m people on the images; those without one take no part.
        folds: how many.
        each: pairs of each kind in a fold.
        seed: another draw.
        sha256: of the images' m contents. Of images with one content only the first takes part, and none where
            they are said to show different people. Without it, copies of an image can be paired.

    Raises:
        UsageError: folds or pairs are fewer than one, or there are not enough people or images.
    """
    if folds < 1 or each < 1:
        raise UsageError(f"Pairs are drawn in one fold or more of one pair or more, not {folds} folds of {each}.")
    members = _people(labels, sha256)
    if len(members) < 2 * folds:
        fewer = f"Take {len(members) // 2} or less, or add people." if len(members) > 1 else "Add people."
        raise UsageError(
            f"Pairs in {folds} folds need {2 * folds} people, two each; there are images of {len(members)}. {fewer}"
        )
    rng = np.random.default_rng(seed)
    images = []
    for fold, own in enumerate(_dealt(members, folds, rng)):
        same, different = _same(own, each, rng), _different(own, each, rng)
        for kind, drawn in (("one person", same), ("two people", different)):
            if len(drawn) < each:
                raise UsageError(
                    f"The {len(own)} people of fold {fold} have only {len(drawn)} different pairs of {kind}, and "
                    f"{each} are to be drawn. Take at most {len(drawn)} pairs a fold, fewer folds, or more images."
                )
        images += [same, different]
    place = np.arange(2 * folds * each)
    return Pairs(np.concatenate(images), place % (2 * each) < each, place // (2 * each))


def largest_draw(
    labels: Sequence[str | None],
    *,
    folds: int = 10,
    each: int = 300,
    seed: int = 0,
    sha256: Sequence[bytes] | None = None,
) -> tuple[int, int]:
    """The folds and the pairs of each kind in a fold that `draw_pairs` can draw: at most so many as asked.

    Folds come first: each needs two people, one of them with two images.

    Args:
        labels, folds, each, seed, sha256: as for `draw_pairs`.

    Raises:
        UsageError: not even two folds of one pair of each kind can be drawn.
    """
    members = _people(labels, sha256)
    several = sum(len(places) > 1 for places in members)
    folds = min(folds, len(members) // 2, several)
    if folds < 2:
        raise UsageError(
            "Pairs are drawn in two folds or more, each of two people or more of whom one has two images or more; "
            f"there are {len(members)} people whose images can be paired, {several} of them with two or more. "
            "Add people, or images of those there are."
        )
    for own in _dealt(members, folds, np.random.default_rng(seed)):
        sizes = np.array([len(places) for places in own])
        one = int((sizes * (sizes - 1) // 2).sum())
        two = int(sizes.sum() ** 2 - (sizes**2).sum()) // 2
        each = min(each, one, two)
    return folds, each


def _dealt(members: Sequence[np.ndarray], folds: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """The people of each fold."""
    fold_of = _fold_of_each(np.array([len(places) for places in members]), folds, rng)
    return [[members[person] for person in np.flatnonzero(fold_of == fold).tolist()] for fold in range(folds)]


def _people(labels: Sequence[str | None], sha256: Sequence[bytes] | None) -> list[np.ndarray]:
    """The places of each person's images, people in the order of their names."""
    owners: dict[bytes, set[str]] = {}
    for label, content in zip(labels, sha256 or (), strict=sha256 is not None):
        if label is not None:
            owners.setdefault(content, set()).add(label)
    people: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        # A content that was taken, or that has several owners, has none left.
        if label is not None and (sha256 is None or len(owners[sha256[place]]) == 1):
            people.setdefault(label, []).append(place)
            if sha256 is not None:
                owners[sha256[place]] = set()
    return [np.array(people[label], dtype=np.int64) for label in sorted(people)]


def _fold_of_each(sizes: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """The fold of each person: equally many people in each, and as many images as can be had by dealing.

    The people with most images are dealt first, the first round to folds 0, 1, 2 …, the second backwards.
    """
    shuffled = rng.permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    turn = np.arange(len(sizes)) % (2 * folds)
    fold_of = np.empty(len(sizes), dtype=np.int64)
    fold_of[order] = np.where(turn < folds, turn, 2 * folds - 1 - turn)
    return fold_of


def _same(members: Sequence[np.ndarray], each: int, rng: np.random.Generator) -> np.ndarray:
    """(≤ each, 2) places of images of one person."""
    several = [places for places in members if len(places) > 1]
    pairs = []
    for person, count in _shares(len(several), lambda i: len(several[i]) * (len(several[i]) - 1) // 2, each, rng):
        places = several[person]
        first, second = of_triangle(rng.choice(len(places) * (len(places) - 1) // 2, count, replace=False))
        pairs.append(np.stack([places[first], places[second]], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)


def _different(members: Sequence[np.ndarray], each: int, rng: np.random.Generator) -> np.ndarray:
    """(≤ each, 2) places of images of two people."""

    def couple(number: int) -> tuple[np.ndarray, np.ndarray]:
        first, second = of_triangle(np.array([number]))
        return members[int(first[0])], members[int(second[0])]

    def images(number: int) -> int:
        first, second = couple(number)
        return len(first) * len(second)

    pairs = []
    for number, count in _shares(len(members) * (len(members) - 1) // 2, images, each, rng):
        first, second = couple(number)
        drawn = rng.choice(len(first) * len(second), count, replace=False)
        pairs.append(np.stack([first[drawn // len(second)], second[drawn % len(second)]], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)


def _shares(
    groups: int, capacity: Callable[[int], int], wanted: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """So many from each of some groups that *wanted* come together, or all that there are, as evenly as can be.

    Args:
        groups: how many.
        capacity: what a group can give, at least 1.
        wanted: from all together.
        rng: chooses who gives one more than others.

    Returns:
        Groups and what each gives, at least 1.
    """
    if groups >= wanted:
        return [(group, 1) for group in rng.choice(groups, wanted, replace=False).tolist()]
    order = sorted(rng.permutation(groups).tolist(), key=capacity)
    shares = []
    for done, group in enumerate(order):
        # The smallest give all they have where that is below what is left for each; of the larger ones the last
        # give one more.
        share = min(capacity(group), wanted // (groups - done))
        shares.append((group, share))
        wanted -= share
    return [(group, share) for group, share in shares if share]
