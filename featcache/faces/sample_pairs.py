"""Random pairs in folds that share no person, after the making of LFW's second view (Huang et al. 2007).

LFW draws people evenly, and then images of each. Here too all people, and all couples of people, of a fold serve
equally often, as far as they have images enough; so no person with many images decides a score.

Which pairs are scored: those of a list, or drawn ones; and that a head was trained on nobody in them.

That is looked at by name and by content, since the same images may be in a store twice, in two sources with other
names for people, or with none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featcache.core.errors import UsageError
from featcache.faces.pairs_file import Pairs, read_pairs
from featcache.metrics.verification import of_triangle
from featcache.store.spaces import Item
from featcache.training.bundle import Bundle


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


FOLDS, EACH = 10, 300


def pairs_of_list(path: str | Path, items: Sequence[Item], head: Bundle | None) -> tuple[Pairs, str]:
    """The pairs of a list as places in *items*, and where they come from in words.

    Raises:
        SourceError: the list cannot be read, or does not fit the images or their labels.
        UsageError: the head was trained on people or images of these pairs.
    """
    pairs = read_pairs(
        path,
        [item.uri for item in items],
        labels=[item.label for item in items],
        sha256=[item.sha256 for item in items],
    )
    if head is not None:
        _refuse_known(head, items, np.unique(pairs.images))
    return pairs, f"the pairs of {path}"


def drawn_pairs(items: Sequence[Item], usable: Collection[str], head: Bundle | None, seed: int) -> tuple[Pairs, str]:
    """Pairs drawn from the *items* that have vectors, as places in these, and how they were drawn in words.

    People whom the head was trained on, by name or by an image, take no part.

    Args:
        items: of one source.
        usable: URIs of those that have vectors.
        head: the head, if there is one.
        seed: of the draw.

    Raises:
        UsageError: there are too few people or images.
    """
    known = set() if head is None else _known_people(head, items)
    trained = set() if head is None else {item.sha256 for item in items if head.overlap([item.sha256])}
    free = [item.uri in usable and item.label not in known and item.sha256 not in trained for item in items]
    labels = [item.label if may else None for item, may in zip(items, free, strict=True)]
    contents = [item.sha256 for item in items]
    try:
        folds, each = largest_draw(labels, folds=FOLDS, each=EACH, seed=seed, sha256=contents)
    except UsageError as error:
        if not known:
            raise
        raise UsageError(f"{error} The head was trained on {len(known)} more people, who take no part.") from None
    drawn = draw_pairs(labels, folds=folds, each=each, seed=seed, sha256=contents)
    return drawn, f"{folds} folds of {each} + {each} pairs that share no person, drawn with seed {seed}"


def people_of(pairs: Pairs, items: Sequence[Item]) -> np.ndarray:
    """(n, 2) numbers of the people on the pairs; images without a label are of one person where pairs say so."""
    labels = sorted({item.label for item in items if item.label is not None})
    number = {label: len(items) + i for i, label in enumerate(labels)}
    named = [(i, number[item.label]) for i, item in enumerate(items) if item.label is not None]
    links = np.concatenate([np.array(named, dtype=np.int64).reshape(-1, 2), pairs.images[pairs.same]])
    size = len(items) + len(labels)
    _, person = connected_components(coo_array((np.ones(len(links)), tuple(links.T)), shape=(size, size)), False)
    return np.asarray(person[pairs.images], dtype=np.int64)


def _known_people(head: Bundle, items: Sequence[Item]) -> set[str]:
    """The labels of those whom the head knows by name, or of whom it was trained on an image."""
    names = set(head.classes)
    return {
        item.label for item in items if item.label is not None and (item.label in names or head.overlap([item.sha256]))
    }


def _refuse_known(head: Bundle, items: Sequence[Item], images: np.ndarray) -> None:
    people = {label for i in images if (label := items[i].label) is not None}
    advice = "so its score would be too good. Train on others (a split, another source), or score without --head."
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
