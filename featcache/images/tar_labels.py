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
        self._problems: dict[tuple[str, str], tuple[str, bool]] = {}
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
        fields: dict[str, str | None] = {}
        # What is wrong with a text concerns the label alone, with a JSON file perhaps split and group too.
        problem, label_alone = None, ending != "json"
        try:
            if length > LIMIT_BYTES:
                raise _WrongLabelError(f"has {length >> 20} MiB, too much for a label")
            text = os.pread(handle, length, offset).decode("utf-8-sig").strip()
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
        """Label, split and group of a sample, and what is wrong with the files that say so.

        Args:
            key: the sample.
            labels: whether labels are asked for. If not, and in the files after the one that gives the label, a
                wrong label does no harm.
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
