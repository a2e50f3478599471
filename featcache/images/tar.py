"""Tar files in WebDataset layout as a source; nothing is unpacked to disk.

The listing reads headers and labels (``KEY.cls``, ``KEY.json``, ``KEY.txt``) only. An image is read by its offset, and
only while the tar's size, times and inode are those of the listing. Links are never followed, and names that
lead out of the tar are escaped. A tar that cannot be listed to its end goes into quarantine itself, and no image of it
is taken to be removed.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from featcache.core.errors import SourceError, UnusableImageError
from featcache.core.files import read_at
from featcache.core.progress import counted
from featcache.images.entry import LIMIT_BYTES, Content, Entry, FileStat, Source, Unusable, as_text
from featcache.images.formats import EXTENSIONS, Unread, is_unread_name, unread_among
from featcache.images.passed_over import is_system_folder

LABEL_ENDINGS = ("cls", "json", "txt")
"""Of the files beside an image that give its label, in the order in which they are read."""

LABEL_LIMIT_BYTES = 1 << 20

_BLOCK = 512
_END = 2 * _BLOCK + tarfile.RECORDSIZE
"""A tar ends with at most this many zeros: two blocks, and the padding of the last record."""


@dataclass(frozen=True, slots=True)
class Member:
    """The bytes of one file in a tar; a `Content`.

    Attributes:
        tar: the tar's path.
        offset, length: of the bytes in it.
        listed: the state of the tar when it was listed.
    """

    tar: str
    offset: int
    length: int
    listed: FileStat

    def read(self) -> tuple[bytes, FileStat]:
        """The bytes and the state of the tar.

        Raises:
            UnusableImageError: they cannot be read, or the tar was changed since it was listed.
        """
        try:
            with open(self.tar, "rb", buffering=0) as file:
                data = read_at(file.fileno(), self.length, self.offset)
                state = FileStat.of(os.fstat(file.fileno()))
        except OSError as error:
            raise UnusableImageError(f"it cannot be read: {error.strerror or error}") from error
        except MemoryError as error:
            raise UnusableImageError("there is not enough memory to read it") from error
        if state != self.listed or len(data) != self.length:
            raise UnusableImageError("the tar file was changed while it was read")
        return data, state

    def state(self) -> FileStat | None:
        """The state of the tar."""
        try:
            return FileStat.of(os.stat(self.tar))
        except OSError:
            return None


class TarSource(Source):
    """The images of tar files in one folder.

    A URI is the tar's name and the name inside, ``shard-000.tar/cats/0001.jpg``. Files whose names are equal up to
    the first dot of their last part are one sample: its images are ``KEY.jpg`` (``.png`` …) or, without such a file,
    all of ``KEY.left.jpg``, ``KEY.right.jpg`` …; its label is in ``KEY.cls``, ``KEY.json`` or ``KEY.txt``, see
    `SampleLabels`. Of two files of one name the later counts, as when unpacking.

    Args:
        tars: the files; the source's root is their folder.
        name: the source's name.
        labels: whether to use the labels in the tars. If not, an unreadable one makes no image unusable.
        is_all: these are all the tar files of the folder. Else those that are not given may be extracted in another
            run, and no image of theirs is taken to be removed.
    """

    def __init__(self, tars: Sequence[Path], *, name: str, labels: bool = True, is_all: bool = False) -> None:
        self._tars = [str(tar) for tar in tars]
        self.root = as_text(os.path.dirname(self._tars[0]))
        self.name = as_text(name)
        self._wants_labels = labels
        self.within = ("",) if is_all else tuple(f"{as_text(os.path.basename(tar))}/" for tar in self._tars)

    def entries(self) -> list[Entry]:
        """List the images in the order of the tars, and in each in its own order.

        Raises:
            SourceError: there is no image in any of the tars.
        """
        self.ignored, self.incomplete = 0, ()
        unread = Unread()
        entries: list[Entry] = []
        for tar in self._tars:
            listing = _Listing(tar, as_text(os.path.basename(tar)), self._wants_labels)
            entries += listing.entries()
            self.ignored += listing.ignored
            for name, label in listing.others():
                unread.add(name, label)
            if listing.damage is not None:
                self.incomplete += (f"{listing.name}/",)
        if not any(isinstance(entry.content, Member) for entry in entries):
            why = next((f": {e.uri}: {e.content.reason}" for e in entries if isinstance(e.content, Unusable)), "")
            raise SourceError(
                f"No image was found in the tar files of {self.root} "
                f"({self.ignored} other files{unread_among(unread.endings)}){why}. "
                f"Looked for names that end in {', '.join(sorted(EXTENSIONS))}."
            )
        self.unread = dict(unread.endings)
        self.notes = tuple(unread.notes({entry.label for entry in entries}))
        return entries


class SampleLabels:
    """Label, split and group of the samples of one tar.

    The label is the text of ``KEY.cls`` (a name or a number), else the field ``label`` of the object in ``KEY.json``,
    else the text of ``KEY.txt``. In the JSON file it may be a text, a whole number, or a list of them for several
    labels; the object may have ``split`` and ``group`` too.
    """

    def __init__(self) -> None:
        self._found: dict[str, dict[str, dict[str, str | None]]] = {}
        self._problems: dict[tuple[str, str], tuple[str, bool]] = {}
        self._seen: dict[str, str] = {}

    def read(self, key: str, ending: str, handle: int, offset: int, length: int) -> None:
        """Read the file ``KEY.ENDING``.

        Args:
            key: the sample.
            ending: one of `LABEL_ENDINGS`.
            handle: descriptor of the tar.
            offset, length: of the file's bytes in it.

        Raises:
            OSError: they cannot be read.
        """
        name = f"{key}.{ending}"
        fields: dict[str, str | None] = {}
        # A fault in a text concerns the label alone, one in a JSON file perhaps split and group too.
        problem, label_alone = None, ending != "json"
        try:
            if length > LABEL_LIMIT_BYTES:
                raise _WrongLabelError(f"has {length >> 20} MiB, too much for a label")
            text = read_at(handle, length, offset).decode("utf-8-sig").strip()
            described = json.loads(text) if ending == "json" else {"label": text or None}
            if isinstance(described, dict):
                fields = {name: _text(name, described.get(name)) for name in ("split", "group")}
                label_alone = True
                fields["label"] = _label(described.get("label"))
        except (ValueError, RecursionError) as error:
            what = error if isinstance(error, _WrongLabelError) else "is no JSON" if ending == "json" else "is no text"
            problem = f"{name} {what}"
        self._problems.pop((key, ending), None)
        if problem is not None:
            self._problems[key, ending] = problem, label_alone
        # One object for equal texts: there may be a million samples of ten classes.
        self._found.setdefault(key, {})[ending] = {
            name: value and self._seen.setdefault(value, value) for name, value in fields.items()
        }

    def of(self, key: str, *, labels: bool = True) -> tuple[str | None, str | None, str | None, str | None]:
        """Label, split and group of a sample, and what is wrong with its files.

        Args:
            key: the sample.
            labels: whether labels are used. If not, and in files after the one that gives the label, a wrong label
                is ignored.
        """
        found = self._found.get(key, {})
        label = None
        for ending in LABEL_ENDINGS:
            problem, label_alone = self._problems.get((key, ending), (None, False))
            if problem is not None and (not label_alone or (labels and label is None)):
                return None, None, None, problem
            label = label if label is not None else found.get(ending, {}).get("label")
        described = found.get("json", {})
        return label if labels else None, described.get("split"), described.get("group"), None


class _WrongLabelError(ValueError):
    pass


def _label(value: Any) -> str | None:
    names = [_text("label", one) for one in (value if isinstance(value, list) else [value])]
    return "|".join(name for name in names if name is not None) or None


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        (value or "").encode("utf-8")  # JSON can hold half a character, the catalogue cannot
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _WrongLabelError(f"has a {name} that is neither text nor a whole number")


@dataclass
class _Listing:
    """The content of one tar. *damage* is why it could not be listed to its end."""

    tar: str
    name: str
    wants_labels: bool
    ignored: int = 0
    damage: str | None = None
    _images: dict[str, tuple[str, bool, Content]] = field(default_factory=dict)
    _others: list[tuple[str, str]] = field(default_factory=list)
    _labels: SampleLabels = field(default_factory=SampleLabels)

    def entries(self) -> list[Entry]:
        try:
            with open(self.tar, "rb", buffering=0) as file:
                state = FileStat.of(os.fstat(file.fileno()))
                for member in self._members(file.fileno(), state.size):
                    self._take(member, file.fileno(), state)
        except OSError as error:
            self.damage = f"it cannot be read: {error.strerror or error}"
        plain = {key for key, is_plain, _ in self._images.values() if is_plain}
        found = []
        for uri, (key, is_plain, content) in self._images.items():
            if key in plain and not is_plain:
                self.ignored += 1
                continue
            label, split, group, problem = self._labels.of(key, labels=self.wants_labels)
            if problem is not None and isinstance(content, Member):
                content = Unusable(problem)
            found.append(Entry(uri, self.tar, label, split, group, None, content))
        if self.damage is not None:
            found.append(Entry(self.name, self.tar, None, None, None, None, Unusable(self.damage)))
        return found

    def others(self) -> Iterator[tuple[str, str | None]]:
        """Names of the images that are not read, with their labels; after `entries`."""
        for key, name in self._others:
            yield name, self._labels.of(key, labels=self.wants_labels)[0]

    def _take(self, member: tarfile.TarInfo, handle: int, state: FileStat) -> None:
        """Note one file of the tar."""
        if member.isdir():
            return
        path = PurePosixPath(member.name)
        stem, dot, ending = path.name.partition(".")
        key = as_text(str(path.parent / stem))
        ending = ending.lower()
        if not stem or not dot or any(map(is_system_folder, path.parts[:-1])):
            self.ignored += 1  # hidden files, and those without an ending
            return
        is_whole = member.offset_data + member.size <= state.size
        if ending in LABEL_ENDINGS and member.isreg() and is_whole:
            self._labels.read(key, ending, handle, member.offset_data, member.size)
        elif os.path.splitext(path.name)[1].lower() in EXTENSIONS:
            content: Content
            if path.is_absolute() or ".." in path.parts:
                content = Unusable("its name leads out of the tar file")
            elif not member.isreg() or member.issparse():
                content = Unusable(f"it is {_KINDS.get(member.type, 'no plain file')}, which is not followed")
            elif not is_whole:
                content = Unusable("the tar file is truncated within it")
            elif not 0 < member.size <= LIMIT_BYTES:
                size = "the file is empty" if not member.size else f"it has {member.size >> 20} MiB"
                content = Unusable(size if not member.size else f"{size}, more than {LIMIT_BYTES >> 20}")
            else:
                content = Member(self.tar, member.offset_data, member.size, state)
            uri = f"{self.name}/{as_text(_inside(path))}"
            self.ignored += self._images.pop(uri, None) is not None
            self._images[uri] = key, "." not in ending, content
        else:
            self.ignored += 1
            if is_unread_name(path.name):  # alone, as a tar may hold a million other files
                self._others.append((key, path.name))

    def _members(self, handle: int, size: int) -> Iterator[tarfile.TarInfo]:
        """The tar's members up to its end or the first damage."""
        count, end = 0, 0
        try:
            # The caller's file object stays where it is; this one has its own position.
            with (
                open(self.tar, "rb", buffering=0) as file,
                tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar,
            ):
                while (member := tar.next()) is not None:
                    if member.size < 0 or tar.offset <= end:
                        raise tarfile.ReadError("a size is negative")
                    count, end = count + 1, tar.offset
                    tar.members.clear()  # type: ignore[attr-defined]
                    yield member
                    if end > size:
                        break
        except OSError:
            raise
        except Exception as error:  # a malicious header can raise nearly anything in the library
            self.damage = (
                f"it is damaged after {counted(count, 'members')} ({error})" if count else _not_a_tar(handle, error)
            )
            return
        # The library takes an unreadable header for the end.
        if end > size or len(tail := read_at(handle, _BLOCK, end)) < _BLOCK:
            self.damage = f"it is cut off after {counted(count, 'members')}"
        elif tail.strip(b"\0"):
            self.damage = f"it is damaged after {counted(count, 'members')}"
        elif size - end > _END or read_at(handle, _END, end).strip(b"\0"):
            # Zeros inside a tar look like its end: a partial download into preallocated space, or two tars in one file.
            self.damage = f"something follows its end after {counted(count, 'members')}"
        if self.damage is not None:
            self.damage += "; what followed is not known. Copy or make it anew"


_KINDS = {tarfile.SYMTYPE: "a link", tarfile.LNKTYPE: "a link", tarfile.GNUTYPE_SPARSE: "a sparse file"}


def _inside(path: PurePosixPath) -> str:
    """The name as part of a URI, with parts that lead out of the tar escaped."""
    parts = path.parts[1:] if path.is_absolute() else path.parts
    return "/".join((["%2F"] if path.is_absolute() else []) + ["%2E%2E" if part == ".." else part for part in parts])


def _not_a_tar(handle: int, error: Exception) -> str:
    begin = read_at(handle, 6, 0)
    if begin.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
        return "it is compressed, so that no image can be read by its place. Decompress it first"
    return f"it is no tar file ({error})"
