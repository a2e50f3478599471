"""Labels and split of a source as they were given once: a rerun that does not give them again keeps them.

A file that was given is read again. Where it is gone, images keep what they had; so they do in a store of before, whose
catalogue does not know what was given. Fractions are drawn again by the same rule, and an image keeps its side.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.core.progress import counted
from featcache.images.entry import Entry, Source, notes_of, unread_of

if TYPE_CHECKING:
    from featcache.images.datasets import Dataset
    from featcache.store import FeatureStore, Item

_WORDS = (None, "folder", "none")

Split = str | Path | Mapping[str, float]


def open_again(
    source: str | Path | Source | Dataset | Mapping[str, Dataset],
    store: FeatureStore | None,
    *,
    labels: str | Path | None = None,
    split: Split | None = None,
    name: str | None = None,
) -> Source:
    """Open a source with the labels and split given now, or else before.

    Args:
        source: as for `featcache.extract`; an open `Source` is returned as it is.
        store: the store as it is; None for a new one.
        labels, split, name: as for `featcache.extract`.

    Raises:
        SourceError: the source cannot be read.
    """
    from featcache.images.sources import open_source

    if isinstance(source, Source):
        return source
    given = {"labels": _fixed(labels), "split": _fixed(_as_text(split))}
    plain = open_source(source, name=name)
    is_known = store is not None and plain.name in store.sources()
    told = store.source_settings(plain.name) if store is not None and is_known else {}
    now = {option: value if value is not None else told.get(option) for option, value in given.items()}
    recalled = [option for option, value in given.items() if value is None]
    path = os.path.abspath(source) if isinstance(source, (str, Path)) else None
    gone = [option for option in recalled if _is_lost(now[option])]
    opened = plain
    chosen = {option: None if option in gone else value for option, value in now.items()}
    if any(value is not None for value in chosen.values()):
        opened = open_source(source, labels=chosen["labels"], split=chosen["split"], name=name)
    return ToldSource(
        opened,
        store if is_known else None,
        {"path": path, **now},
        before=told,
        gone=gone,
        recalled=recalled,
    )


class ToldSource(Source):
    """A source with the labels and split that it was given, now or before.

    Args:
        inner: the source with the labels and split that can be read.
        store: the store if it knows the source.
        settings: what the catalogue shall remember.
        before: what it remembers.
        gone: which of ``labels`` and ``split`` were given by a file that is there no more.
        recalled: which of them were not given now.
    """

    def __init__(
        self,
        inner: Source,
        store: FeatureStore | None,
        settings: dict[str, Any],
        *,
        before: Mapping[str, Any],
        gone: list[str],
        recalled: list[str],
    ) -> None:
        self.inner, self.settings = inner, settings
        self.name, self.root = inner.name, inner.root
        self.notes: tuple[str, ...] = ()
        self._store, self._before, self._gone, self._recalled = store, before, gone, recalled
        if recalled and hasattr(inner, "tolerant"):
            inner.tolerant = recalled

    def entries(self) -> list[Entry]:
        """The images, with labels and splits."""
        found = self.inner.entries()
        self.ignored, self.incomplete, self.within = self.inner.ignored, self.inner.incomplete, self.inner.within
        self.root, self.notes, self.unread = self.inner.root, notes_of(self.inner), unread_of(self.inner)
        if self._store is None:
            return found
        is_old = not self._before
        fractions = getattr(self.inner, "fractions", None)
        redrawn = fractions is not None and self._before.get("split") == self.settings["split"]
        if not (self._gone or redrawn or (is_old and self._recalled)):
            return found
        known = {item.uri: item for item in self._store.items(source=self.name)}
        for option, field in (("labels", "label"), ("split", "split")):
            if option in self._gone:
                self.notes += (
                    f"{self.settings[option]} is gone: images that are known keep their {option}, new ones get none. "
                    f"Give --{option} again.",
                )
            if option in self._gone or (is_old and option in self._recalled):
                kept = [self._keep(entry, known.get(entry.uri), field, option in self._gone) for entry in found]
                same = sum(a is not b for a, b in zip(kept, found, strict=True))
                if same and is_old:
                    self.notes += (f"{counted(same, 'images')} keep the {field} that an earlier run gave them.",)
                found = kept
        return _with_sides(found, known, fractions) if redrawn and fractions is not None else found

    @staticmethod
    def _keep(entry: Entry, item: Item | None, field: str, always: bool) -> Entry:
        """The entry with the known label or split, where it has none of its own or *always*."""
        if item is None or getattr(item, field) is None or (not always and getattr(entry, field) is not None):
            return entry
        return replace(entry, label=item.label) if field == "label" else replace(entry, split=item.split)


def _with_sides(entries: list[Entry], known: Mapping[str, Item], fractions: Mapping[str, float]) -> list[Entry]:
    """Keep the split of each image that has one; a group stays whole."""
    sides: dict[str, str] = {}
    for entry in entries:
        item = known.get(entry.uri)
        if item is not None and item.split is not None and item.split in fractions:
            sides.setdefault(_unit(entry), item.split)
    return [replace(entry, split=sides.get(_unit(entry), entry.split)) for entry in entries]


def _unit(entry: Entry) -> str:
    return f"uri:{entry.uri}" if entry.group is None else f"group:{entry.group}"


def _as_text(split: Split | None) -> str | Path | None:
    if isinstance(split, Mapping):
        return ",".join(f"{name}={fraction}" for name, fraction in split.items())
    return split


def _fixed(value: str | Path | None) -> str | None:
    """A file by its absolute path, a word as it is."""
    return None if value is None else os.path.abspath(value) if os.path.isfile(value) else str(value)


def _is_lost(value: str | None) -> bool:
    return value not in _WORDS and os.path.isabs(str(value)) and not os.path.isfile(str(value))
