"""dlib, which only faces need: imported when it is first used, its models made once in a process."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from featcache.backbones.dlib_files import FIVE_LANDMARKS, installed_path, published_bytes
from featcache.core.errors import MissingExtraError

_idle_detectors: list[Any] = []


def dlib_library() -> Any:
    """The module ``dlib``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import dlib
    except ImportError as error:
        raise MissingExtraError(
            "Faces are found and aligned by dlib, which is not installed. It comes with: pip install 'featcache[faces]'"
        ) from error
    return dlib


@contextmanager
def face_detector() -> Iterator[Any]:
    """dlib's frontal face detector, one that nobody else uses meanwhile: one that is used by two threads at once gives
    wrong boxes and raises nothing."""
    try:
        detector = _idle_detectors.pop()
    except IndexError:
        detector = dlib_library().get_frontal_face_detector()
    try:
        yield detector
    finally:
        _idle_detectors.append(detector)


@functools.cache
def landmark_predictor() -> Any:
    """dlib's predictor of five landmarks, which any number of threads may use.

    dlib opens the file by its path, after it was checked: whoever can write where pip installs packages could put
    another there in between, and could as well change the packages themselves.

    Raises:
        MissingExtraError: dlib or the predictor's file is not installed.
        WeightsError: the file is not the published one.
    """
    dlib, path = dlib_library(), installed_path(FIVE_LANDMARKS)
    published_bytes(FIVE_LANDMARKS, path)  # dlib itself reads whatever it is given
    return dlib.shape_predictor(str(path))
