r"""Pair lists in the format of Labeled Faces in the Wild (Huang et al. 2007, ``pairs.txt``).

The first line has the number of folds and of pairs of each kind per fold (``10⇥300``; with one fold the number of
pairs alone). Then come, fold by fold, the pairs of one person and the pairs of two, with tabs between the fields::

    Abel_Pacheco⇥1⇥4
    Abdel_Madi_Shabneh⇥1⇥Dean_Barker⇥1

Image k of NAME is the one called ``NAME_000k`` (four digits, any folder and suffix). For an image with another name,
its URI takes the place of the number; LFW's own files have none of these. Names and URIs are compared in Unicode's form
NFC, and ``\`` in a URI stands for ``/`` where there is no such image. No field is used as a path: fields are only
looked up among the source's images.
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
from featcache.core.labels import nfc
from featcache.core.outputs import PAIRS, check_output, written_output

_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_SHOWN = 80
"""Characters of a field that a message quotes."""

_NAME = re.compile(r"(.+)_([0-9]{4,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of images.

    Attributes:
        images: (n, 2) int64 indices into the list of images that the pairs were made for.
        same: (n,) bool, True for a genuine pair (of one person), False for an impostor pair.
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
        uris: of all images of the source, also of those that cannot be used: a pair with such an image is not an error
            in the list, but counts as failed.
        labels: who is on each image, if known; the pairs must agree with them.
        sha256: of the images' contents. Two images of one content are not a pair, since they are equal to any network.

    Raises:
        SourceError: the file cannot be read or has another format; a person or an image is unknown; several images
            have the name; a pair is of one image or content, or of two people who are one, or contradicts the labels.
            The message names the line.
    """
    path = Path(path)
    names = _Names(uris)
    lines = _lines(path)
    number, line = next(lines, (1, ""))
    header = line.split("\t")
    if len(header) > 2 or not all(_NUMBER.fullmatch(field) for field in header):
        raise SourceError(
            f"{path}, line {number}: a list of pairs begins with the number of folds and the number of pairs of each "
            f"kind per fold, separated by a tab, such as 10⇥300; this line is {line[:80]!r}."
        )
    folds, each = (1, int(header[0])) if len(header) == 1 else (int(header[0]), int(header[1]))
    if not folds or not each:
        raise SourceError(f"{path}, line {number}: {folds} folds of {each} have no pair.")
    images: list[tuple[int, int]] = []
    expected = 2 * folds * each
    for number, line in lines:
        if len(images) == expected:
            raise SourceError(
                f"{path}, line {number}: one line too many, since the first line announces {folds} × {each} pairs of "
                "each kind. Correct that line or remove what follows."
            )
        same = len(images) % (2 * each) < each
        try:
            images.append(_pair(line.split("\t"), same, names))
            _check_pair(*images[-1], same, uris, labels, sha256)
        except SourceError as error:
            raise SourceError(f"{path}, line {number}: {error}") from None
    if len(images) < expected:
        raise SourceError(
            f"{path}, line {number}: the list ends after {len(images)} pairs; the first line announces {expected}, "
            f"{folds} × {each} of each kind. Get the whole file, or correct its first line."
        )
    index = np.arange(expected)
    return Pairs(np.array(images, dtype=np.int64), index % (2 * each) < each, index // (2 * each))


def write_pairs(
    path: str | Path, pairs: Pairs, uris: Sequence[str], labels: Sequence[str | None], *, force: bool = False
) -> None:
    """Write pairs so that `read_pairs` returns them, in the order of the folds, pairs of one person first.

    Args:
        path: the file; a list of pairs that is there is replaced.
        pairs: equally many of each kind in each fold.
        uris: of the m images that the pairs were made for.
        labels: the people on the m images.
        force: replace any other file too.

    Raises:
        UsageError: there is another file; the numbers of pairs differ; a label is missing, contradicts the kind of its
            pair or cannot be written as a field; two images have one name; or the file cannot be written.
    """
    path = Path(path)
    check_output(path, PAIRS, force=force)
    folds = int(pairs.fold.max()) + 1 if len(pairs.fold) else 0
    counts = np.bincount(2 * pairs.fold + ~pairs.same, minlength=2 * folds)
    if not folds or (counts != counts[0]).any():
        raise UsageError(
            "LFW's format needs equally many pairs of each kind in each fold; these are "
            f"{', '.join(map(str, counts[:20].tolist())) or 'none'}, by fold and kind."
        )
    names = _Names(uris)
    lines = [f"{folds}\t{counts[0]}" if folds > 1 else f"{counts[0]}"]
    for i in np.lexsort((~pairs.same, pairs.fold)).tolist():
        first, second = pairs.images[i].tolist()
        fields = [names.person(first, labels), names.image(first, labels), names.image(second, labels)]
        if bool(pairs.same[i]) != (labels[first] == labels[second]):
            raise UsageError(
                f"The pair of {uris[first]} and {uris[second]} is one of "
                f"{'one person' if pairs.same[i] else 'two people'}, but their labels are {labels[first]!r} and "
                f"{labels[second]!r}. Draw the pairs from these labels."
            )
        if not pairs.same[i]:
            fields.insert(2, names.person(second, labels))
        lines.append("\t".join(fields))
    try:
        with written_output(path, PAIRS, force=force) as aside:
            aside.write_bytes(("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise UsageError(f"The pairs cannot be written to {path}: {error.strerror}. Give another file.") from error


class _Names:
    """Indices of images, by URI and by LFW's name."""

    def __init__(self, uris: Sequence[str]) -> None:
        self.uris = uris
        self.by_uri = {uri: index for index, uri in enumerate(uris)}
        self.spelled = {nfc(uri): index for index, uri in enumerate(uris)}
        self.by_name: dict[tuple[str, int], list[int]] = {}
        self.people: dict[str, list[int]] = {}
        for index, uri in enumerate(uris):
            match = _NAME.fullmatch(PurePosixPath(uri).stem)
            # The number of "a_10001" has five digits; "a_00012" is not a name of LFW.
            if match and match[2] == f"{int(match[2]):04}":
                person = nfc(match[1])
                self.by_name.setdefault((person, int(match[2])), []).append(index)
                self.people.setdefault(person, []).append(int(match[2]))

    def index(self, person: str, image: str) -> int:
        """The index of an image given by its number or its URI."""
        person = nfc(person)
        if image in self.by_uri:
            return self.by_uri[image]
        for written in (nfc(image), nfc(image.replace("\\", "/"))):
            if written in self.spelled:
                return self.spelled[written]
        if not _NUMBER.fullmatch(image):
            raise SourceError(f"there is no image {_short(image)}; give the image's number or its URI.")
        if person not in self.people:
            near = get_close_matches(person[:_SHOWN], self.people, n=1)
            names = f" Its images would be called {_short(f'{person[:_SHOWN]}_0001')} and so on."
            hint = f" Did you mean {_short(near[0])}?" if near else names
            raise SourceError(f"there is no image of {_short(person)}.{hint}")
        found = self.by_name.get((person, int(image)), [])
        if not found:
            known = sorted(self.people[person])
            raise SourceError(
                f"there is no image {_short(f'{person}_{int(image):04}')}; {_short(person)} has the numbers "
                f"{', '.join(map(str, known[:12]))}{', …' if len(known) > 12 else ''}."
            )
        if len(found) > 1:
            raise SourceError(
                f"several images are called {_short(f'{person}_{int(image):04}')}: "
                f"{', '.join(_short(self.uris[index]) for index in found[:3])}. Choose one source, or rename one."
            )
        return found[0]

    def person(self, index: int, labels: Sequence[str | None]) -> str:
        """The person's name as a field."""
        return self._field(labels[index], index)

    def image(self, index: int, labels: Sequence[str | None]) -> str:
        """The image's number if it has its person's name, else its URI, as a field."""
        match = _NAME.fullmatch(PurePosixPath(self.uris[index]).stem)
        person = nfc(match[1]) if match else ""
        if match and person == labels[index] and self.by_name.get((person, int(match[2]))) == [index]:
            number = str(int(match[2]))
            if number not in self.by_uri:
                return number
        uri = self.uris[index]
        if self.by_uri[uri] != index:
            raise UsageError(f"Two images have the URI {uri}, so a list cannot name one of them. Choose one source.")
        return self._field(uri, index)

    def _field(self, text: str | None, index: int) -> str:
        if not text or any(sign in text for sign in "\t\n\r") or text != text.strip() or not text.isprintable():
            raise UsageError(
                f"{text!r}, of {self.uris[index]}, cannot be a field of a list of pairs, which tabs and line breaks "
                "separate. Give each person a label, and names without tabs and line breaks."
            )
        return text


def _pair(fields: list[str], same: bool, names: _Names) -> tuple[int, int]:
    """The two images that a line names."""
    if len(fields) != (3 if same else 4):
        form = "NAME⇥1⇥4, a pair of one person," if same else "NAME⇥1⇥OTHER⇥1, a pair of two people,"
        raise SourceError(
            f"{form} is expected here by the first line's count, with tabs between the fields; there "
            f"{'is 1 field' if len(fields) == 1 else f'are {len(fields)} fields'}."
        )
    if not same and fields[0] == fields[2]:
        raise SourceError(f"a pair of two people names {_short(fields[0])} twice.")
    first, second = names.index(*fields[:2]), names.index(fields[-2] if not same else fields[0], fields[-1])
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
    """Check that a pair does not contradict the contents and labels of its images."""
    if sha256 is not None and sha256[first] == sha256[second]:
        raise SourceError(
            f"{_short(uris[first])} and {_short(uris[second])} are one image, byte for byte. Name another image."
        )
    if labels is None or labels[first] is None or labels[second] is None:
        return
    if same != (labels[first] == labels[second]):
        raise SourceError(
            f"{_short(uris[first])} and {_short(uris[second])} are listed as a pair of "
            f"{'one person' if same else 'two people'}, but their labels are {_short(str(labels[first]))} and "
            f"{_short(str(labels[second]))}. Correct the list or the labels."
        )


def _short(text: str) -> str:
    """Text from a file for a message: of limited length, with control characters escaped."""
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines, fields stripped of spaces; empty lines are skipped."""
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
