"""A dataset of another library as a source: torchvision's, Hugging Face's ``datasets``, or one made like them.

Neither library is imported here: a dataset is recognized by its attributes. What ``dataset[i]`` gives is the image and
the label of item i. Only where the library's own code gives the item is it known without it: then a file of a class
folder is read as it is, so that an image has the same vectors as from its folder, and a dataset that decodes by itself
gives images, which are identified by their pixels.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featcache.core.arguments import described
from featcache.core.errors import ImageMemoryError, UnusableImageError, UsageError
from featcache.core.files import absolute
from featcache.core.labels import given_label, merged
from featcache.core.names import IN_PYTHON
from featcache.core.threads import Turn
from featcache.images.entry import Content, Entry, FileStat, Source, Unusable, as_text, read_image_file
from featcache.images.pixels import decoded_image

if TYPE_CHECKING:
    from PIL.Image import Image

DIGITS = 8
"""Of an index in a URI; a fixed number, so that a dataset that grows keeps its URIs."""

LISTING_SECONDS = 30.0
"""That an item may take to be loaded for its label."""


class Dataset(Protocol):
    """A dataset with items 0, 1, …."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Any: ...


class DatasetSource(Source):
    """The images of a dataset, or of several by split.

    A URI is the index in eight digits, with the file's name if the dataset knows it: ``00000042-tabby.jpg``; with
    several datasets it begins with the split. Labels are the names of the classes, or their numbers without one. Of
    classes with equal names each gets its WordNet ID or number beside the name. An item that the dataset fails to give,
    whatever it raises, is an image that cannot be used. Items are loaded one at a time; one that takes too long is
    given up.

    - torchvision: an item is ``(image, target)`` with a PIL image or an array as for `rgb_from_array`. Class folders
      whose ``__getitem__`` and ``loader`` are torchvision's own give their files, with the labels of ``samples`` and
      ``target_transform``. torchvision's other datasets know their targets; those of any other class are loaded
      once for the label, and the image is used only if it comes with that label again.
    - A ``torch.utils.data.Subset`` keeps the indices of the whole; in a ``ConcatDataset`` the items of each part have
      the names of that part's classes.
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
            if hasattr(part, "columns") and hasattr(part, "dtypes"):
                raise UsageError(
                    f"A {type(part).__name__} is a table. Write it as a CSV file with the columns path,label, and give "
                    "that: table.to_csv('images.csv', index=False)."
                )
            if not (hasattr(part, "__len__") and hasattr(part, "__getitem__")) or isinstance(part, (str, bytes, type)):
                raise UsageError(
                    f"A source is a path or a dataset with a length and items by index, not {described(part)}."
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
        notes: dict[str, None] = {}
        for name, words in merged(str(split) for split in self._parts if split is not None).items():
            notes[f"The datasets {' and '.join(words)} are both the split {name}."] = None
        for split, dataset in self._parts.items():
            if any(sign in str(split) for sign in ("/", "\0")):
                raise UsageError(f"{split!r} cannot be the name of a split.")
            # A Subset may name an item more than once.
            for one in {one.place: one for one in _items_of(dataset, notes)}.values():
                file = f"-{as_text(PurePath(one.file).name)}" if one.file else ""
                uri = f"{one.place:0{DIGITS}}{file}"
                uri = uri if split is None else f"{as_text(split)}/{uri}"
                place = one.file if one.is_file and one.file else uri
                split_word = None if split is None else as_text(str(split))
                found.append(Entry(uri, place, one.label, split_word, None, one.make_image, one.content))
        if not found:
            raise UsageError(f"The dataset {self.name} is empty.")
        self.notes = tuple(notes)
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
    is_number: bool = False
    """The label is a number for want of a name."""


def _items_of(dataset: Any, notes: dict[str, None]) -> Iterator[_Item]:
    if _gives_items_of(dataset, "torch.utils.data.dataset", "Subset"):
        whole = list(_items_of(dataset.dataset, notes))
        try:
            return iter([whole[int(place)] for place in dataset.indices])
        except IndexError:
            raise UsageError(f"A Subset names an item beyond the {len(whole)} of its dataset.") from None
    if _gives_items_of(dataset, "torch.utils.data.dataset", "ConcatDataset"):
        return _joined(dataset.datasets, notes)
    if isinstance(getattr(dataset, "features", None), Mapping) and hasattr(dataset, "cast_column"):
        return _rows(dataset, notes)
    return _pairs(dataset, notes)


def _gives_items_of(dataset: Any, module: str, name: str = "") -> bool:
    """Whether ``dataset[i]`` is answered by a library's own code: a subclass may give something else."""
    own = getattr(type(dataset), "__getitem__", None)
    where, what = str(getattr(own, "__module__", "")), str(getattr(own, "__qualname__", ""))
    return f"{where}.".startswith(f"{module}.") and what.startswith(f"{name}." if name else "")


