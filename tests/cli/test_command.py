"""Exit codes, where messages go, and what `--json` and `--debug` change."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.main import get_command

from featcache.cli import main
from featcache.cli.command import Answer, Debug, Json, command
from featcache.core.errors import StoreError, UsageError


def outcome(work, *words):
    """Run a verb that does *work*; return its exit code."""
    app = typer.Typer()

    @app.command()
    @command(interrupted="Do it again.")
    def do(as_json: Json = False, debug: Debug = False) -> Answer:
        return work()

    return get_command(app).main(args=list(words), standalone_mode=False)


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("This is wrong."), 2),
        (StoreError("That failed."), 1),
        (OSError(28, "No space left on device", "/x"), 1),
        (ValueError("odd"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("words", [[], ["--json"]], ids=["plain", "json"])
def test_an_error_is_one_message_and_a_code(error, code, words, capsys):
    assert outcome(raising(error), *words) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert err.strip()
    if words:
        assert json.loads(out)["exit_code"] == code
    else:
        assert out == ""


def test_a_message_of_ours_is_shown_as_it_is(capsys):
    outcome(raising(UsageError("The folder /a/[b] is wrong.")))
    assert capsys.readouterr().err == "error: The folder /a/[b] is wrong.\n"


def test_a_surprise_names_debug(capsys):
    outcome(raising(ValueError("odd")))
    assert "ValueError: odd" in (said := capsys.readouterr().err)
    assert "--debug" in said


def test_debug_shows_where(capsys):
    assert outcome(raising(StoreError("That failed.")), "--debug") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: That failed.\n")


def test_ctrl_c_says_how_to_go_on(capsys):
    outcome(raising(KeyboardInterrupt()))
    assert "Do it again." in capsys.readouterr().err


def test_json_is_one_object_whatever_a_library_prints(capsys):
    def work():
        print("a library talks")
        return Answer({"n": 1, "loss": float("nan"), "path": "/a/\udcff"}, lambda: print("for people"))

    assert outcome(work, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"n": 1, "loss": None, "path": "/a/\udcff"}
    assert err == "a library talks\n"


def test_numpy_numbers_are_numbers(capsys):
    import numpy as np

    data = {"a": np.float32(0.5), "b": np.int64(3), "c": np.array([1, 2]), "d": np.bool_(True)}
    outcome(lambda: Answer(data, print), "--json")
    assert json.loads(capsys.readouterr().out) == {"a": 0.5, "b": 3, "c": [1, 2], "d": True}


def test_the_exit_code_of_an_answer_counts():
    assert outcome(lambda: Answer({}, lambda: None, exit_code=1)) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["extrakt"], "extract"),
        (["extract"], "SOURCE"),
        (["extract", "photos", "-o", "s", "--batchsize", "3"], "--batch-size"),
        (["extract", "photos", "-o", "s", "--limit", "0"], "--limit"),
        (["extract", "my", "photos", "-o", "s"], "'photos'"),
        (["extract", "s-0.tar", "s-1.tar", "-o", "s"], "in quotes"),
        (
            ["extract", "s-0.tar", "s-1.tar", "s-2.tar", "-o", "s", "--layers", "pooled"],
            "argument 's-1.tar'",
        ),
        (["status", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
@pytest.mark.parametrize("end", [[], ["--json"]], ids=["plain", "json"])
def test_wrong_words_end_with_2(words, said, end, capsys):
    assert main([*words, *end]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert said in err
    assert bool(out) == bool(end)


@pytest.mark.parametrize("show", ["print('x' * 10**6)", "screen.table(['a'], [('x' * 10**6,)])"])
def test_a_closed_pipe_is_quiet(show):
    program = f"""
import sys, typer
from featcache.cli import output as screen
from featcache.cli.command import Answer, command
@command(interrupted="")
def do(as_json: bool = False, debug: bool = False):
    return Answer({{}}, lambda: {show})
typer.run(do)
"""
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | true; echo ${PIPESTATUS[0]}', sys.executable, program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0"
    assert done.stderr == ""
