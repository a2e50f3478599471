"""CSV files: a manifest as a source, and labels or splits by path."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

from featcache.core.errors import SourceError
from featcache.images.entry import Entry, Source, as_text

COLUMNS = ("path", "label", "split", "group")


class ManifestSource(Source):
    """Images listed in a CSV file with the column ``path`` and optionally ``label,split,group``.

    Paths are relative to the file's folder, which is the source's root.

    Args:
        path: the CSV file, UTF-8.
        name: the source's name; the file's without its suffix by default.
    """

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self.path = path.resolve()
        self.root = as_text(str(self.path.parent))
        self.name = as_text(name or self.path.stem)

    def entries(self) -> list[Entry]:
        """List the images, sorted by URI.

        Raises:
            SourceError: a column or file is missing, or a path leads out of the folder or is listed twice.
        """
        entries: list[Entry] = []
        missing: list[str] = []
        count = 0
        folder = os.path.join(self.path.parent, "")
        seen: dict[str, str] = {}  # one object for equal texts: a million rows have few labels
        for line, row in _rows(self.path, ("path",)):
            uri = _relative(row["path"], folder, self.path, line)
            place = folder + uri
            if not os.path.exists(place):
                count += 1
                if count <= 5:
                    missing.append(f"{row['path']} (line {line})")
            values = (row.get(column) or None for column in COLUMNS[1:])
            label, split, group = (value and seen.setdefault(value, value) for value in values)
            entries.append(Entry(uri, place, label, split, group))
        entries.sort(key=lambda entry: entry.uri)
        for one, other in pairwise(entries):
            if one.uri == other.uri:
                self._refuse_twice(one.uri, folder)
        if missing:
            more = " …" if count > len(missing) else ""
            raise SourceError(
                f"{self.path} names {count} files that are missing: {', '.join(missing)}{more}. "
                f"Paths are relative to {self.root}."
            )
        if not entries:
            raise SourceError(f"{self.path} lists no image.")
        return entries

    def _refuse_twice(self, uri: str, folder: str) -> None:
        """Read the file again for the line numbers: to keep those of a million rows takes more memory than the rows."""
        lines = [
            line for line, row in _rows(self.path, ("path",)) if _relative(row["path"], folder, self.path, line) == uri
        ]
        raise SourceError(
            f"{self.path}: {uri} is listed in line {lines[0]} and again in line {lines[1]}. Remove one of them."
        )


def read_column(path: Path, column: str) -> dict[str, str]:
    """One column of a CSV file by path; rows without a value are omitted.

    Raises:
        SourceError: the file or a column is missing, or a path is listed twice.
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
        if row[column]:
            found[uri] = row[column]
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


def _relative(text: str, folder: str, manifest: Path, line: int) -> str:
    """The URI of a path, which may be absolute if it lies in *folder*, the manifest's."""
    place = os.path.normpath(os.path.join(folder, text))
    if os.path.isabs(text) and not place.startswith(folder):
        # The manifest's folder may be reached through a link.
        place = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
    if not place.startswith(folder):
        raise SourceError(
            f"{manifest}, line {line}: {text} lies outside the manifest's folder. "
            "Put the manifest into a folder above all its images."
        )
    return place.removeprefix(folder).replace(os.sep, "/")
