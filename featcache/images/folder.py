"""A folder as a source: class folders, optional ``train/ val/ test/`` above them, or a flat folder.

Links to folders are followed, but each real folder is entered once, under its own path if that lies below the root, so
a loop of links ends. Hidden files and folders, stores and pipes are skipped.
"""

from __future__ import annotations

import os
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path

from featcache.core.errors import SourceError
from featcache.images.entry import Entry, Source, as_text

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class FolderSource(Source):
    """Images below one folder.

    The label is the name of the first folder below the root, or below the split's folder; images directly in it have
    none. Folders are splits if all top-level folders with images have a split's name.

    Args:
        folder: the root.
        name: the source's name; the folder's own by default.
    """

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        resolved = folder.resolve()
        self._folder = str(resolved)
        self.root = as_text(self._folder)
        self.name = as_text(name or resolved.name or "root")

    def entries(self) -> list[Entry]:
        """List the images, sorted by URI.

        Raises:
            SourceError: there is no image, a folder cannot be listed, or two names give one URI.
        """
        self.ignored = 0
        found: list[tuple[tuple[str, ...], str]] = []
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
                raise SourceError(
                    f"The folder {folder} cannot be listed: {error.strerror}. Check its permissions."
                ) from error
            for entry in inside:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if _is_folder(entry):
                    if not entry.name.endswith(".fcache"):
                        place = (entry.path, (*parts, entry.name))
                        if entry.is_symlink():
                            heappush(links, place)
                        else:
                            waiting.append(place)
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and _is_file(entry):
                    found.append((parts, entry.path))
                else:
                    self.ignored += 1
        if not found:
            raise SourceError(
                f"No image was found in {self.root} ({self.ignored} other files). "
                f"Looked for names that end in {', '.join(sorted(EXTENSIONS))}."
            )
        tops = {parts[0] for parts, _ in found if parts}
        has_splits = bool(tops) and tops <= SPLITS.keys()
        entries = []
        for parts, path in found:
            folders = parts[1:] if has_splits else parts
            entries.append(
                Entry(
                    uri=as_text("/".join((*parts, os.path.basename(path)))),
                    place=path,
                    label=as_text(folders[0]) if folders else None,
                    split=SPLITS[parts[0]] if has_splits and parts else None,
                    group=None,
                )
            )
        entries.sort(key=lambda entry: entry.uri)
        for one, other in pairwise(entries):
            if one.uri == other.uri:  # possible only where stray bytes were written as %XX
                raise SourceError(
                    f"Two files in {self.root} would both be called {one.uri}, as the name of one is not "
                    "valid text. Rename one of them."
                )
        return entries


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


EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
)
"""File name extensions, in lower case, by which images are recognized in a folder."""
