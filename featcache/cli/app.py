"""All commands under one name, and usage errors.

No framework is imported here: ``featcache --help`` answers at once.
"""

from __future__ import annotations

import inspect
import io
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

import featcache
from featcache.cli import advise, check, demo, evaluate, extract, faces, finetune, models, predict, store, sweep, train
from featcache.cli.command import fail
from featcache.cli.output import BEGAN

app = typer.Typer(
    name="featcache",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PANELS: dict[str, list[Callable[..., None]]] = {
    "First steps": [demo.demo],
    "Images to vectors": [extract.extract],
    "Heads": [train.train, sweep.sweep, evaluate.evaluate],
    "Fine-tuning": [advise.advise, finetune.finetune],
    "Answers": [predict.predict, predict.similar],
    "The store": [store.status, store.export, store.verify, store.repair, store.compact, store.gc],
    "Backbones": [models.models, models.layers],
    "Checks": [check.check_live, check.doctor],
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        # Commands with --layers take the words that follow it; `layer_list` refuses all others.
        _takes_more = "context" in inspect.signature(_command).parameters
        app.command(rich_help_panel=_panel, context_settings={"allow_extra_args": True} if _takes_more else {})(
            _command
        )

app.add_typer(faces.app, name="faces", rich_help_panel="Matching")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"featcache {featcache.__version__}")
        raise typer.Exit


@app.callback()
def _describe(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Run a frozen image network once, keep its vectors, train heads on them again and again.

    Example: featcache extract photos -o pets.fcache
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is not None:  # else the command began with the process
        BEGAN.set(time.monotonic())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A path may hold what the terminal's encoding cannot show; that must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = get_command(app).main(args=words, prog_name="featcache", standalone_mode=False)
    except typer.Abort:
        return 130
    except Exception as error:
        # What Typer raises when the words make no sense; commands let nothing else through.
        if not hasattr(error, "format_message"):
            raise
        return _refuse(error, as_json="--json" in words)
    return code if isinstance(code, int) else 0


def _refuse(error: Any, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    text = error.format_message().rstrip()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text)
        return 2
    if context is not None:
        text += f" Try: {context.command_path} --help"
    return fail(text, error.exit_code, as_json)
