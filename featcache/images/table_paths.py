r"""Which file or image a path in a table means.

As it stands where that is there; else with ``/`` for ``\`` as Windows writes it, and in the other Unicode form: macOS
writes the ``ü`` of a file name as two characters, a table mostly as one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath

from featcache.core.errors import SourceError
from featcache.core.files import absolute
from featcache.core.labels import nfc
from featcache.core.names import IN_PYTHON


class FileFinder:
    """Finds the files that paths in a table mean.

    Args:
        folder: the table's, which paths are relative to, with a separator at its end.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._listings: dict[str, dict[str, str]] = {}

    def find(self, text: str) -> tuple[str, bool]:
        """The absolute path that *text* means, and whether there is such a file."""
        places = [self._place(written) for written in _written(text)]
        for place in places:
            if os.path.exists(place):
                return place, True
        for place in places:
            found = None if text.isascii() else self._spelled(place)
            if found is not None:
                return found, True
        return places[0], False

    def _place(self, text: str) -> str:
        place = absolute(os.path.join(self._folder, text))
        if os.path.isabs(text) and not place.startswith(self._folder):
            # The table's folder may be reached through a link.
            real = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
            return real if real.startswith(self._folder) else place
        return place

    def _spelled(self, place: str) -> str | None:
        """The file whose path differs from *place* at most in its Unicode form."""
        folder, name = os.path.split(place)
        if not name:
            return None
        real = folder if os.path.isdir(folder) else self._spelled(folder)
        if real is None:
            return None
        if real not in self._listings:
            try:
                self._listings[real] = {nfc(one): one for one in os.listdir(real)}
            except OSError:
                self._listings[real] = {}
        found = self._listings[real].get(nfc(name))
        return None if found is None else os.path.join(real, found)


def by_uri(given: Mapping[str, str], uris: Collection[str], root: str) -> tuple[dict[str, str], list[str]]:
    """Values by the URIs of a source, of values by paths as a table writes them.

    Args:
        given: values by path: relative to the source's root, or absolute and below it.
        uris: those of the source.
        root: of the source.

    Returns:
        The values by URI, and the paths that are no images of the source, sorted.

    Raises:
        SourceError: two paths are one image.
    """
    known = set(uris)
    spelled: dict[str, str | None] = {}
    if any(path not in known for path in given):
        for uri in known:
            key = nfc(uri)
            spelled[key] = None if key in spelled else uri  # two files that look the same: neither is meant
    path_of: dict[str, str] = {}
    unknown = []
    for path in given:
        meant = path if path in known else next((u for w in _below(path, root) if (u := spelled.get(nfc(w)))), None)
        if meant is None:
            unknown.append(path)
        elif meant in path_of:
            raise SourceError(f"{path_of[meant]} and {path} are the same image. Remove one of the two rows.")
        else:
            path_of[meant] = path
    return {uri: given[path] for uri, path in path_of.items()}, sorted(unknown)


def _below(path: str, root: str) -> Iterator[str]:
    """What *path* may be called below *root*."""
    on_disk = root and not root.startswith(IN_PYTHON)
    for written in _written(path):
        # A link below the root may lead elsewhere, and a ``..`` behind it too.
        leads_up = os.pardir in PurePosixPath(written).parts
        if not (on_disk and leads_up):
            yield str(PurePosixPath(os.path.normpath(written)))
        if on_disk and (leads_up or os.path.isabs(written)):
            place = absolute(os.path.join(root, written))
            for found in (place, os.path.realpath(place)):
                if nfc(found).startswith(nfc(os.path.join(root, ""))):
                    yield os.path.relpath(nfc(found), nfc(root)).replace(os.sep, "/")


def _written(text: str) -> list[str]:
    return [text, text.replace("\\", "/")] if "\\" in text else [text]
