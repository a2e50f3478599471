"""The table of predictions: CSV that is exact, grows image by image, and goes on where it was cut off.

Rows grow in ``FILE.partial``, whose first line says what they are answers to; only the same head, images and options go
on. Done, the rows are copied to ``FILE`` and that one is renamed into its place. A lock on ``FILE.partial.lock`` keeps
two runs from mixing their rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from featcache.core.errors import FeatcacheError, SourceError, UsageError
from featcache.core.outputs import PREDICTIONS, PREDICTIONS_HEADER, Kind, check_output, written_output
from featcache.images.entry import Entry, FileStat
from featcache.training.bundle import Prediction

FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins with one of these for a formula."""
_MARK = "featcache predictions"
_FIRST = json.dumps({"featcache": _MARK})[:-1].encode()
_LONGEST = 1 << 16
_DIFFERS = {"head": "the head is another", "images": "the images are others, or have changed"}


def _is_partial(path: Path) -> bool:
    with path.open("rb") as file:
        return _is_cut_off(path) or _record(file) is not None


def _is_cut_off(path: Path) -> bool:
    """Whether its first line is not whole, as a run leaves it that was killed as it began."""
    with path.open("rb") as file:
        line = file.readline(_LONGEST)
    return not line.endswith(b"\n") and (line.startswith(_FIRST) or _FIRST.startswith(line))


PARTIAL = Kind("the beginning of a table of predictions", _is_partial)


def rows_of(prediction: Prediction, *, safe: bool = False) -> list[list[str]]:
    """The cells of one image: a row for each label, else one row, with the problem if there is one.

    Args:
        prediction: of the image.
        safe: put an apostrophe before cells that a spreadsheet takes for formulas.
    """
    uri, problem = prediction.uri, prediction.problem or ""
    rows = [
        [uri, str(rank), label, "" if probability is None else f"{probability:.6f}", ""]
        for rank, (label, probability) in enumerate(prediction.labels, start=1)
    ] or [[uri, "", "", "", problem]]
    return [[f"'{cell}" if safe and cell.startswith(FORMULA_SIGNS) else cell for cell in row] for row in rows]


def formulas(rows: Iterable[Sequence[str]]) -> int:
    """How many cells a spreadsheet would take for formulas."""
    return sum(cell.startswith(FORMULA_SIGNS) for row in rows for cell in row)