def _joined(parts: Sequence[Any], notes: dict[str, None]) -> Iterator[_Item]:
    numbered: set[str] = set()
    place = 0
    for part in parts:
        for item in _items_of(part, notes):
            if item.is_number:
                numbered.add(type(part).__name__)
            yield replace(item, place=place)
            place += 1
    if len(numbered) > 1:
        notes[
            f"The parts {' and '.join(sorted(numbered))} have no names of classes, so a number is one class in all of "
            "them. If it is not, give each part a list `classes`."
        ] = None


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


def _rows(dataset: Any, notes: dict[str, None]) -> Iterator[_Item]:
    is_library = any(f"{one.__module__}.".startswith("datasets.") for one in type(dataset).__mro__)
    own_items = is_library and not _gives_items_of(dataset, "datasets")
    own_format = (getattr(dataset, "format", None) or {}).get("type") == "custom"
    if own_items or own_format:
        raise UsageError(
            f"The dataset {type(dataset).__name__} has a {'__getitem__' if own_items else 'transform'} of its own, but "
            "the backbone's own transform is applied to the original image. "
            + ("Give a datasets.Dataset." if own_items else "Call reset_format() first.")
        )
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    column = _one([name for name, kind in kinds.items() if kind == "Image"], "images", kinds)
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"] or [n for n in kinds if n == "label"]
    labels: list[tuple[str | None, bool]] = [(None, False)] * len(dataset)
    if classes:
        of = _one(classes, "labels", kinds)
        names = _class_names(getattr(dataset.features[of], "names", None), None, notes)
        labels = [_named(value, names) for value in dataset.with_format(None)[of]]
    # Without decoding, a row gives the bytes of the image's file, or its path.
    plain = dataset.with_format(None).cast_column(column, type(dataset.features[column])(decode=False))
    plain = plain.select_columns([column])
    turn = Turn()
    for place, (label, is_number) in enumerate(labels):
        yield _Item(place, label, content=_Row(plain, column, place, turn), is_number=is_number)


def _one(columns: Sequence[str], what: str, kinds: Mapping[str, str]) -> str:
    if len(columns) == 1:
        return columns[0]
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    how = "Remove the others with remove_columns." if columns else "Give a column the type Image with cast_column."
    raise UsageError(f"The dataset has {len(columns)} columns of {what}, one is needed: {listed}. {how}")


# torchvision


def _pairs(dataset: Any, notes: dict[str, None]) -> Iterator[_Item]:
    joint = getattr(dataset, "transforms", None)
    # torchvision's own joint transform only holds the two others.
    is_joint = joint is not None and type(joint).__name__ != "StandardTransform"
    if getattr(dataset, "transform", None) is not None or is_joint:
        raise UsageError(
            f"The dataset {type(dataset).__name__} has a transform, but the backbone's own is applied to the original "
            "image. Create the dataset with transform=None."
        )
    names = _class_names(getattr(dataset, "classes", None), getattr(dataset, "wnids", None), notes)
    files = _files(dataset)
    turn = Turn()
    for place, target in enumerate(_targets(dataset)):
        if isinstance(target, Unusable):
            yield _Item(place, None, content=target)
            continue
        label, is_number = _named(target, names)
        if files is not None:
            yield _Item(place, label, file=files[place], is_file=True, is_number=is_number)
            continue
        make_image = functools.partial(_load_image, dataset, place, turn, names, label)
        yield _Item(place, label, make_image=make_image, is_number=is_number)


