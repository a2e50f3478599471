"""Which images a head is trained on, and which it is scored on.

A source's own splits count. Of sources without splits the store's hold-out is scored (`featcache.metrics.holdout`): by
content, the same for all heads and sources. Images that share content or a group with a training image are not scored,
and near-duplicates of held-out images are not learned from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from featcache.core.errors import DamagedStoreError, MissingVectorsError, StoreError, UnknownNameError, UsageError
from featcache.core.names import VIEW_0
from featcache.core.progress import Progress, counted
from featcache.metrics import holdout, near_duplicates
from featcache.metrics.near_duplicates import NOTHING as NO_NEAR_DUPLICATES
from featcache.store import FeatureStore, sources
from featcache.store.rows import ItemRows
from featcache.training import leakage, multilabel
from featcache.training.leakage import Found
from featcache.training.own_splits import NOTHING, own_splits, without_splits

if TYPE_CHECKING:
    from featcache.metrics.near_duplicates import NearDuplicates
    from featcache.training.dataset import FeatureDataset
    from featcache.training.leakage import LeakageReport

LEARNED_FROM = "; the head has learned from "
POOLED = "pooled"
Records = Mapping[bytes, tuple[str, str]]
"""Side and reason by SHA-256."""
T = TypeVar("T")
_NAMED = 3


def check_classes(dataset: FeatureDataset) -> None:
    """Check that there are classes to tell apart.

    Raises:
        UsageError: there is only one class.
        MissingVectorsError: likewise, but other labeled images have no vectors yet.
    """
    if dataset.labels is not None:
        multilabel.check_labels(dataset)
        return
    names = sorted(set(dataset.y.tolist()))
    if len(names) < 2:
        one = f"All {len(dataset.y)} labeled items are of one class, {names[0]!r}; a head needs two or more. "
        if len(dataset.y) == 1:
            one = f"There is only one labeled item, of class {names[0]!r}; a head needs items of two or more classes. "
        if dataset.without_vectors:
            raise MissingVectorsError(
                re.sub("labeled items?", r"\g<0> with vectors", one)
                + f"{dataset.without_vectors} more have no vectors: run `featcache extract` to compute them."
            )
        raise UsageError(one + "Put the images into one folder per class, or give --labels FILE.")


@dataclass(frozen=True, slots=True)
class Sides:
    """What a head learns from, and what it is scored on.

    Attributes:
        dataset: the labeled vectors, near-duplicates linked if that was asked for.
        train_rows: (m,) rows to train on.
        test_rows: (q,) rows to score. There may be none; the protocol then begins with `NOTHING` and says why.
        protocol: which rows these are, in words.
        leaked: the near-duplicates among them.
    """

    dataset: FeatureDataset
    train_rows: np.ndarray
    test_rows: np.ndarray
    protocol: str
    leaked: LeakageReport


def divide(
    dataset: FeatureDataset,
    split: str | None,
    seed: int,
    store: FeatureStore | None,
    progress: Progress,
    *,
    grouped: bool | Found = False,
) -> Sides:
    """Divide labeled images into those to train on and those to score.

    By the splits of the sources that have some, and by the store's hold-out of the others. Near-duplicates are searched
    once: those of held-out images, of images of the store that are not in the dataset too, as long as their vectors are
    stored.

    Args:
        dataset: labeled vectors.
        split: the split to train on; ``train`` by default, if the source has splits.
        seed: of the store's hold-out, if none was drawn yet; and of the search.
        store: keeps the hold-out in its catalogue; None to draw it each time.
        progress: gets the search as a phase, and notes: classes of which nothing is left to learn from, or a hold-out
            that cannot be kept, or images without a split among others with one.
        grouped: search all near-duplicates, and keep them together as images of one group are; or these, if they were
            searched already.

    Raises:
        UnknownNameError: no such split.
        UsageError: a group on both sides, or fewer than two classes to train on.
    """
    loose = without_splits(dataset)
    if loose.all() and split is not None:
        raise UnknownNameError(
            f"There is no split {split!r}: the source has no splits. Omit --split, or add splits with "
            "`featcache extract --split FILE`."
        )
    found = grouped if isinstance(grouped, Found) else None
    if grouped is True:
        looked_at = _looked_at(dataset, store)
        outside = _outside(looked_at, store, progress) if loose.any() else None
        found = leakage.grouped(looked_at, outside, seed, progress)
    if found is not None:
        dataset = dataset.linked(found.pairs)
    if loose.all():
        sides = _by_holdout(dataset, seed, store, progress, found)
    else:
        sides = _by_splits(dataset, split or "train", seed, store, progress, found)
    names = _classes_of(dataset, sides.train_rows) if dataset.labels is None else dataset.labels
    if len(names) < 2:
        raise UsageError(
            f"All training images have the class {names[0]!r}: the other classes are only in the part that is scored. "
            "Change the split, or score with --cv 5."
            if names else
            "All labeled images are held out or belong together with held-out ones, so none is left to train on. Add "
            "images, or score with --cv 5."
        )  # fmt: skip
    return sides


def _classes_of(dataset: FeatureDataset, rows: np.ndarray) -> list[str]:
    y = dataset.y[rows]
    return sorted(set(y.tolist() if dataset.labels is None else np.array(dataset.labels)[y.any(axis=0)].tolist()))


def holds_out(dataset: FeatureDataset, store: FeatureStore) -> bool:
    """Whether there is a hold-out of some of these images: a source has no splits, and some head has drawn it."""
    return bool(without_splits(dataset).any()) and holdout.SEED in store.settings()


def held_out(dataset: FeatureDataset, store: FeatureStore | None, seed: int = 0) -> np.ndarray:
    """(n,) bool, which images the store holds out: by record and, in sources without splits, by the rule."""
    if store is None:
        return np.zeros(len(dataset.items), dtype=bool)
    known, drawn_seed = _known(store)
    held = np.array([known.get(item.sha256) == holdout.TEST for item in dataset.items], dtype=bool)
    loose = np.flatnonzero(without_splits(dataset))
    held[loose] = holdout.held_out(
        [dataset.items[row] for row in loose], known, seed if drawn_seed is None else drawn_seed
    )
    return held


def learned_from(
    dataset: FeatureDataset,
    rows: np.ndarray,
    store: FeatureStore | None,
    seed: int = 0,
    found: NearDuplicates = NO_NEAR_DUPLICATES,
) -> str:
    """In words for a protocol, that a head has learned from held-out images or near-duplicates of them; or nothing.

    Args:
        dataset: n images.
        rows: (m,) rows that it has learned from.
        store, seed: as for `held_out`.
        found: near-duplicates among the images.
    """
    if store is None:
        return ""
    held, recorded = held_out(dataset, store, seed), _known(store)[0]
    near = np.array([recorded.get(item.sha256) == holdout.NEITHER for item in dataset.items], dtype=bool)
    a, b = found.pairs.T
    near[a[held[b]]] = near[b[held[a]]] = True
    items, twins = int(held[rows].sum()), int((near & ~held)[rows].sum())
    told = [f"{counted(items, 'items')} that the store holds out"] * bool(items)
    told += [f"{counted(twins, 'near-duplicates')} of held-out items"] * bool(twins)
    return LEARNED_FROM + " and ".join(told) if told else ""


def _by_splits(
    dataset: FeatureDataset, split: str, seed: int, store: FeatureStore | None, progress: Progress, found: Found | None
) -> Sides:
    """The sides by the splits of the sources that have some, and by the store's hold-out of the others."""
    train_rows, test_rows, protocol = own_splits(dataset, split)
    left_out, loose = np.zeros(len(dataset.items), dtype=bool), without_splits(dataset)
    if loose.any():
        rows = np.flatnonzero(loose)
        drawn = _by_holdout(
            dataset.subset(rows), seed, store, progress, None if found is None else found.among(rows),
            _classes_of(dataset, train_rows),
        )  # fmt: skip
        learned, scored = rows[drawn.train_rows], rows[drawn.test_rows]
        of_scored = np.isin(dataset.groups[learned], dataset.groups[test_rows])
        of_learned = np.isin(dataset.groups[scored], dataset.groups[train_rows])
        words = f"of the sources without splits {drawn.protocol}"
        if of_scored.any():
            words += f"; {counted(int(of_scored.sum()), 'items')} left out, because they are copies of scored ones"
        if of_learned.any():
            words += f"; {counted(int(of_learned.sum()), 'items')} not scored, because they are copies of training ones"
        left_out[rows] = drawn.leaked.left_out
        nothing = not len(test_rows) and not of_learned.all()
        protocol = f"{words}; of the others {protocol}" if nothing else f"{protocol}; {words}"
        train_rows = np.union1d(train_rows, learned[~of_scored])
        test_rows = np.union1d(test_rows, scored[~of_learned])
    if unsplit := sum(item.split is None for item in dataset.items) - int(loose.sum()):
        progress.note(
            f"{counted(unsplit, 'labeled items')} without a split left out: others of their source have one. Give them "
            "one with `featcache extract --split FILE`."
        )
    leaked = leakage.guard(
        dataset, [train_rows, test_rows], scored=test_rows, found=found, seed=seed, progress=progress
    )
    protocol += learned_from(dataset, train_rows, store, seed, leaked.found)
    return Sides(dataset, train_rows, test_rows, protocol, replace(leaked, left_out=left_out))


