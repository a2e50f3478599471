"""A folder as a source: class folders, optional ``train/ val/ test/`` above them, or a flat folder.

Links to folders are followed, but each real folder is entered once, under its own path if that lies below the root, so
a loop of links ends. Hidden files and folders, those of `featcache.images.passed_over`, stores and pipes are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path

from featcache.core.errors import SourceError
from featcache.core.labels import merged, nfc, split_word
from featcache.core.progress import counted
from featcache.images.entry import Entry, Source, Unusable, as_text
from featcache.images.formats import EXTENSIONS, Unread, is_image_name, unread_among
from featcache.images.passed_over import STORE_ENDING, is_hidden, is_store, is_system_folder


class FolderSource(Source):
    """Images below one folder.

    The label is the name of the first folder below the root, or below the split's folder; images directly in it have
    none. Folders are splits if all top-level folders with images have a split's name, see
    `featcache.core.labels.split_word`.

    Args:
        folder: the root.
        name: the source's name; the folder's own by default.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        resolved = folder.resolve()
        self._folder = str(resolved)
        self.root = as_text(self._folder)
        self.name = as_text(name or resolved.name or "root")

    def entries(self) -> list[Entry]:
        """List the images, sorted by URI.

        Raises:
            SourceError: there is no image, the folder is a store, or two names give one URI.
        """
        self.ignored, self.notes = 0, ()
        unread = Unread()
        unlisted: dict[str, tuple[str, str]] = {}
        passed: set[str] = set()
        stores: list[str] = []
        others: list[tuple[tuple[str, ...], str]] = []
        found: list[tuple[tuple[str, ...], str, str]] = []
        seen: set[tuple[int, int]] = set()
        waiting: list[tuple[str, tuple[str, ...]]] = [(self._folder, ())]
        links: list[tuple[str, tuple[str, ...]]] = []
        while waiting or links:
            # A link must not claim the images, and the label, of the folder it leads to.
            folder, parts = waiting.pop() if waiting else heappop(links)
            try:
                state = os.stat(folder)
                if (state.st_dev, state.st_ino) in seen:
                    continue
                seen.add((state.st_dev, state.st_ino))
                with os.scandir(folder) as listing:
                    inside = list(listing)
            except OSError as error:
                unlisted[as_text("/".join(parts))] = folder, f"the folder cannot be listed: {error.strerror}"
                continue
            if is_store({entry.name for entry in inside}):
                if not parts:
                    raise SourceError(
                        f"{self.root} is a store, not a folder of images. Give the images that it was extracted from."
                    )
                stores.append(as_text("/".join(parts)))
                continue
            for entry in inside:
                if is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    if entry.name.endswith(STORE_ENDING):
                        stores.append(as_text("/".join((*parts, entry.name))))
                    elif is_system_folder(entry.name):
                        passed.add(as_text(entry.name))
                    else:
                        place = (entry.path, (*parts, entry.name))
                        if entry.is_symlink():
                            heappush(links, place)
                        else:
                            waiting.append(place)
                elif is_image_name(entry.name) and _is_file(entry):
                    found.append((parts, entry.name, entry.path))
                else:
                    self.ignored += 1
                    others.append((parts, entry.name))
        if not found and unlisted:
            folder, reason = next(iter(unlisted.values()))
            raise SourceError(f"No image was found in {self.root}: {folder}: {reason}. Check its permissions.")
        if not found:
            for _, name in others:
                unread.add(name, None)
            raise SourceError(
                f"No image was found in {self.root} "
                f"({self.ignored} other files{unread_among(unread.endings)}). "
                f"Looked for names that end in {', '.join(sorted(EXTENSIONS))}."
            )
        tops = {parts[0] for parts, _, _ in found if parts}
        has_splits = bool(tops) and all(map(split_word, tops))
        entries = []
        for parts, name, path in found:
            folders = parts[1:] if has_splits else parts
            entries.append(
                Entry(
                    uri=as_text("/".join((*parts, name))),
                    place=path,
                    label=as_text(folders[0]) if folders else None,
                    split=split_word(parts[0]) if has_splits and parts else None,
                    group=None,
                )
            )
        # As a tar file that cannot be listed: it is told and counted, and no image in it is taken to be removed.
        self.incomplete = tuple(f"{uri}/" for uri in unlisted)
        entries += [Entry(uri, at, None, None, None, None, Unusable(why)) for uri, (at, why) in unlisted.items()]
        entries.sort(key=lambda entry: entry.uri)
        for one, other in pairwise(entries):
            if one.uri == other.uri:  # possible only where stray bytes were written as %XX
                raise SourceError(
                    f"Two files in {self.root} would both be called {one.uri}, as the name of one is not "
                    "valid text. Rename one of them."
                )
        for parts, name in others:
            folders = parts[1:] if has_splits else parts
            unread.add(name, as_text(folders[0]) if folders else None)
        self.unread = dict(unread.endings)
        inner = [parts[1:] if has_splits else parts for parts, _, _ in found]
        self.notes = (
            *_passed_over(stores, passed),
            *_merged(tops if has_splits else (), inner),
            *unread.notes({entry.label for entry in entries}),
            *self._nested(inner, has_splits),
        )
        return entries

    def _nested(self, inner: Sequence[tuple[str, ...]], has_splits: bool) -> Iterator[str]:
        """Tell that the folders of most images lie below the one that gives the label."""
        deep = [parts for parts in inner if len(parts) > 1]
        if 2 * len(deep) <= sum(map(bool, inner)):
            return
        labels, below = (sorted({as_text(parts[place]) for parts in deep}) for place in (0, 1))
        place = os.path.join(self.root, labels[0])
        choice = (
            f"extract {place} in its place, " if len(labels) == 1 else f"extract folders such as {place} one by one, "
        )
        yield (
            f"The label is the name of the first folder ({_listed(labels)}), but {counted(len(deep), 'images')} lie in "
            f"folders below it ({_listed(below)}), which give no label. If these are the classes, "
            f"{'' if has_splits else choice}give the labels with --labels FILE (path,label), or move the folders up."
        )


def _passed_over(stores: Sequence[str], system: Iterable[str]) -> Iterator[str]:
    if stores:
        yield f"Passed over, as these are featcache stores: {_listed(sorted(stores))}."
    if system:
        yield f"Passed over, as the system or a NAS made these folders: {_listed(sorted(system))}."


def _merged(tops: Iterable[str], inner: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Tell which folders are one split or one class."""
    for split, folders in merged(tops).items():
        yield f"The folders {' and '.join(map(as_text, folders))} are both the split {split}."
    spelled: dict[str, set[str]] = {}
    for first in {parts[0] for parts in inner if parts}:
        spelled.setdefault(nfc(first), set()).add(first)
    if twice := sorted(as_text(name) for name, spellings in spelled.items() if len(spellings) > 1):
        yield f"Folders whose names differ only in how Unicode spells them are one class: {_listed(twice)}."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    # A broken or circular link is listed as an image that cannot be read.
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return entry.is_symlink()
