"""The images behind stored vectors: find them where their source lies, and read them again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from featcache.core.errors import FeatcacheError, MissingVectorsError, SourceError, UnusableImageError, UsageError
from featcache.core.files import absolute, place_of
from featcache.core.names import IN_PYTHON, PATHS
from featcache.images.csv_manifest import ManifestSource
from featcache.images.decode import Decoded
from featcache.images.entry import Entry, FileStat, Unusable, as_text, pixels_sha256
from featcache.images.folder import FolderSource
from featcache.images.sources import Source, images_below, open_source
from featcache.images.tar import TarSource

if TYPE_CHECKING:
    from featcache.backbones import Extractor
    from featcache.core.progress import Progress
    from featcache.images.datasets import Dataset
    from featcache.store import FeatureStore, Item

_READERS, _NAMED = 8, 5


def known_images(
    store: FeatureStore,
    source: str,
    items: Sequence[Item],
    notes: list[str],
    images: str | Path | Source | Dataset | Mapping[str, Dataset] | None = None,
) -> dict[str, Entry]:
    """The images of a source by URI, those that still exist.

    Args:
        store: the store.
        source: its name.
        items: those that are needed.
        notes: gets a message if the source is gone.
        images: where the images are now, as for `featcache.extract`; by default the root that the store knows.
            Needed for datasets, and for a manifest with images that its folder does not list.

    Raises:
        UsageError: the images were given in Python, and *images* is missing.
    """
    root = store.sources()[source]
    if images is not None:
        given = images if isinstance(images, Source) else open_source(images, labels="none", name=source)
        return {entry.uri: entry for entry in given.entries()}
    if source == PATHS:
        return {entry.uri: entry for entry in _files(root, items)}
    if not root or root.startswith(IN_PYTHON):
        raise UsageError(
            f"The images of the source {source!r} were given in Python, so they cannot be read again from here. Call "
            "the function of the same name in Python with images=… (if it has that), choose another --source, or "
            "extract them from files."
        )
    tars = _tars(root, items)
    # The root of a CSV file's images may be any folder above them, too large to list.
    found = {entry.uri: entry for entry in _files(root, items) if os.path.exists(entry.place)}
    sources: list[Callable[[], Source]] = (
        [lambda: TarSource(list(tars.values()), name=source, labels=False)] if tars else []
    )
    # A name that is no text is not that of its file.
    if not os.path.isdir(root) or any("%" in item.uri for item in items if item.uri not in found):
        sources.append(lambda: open_source(root, labels="none"))
    for opened in sources:
        try:
            found.update((entry.uri, entry) for entry in opened().entries())
        except SourceError as error:
            notes.append(str(error))
    return found


def images_of_items(store: FeatureStore, items: Sequence[Item], notes: list[str]) -> dict[tuple[str, str], Entry]:
    """The images of items of one or more sources by source and URI, those that still exist; as `known_images`."""
    found: dict[tuple[str, str], Entry] = {}
    for name in dict.fromkeys(item.source for item in items):
        there = known_images(store, name, [item for item in items if item.source == name], notes)
        found.update(((name, uri), entry) for uri, entry in there.items())
    return found


def present_images(store: FeatureStore, items: Sequence[Item], progress: Progress) -> dict[tuple[str, str], Entry]:
    """Where the images of items are, by source and URI: of those that are there and have not changed.

    Args:
        store: the store.
        items: one or more.
        progress: reports the check, and gets a warning of those that are passed over.

    Raises:
        MissingVectorsError: none is there as the store knows it.
        UsageError: the images were given in Python.
    """
    notes: list[str] = []
    there = images_of_items(store, items, notes)
    gone, changed, present = list[str](), list[str](), dict[tuple[str, str], Entry]()
    keys = [(item.source, item.uri) for item in items]
    progress.start("check the images", len(items), "images")
    with ThreadPoolExecutor(_READERS) as threads:
        contents = threads.map(lambda key: _content(there.get(key)), keys)
        for item, key, sha256 in zip(items, keys, contents, strict=True):
            if sha256 == item.sha256:
                present[key] = there[key]
            else:
                (gone if sha256 is None else changed).append(item.uri)
            progress.advance()
    progress.finish()
    if not gone and not changed:
        return present
    found = " and ".join(
        f"{len(uris):,} {what} (first: {uris[0]})"
        for uris, what in ((gone, "cannot be read where the store knows them"), (changed, "have changed since"))
        if uris
    )
    again = (
        f"{' '.join([*notes, 'Run'])} `featcache extract` again to bring the store up to date, or with --moved if the "
        "images were moved."
    )
    if not present:
        raise MissingVectorsError(f"Of {len(items):,} images {found}. {again}")
    text = f"Warning: of {len(items):,} images {found}; they are passed over."
    if lost := sorted(
        {str(item.label) for item in items} - {str(i.label) for i in items if (i.source, i.uri) in present}
    ):
        text += f" No image is left of {', '.join(map(repr, lost[:_NAMED]))}{' …' if lost[_NAMED:] else ''}."
    progress.note(f"{text} {again}")
    return present


def _content(entry: Entry | None) -> bytes | None:
    """The SHA-256 of an image as the store counts it; None where it is gone."""
    if entry is None:
        return None
    try:
        if entry.make_image is not None:
            return pixels_sha256(entry.make_image())
        return hashlib.sha256(entry.read()[0]).digest()
    except (OSError, FeatcacheError):
        return None


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A `Content`: an image that a store lists, whose vectors it may hold though the file is gone."""

    sha256: bytes
    file: Entry | Unusable

    def read(self) -> tuple[bytes, FileStat]:
        return self.file.read()

    def state(self) -> FileStat | None:
        return self.file.state()