def _by_holdout(
    dataset: FeatureDataset,
    seed: int,
    store: FeatureStore | None,
    progress: Progress,
    found: Found | None,
    learned: Collection[str] = (),
) -> Sides:
    """The sides by the store's hold-out, which is recorded in the catalogue.

    *found* has all near-duplicates; classes *learned* from other images are not told as not learned.
    """
    drawn, found, seed = _drawn(dataset, seed, store, progress, found)
    train_rows, test_rows = np.flatnonzero(drawn.train), np.flatnonzero(drawn.test)
    if len(test_rows):
        words = f"a hold-out of {len(test_rows):,} of {counted(len(dataset.items), 'items')} (by content, seed {seed})"
    else:
        words = f"{NOTHING}: each class has one image, or copies of one"
    if drawn.topped_up:
        words += f"; {drawn.topped_up:,} of them taken because their class had none"
    if near := int(drawn.near.sum()):
        words += f"; {counted(near, 'near-duplicates')} of held-out items left out"
    if neither := len(dataset.items) - len(train_rows) - len(test_rows) - near:
        words += f"; {counted(neither, 'items')} left out, because they belong together with held-out ones"
    names = [name if dataset.labels is None else dataset.labels[int(name)] for name in drawn.unlearned]
    if names := [name for name in names if name not in learned]:
        listed = ", ".join(map(repr, names[:_NAMED])) + (" …" if len(names) > _NAMED else "")
        why = "all their items are held out" + (", or near-duplicates of held-out ones" if near else "")
        words += f"; not learned, because {why}: {listed}"
        progress.note(f"Not learned, because {why}: {listed}. Add images of them, or train with --refit-all or --cv.")
    leaked = leakage.guard(dataset, [train_rows, test_rows], found=found)
    return Sides(dataset, train_rows, test_rows, words, replace(leaked, left_out=drawn.near))


