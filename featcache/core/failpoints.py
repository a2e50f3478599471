"""Named steps of work on a store and of a training's checkpoint, at which tests end the process.

The list is complete: whoever adds a step to the commit protocol adds it here, and the tests kill a
process at every one. In normal use `reach` does nothing, and no option, variable or file changes that:
a test sets `on_reach` in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable

POINTS = (
    "seal: file written",
    "seal: journal noted",
    "seal: renamed",
    "seal: folder flushed",
    "seal: rows inserted",
    "seal: committed",
    "adopt: file checked",
    "adopt: committed",
    "adopt: dropped file removed",
    "compact: file written",
    "compact: journal noted",
    "compact: renamed",
    "compact: rows moved",
    "compact: committed",
    "compact: old file removed",
    "gc: journal noted",
    "gc: rows deleted",
    "gc: committed",
    "gc: file removed",
    "repair: damaged catalogue set aside",
    "repair: catalogue in its place",
    "repair: rows of damaged shard deleted",
    "repair: damaged shard set aside",
    "repair: shard adopted",
    "migrate: copy checked",
    "migrate: former catalogue kept",
    "migrate: backup in its place",
    "migrate: tables changed",
    "migrate: committed",
    "backup: copied",
    "backup: renamed",
    "checkpoint: file written",
    "checkpoint: renamed",
)

on_reach: Callable[[str], None] | None = None


def reach(point: str) -> None:
    """Say that the work has come to *point*, one of `POINTS`."""
    if on_reach is not None:
        on_reach(point)
