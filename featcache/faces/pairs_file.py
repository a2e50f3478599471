"""Lists of pairs in the format of Labeled Faces in the Wild (Huang et al. 2007, ``pairs.txt``).

The first line gives the number of folds and the pairs of each kind in a fold (``10⇥300``; the number of pairs alone
where there is but one fold). Then follow, fold by fold, the pairs of one person and the pairs of two, with tabs
between the fields::

    Abel_Pacheco⇥1⇥4
    Abdel_Madi_Shabneh⇥1⇥Dean_Barker⇥1

Image k of NAME is the one called ``NAME_000k`` (four digits, any folder and suffix). Where an image is not called so,
its URI stands in place of the number; in LFW's own files that never occurs. Nothing in such a file is taken for a
path: its fields are only looked up among the images that are there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import numpy as np

from featcache.core.errors import SourceError, UsageError
from featcache.core.files import written_whole

_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_SHOWN = 80
_CALLED = re.compile(r"(.+)_([0-9]{4,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of images.

    Attributes:
        images: (n, 2) int64 places in the list of images that the pairs were made for.
        same: (n,) bool, whether both show one person.
        fold: (n,) int64, from 0.
    """

    images: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def read_pairs(
    path: str | Path,
    uris: Sequence[str],
    *,
    labels: Sequence[str | None] | None = None,
    sha256: Sequence[bytes] | None = None,
) -> Pairs:
    """Read a list of pairs.

    Args:
        path: the file, UTF-8.
        uris: of all images that the source has, those that could not be used among them: a pair of such an image is
            to be counted as failed and is no error in the list.
        labels: who is on each image, where that is known; the pairs must agree with it.
        sha256: of the images' contents. Two images of one content are no pair: they are alike whatever network sees
            them.

    Raises:
        SourceError: the file cannot be read or is not of the format, a person or an image is unknown, more than one
            image has the name, a pair is of one image or one content, or of two people who are one, or contradicts
            the labels; the message names the line.
    """
    path = Path(path)
    names = _Names(uris)
    lines = _lines(path)
    number, line = next(lines, (1, ""))
    header = line.split("\t")
    if len(header) > 2 or not all(_NUMBER.fullmatch(field) for field in header):
        raise SourceError(
            f"{path}, line {number}: a list of pairs begins with the number of folds and the pairs of each kind in a "
            f"fold, with a tab between them, as 10⇥300; this line is {line[:80]!r}."
        )
    folds, each = (1, int(header[0])) if len(header) == 1 else (int(header[0]), int(header[1]))
    if not folds or not each:
        raise SourceError(f"{path}, line {number}: there is no pair in {folds} folds of {each}.")
    images: list[tuple[int, int]] = []
    promised = 2 * folds * each
    for number, line in lines:
        if len(images) == promised:
            raise SourceError(
                f"{path}, line {number}: one line too many, for {folds} × {each} pairs of each kind were promised in "
                "the first line. Correct that line or remove what follows."
            )
        same = len(images) % (2 * each) < each
        try:
            images.append(_pair(line.split("\t"), same, names))
            _check_pair(*images[-1], same, uris, labels, sha256)
        except SourceError as error:
            raise SourceError(f"{path}, line {number}: {error}") from None
    if len(images) < promised:
        raise SourceError(
            f"{path}, line {number}: the list ends after {len(images)} pairs; the first line promises {promised}, "
            f"{folds} × {each} of each kind. Get the whole file, or correct its first line."
        )
    place = np.arange(promised)
    return Pairs(np.array(images, dtype=np.int64), place % (2 * each) < each, place // (2 * each))


def write_pairs(path: str | Path, pairs: Pairs, uris: Sequence[str], labels: Sequence[str | None]) -> None:
    """Write pairs so that `read_pairs` gives them back, in the order of the folds, pairs of one person first.

    Args:
        path: the file; one that is there is replaced.
        pairs: equally many of each kind in each fold.
        uris: of the m images that the pairs were made for.
        labels: the m people.

    Raises:
        UsageError: the numbers of pairs are unequal, a label is missing, contradicts the kind of its pair or cannot
            be written as a field, two images have one name, or the file cannot be written.
    """
    path = Path(path)
    folds = int(pairs.fold.max()) + 1 if len(pairs.fold) else 0
    counts = np.bincount(2 * pairs.fold + ~pairs.same, minlength=2 * folds)
    if not folds or (counts != counts[0]).any():
        raise UsageError(
            "A list of pairs in LFW's format has equally many pairs of each kind in each fold; these are "
            f"{', '.join(map(str, counts[:20].tolist())) or 'none'}, by fold and kind."
        )
    names = _Names(uris)
    lines = [f"{folds}\t{counts[0]}" if folds > 1 else f"{counts[0]}"]
    for i in np.lexsort((~pairs.same, pairs.fold)).tolist():
        first, second = pairs.images[i].tolist()
        fields = [names.person(first, labels), names.image(first, labels), names.image(second, labels)]
        if bool(pairs.same[i]) != (labels[first] == labels[second]):
            raise UsageError(
                f"The pair of {uris[first]} and {uris[second]} is said to show "
                f"{'one person' if pairs.same[i] else 'two people'}, but their labels are {labels[first]!r} and "
                f"{labels[second]!r}. Draw the pairs from these labels."
            )
        if not pairs.same[i]:
            fields.insert(2, names.person(second, labels))
        lines.append("\t".join(fields))
    try:
        with written_whole(path) as aside:
            aside.write_bytes(("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise UsageError(f"The pairs cannot be written to {path}: {error.strerror}. Give another file.") from error


class _Names:
    """Where images stand, by URI and by what LFW calls them."""

    def __init__(self, uris: Sequence[str]) -> None:
        self.uris = uris
        self.by_uri = {uri: place for place, uri in enumerate(uris)}
        self.by_name: dict[tuple[str, int], list[int]] = {}
        self.people: dict[str, list[int]] = {}
        for place, uri in enumerate(uris):
            called = _CALLED.fullmatch(PurePosixPath(uri).stem)
            # Of "a_10001" the number has five digits, and "a_00012" is no image of LFW.
            if called and called[2] == f"{int(called[2]):04}":
                self.by_name.setdefault((called[1], int(called[2])), []).append(place)
                self.people.setdefault(called[1], []).append(int(called[2]))

    def place(self, person: str, image: str) -> int:
        """The place of an image given by its number or its URI."""
        if image in self.by_uri:
            return self.by_uri[image]
        if not _NUMBER.fullmatch(image):
            raise SourceError(f"there is no image {_short(image)}; in place of a number, the image's URI may stand.")
        if person not in self.people:
            near = get_close_matches(person[:_SHOWN], self.people, n=1)
            called = f" Its images would be called {_short(f'{person[:_SHOWN]}_0001')} and so on."
            hint = f" Did you mean {_short(near[0])}?" if near else called
            raise SourceError(f"there is no image of {_short(person)}.{hint}")
        found = self.by_name.get((person, int(image)), [])
        if not found:
            known = sorted(self.people[person])
            raise SourceError(
                f"there is no image {_short(f'{person}_{int(image):04}')}; of {_short(person)} there are the numbers "
                f"{', '.join(map(str, known[:12]))}{', …' if len(known) > 12 else ''}."
            )
        if len(found) > 1:
            raise SourceError(
                f"several images are called {_short(f'{person}_{int(image):04}')}: "
                f"{', '.join(_short(self.uris[place]) for place in found[:3])}. Choose one source, or rename one."
            )
        return found[0]

    def person(self, place: int, labels: Sequence[str | None]) -> str:
        """The person's name as a field."""
        return self._field(labels[place], place)

    def image(self, place: int, labels: Sequence[str | None]) -> str:
        """The image's number where it is called by its person's name, else its URI, as a field."""
        called = _CALLED.fullmatch(PurePosixPath(self.uris[place]).stem)
        if called and called[1] == labels[place] and self.by_name.get((called[1], int(called[2]))) == [place]:
            number = str(int(called[2]))
            if number not in self.by_uri:
                return number
        uri = self.uris[place]
        if self.by_uri[uri] != place:
            raise UsageError(f"Two images have the URI {uri}, so a list cannot name one of them. Take one source.")
        return self._field(uri, place)

    def _field(self, text: str | None, place: int) -> str:
        if not text or any(sign in text for sign in "\t\n\r") or text != text.strip() or not text.isprintable():
            raise UsageError(
                f"{text!r}, of {self.uris[place]}, cannot stand in a list of pairs, whose fields are separated by tabs "
                "and lines. Give each person a label, and no tabs or line breaks in names."
            )
        return text


def _pair(fields: list[str], same: bool, names: _Names) -> tuple[int, int]:
    """The two images that a line names."""
    if len(fields) != (3 if same else 4):
        predictor = "NAME⇥1⇥4, a pair of one person," if same else "NAME⇥1⇥OTHER⇥1, a pair of two people,"
        raise SourceError(
            f"{predictor} is expected here by the first line's count, with tabs between the fields; there "
            f"{'is 1 field' if len(fields) == 1 else f'are {len(fields)} fields'}."
        )
    if not same and fields[0] == fields[2]:
        raise SourceError(f"a pair of two people names {_short(fields[0])} twice.")
    first, second = names.place(*fields[:2]), names.place(fields[-2] if not same else fields[0], fields[-1])
    if first == second:
        raise SourceError(f"a pair of the image {_short(names.uris[first])} with itself.")
    return first, second


def _check_pair(
    first: int,
    second: int,
    same: bool,
    uris: Sequence[str],
    labels: Sequence[str | None] | None,
    sha256: Sequence[bytes] | None,
) -> None:
    """Refuse a pair that contradicts what is known of its images."""
    if sha256 is not None and sha256[first] == sha256[second]:
        raise SourceError(
            f"{_short(uris[first])} and {_short(uris[second])} are one image, byte for byte. Name another one."
        )
    if labels is None or labels[first] is None or labels[second] is None:
        return
    if same != (labels[first] == labels[second]):
        raise SourceError(
            f"{_short(uris[first])} and {_short(uris[second])} are said to show "
            f"{'one person' if same else 'two people'}, but their labels are {_short(str(labels[first]))} and "
            f"{_short(str(labels[second]))}. Correct the list or the labels."
        )


def _short(text: str) -> str:
    """Text of others as it may stand in a message: of bounded length, without signs that a terminal obeys."""
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines without spaces at their ends; empty ones are passed over."""
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise SourceError(f"There is no file {path}. Give a list of pairs in LFW's format.")
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, "\t".join(field.strip() for field in line.split("\t"))
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}, after line {number}: not UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