def _drawn(
    dataset: FeatureDataset, seed: int, store: FeatureStore | None, progress: Progress, found: Found | None
) -> tuple[holdout.Holdout, Found, int]:
    """The sides of all rows, the near-duplicates, and the seed of the hold-out, all settled in the catalogue."""
    looked_at = dataset if found is not None else _looked_at(dataset, store)
    outside = None if found is not None else _outside(looked_at, store, progress)
    searched = np.full(len(dataset.items), found is not None)

    def draw(known: Mapping[bytes, str], seed: int) -> tuple[tuple[holdout.Holdout, Found], Records]:
        nonlocal found, searched
        # Near-duplicates can only be of what is held out before they are known.
        first = holdout.draw(dataset.items, dataset.y, dataset.groups, known, seed).test
        if found is None or (first & ~searched).any():
            found, searched = _search(looked_at, first, outside, seed, progress), first
        beyond = np.zeros(len(searched), dtype=bool)
        beyond[found.outside] = True
        units = dataset.linked(found.pairs).groups if len(found.pairs) else dataset.groups
        near = holdout.Near(found.pairs, beyond, searched)
        drawn = holdout.draw(dataset.items, dataset.y, units, known, seed, near)
        return (drawn, found), drawn.records

    (drawn, near), seed = settle(draw, seed, store, progress)
    return drawn, near, seed


