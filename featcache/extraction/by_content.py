"""What an image keeps that is known by its bytes and not by its name: it was renamed, moved, or came back.

This is decided when its record is saved, as its bytes have been read then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.store.sources import Record


@dataclass
class ByContent:
    """Labels and splits by content.

    Attributes:
        uris: SHA-256 of the known images by name; while their content is the same they have what they have.
        labels, splits: by SHA-256.
        drawn: splits are drawn by fractions, so that the draw gives way, and a group stays whole.
        groups: the split of each group that is known by its name.
        kept: names of the images that got what they had under another one.
        joined: the split of each group that is known by the content of one of its images only.
    """

    uris: Mapping[str, bytes] = field(default_factory=dict)
    labels: Mapping[bytes, str] = field(default_factory=dict)
    splits: Mapping[bytes, str] = field(default_factory=dict)
    drawn: bool = False
    groups: Mapping[str, str] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    joined: dict[str, str] = field(default_factory=dict)

    def settled(self, record: Record) -> Record:
        """The record with the label and split that the store knows for its content."""
        before = self.uris.get(record.uri)
        if before == record.sha256:
            return record
        label, split = self.labels.get(record.sha256), self.splits.get(record.sha256)
        if self.drawn and record.group is not None:
            if split is not None and record.group not in self.groups:
                self.joined.setdefault(record.group, split)
            split = self.groups.get(record.group) or self.joined.get(record.group)
        if before is not None or record.label is not None:
            label = None  # tables go by names
        if not self.drawn and (before is not None or record.split is not None):
            split = None
        if label is None and split is None:
            return record
        self.kept.add(record.uri)
        return replace(record, label=label or record.label, split=split or record.split)

    @property
    def note(self) -> str | None:
        """A sentence about the images that kept something, or None."""
        if not self.kept:
            return None
        what = " and ".join(word for word, values in (("label", self.labels), ("split", self.splits)) if values)
        names = f"{counted(len(self.kept), 'images')} {'is' if len(self.kept) == 1 else 'are'} known under another name"
        return f"{names} (first: {min(self.kept)}): the same bytes keep their {what}."


def agreed(values: Iterable[tuple[bytes, str | None]]) -> dict[bytes, str]:
    """What all images of the same content have; nothing where they disagree or have none."""
    found: dict[bytes, str | None] = {}
    for sha256, value in values:
        found[sha256] = value if found.setdefault(sha256, value) == value else None
    return {sha256: value for sha256, value in found.items() if value is not None}
