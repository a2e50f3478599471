"""What a person sees: sentences, paths that can be copied, and tables that fit 80 columns."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from featcache.core.visible import visible

_IMPORTED = time.monotonic()
BEGAN = ContextVar("BEGAN", default=_IMPORTED)
"""When the command began: with the process, unless another program called it."""
LISTED = 10
"""Images of a run in quarantine that are named."""


class _Screen(Console):
    def on_broken_pipe(self) -> NoReturn:
        # Rich would end the program; `featcache.cli.command` knows better what a closed pipe means.
        raise BrokenPipeError


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Print *text* as one line, what cannot be seen in it escaped; never wrapped, so that paths can be copied."""
    print(visible(text), file=stream)


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """Let ``featcache … | head`` end without a complaint."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Sequence[str]]], right: Sequence[str] = ()) -> None:
    """Print a table; a cell may have several lines.

    Columns named in *right* are aligned right; long cells are folded, never cut.
    """
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*("\n".join(map(visible, [cell] if isinstance(cell, str) else cell)) for cell in row))
    # What reads a pipe or a file has no width to fit: there nothing is folded.
    width = None if sys.stdout.isatty() else 200
    _Screen(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width).print(made)


def percent(value: float | None) -> str:
    """``0.7871`` → ``78.7 %``; nothing known → ``–``."""
    return "–" if value is None or value != value else f"{100 * value:.1f} %"


def number(value: object) -> str:
    """Four digits of what is no whole number: ``0.1778279410038923`` → ``0.1778``; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def size(n: float) -> str:
    """Bytes in the unit that people read: ``10.2 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def span(seconds: float) -> str:
    """``0.42 s``, ``31.5 s``, ``2 min 05 s``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


def took() -> str:
    """How long the command has taken so far, what it imported and saved included."""
    return span(time.monotonic() - BEGAN.get())


def command(*words: object) -> str:
    """A command as it can be pasted into a shell."""
    return shlex.join(os.fspath(w) if isinstance(w, os.PathLike) else str(w) for w in words)


def say_spaces(spaces: Sequence[Mapping[str, Any]]) -> None:
    """Print how spaces compare, from `featcache.training.spaces.SpaceScore.to_dict`; nothing without any."""
    if not spaces:
        return
    several = len({one["backbone"] for one in spaces}) > 1
    table(
        ["space", "accuracy", "against the first", "a second"],
        [
            (
                [*([one["backbone"]] if several else []), one["pixels"] + (" (taken)" if one["chosen"] else "")],
                percent(one["accuracy"]),
                f"{100 * one['difference']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})" if at else "",
                "?" if one["seconds"] is None else f"{1 / one['seconds']:.1f}",
            )
            for at, one in enumerate(spaces)
        ],
        right=["accuracy", "against the first", "a second"],
    )
    say(f"Ridge on pooled of {spaces[0]['items']:,} training items, in folds; intervals that hold together at 95 %.")
    say("Taken is the cheapest of the best that are better than the first beyond chance, or the first.")
    say()


def say_quarantine(quarantine: Sequence[tuple[str, str]], store: str) -> None:
    """Print the first images of a run that have no vector, and why."""
    if not quarantine:
        return
    say(f"  {len(quarantine):,} in quarantine:")
    for uri, reason in quarantine[:LISTED]:
        say(f"    {uri}: {reason}")
    if len(quarantine) > LISTED:
        say(f"    … and {len(quarantine) - LISTED:,} more: {command('featcache', 'status', store)}")
