"""Every verb explains itself, and its examples would run."""

from __future__ import annotations

import re
import shlex

import pytest
from typer.main import get_command

from featcache.cli import main
from featcache.cli.app import app
from featcache.heads import HEADS

GROUP = get_command(app)
COMMANDS = {(name,): command for name, command in GROUP.commands.items() if not hasattr(command, "commands")} | {
    (name, inner): command
    for name, group in GROUP.commands.items()
    for inner, command in getattr(group, "commands", {}).items()
}
VERBS = sorted(COMMANDS)


def test_the_verbs():
    expected = {"extract", "status", "verify", "repair", "compact", "gc", "export", "train", "evaluate"}
    expected |= {"predict", "similar", "models", "layers", "demo", "sweep", "check-live", "doctor"}
    expected |= {"finetune", "advise"}
    faces = {("faces", name) for name in ("extract", "train", "verify", "evaluate")}
    assert set(VERBS) == {(name,) for name in expected} | faces


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_parses(verb, capsys):
    assert main([*verb, "--help"]) == 0
    assert "Example: featcache" in capsys.readouterr().out
    dataset = re.findall(r"Example: (featcache .+)", COMMANDS[verb].help)
    assert dataset
    for example in dataset:
        words = shlex.split(example)
        assert tuple(words[1 : 1 + len(verb)]) == verb
        COMMANDS[verb].make_context(" ".join(verb), words[1 + len(verb) :])


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb):
    for parameter in COMMANDS[verb].params:
        assert getattr(parameter, "help", None), f"{verb} {parameter.name}"


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_80_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main([*verb, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_no_words_show_the_help(capsys):
    assert main([]) == 2
    assert "extract" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"featcache \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_train_says_that_it_reads_plain_files(capsys):
    main(["train", "--help"])
    assert ".h5" in capsys.readouterr().out


def test_every_head_is_named_by_train():
    option = next(p for p in GROUP.commands["train"].params if p.name == "head")
    assert sorted(option.metavar.split("|")) == sorted([*HEADS, "MODULE:CLASS(…)"])
    assert all(f"{name}:" in option.help for name in HEADS)


def test_options_of_one_head_say_whose_they_are():
    options = {p.name: p for p in GROUP.commands["train"].params}
    assert all("Of --head mlp:" in options[name].help for name in ("hidden", "dropout"))


@pytest.mark.parametrize(
    ("name", "selecting"),
    [
        ("train", ["split", "labels", "labels_only", "source", "space"]),
        ("evaluate", ["split", "labels", "labels_only", "source", "space"]),
        ("sweep", ["split", "labels", "labels_only", "source", "space"]),
        ("similar", ["source", "space"]),
    ],
)
def test_options_that_select_items_are_one_group(name, selecting):
    panels = {p.name: getattr(p, "rich_help_panel", None) for p in GROUP.commands[name].params}
    assert [option for option, panel in panels.items() if panel == "Selection"] == selecting
