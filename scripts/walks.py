"""Run an extraction, a training, a prediction, a face match and an advice, and count the modules that each enters.

Each task runs on drawn images in a process of its own, under `sys.setprofile`. Needs the extra ``faces``. The counts
are part of ``python scripts/structure.py --run``.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from types import FrameType

REPOSITORY = Path(__file__).resolve().parent.parent
GROUND = ("featcache/core/",)
"""What every task uses: not counted among the modules that a task enters, nor is any ``__init__``."""
HEADS = "featcache/heads/__init__.py"
"""The module that knows the heads by their names."""
FEW, MANY, BATCH = 32, 96, 16
"""Images of the two extractions that are compared, and images in one batch."""

Calls = Counter[tuple[str, str, bool]]
"""How often code ran: by file, qualified name, and whether it was called from another file."""


def profiled(work: Callable[[], object]) -> Calls:
    """Count the calls into featcache while *work* runs, in all its threads; a module's body has no name."""
    calls: list[tuple[Any, Any]] = []  # appending is one step, so no thread loses a call of another
    inside = str(REPOSITORY / "featcache")

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(inside):
            calls.append((frame.f_code, frame.f_back and frame.f_back.f_code.co_filename))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return Counter(
        (
            str(Path(code.co_filename).relative_to(REPOSITORY)),
            code.co_qualname if code.co_flags & inspect.CO_OPTIMIZED else "",  # else the body of a module or class
            caller != code.co_filename,
        )
        for code, caller in calls
    )


def prepare(folder: Path) -> None:
    """Draw images, and make the stores and heads that the tasks begin from."""
    import featcache as fc

    sys.path.insert(0, str(REPOSITORY))
    from tests.faces.drawing import draw_face

    rng = np.random.default_rng(0)
    for count in (FEW, MANY):
        for i in range(count):
            place = folder / f"photos-{count}" / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 120, (48, 64, 3), dtype=np.uint8)
            pixels[..., i % 2] += 120
            Image.fromarray(pixels).save(place / f"{i:03}.jpg", quality=90)
    for person, skin in enumerate(rng.integers(90, 240, (16, 3)).tolist()):
        place = folder / "people" / f"person-{person:02}"
        place.mkdir(parents=True)
        for i in range(3):
            draw_face(150 + 20 * i, skin=tuple(skin), turned=3.0 * i).save(place / f"{i}.png")
    for name in ("new", "trained", "advised"):  # a store's first training draws its hold-out
        fc.extract(folder / f"photos-{FEW}", folder / name, progress=False)
    fc.train(folder / "trained", progress=False).save(folder / "photos.fch")
    fc.faces.extract(folder / "people", folder / "people.fcache", progress=False)
    fc.faces.train(folder / "people.fcache", far=0.2, progress=False).save(folder / "people.fch")


def tasks(folder: Path) -> dict[str, Callable[[], object]]:
    """The tasks by name; they need what `prepare` makes."""
    import featcache as fc

    def extract(count: int) -> Callable[[], object]:
        return lambda: fc.extract(
            folder / f"photos-{count}",
            folder / str(count),
            config=fc.ExtractionConfig(batch_size=BATCH),
            progress=False,
        )

    image, person = folder / f"photos-{FEW}" / "a" / "000.jpg", folder / "people" / "person-00"
    return {
        "extract few": extract(FEW),
        "extract many": extract(MANY),
        "train": lambda: fc.train(folder / "new", progress=False),
        "predict": lambda: fc.load(folder / "photos.fch").predict(image),
        "verify": lambda: fc.faces.verify(person / "0.png", person / "1.png", head=folder / "people.fch"),
        "advise": lambda: fc.advise(folder / "advised", budget=60.0, progress=False),
    }


def entered(calls: Iterable[tuple[tuple[str, str, bool], int]], least: int = 1) -> list[str]:
    """The modules with a function that was called *least* times."""
    files = {file for (file, name, _), n in calls if name and n >= least}
    return sorted(file for file in files if not file.startswith(GROUND) and not file.endswith("__init__.py"))


def run_walks() -> dict[str, Any]:
    """Run each task in a fresh process, and count."""
    found: dict[str, Calls] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for task in tasks(Path(folder)):
            done = subprocess.run([sys.executable, __file__, task, folder], stdout=subprocess.PIPE, check=True)
            found[task] = Counter({tuple(key): n for key, n in json.loads(done.stdout.splitlines()[-1])})
    more = found["extract many"]
    more.subtract(found["extract few"])  # what runs once a run is gone
    train = found["train"]
    return {
        "modules entered in each batch of extract": entered(more.items(), (MANY - FEW) // BATCH),
        "modules entered for each image of extract": entered(more.items(), MANY - FEW),
        "modules entered by train": entered(train.items()),
        "modules entered by predict of one image": entered(found["predict"].items()),
        "modules entered by two faces → decision": entered(found["verify"].items()),
        "modules entered by advise": entered(found["advise"].items()),
        "modules loaded by train": sorted({file for file, _, _ in train if not file.endswith("__init__.py")}),
        "modules loaded by predict of one image": sorted(
            {file for file, _, _ in found["predict"] if not file.endswith("__init__.py")}
        ),
        "times train opens the store": sum(n for (_, name, _), n in train.items() if name == "Catalogue.__init__"),
        "times train asks what the head's name means": sum(
            n for (file, name, outside), n in train.items() if file == HEADS and outside and name[:1] not in ("", "_")
        ),
    }


if __name__ == "__main__":
    task, folder = sys.argv[1:]
    print(json.dumps(list(profiled(tasks(Path(folder))[task]).items())))
