"""What a store holds, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featcache.core.labels import nfc, split_name
from featcache.core.names import in_order, seeds
from featcache.store.completeness import incomplete
from featcache.store.sources import UNUSABLE
from featcache.store.spaces import distinctions, parsed

if TYPE_CHECKING:
    from featcache.store.reader import StoreReader


def status(store: StoreReader) -> dict[str, Any]:
    """Count what is in the catalogue; no shard is opened.

    Returns:
        ``store, items, quarantined, quarantine: [{source, uri, reason}], sources: [{name, root, items, classes,
        splits}]``, ``pending``, ``incomplete: [{source, missing}]`` and ``spaces: [{fingerprint, backbone, differs,
        layers, views, layer_views, seeds, rows, bytes}]``. ``classes`` and ``splits`` have the number of items by
        name, sorted, and do not count items without; ``quarantined`` counts images in quarantine of which no vector is
        stored, which are no items, and ``pending`` images that were listed and of which nothing is extracted yet, so
        that the three sum up to what is listed; ``incomplete`` says in words what is missing, also of each space. In
        ``quarantine`` also stand items that one space, layer or view cannot use, and an image with several reasons, for
        several spaces, stands there several times;
        ``differs`` says how the recipe differs from those of the backbone's other spaces, ``views`` are those of any
        layer and ``layer_views`` those of each, ``seeds`` are those of the views, ``rows`` are vectors over all layers
        and views, ``bytes`` the size of the shard files.
    """
    sources = store.sources()  # once: a writer may add one meanwhile
    items = dict(
        store.catalogue.query(
            "ti",
            "SELECT s.name, count(i.id) FROM sources s LEFT JOIN items i ON i.source_id = s.id "
            f"AND (i.source_id, i.uri) NOT IN ({UNUSABLE}) GROUP BY s.name",
        )
    )
    classes, splits = _numbers(store, "label", nfc), _numbers(store, "split", split_name)
    (quarantined,) = store.catalogue.query("i", f"SELECT count(*) FROM ({UNUSABLE})")[0]
    sizes = dict(
        store.catalogue.query(
            "ti",
            "SELECT p.fingerprint, sum(s.bytes) FROM spaces p JOIN shards s ON s.space_id = p.id GROUP BY p.id",
        )
    )
    spaces = store.spaces
    return {
        "store": str(store.path),
        "items": sum(items.values()),
        "quarantined": quarantined,
        "quarantine": [
            {"source": name, "uri": uri, "reason": reason} for name in sources for uri, reason in store.quarantine(name)
        ],
        "sources": [
            {
                "name": name,
                "root": root,
                "items": items.get(name, 0),
                "classes": classes.get(name, {}),
                "splits": splits.get(name, {}),
            }
            for name, root in sources.items()
        ],
        "pending": store.catalogue.query("i", "SELECT count(*) FROM pending")[0][0],
        "incomplete": [
            {"source": name, "missing": sentence} for name in sources for sentence in incomplete(store, name)
        ],
        "spaces": [
            {
                "fingerprint": space.fingerprint,
                "backbone": space.recipe.backbone,
                "differs": differs,
                "layers": list(space.layers),
                "views": (views := in_order(view for column in space.layers.values() for view in column.views)),
                "layer_views": {name: in_order(column.views) for name, column in space.layers.items()},
                "seeds": seeds(views),
                "rows": sum(column.rows for column in space.layers.values()),
                "bytes": sizes.get(space.fingerprint, 0),
            }
            for space, differs in zip(spaces, distinctions(spaces), strict=True)
        ],
    }


def images_per_second(store: StoreReader) -> dict[str, float]:
    """By the fingerprint of a space how fast its vectors were computed, in the last extraction that did."""
    records = [parsed(text) for (text,) in store.catalogue.query("t", "SELECT record FROM runs ORDER BY id")]
    return {run["space"]: run["images_per_second"] for run in records if run.get("images_per_second")}


def _numbers(store: StoreReader, column: str, compared: Callable[[str], str | None]) -> dict[str, dict[str, int]]:
    """By source the items of each class or split, counted in SQL: a store may list millions.

    Args:
        store: the store.
        column: ``label`` or ``split``.
        compared: how a stored name is compared, as `featcache.store.spaces.Item` does.
    """
    found: dict[str, Counter[str]] = {}
    for source, written, count in store.catalogue.query(
        "tti",
        f"SELECT s.name, i.{column}, count(*) FROM items i JOIN sources s ON s.id = i.source_id "
        f"WHERE i.{column} IS NOT NULL AND (i.source_id, i.uri) NOT IN ({UNUSABLE}) GROUP BY s.name, i.{column}",
    ):
        if name := compared(written):
            found.setdefault(source, Counter())[name] += count
    return {source: dict(sorted(numbers.items())) for source, numbers in found.items()}
