"""`open_source`: a folder, a CSV manifest, tar files or a dataset of another library as a `Source`.

Only names, labels, splits and groups are read here, never an image's bytes. A new kind of source is a `Source` whose
entries read their bytes with a `Content`; nothing else has to know of it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.core.errors import SourceError, UsageError
from featcache.core.files import absolute
from featcache.core.labels import merged, split_name
from featcache.images.csv_manifest import ManifestSource, read_column
from featcache.images.datasets import DatasetSource
from featcache.images.entry import Content, Entry, Source, notes_of, unread_of
from featcache.images.folder import FolderSource
from featcache.images.table_paths import by_uri
from featcache.images.tar import TarSource
from featcache.images.tar_patterns import tar_files

__all__ = ["Content", "Entry", "Source", "images_below", "open_source", "read_labels"]


def open_source(
    path: Any,
    *,
    labels: str | Path | None = None,
    split: str | Path | None = None,
    name: str | None = None,
) -> Source:
    """Open a folder, a CSV manifest, tar files or a dataset as a source.

    Args:
        path: a folder with images, in class folders or flat, with or without ``train/ val/ test/``
            above them; a CSV file with the columns ``path,label,split,group``; a tar file, several
            (``shard-{000..009}.tar``, ``shard-*.tar``, or a list of their paths), or a folder with tar files and
            neither images nor folders in it; or a dataset as for `DatasetSource`.
        labels: ``folder``, ``none``, or a CSV file (``path,label``); by default the folder names, or the labels of the
            manifest, tar file or dataset.
        split: ``folder``, a CSV file (``path,split``), or fractions, ``0.8/0.2`` (train, test) or
            ``train=0.7,val=0.1,test=0.2``; by default as for labels. Fractions are drawn by ranking the SHA-256 of each
            URI, or group, within its label, so the same names give the same split.
        name: the source's name; by default the folder's own, or the file's without its suffix. A tar file that is
            numbered as one of several (``train-000.tar``) has its folder's name, like all of them together. A dataset
            needs one.

    Raises:
        SourceError: there is nothing at *path*, or it cannot be a source.
        UsageError: a dataset without a name, or one that cannot be a source; a list of paths that are not tar files in
            one folder; ``folder`` for tar files.

    Example:
        ``open_source("shards/train-{000..009}.tar", split="0.9/0.1").entries()``
    """
    found: Source
    tars, tars_name = tar_files(path)
    is_path = isinstance(path, (str, os.PathLike))
    if tars:
        is_all, wants_labels = is_path and os.path.isdir(path), labels in (None, "folder")
        found = TarSource(tars, name=name or tars_name, labels=wants_labels, is_all=is_all)
    elif is_path:
        found = _opened(Path(path), name)
    else:
        found = DatasetSource(path, name=name)
    if "folder" in (labels, split) and isinstance(found, TarSource):
        option, files = ("labels", "KEY.cls, KEY.json or KEY.txt") if labels == "folder" else ("split", "KEY.json")
        raise UsageError(
            f"The folders inside a tar file are no {option}. Omit --{option} to use {files} beside the images, or give "
            f"a CSV file (path,{option.removesuffix('s')})."
        )
    if labels in (None, "folder") and split in (None, "folder"):
        return found
    return DescribedSource(found, labels, split)


def _opened(place: Path, name: str | None) -> Source:
    # os.path answers where Path raises: names that are too long, folders that may not be entered.
    if os.path.isdir(place):
        return FolderSource(place, name=name)
    if os.path.isfile(place) and place.suffix.lower() == ".csv":
        return ManifestSource(place, name=name)
    if os.path.exists(place):
        raise SourceError(
            f"{place} is neither a folder of images nor a CSV manifest (NAME.csv) nor a tar file (NAME.tar). "
            "The images of a compressed tar file cannot be read by their offset: decompress it first."
        )
    raise SourceError(f"There is nothing at {place}. Give a folder of images, a CSV manifest or tar files.")


def images_below(path: str | Path) -> list[Entry] | None:
    """The images that a folder, a tar file or a pattern of tar files stands for; None where *path* is one file.

    Raises:
        SourceError: there is no image, or no such tar file.
    """
    tars, name = tar_files(path)
    if tars:
        return TarSource(tars, name=name, labels=False).entries()
    return FolderSource(Path(path)).entries() if os.path.isdir(path) else None


def read_labels(path: Path) -> dict[str, str]:
    """Labels by path from a CSV file with the columns ``path,label``; '' where the cell is empty.

    Raises:
        SourceError: the file or one of the columns is missing, or a path is listed twice.
    """
    return read_column(path, "label", empty=True)


class DescribedSource(Source):
    """A source whose labels or splits come from elsewhere.

    Args:
        inner: the source without them.
        labels, split: as for `open_source`.

    Attributes:
        fractions: of the splits that are drawn; None where they are not drawn.
        tolerant: which of ``labels`` and ``split`` may name images that are gone: files that an earlier run was given.
        named: by field, how many images the file names.
        own: by field, what each image has without the file.
        unmatched: by field, the values of the paths that are no images of the source.
    """

    notes: tuple[str, ...] = ()
    tolerant: Collection[str] = ()

    def __init__(self, inner: Source, labels: str | Path | None, split: str | Path | None) -> None:
        self.inner, self.labels, self.split = inner, _fixed(labels), _fixed(split)
        self.name, self.root = inner.name, inner.root
        self.fractions = fractions_of(split)
        self.named: dict[str, int] = {}
        self.own: dict[str, list[str | None]] = {}
        self.unmatched: dict[str, dict[str, str]] = {}

    def entries(self) -> list[Entry]:
        entries = self.inner.entries()
        self.ignored, self.incomplete, self.within = self.inner.ignored, self.inner.incomplete, self.inner.within
        self.root, self.notes, self.unread = self.inner.root, notes_of(self.inner), unread_of(self.inner)
        if self.labels == "none":
            entries = [replace(entry, label=None) for entry in entries]
        elif self.labels not in (None, "folder"):
            given = self._from_file(Path(str(self.labels)), "label", entries, "labels" in self.tolerant)
            entries = [replace(entry, label=given.get(entry.uri)) for entry in entries]
        if self.fractions is not None:
            return _drawn(entries, self.fractions)
        if self.split not in (None, "folder"):
            given = self._from_file(Path(str(self.split)), "split", entries, "split" in self.tolerant)
            for name, words in merged(given.values()).items():
                self.notes += (f"The splits {' and '.join(words)} are both {name}.",)
            entries = [replace(entry, split=given.get(entry.uri)) for entry in entries]
        return entries

    def _from_file(self, path: Path, field: str, entries: list[Entry], tolerant: bool) -> dict[str, str]:
        """Labels or splits by URI."""
        if not os.path.isfile(path):
            other = "none" if field == "label" else "fractions such as 0.8/0.2"
            raise SourceError(f"There is no file {path}. Give folder, {other}, or a CSV file (path,{field}).")
        values = read_column(path, field)
        given, unknown = by_uri(values, [entry.uri for entry in entries], self.root)
        if unknown and not tolerant:
            listed = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
            raise SourceError(
                f"{path} names {len(unknown)} paths that are no images of the source: {listed}. "
                "Paths are relative to the source's folder."
            )
        self.named[field], self.own[field] = len(given), [getattr(entry, field) for entry in entries]
        self.unmatched[field] = {written: values[written] for written in unknown}
        return given


def _fixed(given: str | Path | None) -> str | Path | None:
    """A file by its absolute path, so that it is found after the program changed its folder."""
    return absolute(given) if given is not None and os.path.isfile(given) else given


def fractions_of(split: str | Path | None) -> dict[str, float] | None:
    """The fractions of each split that a text such as ``0.8/0.2`` gives; None for another text.

    Raises:
        UsageError: a split is named twice, or the fractions are not positive or do not sum to 1.
    """
    text = str(split)
    number = r"(\d+\.?\d*|\.\d+)"
    if re.fullmatch(rf"{number}(/{number}){{1,2}}", text):
        values = [float(part) for part in text.split("/")]
        names = ("train", "test") if len(values) == 2 else ("train", "val", "test")
        fractions = dict(zip(names, values, strict=True))
    elif re.fullmatch(rf"\w+={number}(,\w+={number})*", text):
        pairs = [part.split("=") for part in text.split(",")]
        fractions = {split_name(name) or name: float(value) for name, value in pairs}
        if len(fractions) < len(pairs):
            raise UsageError(f"--split {text} names one split twice.")
    else:
        return None
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) <= 0:
        raise UsageError(f"The fractions in --split {text} should be positive and sum to 1.")
    return fractions


def _drawn(entries: list[Entry], fractions: Mapping[str, float]) -> list[Entry]:
    """Splits by rank of a hash within each label; a group stays whole."""
    label_of: dict[str, str] = {}
    for entry in entries:
        label_of.setdefault(_unit(entry), str(entry.label))
    by_label: dict[str, list[str]] = {}
    for unit, label in label_of.items():
        by_label.setdefault(label, []).append(unit)
    split_of: dict[str, str] = {}
    for units in by_label.values():
        units.sort(key=lambda unit: hashlib.sha256(f"0:{unit}".encode("utf-8", "surrogatepass")).digest())
        edge, start = 0.0, 0
        for name, fraction in fractions.items():
            edge += fraction
            stop = round(edge * len(units))
            split_of.update(dict.fromkeys(units[start:stop], name))
            start = stop
    return [replace(entry, split=split_of[_unit(entry)]) for entry in entries]


def _unit(entry: Entry) -> str:
    return f"uri:{entry.uri}" if entry.group is None else f"group:{entry.group}"
