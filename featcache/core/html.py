"""Reports as tables in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Protocol

from featcache.core.visible import visible

_LISTED = 10
"""Entries of a list that are shown."""


class _Report(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


class HtmlTable:
    """Gives a report with ``to_dict`` its table in a notebook."""

    __slots__ = ()

    def _repr_html_(self: _Report) -> str:
        return html_table(type(self).__name__, self.to_dict())


def html_table(title: str, fields: Mapping[str, Any]) -> str:
    """A two-column HTML table; all text is escaped.

    Args:
        title: its caption.
        fields: plain values by name; mappings become tables within, of long lists the first entries are shown.

    Example:
        >>> html_table("Report", {"n": 3})
        '<table><caption>Report</caption><tr><th>n</th><td>3</td></tr></table>'
    """
    rows = "".join(
        f"<tr><th>{escape(visible(str(name)))}</th><td>{_cell(value)}</td></tr>" for name, value in fields.items()
    )
    caption = f"<caption>{escape(visible(title))}</caption>" if title else ""
    return f"<table>{caption}{rows}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return html_table("", value)
    if isinstance(value, list | tuple):
        more = f"<br>… {len(value) - _LISTED} more" if len(value) > _LISTED else ""
        return "<br>".join(_cell(entry) for entry in value[:_LISTED]) + more
    return escape(visible(f"{value:.4g}" if isinstance(value, float) else str(value)))