def as_csv(rows: Iterable[Sequence[str]]) -> bytes:
    """Rows as lines of CSV, UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def read_predictions(path: str | Path) -> Iterator[Prediction]:
    """Read a table back, image by image; an apostrophe that was put before a cell stays.

    Raises:
        SourceError: it is no table of predictions.
    """
    with Path(path).open("rb") as file:
        if file.readline().decode(errors="replace").rstrip("\r\n") != ",".join(PREDICTIONS_HEADER):
            raise SourceError(f"{path} is no table of predictions: its first line is another.")
        try:
            yield from (prediction for prediction, _ in _images(file))
        except csv.Error as error:
            raise SourceError(f"{path} cannot be read as CSV: {error}.") from error


class PredictionTable:
    """A table that is being written; leaving its context without `finish` keeps what is done for the next time.

    Args:
        path: the file.
        asked: what the rows are answers to, from `asked_for`.
        names: what the images are called, in order.
        safe: see `rows_of`.
        force: see `featcache.core.outputs`.

    Attributes:
        done: how many images have their rows already.
        answered: how many of these have no problem.
        formulas: cells so far that a spreadsheet takes for formulas.

    Raises:
        UsageError: what was begun there are answers to something else, and the message says what differs; or another
            process is writing this table.
    """

    def __init__(
        self, path: Path, asked: Mapping[str, Any], names: Sequence[str], *, safe: bool = False, force: bool = False
    ) -> None:
        self.path, self.partial, self._safe, self._force = path, path.with_name(f"{path.name}.partial"), safe, force
        self.done = self.answered = self.formulas = 0
        self.problems: list[tuple[str, str]] = []
        check_output(self.partial, PARTIAL, force=force)
        self._held = ExitStack()
        self._lock()
        try:
            self._file = self._opened()
            self._held.callback(_closed, self._file)
            self._begin({"featcache": _MARK, "format": 1, **asked, "csv_safe": safe}, names)
        except BaseException:
            self._held.close()
            raise

    def _lock(self) -> None:
        lock = FileLock(f"{self.partial}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"Another process is writing {self.path}. Wait for it to finish, or end it; or give another --csv FILE."
            ) from error
        self._held.callback(lock.release)
        # Before it is released, so that nobody locks a file that is gone. Windows removes it by itself, afterwards.
        self._held.callback(_remove_empty, Path(lock.lock_file))

    def _opened(self) -> BinaryIO:
        if self.partial.exists() and (_is_cut_off(self.partial) or not _is_partial(self.partial)):
            self.partial.unlink()
        return self.partial.open("r+b" if self.partial.exists() else "x+b")

    def _begin(self, record: Mapping[str, Any], names: Sequence[str]) -> None:
        if os.fstat(self._file.fileno()).st_size:
            self._go_on(record, names)
        else:
            self._write(json.dumps(record).encode() + b"\n" + as_csv([PREDICTIONS_HEADER]))

    def _go_on(self, record: Mapping[str, Any], names: Sequence[str]) -> None:
        found = _record(self._file) or {}
        differing = [name for name in record if found.get(name) != record[name]]
        anew = f"Remove {self.partial} to start anew, or give another --csv FILE."
        if differing:
            told = "; ".join(_DIFFERS.get(name, f"--{name.replace('_', '-')} is another") for name in differing)
            raise UsageError(f"{self.partial} has {self.path.name} as far as another run came: {told}. {anew}")
        begin = self._file.tell()
        if self._file.readline() != as_csv([PREDICTIONS_HEADER]):
            self._file.seek(begin)
            self._file.truncate()
            self._file.write(as_csv([PREDICTIONS_HEADER]))
            return
        # The rows of the last image may have been cut off, so they are written again.
        end, held = self._file.tell(), None
        for prediction, begin in _images(self._file, cut_off=True):
            if held is not None:
                name = names[self.done] if self.done < len(names) else ""
                if held.uri != rows_of(Prediction(name, []), safe=self._safe)[0][0]:
                    raise UsageError(f"{self.partial} is damaged: {held.uri!r} is not image {self.done + 1}. {anew}")
                self._count(held)
            held, end = prediction, begin
        self._file.seek(end)
        self._file.truncate()

    def _count(self, prediction: Prediction) -> None:
        self.done += 1
        self.answered += not prediction.problem
        if prediction.problem and len(self.problems) < _KEPT:
            self.problems.append((prediction.uri, prediction.problem))
        self.formulas += formulas(rows_of(prediction))

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Write the rows of the next images."""
        rows = []
        for prediction in predictions:
            self._count(prediction)
            rows += rows_of(prediction, safe=self._safe)
        self._write(as_csv(rows))

    def _write(self, data: bytes) -> None:
        with self._told_of_room(self.partial):
            self._file.write(data)
            self._file.flush()

    @contextmanager
    def _told_of_room(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FeatcacheError(
                f"{path} could not be written: {error.strerror or error}. What is done is kept in {self.partial}: make "
                "room and run the same command again."
            ) from error

    def read(self) -> Iterator[Prediction]:
        """The images that are done, before more are added."""
        end = self._file.tell()
        self._file.seek(0)
        self._file.readline()
        self._file.readline()
        yield from (prediction for prediction, _ in _images(self._file))
        self._file.seek(end)

    def finish(self) -> None:
        """Put the table into its place."""
        self._file.seek(0)
        self._file.readline()
        with (
            self._told_of_room(self.path),
            written_output(self.path, PREDICTIONS, force=self._force) as aside,
            aside.open("wb") as whole,
        ):
            while block := self._file.read(1 << 20):
                whole.write(block)
        self._file.close()
        self.partial.unlink()

    def __enter__(self) -> PredictionTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


def _closed(file: BinaryIO) -> None:
    with suppress(OSError):  # what could not be written was told
        file.close()


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        if not path.stat().st_size:
            path.unlink()


_KEPT = 10
"""Problems that are kept to be told."""


def asked_for(head: Path, images: Sequence[Entry | Any], names: Sequence[str], top: int | None) -> dict[str, Any]:
    """What the rows of a table are answers to: digests of the head and of the images as they are now, and *top*."""
    with head.open("rb") as file:
        of_head = hashlib.file_digest(file, "sha256").hexdigest()
    of_images = hashlib.sha256()
    for image, name in zip(images, names, strict=True):
        of_images.update(json.dumps([name, _state(image)]).encode())
    return {"head": of_head, "images": of_images.hexdigest(), "top": top}


def _state(image: Entry | str | os.PathLike[str]) -> list[int] | str | None:
    """What an answer depends on: the content that a store has of the image, or else the state of its file."""
    stored = getattr(getattr(image, "content", None), "sha256", None)
    if stored is not None:
        return str(stored.hex())
    try:
        state = image.state() if isinstance(image, Entry) else FileStat.of(os.stat(image))
    except (OSError, ValueError):
        return None
    return None if state is None else [state.size, state.mtime_ns, state.ctime_ns, state.inode]


def _record(file: BinaryIO) -> dict[str, Any] | None:
    """The first line of a table that was begun; None of another file."""
    line = file.readline(_LONGEST)
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("featcache") == _MARK else None


def _images(file: BinaryIO, *, cut_off: bool = False) -> Iterator[tuple[Prediction, int]]:
    """The images from here on, with the offset at which the rows of each begin."""
    ends = [file.tell()]

    def lines() -> Iterator[str]:
        for line in file:
            ends[0] += len(line)
            yield line.decode("utf-8", "replace")

    held, start = None, ends[0]
    rows = csv.reader(lines())
    while True:
        begin = ends[0]
        row = next(rows, None)
        if row is None:
            break
        if len(row) != len(PREDICTIONS_HEADER):
            if cut_off:  # in the midst of a row, which belongs to the image before or to one that is to be asked again
                continue
            raise csv.Error(f"a row has {len(row)} fields, not {len(PREDICTIONS_HEADER)}")
        uri, rank, label, probability, problem = row
        if held is not None and rank not in ("", "1"):
            held.labels.append((label, _number(probability)))
            continue
        if held is not None:
            yield held, start
        start = begin
        held = Prediction(uri, [(label, _number(probability))] if rank else [], problem or None)
    if held is not None:
        yield held, start


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
