"""The command line: words on a screen. Commands parse, call the library and print; they decide nothing."""

from __future__ import annotations

from featcache.cli.app import main

__all__ = ["main"]
