"""Every door into featcache, derived from what is public, with the role of each of its parameters.

A door is a function of ``featcache.__all__`` (or of ``backbones`` and ``faces``), a public method of a public class, or
a command. What must hold everywhere is one test over this table (``tests/kinds/``): `doors(role)` names the doors that
take such a parameter, and `World` knows a valid call of each. A parameter that has no role fails
``tests/kinds/test_doors.py``, so nothing becomes public without being looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typer.main import get_command

import featcache as fc
from featcache.backbones.input_size import InputOptions
from featcache.cli import main
from featcache.cli.app import app
from featcache.training.selection import SelectionOptions
from tests.faces.identities import write_people

NUMBERS = "number"
CHOICE = "choice"
FLAG = "flag"

ROLES = {
    # What is read.
    "store": "store", "head": "head", "head_a": "head", "head_b": "head", "against": "head",
    "image": "image", "a": "image", "b": "image", "images": "images", "labels": "labels", "labels_only": "labels",
    "pairs": "pairs", "weights": "weights", "recipe": "recipe", "checkpoint": "checkpoint",
    # What is written.
    "target": "output", "file": "output", "table": "output", "confusion": "output", "figure": "output",
    "curve": "output", "roc": "output",
    # Names.
    "source": "source name", "space": "space", "layer": "layer", "layers": "layers", "from_layer": "layer",
    "split": "split", "view": "view", "name": "name", "version": "name", "pattern": "pattern",
    "backbone": "backbone", "heads": "heads", "init": CHOICE, "arch": CHOICE, "task": CHOICE, "projection": CHOICE,
    "runtime": CHOICE, "precision": CHOICE, "device": CHOICE, "dtype": CHOICE, "axes": CHOICE,
    "class_weight": CHOICE, "detection": "space", "fit": CHOICE,
    # Numbers and switches.
    "n": NUMBERS, "k": NUMBERS, "top": NUMBERS, "seed": NUMBERS, "limit": NUMBERS, "cv": NUMBERS, "far": NUMBERS,
    "prior": NUMBERS, "epochs": NUMBERS, "lr": NUMBERS, "batch_size": NUMBERS, "workers": NUMBERS,
    "image_timeout": NUMBERS, "dropout": NUMBERS, "hidden": "widths", "budget": "budget", "dim": NUMBERS,
    "size": NUMBERS, "prefix_tokens": NUMBERS, "input_size": NUMBERS, "weight_decay": NUMBERS,
    "warmup_fraction": NUMBERS, "layer_decay": NUMBERS, "patience": NUMBERS, "label_smoothing": NUMBERS,
    "quick": FLAG, "yes": FLAG, "force": FLAG, "apply": FLAG, "strict": FLAG, "moved": FLAG, "scaled": FLAG,
    "refit_all": FLAG, "group_near_duplicates": FLAG, "centre_box": FLAG, "csv_safe": FLAG,
    # Objects.
    "progress": "progress", "config": "config", "X": "vectors", "y": "any", "sha256s": "sha256s", "sha256": "sha256s",
    "module": "module", "transform": "transform", "given": "backbone", "batch": "pixels", "pixels": "pixel path",
    "data": "bytes", "text": "text", "other": "recipe", "input_features": "any", "fit_params": "any",
    "load": "any", "blueprint": "any", "cache": "any", "row": "numbers", "function": "any",
}  # fmt: skip
"""What a parameter of this name is, at every door."""

EXCEPTIONS = {
    "featcache extract": {"source": "source", "store": "store to write", "views": NUMBERS, "split": "splits"},
    "featcache faces extract": {"source": "source", "store": "store to write", "split": "splits"},
    "fc.extract": {"source": "source", "store": "store to write", "views": NUMBERS, "split": "splits"},
    "fc.faces.extract": {"source": "source", "store": "store to write", "split": "splits"},
    "fc.CachedEmbedder": {"store": "store to write"},
    "fc.backbones.get": {"name": "backbone"},
    "fc.backbones.bfloat16_floor": {"name": "backbone"},
    "featcache layers": {"backbone": "backbone"},
    "fc.check_live": {"images": "source", "head": "any"},
    "fc.train": {"views": "views", "head": "head name"},
    "featcache train": {"views": "views", "head": "head name"},
    "fc.load": {"path": "head"},
    "fc.Bundle.load": {"path": "head"},
    "fc.Bundle.save": {"path": "output"},
    "fc.FeatureStore": {"path": "store"},
    "fc.FeatureStore.export": {"path": "output"},
    "fc.faces.PairsReport.draw": {"path": "output"},
    "featcache advise": {"target": "store to write"},
    "featcache demo": {"target": "folder to write"},
    "fc.FeatureStore.arrays": {"views": "views"},
    "fc.FeatureStore.view_names": {"views": "views"},
    "fc.FeatureStore.dataset": {"labels": "labels by uri"},
    "fc.finetune": {"views": NUMBERS},
    "fc.activations_needed": {"views": NUMBERS},
    "featcache finetune": {"views": NUMBERS},
    "fc.Backbone.from_module": {"input_size": "widths"},
    "fc.CachedEmbedder.fit": {"X": "images"},
    "fc.CachedEmbedder.transform": {"X": "images"},
    "fc.Backbone.prepare": {"image": "decoded"},
    "fc.Backbone.forward": {"layers": "layer objects"},
    "fc.Recipe": {"backbone": "text", "weights": "text", "runtime": "text", "detection": "text", "format": NUMBERS,
                  "precision": CHOICE},
}  # fmt: skip
"""Where one name means something else."""

ANSWERS = {
    "Advice", "Bundle", "CheckLiveReport", "DoctorReport", "ExtractReport", "Detection", "FacesReport", "Match",
    "PairsReport", "Layer", "LayerInfo", "ModelInfo", "FeatcacheError", "Extractor",
}  # fmt: skip
"""Classes whose objects featcache makes itself: their methods are doors, making one is none."""

ASIDE = {"as_json", "debug", "help", "version", "context"}
"""Parameters of commands that are about the printing."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a door; *flag* is how a command spells it, None where it stands without a name."""

    name: str
    role: str
    required: bool
    flag: str | None = None


