"""The processes that tests kill are forked from one server, which has imported what they need."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

_preload: list[str] = []


def fork_server(*modules: str) -> ForkServerContext:
    """A context whose processes begin with *modules* imported.

    A test session has one fork server, and `set_forkserver_preload` replaces what others have asked for, so that
    their processes would import torch anew, each of them. Here all get what any has asked for.
    """
    _preload.extend(modules)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preload)
    return context
