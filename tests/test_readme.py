"""What the README says, done: its commands and its Python run, in order, on a small folder."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from featcache.cli import main
from featcache.cli.app import app
from featcache.faces.pairs_file import write_pairs
from featcache.faces.sample_pairs import draw_pairs

from .faces.drawing import draw_face

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "data/README.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("featcache ")]


@pytest.fixture
def desk(tmp_path, draw_images, monkeypatch):
    """A working folder as the README's reader has it: ``photos``, of 8 cats and 8 dogs, and ``new-photos``."""
    photos = draw_images(tmp_path / "photos", each=8)
    (photos / "cats" / "cat-00.jpg").rename(photos / "cats" / "a.jpg")
    new = photos.parent / "new-photos"
    new.mkdir()
    shutil.copy(photos / "dogs" / "dog-03.jpg", new)
    monkeypatch.chdir(photos.parent)
    return photos.parent


@pytest.mark.slow
def test_the_commands_run_in_order(desk, capsys):
    lines = [line for line in COMMANDS if not line.startswith("featcache faces")]
    assert len(lines) > 8
    for line in lines:
        assert main(shlex.split(line, comments=True)[1:]) == 0, (line, capsys.readouterr().err)
    made = {"pets.fcache", "pets.fch", "pets-torch.fch", "pets-best.fch", "pets-cv.fch", "answers.csv", "pets.h5"}
    assert made <= {path.name for path in desk.iterdir()}


@pytest.mark.faces
@pytest.mark.slow
def test_the_commands_on_faces_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for person in range(24):
        (tmp_path / "people" / f"p{person:02}").mkdir(parents=True)
        skin, around = (tuple(int(v) for v in rng.integers(60, 230, 3)) for _ in range(2))
        for number in range(4):
            face = draw_face(int(rng.integers(150, 200)), skin=skin, around=around, turned=float(rng.normal(0, 3)))
            face.save(tmp_path / "people" / f"p{person:02}" / f"p{person:02}_{number + 1:04}.png")
    uris = sorted(path.relative_to("people").as_posix() for path in Path("people").rglob("*.png"))
    labels = [uri.split("/")[0] for uri in uris]
    write_pairs("pairs.txt", draw_pairs(labels, each=3), uris, labels)
    for name, uri in (("a.jpg", uris[0]), ("b.jpg", uris[1])):
        Image.open(Path("people") / uri).save(name)
    lines = [line for line in COMMANDS if line.startswith("featcache faces")]
    assert len(lines) >= 4
    for line in lines:
        assert main(shlex.split(line, comments=True)[1:]) == 0, (line, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "Decision" in said
    assert {"people.fcache", "people.fch", "roc.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.slow
def test_the_python_runs(desk):
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["X"].shape == (16, 1280)
    assert namespace["run"].computed == 16


@pytest.mark.parametrize("page", PAGES)
def test_every_option_named_exists(page):
    """Also those in running text, such as `extract --strict` or a lone `--refit-all`."""
    top = get_command(app).commands
    verbs = top | {name: verb for group in top.values() for name, verb in getattr(group, "commands", {}).items()}
    options: dict[str, set[str]] = {}
    for name, verb in [*top.items(), *(pair for g in top.values() for pair in getattr(g, "commands", {}).items())]:
        options.setdefault(name, set()).update(o for p in verb.params for o in p.opts)
    everything = set().union(*options.values()) | {"--help", "--version"}
    text = (ROOT / page).read_text(encoding="utf-8")
    for code in re.findall(r"`([^`\n]+)`", text) + [line for b in blocks("bash", text) for line in b.splitlines()]:
        if "pip " in code or "git " in code or "scripts/" in code:
            continue
        words = [word.split("=")[0] for word in code.split("#")[0].split()]
        named = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
        verb = next((word for word in words if word in verbs and word != "faces"), None)
        known = options[verb] | {"--help"} if verb else everything
        assert named <= known, f"{page} names {sorted(named - known)} in `{code}`"
        if words[:1] == ["featcache"] and len(words) > 1:
            assert words[1] in verbs, f"{page} names a verb that is not there: `{code}`"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_every_extra_named_exists():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *(ROOT / "scripts").glob("*.sh"), *(ROOT / "featcache").rglob("*.py")]:
        for extra in re.findall(r"featcache\[(\w+)\]|install\.sh (\w+)", path.read_text(encoding="utf-8")):
            name = "".join(extra)
            assert re.search(rf"^{name} = \[", project, flags=re.MULTILINE), f"{path.name} names {name}"


def test_the_ways_to_hand_images_over_stand_where_they_are_counted():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    (ways,) = (part for part in text.split("\n## ")[1:] if part.startswith("Six ways"))
    assert len(re.findall(r"^\*\*", ways, flags=re.MULTILINE)) == 6
    assert len(re.findall(r"^\*\*", text, flags=re.MULTILINE)) == 6