def settle(
    draw: Callable[[Mapping[bytes, str], int], tuple[T, Records]],
    seed: int,
    store: FeatureStore | None,
    progress: Progress,
) -> tuple[T, int]:
    """Draw a hold-out and record it in the catalogue.

    Args:
        draw: from the recorded sides and the seed to what is drawn and what is to be recorded. It is asked again if
            another process was first: then what that one recorded counts.
        seed: of the store's hold-out, if it has none yet.
        store: the store; None to record nothing.
        progress: gets a note if the hold-out cannot be recorded.

    Returns:
        What was drawn, and the seed of the store's hold-out.
    """
    known, settled = ({}, None) if store is None else _known(store)
    while True:
        seed = seed if settled is None else settled
        drawn, records = draw(known, seed)
        if store is None or (settled is not None and not records):
            return drawn, seed
        try:
            for note in sources.save_holdout(store.path, seed, records):
                progress.note(note)
        except StoreError as error:
            progress.note(f"The hold-out could not be kept in the store, so it may differ next time: {error}")
            return drawn, seed
        known, settled = _known(store)
        if settled == seed and all(known.get(sha256) == part for sha256, (part, _) in records.items()):
            return drawn, seed


def _search(
    dataset: FeatureDataset, scored: np.ndarray, outside: ItemRows | None, seed: int, progress: Progress
) -> Found:
    """The near-duplicates of the *scored* (n,) images, and of those outside."""
    if not scored.any() and not outside:
        return Found.nothing()
    rows = np.arange(len(dataset.items))
    scored_rows = np.flatnonzero(scored)
    return leakage.search(dataset, rows, scored=scored_rows, outside=outside, seed=seed, progress=progress)


def _looked_at(dataset: FeatureDataset, store: FeatureStore | None) -> FeatureDataset:
    """The images with the vectors by which near-duplicates are known: ``pooled``, or the dataset's where some lack it.

    So heads of different layers find the same ones, and also those of images that have no vectors of other layers.
    """
    if store is None or dataset.recipe is None or dataset.layers == [POOLED]:
        return dataset
    space = dataset.recipe.fingerprint
    contents = list(dict.fromkeys(item.sha256 for item in dataset.items))
    if POOLED not in store.space(space).layers:
        return dataset
    rows = ItemRows.of_contents(store, [POOLED], contents, space)
    if len(rows) < len(contents):
        return dataset
    place = {sha256: number for number, sha256 in enumerate(contents)}
    at = np.array([place[item.sha256] for item in dataset.items], dtype=np.int64)
    return replace(
        dataset, layers=[POOLED], shapes=rows.shapes, read=lambda some: rows.read(at[some]), narrow=None,
        views=(VIEW_0,), view_reader=None,
    ).in_memory()  # fmt: skip


def _outside(dataset: FeatureDataset, store: FeatureStore | None, progress: Progress) -> ItemRows | None:
    """The vectors of images that heads were scored on and that are not in the dataset; None where there are none."""
    there = {item.sha256 for item in dataset.items}
    known = {} if store is None else _known(store)[0]
    gone = [sha256 for sha256, part in known.items() if part == holdout.TEST and sha256 not in there]
    if store is None or dataset.recipe is None or not gone:
        return None
    rows = ItemRows.of_contents(store, dataset.layers, gone, dataset.recipe.fingerprint)
    if len(there) <= near_duplicates.MOST < len(there) + len(rows):
        progress.note(
            f"Near-duplicates of {len(rows):,} held-out images of other sources are not looked for: together these are "
            f"more than {near_duplicates.MOST:,} images."
        )
        return None
    return rows if len(rows) else None


def _known(store: FeatureStore) -> tuple[dict[bytes, str], int | None]:
    """The recorded sides, and the seed, or None before the first hold-out."""
    seed = store.settings().get(holdout.SEED)
    try:
        settled = None if seed is None else int(seed)
    except ValueError:
        raise DamagedStoreError(
            f"The setting {holdout.SEED} of {store.path} is {seed!r}, not a number. Run `featcache verify`."
        ) from None
    return {sha256: part for sha256, (part, _) in store.sides().items()}, settled
