"""dlib, which only faces need: imported when it is first used."""

from __future__ import annotations

from typing import Any

from featcache.errors import MissingExtraError


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
