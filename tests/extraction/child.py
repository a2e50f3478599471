"""Work on a store in a process of its own that may be killed at a failpoint; forked from one that has torch already."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import featcache as fc
from featcache.backbones.runtimes.openvino import library
from featcache.core import failpoints
from featcache.store import writer
from tests.fork_server import fork_server

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

library()  # imported once, before a child is forked

_CONTEXT = fork_server("tests.extraction.child", "torch", "featcache.extraction", "featcache.backbones")


def extract(photos: Path, store: Path, layers: list[str], views: int = 1) -> dict[str, Any]:
    import torch

    from featcache.backbones import tiny_backbone

    torch.set_num_threads(1)
    writer.SEAL_SECONDS = 0.0
    report = fc.extract(
        photos,
        store,
        backbone=tiny_backbone(),
        layers=layers,
        views=views,
        config=fc.ExtractionConfig(batch_size=2),
        progress=False,
    )
    return report.to_dict()


def compact(store: Path) -> dict[str, Any]:
    return fc.compact(store, progress=False).to_dict()


def gc(store: Path) -> dict[str, Any]:
    return fc.gc(store, apply=True, force=True).to_dict()


def repair(store: Path) -> dict[str, Any]:
    return fc.repair(store, progress=False).to_dict()


WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "extract": extract,
    "compact": compact,
    "gc": gc,
    "repair": repair,
}


def _child(answer: Connection, work: str, arguments: tuple[Any, ...], point: str | None, passes: int) -> None:
    left = passes

    def on_reach(reached: str) -> None:
        nonlocal left
        left -= reached == point
        if reached == point and left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.on_reach = on_reach
    answer.send(WORK[work](*arguments))


def run(work: str, *arguments: Any, point: str | None = None, passes: int = 0) -> dict[str, Any] | None:
    """Do some work; kill it when it reaches *point* for the time after *passes*.

    Returns:
        What the work returned, or None if it was killed.
    """
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(theirs, work, arguments, point, passes))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return None
    finally:
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL), f"{work} ended with {process.exitcode}"
