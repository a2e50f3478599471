"""CSV files: a manifest as a source, and labels or splits by path."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from featcache.core.errors import SourceError
from featcache.core.labels import given_label, merged
from featcache.core.progress import counted
from featcache.images.entry import Content, Entry, Source, Unusable, as_text
from featcache.images.formats import Unread, is_unread_name
from featcache.images.table_paths import FileFinder

COLUMNS = ("path", "label", "split", "group")


class ManifestSource(Source):
    """Images listed in a CSV file with the column ``path`` and optionally ``label,split,group``.

    Paths are absolute, or relative to the file's folder. That folder is the source's root where all images lie in it,
    else the deepest folder above it and all images. A file that is missing is listed as an image that cannot be used.

    Args:
        path: the CSV file, UTF-8.
        name: the source's name; the file's without its suffix by default.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self.path = path.resolve()
        self._folder = os.path.join(self.path.parent, "")
        self.root = as_text(str(self.path.parent))
        self.name = as_text(name or self.path.stem)

    def entries(self) -> list[Entry]:
        """List the images, sorted by URI; afterwards `root` is that of their URIs.

        Raises:
            SourceError: a column is missing, a row has more fields than the heading, a path is listed twice or outside
                the folder and no file, or all files are missing.
        """
        entries: list[Entry] = []
        missing: list[str] = []
        count = 0
        above: set[str] = set()  # folders of images outside the table's
        splits: set[str] = set()
        unread = Unread()
        seen: dict[str, str] = {}  # one object for equal texts: a million rows have few labels
        for line, row, place, is_there in self._files():
            content: Content | None = None
            if not is_there:
                count += 1
                if count <= 5:
                    missing.append(f"{row['path']} (line {line})")
                content = Unusable(f"there is no file {place} ({self.path.name}, line {line})")
            elif not place.startswith(self._folder):
                if os.path.isdir(place):
                    raise SourceError(f"{self.path}, line {line}: {row['path']} is a folder, not an image.")
                above.add(os.path.dirname(place))
            values = (given_label(row.get(column)) for column in COLUMNS[1:])
            label, split, group = (value and seen.setdefault(value, value) for value in values)
            if split:
                splits.add(split)
            if is_there:
                unread.add(place, label)
            entries.append(Entry(self._uri(place, self._folder), place, label, split, group, None, content))
        if not entries:
            raise SourceError(f"{self.path} lists no image.")
        self.root = as_text(str(self.path.parent))
        self.notes = tuple(
            f"The splits {' and '.join(words)} are both {split}." for split, words in merged(splits).items()
        )
        # They are tried all the same, as the bytes decide, and go to quarantine.
        self.notes += tuple(unread.notes({entry.label for entry in entries if not is_unread_name(entry.place)}))
        if missing:
            named = ", ".join(missing) + (" …" if count > len(missing) else "")
            if count == len(entries):
                raise SourceError(
                    f"{self.path} names {count} files that are missing, which are all: {named}. "
                    f"Paths are relative to {self.root}."
                )
            self.notes += (
                f"Warning: {counted(count, 'files')} that {self.path} names are missing and go to quarantine: {named}.",
            )
        if above:
            entries = self._below_one_root(entries, above)
        entries.sort(key=lambda entry: entry.uri)
        for one, other in pairwise(entries):
            if one.uri == other.uri:
                self._refuse_twice(one)
        return entries

    def places(self) -> Iterator[str]:
        """The absolute path of each file that it lists, whether it is there or not.

        Raises:
            SourceError: it cannot be read, or a column is missing.
        """
        return (place for _, _, place, _ in self._files())

    def _files(self) -> Iterator[tuple[int, dict[str, str], str, bool]]:
        """Line number and cells of each row, the file that its path means, and whether it is there."""
        finder = FileFinder(self._folder)
        for line, row in _rows(self.path, ("path",)):
            yield line, row, *finder.find(row["path"])

    def _below_one_root(self, entries: Sequence[Entry], above: Collection[str]) -> list[Entry]:
        """The entries with URIs from the folder that is above all images."""
        try:
            root = os.path.join(os.path.commonpath([str(self.path.parent), *above]), "")
        except ValueError as error:
            raise SourceError(
                f"{self.path} names images on several drives. Give each drive a table of its own."
            ) from error
        self.root = as_text(os.path.dirname(root) or root)
        self.notes += (
            f"{self.path.name} lists images outside its folder: paths in the store are relative to {self.root}.",
        )
        return [replace(entry, uri=self._uri(entry.place, root)) for entry in entries]

    def _uri(self, place: str, root: str) -> str:
        # A missing file may be said to lie anywhere, and must not move the root of all others.
        inside = place.removeprefix(root) if place.startswith(root) else os.path.splitdrive(place)[1].lstrip(os.sep)
        return as_text(inside.replace(os.sep, "/"))

    def _refuse_twice(self, entry: Entry) -> None:
        """Read the file again for the line numbers: to keep those of a million rows takes more memory than the rows."""
        lines = [line for line, _, place, _ in self._files() if place == entry.place]
        raise SourceError(
            f"{self.path}: {entry.uri} is listed in line {lines[0]} and again in line {lines[1]}. Remove one of them."
        )


def read_column(path: Path, column: str, *, empty: bool = False) -> dict[str, str]:
    """One column of a CSV file by path as it is written there; rows without a value are omitted, or give ''.

    Raises:
        SourceError: the file or a column is missing, a row has more fields than the heading, or a path is listed twice.
    """
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in _rows(path, ("path", column)):
        uri = str(PurePosixPath(row["path"]))
        if uri in lines:
            raise SourceError(
                f"{path}: {uri} is listed in line {lines[uri]} and again in line {line}. Remove one of them."
            )
        lines[uri] = line
        value = given_label(row[column])
        if value or empty:
            found[uri] = value or ""
    if not found:
        raise SourceError(f"{path} gives no {column}.")
    return found


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows; the header is checked, empty lines are skipped."""
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise SourceError(f"There is no file {path}. Give a CSV file with the columns {','.join(needed)}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            missing = [name for name in needed if name not in header]
            if missing:
                raise SourceError(
                    f"{path} has no column {', '.join(missing)}; "
                    f"its first line is {','.join(header) or 'empty'}. "
                    f"Known columns: {','.join(COLUMNS)}, with commas between them."
                )
            twice = [name for name in COLUMNS if header.count(name) > 1]
            if twice:
                raise SourceError(f"{path} has the column {twice[0]} more than once. Rename or remove one of them.")
            for row in reader:
                if extra := row.pop(None, None):
                    raise SourceError(
                        f"{path}, line {reader.line_num}: the row has {len(header) + len(extra)} fields, the heading "
                        f"{len(header)}. A field that holds a comma is written in quotation marks."
                    )
                values = {name: (row[name] or "").strip() for name in COLUMNS if name in row}
                if not values["path"]:
                    raise SourceError(f"{path}, line {reader.line_num}: the path is empty.")
                yield reader.line_num, values
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}, line {_undecodable_line(path)}: not UTF-8 text. Save it as UTF-8.") from error
    except csv.Error as error:
        raise SourceError(
            f"{path} cannot be read as CSV ({error} in the row that begins in line {reader.line_num + 1}). "
            "Check that all quotation marks are closed."
        ) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error


def _undecodable_line(path: Path) -> int:
    """The first line that is not UTF-8; the error itself knows only a position in some buffer."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1
