"""A folder as a source: class folders, optional ``train/ val/ test/`` above them, or a flat folder.

Links to folders are followed, but each real folder is entered once, so a loop of links ends. Hidden
files and folders, stores and pipes are passed over.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from featcache.errors import SourceError
from featcache.images.entry import EXTENSIONS, Entry

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class FolderSource:
    """Images below one folder.

    The label is the name of the first folder below the root, or below the split's folder; images that
    lie directly in it have none. Folders are splits if all of those at the top have a split's name.

    Args:
        folder: the root.
        name: the source's name; the folder's own by default.
    """

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        resolved = folder.resolve()
        self.root = str(resolved)
        self.name = name or resolved.name or "root"
        self.ignored = 0

    def entries(self) -> list[Entry]:
        """List the images, sorted by URI.

        Raises:
            SourceError: there is no image, or a folder cannot be listed.
        """
        self.ignored = 0
        found: list[tuple[tuple[str, ...], str]] = []
        seen: set[tuple[int, int]] = set()
        waiting: list[tuple[str, tuple[str, ...]]] = [(self.root, ())]
        while waiting:
            folder, parts = waiting.pop()
            try:
                state = os.stat(folder)
                if (state.st_dev, state.st_ino) in seen:
                    continue
                seen.add((state.st_dev, state.st_ino))
                with os.scandir(folder) as listing:
                    inside = sorted(listing, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                raise SourceError(
                    f"The folder {folder} cannot be listed: {error.strerror}. Check its permissions."
                ) from error
            for entry in inside:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if _is_folder(entry):
                    if not entry.name.endswith(".fcache"):
                        waiting.append((entry.path, (*parts, entry.name)))
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and _is_file(entry):
                    found.append(((*parts, entry.name), entry.path))
                else:
                    self.ignored += 1
        if not found:
            raise SourceError(
                f"No image was found in {self.root} ({self.ignored} other files). "
                f"Looked for names that end in {', '.join(sorted(EXTENSIONS))}."
            )
        tops = {parts[0] for parts, _ in found if len(parts) > 1}
        has_splits = bool(tops) and tops <= SPLITS.keys() and all(len(parts) > 1 for parts, _ in found)
        entries = []
        for parts, path in found:
            folders = parts[1:-1] if has_splits else parts[:-1]
            entries.append(
                Entry(
                    uri="/".join(_text(part) for part in parts),
                    path=Path(path),
                    label=_text(folders[0]) if folders else None,
                    split=SPLITS[parts[0]] if has_splits else None,
                    group=None,
                )
            )
        entries.sort(key=lambda entry: entry.uri)
        return entries


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    # A link that leads nowhere, or round in a circle, is listed as an image that cannot be read.
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return entry.is_symlink()


def _text(part: str) -> str:
    """A name that is not valid text, with its stray bytes as ``%XX``: the catalogue holds text only."""
    try:
        part.encode("utf-8")
        return part
    except UnicodeEncodeError:
        return "".join(quote(os.fsencode(c)) if "\udc80" <= c <= "\udcff" else c for c in part)
