"""A dataset of another library as a source: torchvision's, Hugging Face's ``datasets``, or one made like them.

Neither library is imported here: a dataset is recognized by its attributes. Where the dataset can give bytes they are
used, so that an image has the same vectors as from its file; a dataset that decodes by itself gives images, which are
identified by their pixels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol

from featcache.core.errors import ImageMemoryError, UnusableImageError, UsageError
from featcache.core.names import IN_PYTHON
from featcache.core.threads import Turn
from featcache.images.decode import rgb_from, rgb_from_array
from featcache.images.entry import Content, Entry, FileStat, Source, Unusable, as_text, read_image_file

if TYPE_CHECKING:
    from PIL.Image import Image

DIGITS = 8
"""Of an index in a URI; a fixed number, so that a dataset that grows keeps its URIs."""


class Dataset(Protocol):
    """A dataset with items 0, 1, …."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Any: ...


class DatasetSource(Source):
    """The images of a dataset, or of several by split.

    A URI is the index in eight digits, with the file's name if the dataset knows it: ``00000042-tabby.jpg``; with
    several datasets it begins with the split. Labels are the names of the classes, or their numbers without one. An
    item that the dataset fails to give, whatever it raises, is an image that cannot be used. Items are loaded one at
    a time; one that takes too long is given up.

    - torchvision: an item is ``(image, target)`` with a PIL image or an array as for `rgb_from_array`. Targets are
      read from ``targets``, ``labels`` or ``_labels`` if there is one, else every item is loaded once for them.
      A dataset of class folders gives its files. A ``torch.utils.data.Subset`` keeps the indices of the whole.
    - Hugging Face: the one column of type ``Image``, and the one of type ``ClassLabel`` or else ``label``.

    Args:
        dataset: the dataset, or a mapping from the names of splits to datasets.
        name: the source's name, required: nothing else tells one dataset from another.

    Raises:
        UsageError: there is no name, or this is no such dataset.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, dataset: Dataset | Mapping[str, Dataset], *, name: str | None) -> None:
        self._parts = dict(dataset) if isinstance(dataset, Mapping) else {None: dataset}
        for part in self._parts.values():
            if not (hasattr(part, "__len__") and hasattr(part, "__getitem__")) or isinstance(part, (str, bytes)):
                raise UsageError(
                    f"A source is a path or a dataset with a length and items by index, not {type(part).__name__}."
                )
        if name is None:
            raise UsageError('A dataset needs a name, so that another one is not taken for it: name="…".')
        kinds = {f"{type(part).__module__}.{type(part).__qualname__}" for part in self._parts.values()}
        self.root = IN_PYTHON + ",".join(sorted(kinds))
        self.name = as_text(name)

    def entries(self) -> list[Entry]:
        """List the images in the order of the dataset.

        Raises:
            UsageError: the dataset has a transform, or its columns of images or labels are ambiguous.
        """
        found = []
        for split, dataset in self._parts.items():
            if any(sign in str(split) for sign in ("/", "\0")):
                raise UsageError(f"{split!r} cannot be the name of a split.")
            for one in _items_of(dataset):
                file = f"-{as_text(PurePath(one.file).name)}" if one.file else ""
                uri = f"{one.place:0{DIGITS}}{file}"
                uri = uri if split is None else f"{as_text(split)}/{uri}"
                place = one.file if one.is_file and one.file else uri
                found.append(Entry(uri, place, one.label, split, None, one.make_image, one.content))
        if not found:
            raise UsageError(f"The dataset {self.name} is empty.")
        return found


@dataclass(frozen=True, slots=True)
class _Item:
    """One image of a dataset: its file, a function that makes the image, or what reads its bytes."""

    place: int
    label: str | None
    file: str | None = None
    is_file: bool = False
    make_image: Callable[[], Image] | None = None
    content: Content | None = None


def _items_of(dataset: Any) -> Iterator[_Item]:
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        whole = list(_items_of(dataset.dataset))
        return iter([whole[int(place)] for place in dict.fromkeys(dataset.indices)])
    if isinstance(getattr(dataset, "features", None), Mapping) and hasattr(dataset, "cast_column"):
        return _rows(dataset)
    return _pairs(dataset)


# Hugging Face


@dataclass(frozen=True, slots=True)
class _Row:
    """The bytes of one row's image; a `Content`."""

    dataset: Any
    column: str
    place: int
    turn: Turn

    def read(self) -> tuple[bytes, FileStat]:
        with _reading(), self.turn:  # no dataset promises to be thread-safe
            value = self.dataset[self.place][self.column]
        if value is None:
            raise UnusableImageError("the row has no image")
        if value["bytes"] is None:
            return read_image_file(Path(value["path"]))
        if not value["bytes"]:
            raise UnusableImageError("the file is empty")
        return value["bytes"], FileStat(len(value["bytes"]), 0, 0, 0)

    def state(self) -> FileStat | None:
        return None


