"""Labels and split of a source as they were given once: a rerun that does not give them again keeps them.

- A file that was given is read again, and rows of images that were renamed since go by the images' content. A file of
  which no row fits any more is refused. Where it is gone, images keep what they had, none among it, and new ones get
  none.
- Fractions are drawn again by the same rule, and an image keeps its side.
- Where the catalogue does not know what was given (a store of before, a source opened in Python), images keep what is
  stored, and new ones have what the source says.
- An image is known by its name, by the place of its file if the source's root moved, or else by its content
  (`featcache.extraction.by_content`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.core.errors import DamagedStoreError, SourceError
from featcache.core.files import absolute
from featcache.core.progress import counted
from featcache.extraction.by_content import ByContent, agreed
from featcache.extraction.stored_source import KnownSource
from featcache.images.entry import Entry, Source, notes_of, unread_of
from featcache.images.in_memory import GivenImages
from featcache.images.sources import DescribedSource, fractions_of, open_source
from featcache.images.table_paths import by_uri
from featcache.store.sources import departed
from featcache.store.spaces import Item, Pending

if TYPE_CHECKING:
    from featcache.images.datasets import Dataset
    from featcache.store import FeatureStore
    from featcache.store.sources import Record

_WORDS = (None, "folder", "none")
_FIELDS = {"labels": "label", "split": "split"}

Split = str | Path | Mapping[str, float]
Known = Mapping[str, Item | Pending]
"""By name what the store has of a source's images: those that are done, and those that are still to be done."""


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
        source: as for `featcache.extract`. An open `Source` has its own labels and splits.
        store: the store as it is; None for a new one.
        labels, split, name: as for `featcache.extract`.

    Raises:
        SourceError: the source cannot be read.
    """
    if isinstance(source, (ToldSource, GivenImages, KnownSource)):
        return source
    is_open = isinstance(source, Source)
    plain = source if isinstance(source, Source) else open_source(source, name=name)
    if isinstance(plain, DescribedSource):
        labels, split = plain.labels, plain.split
    elif is_open:
        labels = split = None
    given = {"labels": _fixed(labels), "split": _fixed(_as_text(split))}
    known = store if store is not None and plain.name in store.sources() else None
    told = {} if known is None else known.source_settings(plain.name)
    path = absolute(source) if isinstance(source, (str, Path)) else told.get("path") if is_open else None
    recalled = [option for option, value in given.items() if value is None]
    if isinstance(source, Source):
        settings = {option: told[option] for option in recalled if option in told}
        settings |= {option: value for option, value in given.items() if value is not None}
        return ToldSource(plain, known, {"path": path, **settings}, before=told, recalled=recalled, is_open=True)
    settings = {option: told.get(option) if option in recalled else value for option, value in given.items()}
    gone = [option for option in recalled if _is_lost(settings[option])]
    chosen = {option: None if option in gone else value for option, value in settings.items()}
    if any(value is not None for value in chosen.values()):
        plain = open_source(source, labels=chosen["labels"], split=chosen["split"], name=name)
    return ToldSource(plain, known, {"path": path, **settings}, before=told, recalled=recalled, gone=gone)


class ToldSource(Source):
    """A source with the labels and split that it was given, now or before.

    Args:
        inner: the source with the labels and split that can be read.
        store: the store if it knows the source.
        settings: what the catalogue shall remember.
        before: what it remembers.
        recalled: which of ``labels`` and ``split`` were not given now.
        gone: which of these were given by a file that is there no more.
        is_open: the source was opened in Python; what is recalled is not applied to it.

    Attributes:
        by_content: what images have that are known by their content only.
        from_file: of ``labels`` and ``split``, where a file gives them: how many images it names, and how many got
            (``set``), lost (``removed``) or have as before (``kept``) their label or split.
    """

    def __init__(
        self,
        inner: Source,
        store: FeatureStore | None,
        settings: dict[str, Any],
        *,
        before: Mapping[str, Any],
        recalled: Sequence[str],
        gone: Sequence[str] = (),
        is_open: bool = False,
    ) -> None:
        self.inner, self.settings = inner, settings
        self.name, self.root = inner.name, inner.root
        self.notes: tuple[str, ...] = ()
        self.by_content = ByContent()
        self.from_file: dict[str, dict[str, int]] = {}
        self._store, self._before, self._recalled, self._gone = store, before, recalled, gone
        self._is_open, self._is_moved = is_open, False
        self._items: list[Item] = []
        self._listed_items: list[Item] = []
        if isinstance(inner, DescribedSource):
            inner.tolerant = recalled

    def entries(self) -> list[Entry]:
        """The images, with labels and splits.

        Raises:
            SourceError: the source cannot be read, or a file given by an earlier run names none of its images.
        """
        found = self.inner.entries()
        self.ignored, self.incomplete, self.within = self.inner.ignored, self.inner.incomplete, self.inner.within
        self.root, self.notes, self.unread = self.inner.root, notes_of(self.inner), unread_of(self.inner)
        described = self.inner if isinstance(self.inner, DescribedSource) else None
        files = {} if described is None else described.own
        untold = self._untold(found)
        drawn = None if described is None or self._store is None else described.fractions
        is_anew = drawn is not None and fractions_of(self._before.get("split")) != drawn
        if is_anew:
            drawn = None
        if self._store is None or not (self._gone or untold or drawn or is_anew or files):
            self._count(found, {}, files)
            return found
        listed = {entry.uri for entry in found}
        known = self._known(listed)
        untold = [option for option in untold if any(getattr(was, _FIELDS[option]) for was in known.values())]
        if untold and not self._is_open:
            self.settings["kept"] = untold
        contents: dict[str, dict[bytes, str]] = {}
        if self._gone or untold or drawn:
            self._remember_departed(known, listed)
        for option, field in _FIELDS.items():
            if option in self._gone or option in untold:
                found = self._as_stored(found, known, option)
                contents[field] = self._stored_by_content(known, field)
            elif described is not None and described.unmatched.get(field):
                found, contents[field] = self._by_rows(found, known, option, described)
        groups: dict[str, str] = {}
        if drawn is not None:
            found, groups = _with_sides(found, known, drawn)
            sides = self._stored_by_content(known, "split")
            contents["split"] = {sha256: side for sha256, side in sides.items() if side in drawn}
        self.by_content = ByContent(
            {uri: was.sha256 for uri, was in known.items() if isinstance(was, Item)},
            contents.get("label", {}), contents.get("split", {}), drawn is not None, groups,
        )  # fmt: skip
        self._count(found, known, files)
        if is_anew:
            before = [(entry.split, was.split) for entry in found if (was := known.get(entry.uri)) is not None]
            if changed := sum(old is not None and new != old for new, old in before):
                self.notes += (
                    f"Warning: the split is drawn anew, and {counted(changed, 'images')} of {len(before):,} change "
                    "sides: heads trained before may have learned from images that are to be scored on now.",
                )
        return found

    def _untold(self, found: list[Entry]) -> list[str]:
        """The options of which the catalogue does not know what was given: what is stored stays."""
        kept = [option for option in self._before.get("kept") or () if option in self._recalled]
        if not self._is_open:
            untold = {*kept, *(option for option in self._recalled if option not in self._before)}
            return [option for option in _FIELDS if option in untold]
        silent = [o for o in self._recalled if all(getattr(entry, _FIELDS[o]) is None for entry in found)]
        for option in self._recalled:
            if option not in silent:
                self.settings.pop(option, None)  # the source says it now, and nobody else before
        if kept := [option for option in kept if option in silent]:
            self.settings["kept"] = kept
        return silent

    def _known(self, listed: Collection[str]) -> Known:
        """What the store has, by the names that the images have now."""
        assert self._store is not None
        self._items = self._store.items(source=self.name)
        root = self._store.sources()[self.name]
        self._is_moved = root != self.root
        known: dict[str, Item | Pending] = {}
        everything: list[Item | Pending] = [*self._store.pending(self.name), *self._items]
        for was in everything:
            known[_mapped(was.uri, root, self.root, listed) if self._is_moved else was.uri] = was
        return known

    def _remember_departed(self, known: Known, listed: Collection[str]) -> None:
        """Keep the label and split of images that are listed no more, by content: they may come back."""
        is_unseen = unseen(self)
        items = [(uri, was) for uri, was in known.items() if isinstance(was, Item)]
        self._listed_items = [] if self._is_moved else [was for uri, was in items if uri in listed]
        there = {was.sha256.hex() for uri, was in items if uri in listed}
        found = dict(self._departed) | {
            was.sha256.hex(): [was.label, was.split]
            for uri, was in items
            if uri not in listed and not is_unseen(uri) and (was.label or was.split)
        }
        if found := {digest: pair for digest, pair in found.items() if digest not in there}:
            self.settings["departed"] = found

    def miss(self, now: Mapping[str, Record]) -> bool:
        """Keep as well the label and split of images whose files could not be read; returns whether there are any."""
        lost = [was for was in self._listed_items if was.uri not in now and (was.label or was.split)]
        if lost:
            departed = self.settings.get("departed", {})
            self.settings["departed"] = departed | {was.sha256.hex(): [was.label, was.split] for was in lost}
        return bool(lost)

    @property
    def _departed(self) -> dict[str, list[str | None]]:
        found = self._before.get("departed", {})
        try:
            return {bytes.fromhex(digest).hex(): [label, split] for digest, (label, split) in found.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise DamagedStoreError(
                f"The catalogue's settings of the source {self.name!r} cannot be read. Run `featcache repair`."
            ) from error

    def _stored_by_content(self, known: Known, field: str) -> dict[bytes, str]:
        place = list(_FIELDS.values()).index(field)
        stored = [(was.sha256, getattr(was, field)) for was in known.values() if isinstance(was, Item)]
        return agreed([*stored, *((bytes.fromhex(digest), pair[place]) for digest, pair in self._departed.items())])

    def _as_stored(self, found: list[Entry], known: Known, option: str) -> list[Entry]:
        """What the store has of the known images; the others have none, or where nothing was told their own."""
        field, is_gone, kept, differing = _FIELDS[option], option in self._gone, [], 0
        is_first = option not in (self._before.get("kept") or ())
        for entry in found:
            was, own = known.get(entry.uri), getattr(entry, field)
            value = getattr(was, field) if was is not None else None if is_gone else own
            differing += value != own and (is_first or own is not None)
            kept.append(entry if value == own else _with(entry, field, value))
        if is_gone:
            self.notes += (
                f"{self.settings[option]} is gone: images that are known keep their {option}, new ones get none. "
                f"Give --{option} again.",
            )
        elif differing:
            self.notes += (
                f"{counted(differing, 'images')} keep the {field} that an earlier run gave them, or none, where the "
                f"source itself says otherwise. Give --{option} to change that.",
            )
        return kept

    def _by_rows(
        self, found: list[Entry], known: Known, option: str, described: DescribedSource
    ) -> tuple[list[Entry], dict[bytes, str]]:
        """What a file gives to images that have another name than in it, and the same by content.

        Raises:
            SourceError: the file fits nothing.
        """
        assert self._store is not None
        field, file = _FIELDS[option], self.settings[option]
        rows = described.unmatched[field]
        names = departed(self._store.catalogue, self.name) | {item.uri: item.sha256 for item in self._items}
        path_of, _ = by_uri({path: path for path in rows}, names, self._store.sources()[self.name])
        values = agreed((names[uri], rows[path]) for uri, path in path_of.items())
        here = {entry.uri: was.sha256 for entry in found if isinstance(was := known.get(entry.uri), Item)}
        if any(sha256 in values for sha256 in here.values()):
            own = [getattr(entry, field) for entry in found]
            found = [
                entry if value is not None else _with(entry, field, values.get(here.get(entry.uri, b"")))
                for entry, value in zip(found, own, strict=True)
            ]
        is_unseen, there = unseen(self), set(here.values())
        fitting = {path for uri, path in path_of.items() if names[uri] in there or is_unseen(uri)}
        idle = sorted(path for path in rows if path not in fitting and not is_unseen(path))
        count = len(idle)
        if count == len(rows) and not described.named[field] and not self._is_moved:
            raise SourceError(
                f"{file}, which an earlier run was given with --{option}, names no image of the source any more: none "
                f"of its {counted(count, 'paths')} is there (first: {idle[0]}). Correct its paths, or give --{option} "
                "again."
            )
        if count:
            self.notes += (
                f"{file}, which an earlier run was given with --{option}, names {counted(count, 'paths')} that are no "
                f"images of the source any more (first: {idle[0]}).",
            )
        return found, values

    def _count(self, found: list[Entry], known: Known, files: Mapping[str, list[str | None]]) -> None:
        """Count what files of labels and splits changed, and tell it."""
        for option, field in _FIELDS.items():
            if field not in files or option in self.from_file:
                continue
            is_given = option not in self._recalled
            counts = {"named": getattr(self.inner, "named", {})[field], "set": 0, "removed": 0, "kept": 0}
            for entry, own in zip(found, files[field], strict=True):
                was, now = known.get(entry.uri), getattr(entry, field)
                before = getattr(was, field) if was is not None else own if is_given else None
                if now != before:
                    counts["removed" if now is None else "set"] += 1
                else:
                    counts["kept"] += now is not None
            self.from_file[option] = counts
            if is_given or counts["removed"]:
                self.notes += (_in_words(option, Path(self.settings[option]).name, counts),)


def unseen(source: Source) -> Callable[[str], bool]:
    """Tells of a URI whether the source did not look where it is, so that its absence says nothing."""
    within, incomplete = tuple(source.within), tuple(source.incomplete)
    return lambda uri: not f"{uri}/".startswith(within) or f"{uri}/".startswith(incomplete)


def _in_words(option: str, file: str, counts: Mapping[str, int]) -> str:
    numbers = ", ".join(f"{counts[name]:,} {name}" for name in ("set", "removed", "kept"))
    text = f"{option.capitalize()} from {file}: {counted(counts['named'], 'images')} named; {numbers}."
    if counts["removed"]:
        field = _FIELDS[option]
        text = (
            f"Warning: {text} Images that the file does not name have no {field}; `--{option} folder` takes those of "
        )
        text += "the source itself again."
        if option == "labels":
            text += " `featcache train --labels FILE` corrects some labels for one head and keeps the others."
    return text


def _with_sides(
    entries: list[Entry], known: Known, fractions: Mapping[str, float]
) -> tuple[list[Entry], dict[str, str]]:
    """Keep the split of each image that has one, a group stays whole; and the splits of the known groups."""
    # What is done goes before what is not: of the latter nobody has learned.
    was_of = {uri: was for kind in (Item, Pending) for uri, was in known.items() if isinstance(was, kind)}
    unit_of = {entry.uri: _unit(entry) for entry in entries}
    sides: dict[str, str] = {}
    groups: dict[str, str] = {}
    for uri, was in was_of.items():
        if was.split is None or was.split not in fractions:
            continue
        if uri in unit_of:
            sides.setdefault(unit_of[uri], was.split)
        if was.group is not None:
            groups.setdefault(was.group, was.split)
    for group, side in groups.items():
        sides.setdefault(f"group:{group}", side)
    groups = {unit.removeprefix("group:"): side for unit, side in sides.items() if unit.startswith("group:")}
    return [replace(entry, split=sides.get(_unit(entry), entry.split)) for entry in entries], groups


def _unit(entry: Entry) -> str:
    return f"uri:{entry.uri}" if entry.group is None else f"group:{entry.group}"


def _with(entry: Entry, field: str, value: str | None) -> Entry:
    return replace(entry, label=value) if field == "label" else replace(entry, split=value)


def _mapped(uri: str, old: str, new: str, listed: Collection[str]) -> str:
    """The name that the file *uri* below the root *old* has below the root *new*; *uri* itself if it is not there."""
    place, inside = os.path.join(old, uri), os.path.join(new, "")
    name = place.removeprefix(inside).replace(os.sep, "/") if place.startswith(inside) else uri
    return name if name in listed else uri


def _as_text(split: Split | None) -> str | Path | None:
    if isinstance(split, Mapping):
        return ",".join(f"{name}={fraction}" for name, fraction in split.items())
    return split


def _fixed(value: str | Path | None) -> str | None:
    """A file by its absolute path, a word as it is."""
    return None if value is None else absolute(value) if os.path.isfile(value) else str(value)


def _is_lost(value: str | None) -> bool:
    return value not in _WORDS and os.path.isabs(str(value)) and not os.path.isfile(str(value))
