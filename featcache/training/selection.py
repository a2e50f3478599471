"""Which images of a store a head is about, and which labels they have."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from featcache.core.arguments import check_fields
from featcache.core.errors import UsageError
from featcache.core.labels import nfc, split_name
from featcache.core.names import IN_PYTHON

if TYPE_CHECKING:
    from featcache.store import FeatureStore, Item


class SelectionOptions(TypedDict, total=False):
    """`Selection` as keyword arguments."""

    source: str | Sequence[str] | None
    space: str | None
    split: str | None
    labels: str | Path | None
    labels_only: str | Path | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which vectors of a store, and which labels.

    Attributes:
        source: name of the source, or several, which are taken as one; needed only where the store holds several.
        space: fingerprint of the space, or its start, or the name of its backbone; needed only where the store holds
            several.
        split: only the images of this split.
        labels: a CSV file (``path,label``) that corrects the stored labels for this once: a label counts instead of
            the stored one, an empty cell removes it, and images that the file does not name keep theirs.
        labels_only: such a file whose labels alone count; the others have none.
    """

    source: str | Sequence[str] | None = None
    space: str | None = None
    split: str | None = None
    labels: str | Path | None = None
    labels_only: str | Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "split", split_name(self.split))
        if self.labels is not None and self.labels_only is not None:
            raise UsageError(
                "--labels and --labels-only do not go together: the first corrects the stored labels, the second takes "
                "their place. Omit one of them."
            )

    def all_splits(self) -> Selection:
        """The same in all splits."""
        return replace(self, split=None)


ALL = Selection()
"""Everything in a store that holds one source and one space."""


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Where the labels of some images come from.

    Attributes:
        file: the file given; None if all are the stored ones.
        labels: by source and URI what it says; None removes a label.
        keeps: whether images that it does not name keep the stored label.
    """

    file: str | None = None
    labels: Mapping[tuple[str, str], str | None] | None = None
    keeps: bool = True

    @classmethod
    def of(cls, store: FeatureStore, select: Selection) -> LabelSource:
        """Read the file of a selection, if it has one.

        Raises:
            SourceError: see `featcache.images.sources.read_labels`.
            UsageError: a path is not an image of the sources, or of several of them.
        """
        given = select.labels if select.labels_only is None else select.labels_only
        if given is None:
            return cls()
        from featcache.images.sources import read_labels
        from featcache.images.table_paths import by_uri

        found, names, roots = read_labels(Path(given)), store.source_names(select.source), store.sources()
        labels: dict[tuple[str, str], str | None] = {}
        unknown, place_of = set(found), dict[str, str]()
        for name in names:
            uri_of, others = by_uri({path: path for path in found}, _listed(store, name), roots[name])
            unknown &= set(others)
            for uri, path in uri_of.items():
                # A folder and one below it have the same file, each by its own URI.
                place = f"{name} {uri}" if roots[name].startswith(IN_PYTHON) else os.path.join(roots[name], uri)
                if nfc(place_of.setdefault(path, place)) != nfc(place):
                    raise UsageError(
                        f"{given} names {path}, which {name!r} and another source both have, so it is not known which "
                        "image is meant. Take one --source, or give the full path."
                    )
                labels[name, uri] = found[path] or None
        if unknown:
            raise UsageError(
                f"{len(unknown)} of {len(found)} paths in {given} are not images of source "
                f"{' or '.join(map(repr, names))} (first: {min(unknown)}). Paths are relative to "
                f"{' or '.join(roots[name] for name in names)}."
            )
        return cls(str(given), labels, select.labels_only is None)

    def label_of(self, item: Item) -> str | None:
        """The label that counts for an image."""
        stored = item.label if self.keeps else None
        return stored if self.labels is None else self.labels.get((item.source, item.uri), stored)

    def applied(self, items: Sequence[Item]) -> list[Item]:
        """The images with the labels that count."""
        return list(items) if self.labels is None else [replace(item, label=self.label_of(item)) for item in items]

    def counts(self, items: Sequence[Item]) -> dict[str, Any] | None:
        """``file``; of these stored images the labels ``from_file``, ``kept`` and ``removed``; None without a file."""
        if self.labels is None:
            return None
        kinds: Counter[str] = Counter()
        for item in items:
            named, label = (item.source, item.uri) in self.labels, self.label_of(item)
            kind = "from_file" if named else "kept"
            kinds[kind if label is not None else "removed" if item.label is not None else "none"] += 1
        return {"file": self.file, **{kind: kinds[kind] for kind in ("from_file", "kept", "removed")}}


def _listed(store: FeatureStore, source: str) -> set[str]:
    """The URIs of all images of a source, also of those that cannot be used or are not extracted yet."""
    uris = {item.uri for item in store.items(source=source)} | {image.uri for image in store.pending(source)}
    return uris | {uri for uri, _ in store.quarantine(source)}


def describe_labels(counts: Mapping[str, Any]) -> str:
    """The counts of `LabelSource.counts` in words."""
    removed = f", {counts['removed']:,} removed" if counts["removed"] else ""
    return f"Labels: {counts['from_file']:,} from {counts['file']}, {counts['kept']:,} kept from the store{removed}."
