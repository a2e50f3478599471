"""What of a source is not in the store yet, in sentences: images that no run came to, classes without a usable one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.core.names import IN_PYTHON
from featcache.store.sources import judged

if TYPE_CHECKING:
    from featcache.store.reader import StoreReader

_NAMED = 5
"""Classes that a sentence names."""


def incomplete(store: StoreReader, source: str) -> list[str]:
    """What is missing of a source; nothing where all its images were extracted.

    Args:
        store: the store.
        source: the source's name.

    Returns:
        Sentences: how many listed images are not extracted yet, and which classes have no usable image.
    """
    pending = store.pending(source)
    listed = store.source_settings(source).get("classes")
    classes = listed if isinstance(listed, dict) else {}
    if not pending and not classes:
        return []
    quarantined = {
        uri
        for uri, versions in store.catalogue.query(
            "tt", "SELECT q.uri, q.versions FROM quarantine q JOIN sources s ON s.id = q.source_id WHERE s.name = ?",
            (source,),
        )
        if not judged(versions)[1]
    }  # fmt: skip
    items = store.catalogue.query(
        "tT", "SELECT i.uri, i.label FROM items i JOIN sources s ON s.id = i.source_id WHERE s.name = ?", (source,)
    )
    found = []
    if pending:
        total = len({uri for uri, _ in items} | quarantined) + len(pending)
        found.append(f"{len(pending):,} of {total:,} listed images are not extracted yet: {_how(store, source)}.")
    usable = {label for uri, label in items if uri not in quarantined}
    waiting = {one.label for one in pending}
    missing = sorted((classes.keys() | waiting - {None}) - usable, key=str)
    for words, names in (
        ("is extracted yet", [name for name in missing if name in waiting]),
        ("can be used: all are in quarantine", [name for name in missing if name not in waiting]),
    ):
        if names:
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            of = "class" if len(names) == 1 else "classes"
            found.append(f"No image of the {of} {', '.join(map(repr, names[:_NAMED]))}{more} {words}.")
    return found


def _how(store: StoreReader, source: str) -> str:
    root = store.sources()[source]
    path = store.source_settings(source).get("path")
    if root.startswith(IN_PYTHON) or not root:
        return "call `featcache.extract` with the source again"
    return f"run `featcache extract {path or root} -o {store.path}`"