def images_of(path: str | Path) -> list[Entry] | None:
    """The images that a path given for images stands for: those of a store, a folder or tar files; None for one file.

    Those of a folder are called as the folder was given, with their place below it. Of a store these are the images of
    all its sources, whether they are still there or not: reading one that is gone, or that was given in Python, says
    so. A file that several sources list stands there once, unless it changed in between.

    Raises:
        SourceError: a folder or tar file holds no image, or there is no such tar file.
        NotAStoreError, DamagedStoreError: the store cannot be read.
    """
    from featcache.store import FeatureStore
    from featcache.store.folder import has_catalogue

    if not os.path.isdir(path) or not has_catalogue(Path(path)):
        below, given = images_below(path), as_text(str(path))
        return below and [
            replace(entry, uri=os.path.join(given, entry.uri)) if entry.content is None else entry for entry in below
        ]
    store = FeatureStore.open(path)
    found: list[Entry] = []
    seen = set[tuple[str, bytes]]()
    for name, root in store.sources().items():
        items = store.items(source=name)
        if name != PATHS and (not root or root.startswith(IN_PYTHON)):
            reason = f"it was given in Python as an image of the source {name!r}, so it cannot be read again"
            found += [
                Entry(item.uri, item.uri, None, None, None, None, StoredImage(item.sha256, Unusable(reason)))
                for item in items
            ]
            continue
        there = known_images(store, name, items, [])
        gone = Unusable(f"it is not where the store {path} knows it, below {root}")
        real = os.path.realpath(root)
        for item in items:
            known = os.path.join(real, item.uri), item.sha256
            if known in seen:
                continue
            seen.add(known)
            entry = there.get(item.uri)
            place = os.path.join(root, item.uri) if entry is None else entry.place
            uri = as_text(place) if entry is None or entry.content is None else entry.uri
            found.append(Entry(uri, place, None, None, None, None, StoredImage(item.sha256, entry or gone)))
    return found


def lists(given: Path, file: Path) -> bool:
    """Whether a store, a CSV manifest or a folder reads a file that is there.

    Args:
        given: a store or table: an image that it lists, a tar file with some, or a table; a folder: an image that it
            holds or that a link in it leads to.
        file: of a store or table, by any name but that of a hard link.
    """
    from featcache.store import FeatureStore
    from featcache.store.folder import has_catalogue

    places = {absolute(file), str(place_of(file)), os.path.realpath(file)}
    try:
        if given.suffix.lower() == ".csv" and given.is_file():
            return any(place in places for place in ManifestSource(given).places())
        if not given.is_dir():
            return False
        if not has_catalogue(given):
            return any(os.path.samefile(entry.place, file) for entry in FolderSource(given).entries())
        store = FeatureStore.open(given)
        for name, root in store.sources().items():
            if not places.isdisjoint(map(str, store.source_settings(name).values())):
                return True
            below = os.path.join(root, "")
            for place in places:
                uri = as_text(place.removeprefix(below).replace(os.sep, "/"))
                if os.path.isabs(root) and place.startswith(below) and _is_listed(store, name, uri):
                    return True
    except (FeatcacheError, OSError):  # whoever reads it says what is wrong with it
        return False
    return False


def _is_listed(store: FeatureStore, source: str, uri: str) -> bool:
    """Whether a source lists this image, or one in this tar file, done or not."""
    within = " UNION ALL ".join(
        f"SELECT 1 FROM {table} t JOIN sources s ON s.id = t.source_id "
        "WHERE s.name = ?1 AND (t.uri = ?2 OR (t.uri > ?2 || '/' AND t.uri < ?2 || '0'))"
        for table in ("items", "pending", "quarantine")
    )
    return bool(store.catalogue.query("i", f"SELECT EXISTS ({within})", (source, uri))[0][0])


class KnownSource(Source):
    """Items of a store as a `Source`, to extract more layers or views; labels, splits and groups stay as stored.

    Args:
        name, root: of the source.
        items: those to extract.
        images: entries by URI, from `known_images`; items without one are omitted, and none is taken to be removed.
    """

    within = ()

    def __init__(self, name: str, root: str, items: Sequence[Item], images: Mapping[str, Entry]) -> None:
        self.name, self.root, self.items, self.images = name, root, items, images

    def entries(self) -> list[Entry]:
        """The images, with their stored labels, splits and groups."""
        return [
            replace(self.images[item.uri], label=item.label, split=item.split, group=item.group)
            for item in self.items
            if item.uri in self.images
        ]


def image_of_item(item: Item, entry: Entry, backbone: Extractor) -> Decoded:
    """The image of an item, if it has not changed.

    Raises:
        UnusableImageError: the image cannot be read, or has changed since it was extracted.
    """
    if entry.make_image is not None:
        made = entry.make_image()
        sha256, image = pixels_sha256(made), Decoded.whole(made)
    else:
        data, _ = entry.read()
        sha256, image = hashlib.sha256(data).digest(), backbone.decode(data)
    if sha256 != item.sha256:
        raise UnusableImageError(
            f"{item.uri} has changed since it was extracted; run `featcache extract` again, then this"
        )
    return image


def _tars(root: str, items: Sequence[Item]) -> dict[str, Path]:
    """The tar files that hold these items, by the first part of their URIs; other files may lie beside them."""
    names = {item.uri.split("/")[0] for item in items if "/" in item.uri}
    # What is a file and has images below it is a tar file.
    return {name: path for name in sorted(names) if (path := Path(root, name)).is_file()}


def _files(root: str, items: Sequence[Item]) -> Iterator[Entry]:
    """Files below a root, or of those given one by one, whose root is that of the file system."""
    for item in items:
        parts = PurePosixPath(item.uri).parts
        if ".." not in parts and parts[:1] != ("/",):
            yield Entry(item.uri, os.path.join(root, *parts), None, None, None)