def _has_own_folders(dataset: Any) -> bool:
    """Whether items are those of ``samples``, as torchvision alone gives them."""
    return _gives_items_of(dataset, "torchvision.datasets.folder", "DatasetFolder")


def _files(dataset: Any) -> list[str] | None:
    """The files of a dataset of class folders that are read as they are; else None."""
    if not _has_own_folders(dataset) or getattr(dataset.loader, "__module__", None) != "torchvision.datasets.folder":
        return None
    return [absolute(path) for path, _ in dataset.samples]


def _targets(dataset: Any) -> list[Any]:
    """The targets of all items, or why an item has none; items are loaded unless torchvision's own code gives them."""
    of = getattr(dataset, "target_transform", None)
    if _has_own_folders(dataset):
        return [target if of is None else of(target) for _, target in dataset.samples[: len(dataset)]]
    if of is None and _gives_items_of(dataset, "torchvision.datasets"):
        for name in ("targets", "labels", "_labels"):
            kept = getattr(dataset, name, None)
            if kept is not None and len(kept) == len(dataset):
                kept = kept.tolist() if hasattr(kept, "tolist") else list(kept)
                if all(isinstance(target, int) for target in kept):
                    return kept
    return [_loaded_target(dataset, place) for place in range(len(dataset))]


def _loaded_target(dataset: Any, place: int) -> Any:
    """An item that fails now is not read later, when it might succeed and would have no label."""
    loaded: list[Any] = []

    def load() -> None:
        try:
            with _reading():
                loaded.append(_target(dataset[place]))
        except UnusableImageError as error:
            loaded.append(Unusable(str(error)))
        except BaseException as error:  # even one that exits ends no more than its thread
            loaded.append(Unusable(f"the source fails: {error!r}"))

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(LISTING_SECONDS)
    return loaded[0] if loaded else Unusable(f"it took more than {LISTING_SECONDS:.0f} s to load")


def _target(item: Any) -> Any:
    return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None


def _load_image(dataset: Any, place: int, turn: Turn, names: Sequence[str] | None, listed: str | None) -> Image:
    from PIL import Image as pil

    with _reading(), turn:  # many datasets share the position of one open file
        item = dataset[place]
        label, _ = _named(_target(item), names)
    if label != listed:
        raise UnusableImageError(f"the dataset gives it the label {label!r} now, and {listed!r} when it was listed")
    image = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(image, pil.Image | np.ndarray):
        return decoded_image(image).image
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


def _class_names(names: Any, ids: Any, notes: dict[str, None]) -> list[str] | None:
    """The names of the classes by number; equal ones with what tells them apart."""
    if names is None or isinstance(names, (str, bytes, Mapping)) or not hasattr(names, "__iter__"):
        return None
    # ImageNet has several names a class.
    texts = [", ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in names]
    twice = sorted(name for name, count in Counter(texts).items() if count > 1)
    if not twice:
        return texts
    marks = list(map(str, ids)) if ids is not None and len(ids) == len(texts) else list(map(str, range(len(texts))))
    texts = [f"{name} ({mark})" if name in twice else name for name, mark in zip(texts, marks, strict=True)]
    renamed = [text for text in texts if any(text.startswith(f"{name} (") for name in twice)]
    notes[f"Several classes have the same name, so they are told apart: {', '.join(renamed[:6])}."] = None
    return texts


def _named(target: Any, names: Sequence[str] | None) -> tuple[str | None, bool]:
    """The label of a target: the class's name, its own text, or its number, and whether it is that number.

    None, NaN, an empty text and numbers below 0 are no label.
    """
    if target is None or isinstance(target, str):
        return given_label(target), False
    number = target.item() if hasattr(target, "item") and math.prod(getattr(target, "shape", ())) == 1 else target
    if isinstance(number, float) and given_label(number) is None:
        return None, False
    if not isinstance(number, int):
        raise UsageError(
            f"A target of the dataset is of type {type(target).__name__}, but a label is an integer or a string. "
            "Set target_transform, or give labels=FILE."
        )
    if number < 0:
        return None, False
    return (names[number], False) if names is not None and number < len(names) else (str(number), True)
