"""How every command behaves: what it prints where, and with which exit code it ends.

A command returns an `Answer` and prints nothing itself. With ``--json`` stdout carries exactly one JSON
object, whatever a library prints meanwhile goes to stderr, and errors are an object too. Errors are
one message on stderr; the traceback needs ``--debug``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.output import quiet_pipe
from featcache.core.errors import FeatcacheError, UsageError
from featcache.core.outputs import PREDICTIONS, Kind, check_output
from featcache.core.plain import plain
from featcache.core.visible import visible

ADVANCED = "Advanced"
"""The panel of ``--help`` for options that few people need."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
STDOUT = "-"
"""What a file is called that is written to stdout."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace a file that is something else.", rich_help_panel=ADVANCED)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found out: the fields for ``--json``, how to show it to a person, the exit code.

    A field that is an iterator becomes a list.
    """

    data: Mapping[str, Any]
    show: Callable[[], None]
    exit_code: int = 0


def command(
    interrupted: str, writes: Mapping[str, Kind] | None = None
) -> Callable[[Callable[..., Answer]], Callable[..., None]]:
    """Make a Typer command of a function that returns an `Answer`.

    The function takes ``as_json: Json`` and ``debug: Debug`` among its options.

    Args:
        interrupted: what is said after Ctrl-C, a sentence that tells how to go on.
        writes: the options that name a file to write, and what that will be. Before the function is called it is
            checked that they can be written and replace only what they may; the function takes ``force: Force`` too.
    """

    def decorate(function: Callable[..., Answer]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**options: Any) -> None:
            def work() -> Answer:
                _refuse_addresses(options)
                _check_outputs(options, writes or {})
                return function(**options)

            code = _run(work, options["as_json"], options["debug"], interrupted)
            raise typer.Exit(code)

        return run

    return decorate


def _refuse_addresses(options: Mapping[str, Any]) -> None:
    for path in (path for value in options.values() for path in _paths(value)):
        found = _ADDRESS.match(str(path))  # a path has one slash in place of two
        if found and not os.path.lexists(path):
            raise UsageError(f"{found[1]}://{found[2]} is an address on the net. Download it first, and give the file.")


def _check_outputs(options: Mapping[str, Any], writes: Mapping[str, Kind]) -> None:
    for name, kind in writes.items():
        path = options[name]
        if path is None or (kind is PREDICTIONS and str(path) == STDOUT):
            continue
        others = [part for key, value in options.items() if key != name for part in _paths(value)]
        check_output(path, kind, inputs=others, lists=_lists, force=options["force"])


def _lists(given: Path, image: Path) -> bool:
    from featcache.extraction.stored_source import lists

    return lists(given, image)


def _paths(value: Any) -> list[str | Path]:
    """The paths among an option's values."""
    if isinstance(value, list | tuple):
        return [path for part in value for path in _paths(part)]
    return [value] if isinstance(value, Path) or (isinstance(value, str) and os.path.isfile(value)) else []


def fail(text: str, code: int, as_json: bool) -> int:
    """Say what went wrong, and return *code*."""
    print(f"error: {visible(text)}", file=sys.stderr)
    if as_json:
        _print_json({"error": text, "exit_code": code})
    return code


def _run(work: Callable[[], Answer], as_json: bool, debug: bool, interrupted: str) -> int:
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            answer = work()
        if as_json:
            _print_json(answer.data)
        else:
            with quiet_pipe():
                answer.show()
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print(f"\nStopped. {interrupted}", file=sys.stderr)
        if as_json:
            _print_json({"error": "interrupted", "exit_code": 130})
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        return fail(_words(error), getattr(error, "exit_code", 1), as_json)
    return answer.exit_code


def _words(error: Exception) -> str:
    if isinstance(error, FeatcacheError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
        return f"{error.strerror}{where}. Run again with --debug to see where it happened."
    if isinstance(error, MemoryError):
        return "Not enough memory. Try a smaller --batch-size or fewer --layers."
    return f"unexpected {type(error).__name__}: {error}. Run again with --debug to see where it happened."


def _print_json(data: Mapping[str, Any]) -> None:
    with quiet_pipe():
        for part in _json_parts(data):
            sys.stdout.write(part)


def _json_parts(data: Mapping[str, Any]) -> Iterator[str]:
    """One object and a line break. A value that is an iterator becomes a list, which is not held in memory."""
    before = "{"
    for name, value in data.items():
        yield f"{before}{json.dumps(name)}: "
        if isinstance(value, Iterator):
            yield "["
            for place, part in enumerate(value):
                yield f"{', ' if place else ''}{_json(part)}"
            yield "]"
        else:
            yield _json(value)
        before = ", "
    yield "}\n" if data else "{}\n"


def _json(value: Any) -> str:
    # ASCII, since a path may hold bytes that no encoding can print.
    return json.dumps(plain(value), allow_nan=False)