def _rows(dataset: Any) -> Iterator[_Item]:
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    column = _one([name for name, kind in kinds.items() if kind == "Image"], "images", kinds)
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"] or [n for n in kinds if n == "label"]
    labels: list[str | None] = [None] * len(dataset)
    if classes:
        of = _one(classes, "labels", kinds)
        names = getattr(dataset.features[of], "names", None)
        labels = [_named(value, names) for value in dataset.with_format(None)[of]]
    # Without decoding, a row gives the bytes of the image's file, or its path.
    plain = dataset.with_format(None).cast_column(column, type(dataset.features[column])(decode=False))
    plain = plain.select_columns([column])
    turn = Turn()
    for place, label in enumerate(labels):
        yield _Item(place, label, content=_Row(plain, column, place, turn))


def _one(columns: Sequence[str], what: str, kinds: Mapping[str, str]) -> str:
    if len(columns) == 1:
        return columns[0]
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    how = "Remove the others with remove_columns." if columns else "Give a column the type Image with cast_column."
    raise UsageError(f"The dataset has {len(columns)} columns of {what}, one is needed: {listed}. {how}")


# torchvision


def _pairs(dataset: Any) -> Iterator[_Item]:
    if getattr(dataset, "transform", None) is not None:
        raise UsageError(
            f"The dataset {type(dataset).__name__} has a transform, but the backbone's own is applied to the original "
            "image. Create the dataset with transform=None."
        )
    classes = getattr(dataset, "classes", None)
    targets = _targets(dataset)
    files = _files(dataset)
    turn = Turn()
    for place, target in enumerate(targets):
        if isinstance(target, Unusable):
            yield _Item(place, None, content=target)
            continue
        label = _named(target, classes)
        if files is not None:
            yield _Item(place, label, file=files[place], is_file=True)
        else:
            yield _Item(place, label, make_image=functools.partial(_load_image, dataset, place, turn))


def _targets(dataset: Any) -> list[Any]:
    """The targets of all items, or why an item has none; images are loaded only if the dataset keeps no targets."""
    if getattr(dataset, "target_transform", None) is None:
        for name in ("targets", "labels", "_labels"):
            kept = getattr(dataset, name, None)
            if kept is not None and len(kept) == len(dataset):
                kept = kept.tolist() if hasattr(kept, "tolist") else list(kept)
                if all(isinstance(target, (int, str)) for target in kept):
                    return kept
    return [_loaded_target(dataset, place) for place in range(len(dataset))]


def _loaded_target(dataset: Any, place: int) -> Any:
    """An item that fails now is not read later, when it might succeed and would have no label."""
    try:
        with _reading():
            item = dataset[place]
    except UnusableImageError as error:
        return Unusable(str(error))
    if isinstance(item, (tuple, list)):
        return item[1] if len(item) > 1 else None
    return None


def _files(dataset: Any) -> list[str] | None:
    """The files of a dataset of class folders that are read as they are; else None."""
    loader = getattr(dataset, "loader", None)
    samples = getattr(dataset, "samples", None)
    if getattr(loader, "__module__", None) != "torchvision.datasets.folder" or samples is None:
        return None
    return [os.path.abspath(path) for path, _ in samples]


def _load_image(dataset: Any, place: int, turn: Turn) -> Image:
    from PIL import Image as pil

    with _reading(), turn:  # many datasets share the position of one open file
        item = dataset[place]
    image = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(image, pil.Image):
        return rgb_from(image)
    if type(image).__module__ == "numpy" and hasattr(image, "shape"):
        return rgb_from_array(image)
    raise UnusableImageError(f"the dataset gives a {type(image).__name__}; an image is a PIL image or a NumPy array")


@contextmanager
def _reading() -> Iterator[None]:
    """Any exception of a dataset means that this item cannot be used."""
    try:
        yield
    except UnusableImageError:
        raise
    except MemoryError as error:
        raise ImageMemoryError("there was not enough memory to load it") from error
    except Exception as error:
        raise UnusableImageError(f"the dataset fails: {error!r}") from error


def _named(target: Any, names: Sequence[Any] | None) -> str | None:
    """The label of a target: the class's name, its own text, or its number; None for None and numbers below 0."""
    if target is None or isinstance(target, str):
        return target
    number = target.item() if hasattr(target, "item") else target
    if not isinstance(number, int):
        raise UsageError(
            f"A target of the dataset is of type {type(target).__name__}, but a label is an integer or a string. "
            "Set target_transform, or give labels=FILE."
        )
    if number < 0:
        return None
    return str(names[number]) if names is not None and number < len(names) else str(number)