@dataclass(frozen=True)
class Door:
    """One way in.

    Attributes:
        name: ``fc.train``, ``fc.Bundle.predict`` or ``featcache train``.
        parameters: those that it takes, in order.
        function: of a door of Python; a method wants its object first. None for a command.
        owner: the class of a method's object.
    """

    name: str
    parameters: tuple[Parameter, ...]
    function: Callable[..., Any] | None = None
    owner: type | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def is_command(self) -> bool:
        return self.function is None

    def with_role(self, *roles: str) -> list[Parameter]:
        """Its parameters of these roles."""
        return [parameter for parameter in self.parameters if parameter.role in roles]


def role_of(door: str, parameter: str) -> str | None:
    """The role of a parameter; None where nobody has said one."""
    return EXCEPTIONS.get(door, {}).get(parameter, ROLES.get(parameter))


def _signature(door: str, function: Callable[..., Any]) -> tuple[Parameter, ...]:
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self" or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if name == "selection":
            found += [Parameter(key, role_of(door, key) or "", False) for key in SelectionOptions.__annotations__]
            continue
        if name == "pixels" and parameter.kind is parameter.VAR_KEYWORD:
            found += [Parameter(key, role_of(door, key) or "", False) for key in InputOptions.__annotations__]
            continue
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        found.append(Parameter(name, role_of(door, name) or "", required))
    return tuple(found)


def _of_class(prefix: str, kind: type) -> list[Door]:
    found = [] if kind.__name__ in ANSWERS else [Door(prefix, _signature(prefix, kind.__init__), kind)]
    for name, member in inspect.getmembers(kind):
        raw = inspect.getattr_static(kind, name)
        if name.startswith("_") or not callable(member) or not _ours(member):
            continue
        door = f"{prefix}.{name}"
        owner = None if isinstance(raw, (classmethod, staticmethod)) else kind
        found.append(Door(door, _signature(door, member), member, owner))
    return found


