"""Labels that lie in a tar beside the images: ``KEY.cls``, ``KEY.json``, ``KEY.txt``."""

from __future__ import annotations

import json
import os
from typing import Any

LABEL_ENDINGS = ("cls", "json", "txt")
"""In the order in which they are asked."""

LIMIT_BYTES = 1 << 20


class SampleLabels:
    """Label, split and group of the samples of one tar.

    The label is the text of ``KEY.cls`` (a name or a number), else the field ``label`` of the object in ``KEY.json``,
    else the text of ``KEY.txt``. In the JSON file it may be a text, a whole number, or a list of them for several
    labels; the object may have ``split`` and ``group`` too.
    """

    def __init__(self) -> None:
        self._found: dict[str, dict[str, dict[str, str | None]]] = {}
        self._problems: dict[str, str] = {}
        self._seen: dict[str, str] = {}

    def read(self, key: str, ending: str, handle: int, offset: int, length: int) -> None:
        """Note what the file ``KEY.ENDING`` says.

        Args:
            key: the sample.
            ending: one of `LABEL_ENDINGS`.
            handle: descriptor of the tar.
            offset, length: where the file's bytes are in it.

        Raises:
            OSError: they cannot be read.
        """
        name = f"{key}.{ending}"
        if length > LIMIT_BYTES:
            self._problems[key] = f"{name} has {length >> 20} MiB, too much for a label"
            return
        try:
            text = os.pread(handle, length, offset).decode("utf-8-sig").strip()
            fields = _fields(json.loads(text)) if ending == "json" else {"label": text or None}
        except (ValueError, RecursionError) as error:
            what = error if isinstance(error, _WrongLabelError) else "is no JSON" if ending == "json" else "is no text"
            self._problems[key] = f"{name} {what}"
            return
        # One object for equal texts: there may be a million samples of ten classes.
        self._found.setdefault(key, {})[ending] = {
            name: value and self._seen.setdefault(value, value) for name, value in fields.items()
        }

    def of(self, key: str) -> tuple[str | None, str | None, str | None, str | None]:
        """Label, split and group of a sample, and what is wrong with the files that say so."""
        found = self._found.get(key, {})
        label = next((v for e in LABEL_ENDINGS if (v := found.get(e, {}).get("label")) is not None), None)
        described = found.get("json", {})
        return label, described.get("split"), described.get("group"), self._problems.get(key)


class _WrongLabelError(ValueError):
    pass


def _fields(value: Any) -> dict[str, str | None]:
    if not isinstance(value, dict):
        return {}
    label = value.get("label")
    several = label if isinstance(label, list) else [label]
    names = [_text("label", one) for one in several]
    found = {name: _text(name, value.get(name)) for name in ("split", "group")}
    return found | {"label": "|".join(name for name in names if name is not None) or None}


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        (value or "").encode("utf-8")  # JSON can hold half a character, the catalogue cannot
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _WrongLabelError(f"has a {name} that is neither text nor a whole number")
