"""Text for a screen: nothing in a name moves the cursor, turns letters around or begins a line."""

from __future__ import annotations

import re

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Text on one line, with control characters, marks of direction and line breaks written as in Python.

    Example:
        >>> print(visible("cats\x1b[2J\n\u202egpj"))
        cats\x1b[2J\n\u202egpj
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