def _ours(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").startswith("featcache.")


def _commands(command: Any, path: tuple[str, ...] = ("featcache",)) -> list[Door]:
    if hasattr(command, "commands"):
        return [door for name, sub in command.commands.items() for door in _commands(sub, (*path, name))]
    name = " ".join(path)
    parameters = tuple(
        Parameter(p.name, role_of(name, p.name) or "", p.required, p.opts[0] if p.param_type_name == "option" else None)
        for p in command.params
        if p.name not in ASIDE
    )
    return [Door(name, parameters)]


@functools.cache
def table() -> tuple[Door, ...]:
    """All doors."""
    found: dict[str, Door] = {}
    seen: set[Any] = set()
    for room, module in (("fc", fc), ("fc.backbones", fc.backbones), ("fc.faces", fc.faces)):
        for name in module.__all__:
            thing, door = getattr(module, name), f"{room}.{name}"
            if inspect.isclass(thing):
                if thing in seen:
                    continue
                seen.add(thing)
                found |= {one.name: one for one in _of_class(door, thing)}
            elif callable(thing):
                found[door] = Door(door, _signature(door, thing), thing)
    found |= {door.name: door for door in _commands(get_command(app))}
    return tuple(found.values())


def doors(*roles: str) -> list[Door]:
    """The doors that take a parameter of one of these roles; all without roles."""
    return [door for door in table() if not roles or door.with_role(*roles)]


def entries(*roles: str) -> list[tuple[Door, Parameter]]:
    """Each parameter of these roles with its door, to parametrise a test."""
    return [(door, parameter) for door in table() for parameter in door.with_role(*roles)]


def named(pairs: list[tuple[Door, Parameter]]) -> list[str]:
    """The ids of such a test."""
    return [f"{door.name}:{parameter.name}" for door, parameter in pairs]


@dataclass(frozen=True)
class Outcome:
    """What came of a call: a command's exit code and words, or what a function returned."""

    code: int = 0
    out: str = ""
    err: str = ""
    value: Any = None


class World:
    """A folder with what the doors are called on: its own, so that a test may break it.

    ``photos/`` (12 cats, 12 dogs), ``pets.fcache`` with pooled and one block, ``pets.fch``, ``labels.csv``; and, made
    when first asked for, ``people/``, ``people.fcache``, and ``crowd.fcache`` of
    24 people whose vectors are drawn, with ``pairs.csv`` of them.

    Args:
        folder: an empty folder.
        template: a folder that `make` and `make_faces` filled.
        network: the backbone of the store.
    """

    def __init__(self, folder: Path, template: Path, network: str) -> None:
        self.folder, self.network = folder, network
        shutil.copytree(template, folder, dirs_exist_ok=True)
        moved = fc.ExtractionConfig(moved=True)
        fc.extract(folder / "photos", folder / "pets.fcache", backbone=network, config=moved)
        self.seed = self._written = 0

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    @staticmethod
    def make(folder: Path, network: str, draw_images: Callable[..., Path]) -> Path:
        """Fill *folder* with all but the faces."""
        draw_images(folder / "photos")
        lines = [f"{path.relative_to(folder / 'photos').as_posix()},{path.parent.name}\n"
                 for path in sorted((folder / "photos").rglob("*.jpg"))]  # fmt: skip
        (folder / "labels.csv").write_text("path,label\n" + "".join(lines))
        fc.extract(folder / "photos", folder / "pets.fcache", backbone=network, layers=["pooled", "blocks.4:mean"])
        fc.train(folder / "pets.fcache", head="ridge").save(folder / "pets.fch")
        return folder

    @staticmethod
    def make_faces(folder: Path, draw_people: Callable[[Path], Path]) -> Path:
        """Fill *folder* with the people, their store, head and pairs."""
        draw_people(folder / "people")
        fc.faces.extract(folder / "people", folder / "people.fcache")
        write_people(folder / "crowd.fcache", people=24)
        lines = []
        for fold in range(2):
            some = [f"p{12 * fold + person:02}" for person in range(12)]
            lines += [f"{person}\t1\t2\n" for person in some]
            lines += [f"{one}\t1\t{other}\t2\n" for one, other in zip(some, some[1:] + some[:1], strict=True)]
        (folder / "pairs.csv").write_text("2\t12\n" + "".join(lines))
        return folder

    def new_file(self, suffix: str = "") -> Path:
        """A path below ``out/`` where nothing is."""
        self._written += 1
        (self.folder / "out").mkdir(exist_ok=True)
        return self.folder / "out" / f"new-{self._written}{suffix}"

    def valid(self, door: Door, parameter: Parameter) -> Any:
        """A value with which the door does its work."""
        special = _SPECIAL.get((door.name, parameter.name))
        return special(self) if special else _VALUES[parameter.role](self)

    def arguments(self, door: Door, **given: Any) -> dict[str, Any]:
        """What the door needs, and *given*."""
        needed = {p.name: self.valid(door, p) for p in door.parameters if p.required and p.name not in given}
        always = {name: make(self) for name, make in _ALWAYS.get(door.name, {}).items() if name not in given}
        return needed | always | given

    def object_of(self, door: Door) -> Any:
        """An object for a method's door."""
        return _OBJECTS[door.owner.__name__](self)  # type: ignore[union-attr]  # only for methods

    def call(self, door: Door, /, **given: Any) -> Outcome:
        """Go through the door with valid values in place of all that is required and not given.

        Args:
            door: which.
            given: by the names of the parameters; for a command they are written as text.
        """
        arguments = self.arguments(door, **given)
        if door.function is None:
            return run(*self.words(door, arguments))
        first = () if door.owner is None else (self.object_of(door),)
        function = (door.owner and getattr(door.owner, door.name.rsplit(".", 1)[1])) or door.function
        return Outcome(value=function(*first, **arguments))

    def words(self, door: Door, arguments: Mapping[str, Any]) -> list[str]:
        """The command line."""
        options: list[str] = []
        places: list[str] = []
        for parameter in door.parameters:
            if parameter.name not in arguments:
                continue
            value = arguments[parameter.name]
            if parameter.role == FLAG:
                options += [str(parameter.flag)] if value else []
            elif parameter.flag is not None:
                options += [word for one in _listed(value) for word in (parameter.flag, one)]
            else:
                places += _listed(value)
        return [*door.name.split()[1:], *options, "--", *places] if places else [*door.name.split()[1:], *options]


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]


