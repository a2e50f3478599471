"""What of a source is not in the store yet, in sentences: images that no run came to, classes without a usable one.

Images of which nothing is stored stand in ``pending``. What else is missing follows from what was asked for of each
space and the vectors that are there: a later run for one more space, layer or view may have stopped early.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from featcache.core.names import IN_PYTHON, VIEW_0, augmented
from featcache.store.sources import judged

if TYPE_CHECKING:
    from featcache.store.reader import StoreReader
    from featcache.store.spaces import Space

_NAMED = 5
"""Classes that a sentence names."""


def incomplete(store: StoreReader, source: str, space: str | None = None) -> list[str]:
    """What is missing of a source; nothing where all its images were extracted.

    Args:
        store: the store.
        source: the source's name.
        space: only what is missing in this space; by default in each that was asked for of the source.

    Returns:
        Sentences: how many listed images are not extracted yet, and which classes have no usable image.
    """
    pending = store.pending(source)
    classes = store.source_settings(source).get("classes")
    spaces = {one.fingerprint: one for one in (store.spaces if space is None else [store.space(space)])}
    asked = {
        fingerprint: wanted["layers"]
        for fingerprint, wanted in store.requests(source).items()
        if fingerprint in spaces and wanted.get("layers")
    }
    if not pending and not classes and not asked:
        return []
    rejected = _rejected(store, source)
    unusable = {
        fingerprint: {uri for uri, columns in cells.items() if not columns} for fingerprint, cells in rejected.items()
    }
    judging = [unusable.get(fingerprint, set()) for fingerprint in (asked if space is None else spaces)]
    judging = judging or list(unusable.values())
    nowhere = set.intersection(*judging) if judging else set()
    items = store.catalogue.query(
        "tT", "SELECT i.uri, i.label FROM items i JOIN sources s ON s.id = i.source_id WHERE s.name = ?", (source,)
    )
    total = len({uri for uri, _ in items}.union(*unusable.values())) + len(pending)
    found = []
    if pending:
        found.append(f"{len(pending):,} of {total:,} listed images are not extracted yet: {_how(store, source)}.")
    waiting = {one.label for one in pending if one.label is not None}
    missing = waiting.union(map(str, classes if isinstance(classes, dict) else ())) - _labels(items, nowhere)
    found += _sentences(missing & waiting, "is extracted yet")
    found += _sentences(missing - waiting, "can be used: all are in quarantine")
    for fingerprint, layers in asked.items():
        bad, name = unusable.get(fingerprint, set()), spaces[fingerprint].recipe.backbone
        usable = _labels(items, bad)
        if len(asked) > 1:
            words = f"can be used by {name} (space {fingerprint[:12]}): all are in quarantine"
            found += _sentences(_labels(items, nowhere) - usable - waiting, words)
        lacking = _lacking(store, source, spaces[fingerprint], layers, rejected.get(fingerprint, {}))
        if lacking:
            where = ", ".join([f"space {fingerprint[:12]}", *_parts(lacking.values(), layers)])
            gone = usable - _labels(items, bad | lacking.keys())
            found.append(
                f"{len(lacking) + len(pending):,} of {total:,} listed images lack vectors of {name} ({where})"
                f"{f', among them all of the {_named(gone)}' if gone else ''}: "
                f"{_how(store, source, spaces[fingerprint])}."
            )
    return found


def _labels(items: Iterable[tuple[str, str | None]], without: Collection[str]) -> set[str]:
    """The labels of these items, but for some URIs."""
    return {label for uri, label in items if label is not None and uri not in without}


def _sentences(names: Collection[str], words: str) -> list[str]:
    return [f"No image of the {_named(names)} {words}."] if names else []


def _named(names: Collection[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{'class' if len(names) == 1 else 'classes'} {', '.join(map(repr, sorted(names)[:_NAMED]))}{more}"


def _rejected(store: StoreReader, source: str) -> dict[str, dict[str, frozenset[tuple[str, str]]]]:
    """By space the images in quarantine, by URI, with the layers and views that are not finite, if that is all."""
    found: dict[str, dict[str, frozenset[tuple[str, str]]]] = {}
    for fingerprint, uri, versions in store.catalogue.query(
        "ttt", "SELECT p.fingerprint, q.uri, q.versions FROM quarantine q JOIN sources s ON s.id = q.source_id "
        "JOIN spaces p ON p.id = q.space_id WHERE s.name = ?", (source,),
    ):  # fmt: skip
        found.setdefault(fingerprint, {})[uri] = judged(versions)[1]
    return found


def _lacking(
    store: StoreReader,
    source: str,
    space: Space,
    asked: Mapping[str, Mapping[str, int]],
    rejected: Mapping[str, Collection[tuple[str, str]]],
) -> dict[str, set[tuple[str, str]]]:
    """By URI the layers and views that were asked for of which an item has no vector, of those that have not all.

    Args:
        store: the store.
        source: the source's name.
        space: the space.
        asked: by layer and seed the number of views that were asked for.
        rejected: by URI what cannot be computed; all, where that is empty.
    """
    lacking: dict[str, set[tuple[str, str]]] = {}
    absent: dict[frozenset[tuple[int, int]], set[str]] = {}
    for column, layer, view, stand in _asked_columns(store, space, asked):
        if stand not in absent:
            absent[stand] = _without(store, source, column)
        for uri in absent[stand]:
            if uri not in rejected or (rejected[uri] and (layer, view) not in rejected[uri]):
                lacking.setdefault(uri, set()).add((layer, view))
    return lacking


def _parts(lacking: Iterable[set[tuple[str, str]]], layers: Collection[str]) -> list[str]:
    """Which of these layers and views are lacking, in words; nothing where view 0 of all layers is."""
    columns = set[tuple[str, str]]().union(*lacking)
    names = {layer for layer, view in columns if view == VIEW_0}
    if names == set(layers):
        return []
    if names:
        return sorted(names)
    named = sorted({layer for layer, _ in columns})
    return ["augmented views" if len(named) == len(layers) else f"augmented views of {' and '.join(named)}"]


def _asked_columns(
    store: StoreReader, space: Space, asked: Mapping[str, Mapping[str, int]]
) -> list[tuple[int, str, str, frozenset[tuple[int, int]]]]:
    """Number, layer and view of the columns that were asked for, and what tells where their rows stand.

    Columns of the same shards, of which each row is there, hold the same images, and are equal in the last.
    """
    stand: dict[int, set[tuple[int, int]]] = {}
    for column, shard, live, rows in store.catalogue.query(
        "iiii", "SELECT c.column_id, c.shard_id, c.live, s.rows FROM shard_columns c "
        "JOIN shards s ON s.id = c.shard_id JOIN spaces p ON p.id = s.space_id WHERE p.fingerprint = ?",
        (space.fingerprint,),
    ):  # fmt: skip
        stand.setdefault(column, set()).add((shard, 0 if live == rows else column))
    chosen: dict[tuple[str, int, int], tuple[int, str, str]] = {}
    for column, layer, view in store.catalogue.query(
        "itt", "SELECT k.id, k.layer, k.view FROM columns k JOIN spaces p ON p.id = k.space_id "
        "WHERE p.fingerprint = ? ORDER BY k.id", (space.fingerprint,),
    ):  # fmt: skip
        _, seed, index = augmented(view) or ("", 0, 0)
        if layer in asked and index < asked[layer].get(str(seed), 1):
            chosen[layer, seed, index] = column, layer, view  # the latest, where a view is made in another way now
    return [(*one, frozenset(stand.get(one[0], ()))) for one in chosen.values()]


def _without(store: StoreReader, source: str, column: int) -> set[str]:
    """URIs of the source's items without a vector in a column."""
    absent = store.catalogue.query(
        "h", "SELECT i.sha256 FROM items i WHERE NOT EXISTS "
        "(SELECT 1 FROM rows r WHERE r.column_id = ? AND r.sha256 = i.sha256) ORDER BY i.sha256", (column,),
    )  # fmt: skip
    if not absent:
        return set()
    sha256s = {sha256 for (sha256,) in absent}
    items = store.catalogue.query(
        "th", "SELECT i.uri, i.sha256 FROM items i JOIN sources s ON s.id = i.source_id WHERE s.name = ?", (source,)
    )
    return {uri for uri, sha256 in items if sha256 in sha256s}


def _how(store: StoreReader, source: str, space: Space | None = None) -> str:
    root = store.sources()[source]
    path = store.source_settings(source).get("path")
    given = " and this backbone" if space is not None and space.recipe.backbone.startswith("module:") else ""
    if root.startswith(IN_PYTHON) or not root or given:
        return f"call `featcache.extract` with the source{given} again"
    faces = space is not None and (
        space.recipe.detection is not None or any(one.recipe.detection == space.fingerprint for one in store.spaces)
    )
    return f"run `featcache {'faces ' if faces else ''}extract {path or root} -o {store.path}`"