def run(*words: str) -> Outcome:
    """One command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return Outcome(code, out.getvalue(), err.getvalue())


def _store(world: World) -> fc.FeatureStore:
    return fc.open(world["pets.fcache"])


def _module(_: World) -> Any:
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def _image(world: World) -> Path:
    return world["photos"] / "cats" / "cat-00.jpg"


def _recipe(world: World) -> fc.Recipe:
    return fc.backbones.get(world.network).recipe


_VALUES: dict[str, Callable[[World], Any]] = {
    "store": lambda world: world["pets.fcache"],
    "store to write": lambda world: world.new_file(".fcache"),
    "source": lambda world: world["photos"],
    "head": lambda world: world["pets.fch"],
    "image": _image,
    "decoded": lambda world: fc.backbones.get(world.network).decode(_image(world).read_bytes()),
    "images": lambda world: [_image(world)],
    "labels": lambda world: world["labels.csv"],
    "splits": lambda world: "0.8/0.2",
    "pairs": lambda world: world["pairs.csv"],
    "checkpoint": lambda world: world.new_file(".ckpt"),
    "folder to write": lambda world: world.new_file(),
    "source name": lambda world: "photos",
    "space": lambda world: _store(world).spaces[0].fingerprint,
    "layer": lambda world: "pooled",
    "layers": lambda world: ["pooled"],
    "layer objects": lambda world: fc.backbones.get(world.network).resolve_layers(["pooled"]),
    "view": lambda world: "0",
    "views": lambda world: None,
    "name": lambda world: "mine",
    "pattern": lambda world: "bundled:*",
    "backbone": lambda world: world.network,
    "head name": lambda world: "ridge",
    "heads": lambda world: ["ridge"],
    NUMBERS: lambda world: 1,
    "budget": lambda world: 20.0,
    "widths": lambda world: (8,),
    "progress": lambda world: False,
    "config": lambda world: None,
    "vectors": lambda world: _store(world).arrays()[0],
    "sha256s": lambda world: [item.sha256 for item in _store(world).items()],
    "module": _module,
    "transform": lambda world: _recipe(world).pixels.transform,
    "pixels": lambda world: np.zeros((1, *fc.backbones.get(world.network).prepare(
        fc.backbones.get(world.network).decode(_image(world).read_bytes())).shape), np.uint8),
    "pixel path": lambda world: _recipe(world).pixels,
    "recipe": _recipe,
    "bytes": lambda world: _image(world).read_bytes(),
    "numbers": lambda world: np.arange(17, dtype=np.float32),
    "text": lambda world: _recipe(world).to_json(),
    "labels by uri": lambda world: {item.uri: item.label for item in _store(world).items()},
}  # fmt: skip
"""A valid value of each role; roles that are always optional, or belong to one door, have none."""

_FACES = {
    "fc.faces.extract": {"source": "people"},
    "fc.faces.train": {"store": "crowd.fcache"},
    "fc.faces.evaluate": {"store": "crowd.fcache"},
    "fc.faces.detections": {"store": "people.fcache"},
    "fc.faces.aligned_backbone": {"store": "people.fcache"},
    "fc.faces.verify": {"a": "people/ann/near-0.png", "b": "people/ann/near-1.png"},
    "featcache faces extract": {"source": "people"},
    "featcache faces train": {"store": "crowd.fcache"},
    "featcache faces evaluate": {"store": "crowd.fcache"},
    "featcache faces verify": {"a": "people/ann/near-0.png", "b": "people/ann/near-1.png"},
}
FACES = {*_FACES, "fc.faces.embed_faces"}
"""Doors that need dlib and the store of people."""


def _at(name: str) -> Callable[[World], Any]:
    return lambda world: world[name]


_SPECIAL: dict[tuple[str, str], Callable[[World], Any]] = {
    **{(door, name): _at(path) for door, values in _FACES.items() for name, path in values.items()},
    ("fc.faces.embed_faces", "images"): lambda world: [world["people"] / "ann" / "near-0.png"],
    ("fc.faces.embed_faces", "recipe"): lambda world: fc.open(world["people.fcache"]).space("dlib:face_resnet").recipe,
    ("fc.Bundle.on", "backbone"): lambda world: fc.backbones.get(world.network),
    ("fc.FeatureStore.where", "sha256s"): lambda world: [item.sha256 for item in _store(world).items()],
    ("fc.Recipe", "backbone"): lambda world: "test:net",
    ("fc.Recipe", "weights"): lambda world: "0" * 64,
    ("fc.backbones.bfloat16_floor", "name"): lambda world: world.network,
    ("fc.Backbone", "name"): lambda world: "mine:net",
    ("fc.Backbone", "load"): lambda world: fc.backbones.get(world.network).architecture,
    ("fc.activations_needed", "from_layer"): lambda world: "blocks.4",
    ("featcache predict", "table"): lambda world: world.new_file(".csv"),
    ("featcache sweep", "target"): lambda world: world.new_file(".fch"),
    ("featcache export", "file"): lambda world: world.new_file(".npz"),
    ("fc.FeatureStore.export", "path"): lambda world: world.new_file(".npz"),
    ("featcache demo", "target"): lambda world: world.new_file(),
}
_SPECIAL |= {
    (door, "target"): lambda world: world.new_file(".fch")
    for door in ("featcache train", "featcache finetune", "featcache faces train")
}
_SPECIAL |= {
    (door, name): lambda world: world.new_file(".png")
    for door, name in (
        ("featcache evaluate", "confusion"), ("featcache finetune", "curve"), ("featcache advise", "figure"),
        ("featcache faces evaluate", "roc"), ("fc.faces.evaluate", "figure"), ("fc.faces.PairsReport.draw", "path"),
    )
}  # fmt: skip
_SPECIAL |= {("fc.Bundle.save", "path"): lambda world: world.new_file(".fch")}

_ALWAYS: dict[str, dict[str, Callable[[World], Any]]] = {
    # What is not required, but without which the defaults take long.
    "fc.extract": {"backbone": _VALUES["backbone"]},
    "featcache extract": {"backbone": _VALUES["backbone"]},
    "fc.train": {"head": _VALUES["head name"]},
    "featcache train": {"head": _VALUES["head name"]},
    "fc.sweep": {"heads": _VALUES["heads"]},
    "featcache sweep": {"heads": _VALUES["heads"]},
    "fc.advise": {"budget": _VALUES["budget"]},
    "featcache advise": {"budget": _VALUES["budget"]},
    "fc.doctor": {"backbone": _VALUES["backbone"]},
    "featcache doctor": {"backbone": _VALUES["backbone"]},
    "fc.check_live": {"n": lambda world: 4},
    "featcache check-live": {"n": lambda world: 4},
    "fc.finetune": {"init": lambda world: "scratch", "arch": lambda world: "scratch:small_cnn",
                    "config": lambda world: fc.TrainingConfig(epochs=1)},
    "featcache finetune": {"init": lambda world: "scratch", "arch": lambda world: "scratch:small_cnn",
                           "epochs": lambda world: 1},
}  # fmt: skip

_OBJECTS: dict[str, Callable[[World], Any]] = {
    "FeatureStore": _store,
    "Bundle": lambda world: fc.load(world["pets.fch"]),
    "Backbone": lambda world: fc.backbones.get(world.network),
    "CachedEmbedder": lambda world: fc.CachedEmbedder(world.network, world.new_file(".fcache")).fit([_image(world)]),
    "Recipe": _recipe,
    "TrainingConfig": lambda world: fc.TrainingConfig(),
    "Advice": lambda world: fc.advise(world["pets.fcache"], budget=20.0),
    "CheckLiveReport": lambda world: fc.check_live(world["pets.fcache"], 4),
    "DoctorReport": lambda world: fc.doctor(world.network),
    "ExtractReport": lambda world: fc.extract(world["photos"], world.new_file(".fcache"), backbone=world.network),
    "Detection": lambda world: fc.faces.Detection.of_row(np.arange(17, dtype=np.float32)),
    "Extractor": lambda world: fc.backbones.get(world.network),
    "FacesReport": lambda world: fc.faces.extract(world["people"], world.new_file(".fcache")),
    "PairsReport": lambda world: fc.faces.evaluate(world["crowd.fcache"]),
    "Match": lambda world: fc.faces.verify(world["people/ann/near-0.png"], world["people/ann/near-1.png"]),
}


def fields_of(report: Any) -> dict[str, Any]:
    """The fields of a report that is a dataclass."""
    return {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
